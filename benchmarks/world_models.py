"""World models at equal parameters: errors, and whether uncertainty knows them, on three data.

    python benchmarks/world_models.py --seeds 0 1 2 3 4

Each model is trained on 80% of a dataset's episodes (a tenth of which choose the weights that are
kept) and measured on the other 20%, on another quality of the same task and on random actions.
Each (dataset, model, seed) is one row of ``benchmarks/results/world_models.jsonl``, written as
soon as it is done; the same command goes on where it stopped. ``--report`` prints the tables of
what is there and writes ``world_models_summary.json``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch

RESULTS = Path(__file__).resolve().parent / "results"
ROWS = RESULTS / "world_models.jsonl"
MODELS = (
    "logo",
    "joint",
    "ensemble",
    "logo, unrolled",
    "joint, unrolled",
    "joint, several scales",
    "joint, equal time",
    "ensemble, equal time",
    "ensemble of 7",
    "ensemble, full members",
    "recurrent",
    "logo, without direct encoder",
    "logo, carrying local predictions",
    "logo, carrying decoded alone",
    "logo, recorded observations alone",
    "logo, with true local changes",
    "logo, one scale",
    "logo, without gates",
    "logo, without pairs",
    "logo, half the updates",
)
JOINTS = ("joint", "joint, unrolled", "joint, several scales")
# What the ablations change: arguments of the model and of its loss.
MODEL_ARGUMENTS: dict[str, dict[str, Any]] = {
    "logo, carrying local predictions": {"carry": "local"},
    "logo, carrying decoded alone": {"carry": "decoded"},
    "logo, one scale": {"frequencies": ()},
    "logo, without gates": {"gates": False},
    "logo, without pairs": {"max_pairs": 0},
}
LOSS_ARGUMENTS: dict[str, dict[str, float]] = {
    "logo, without direct encoder": {"direct": 0.0},
    "logo, recorded observations alone": {"decoded_share": 0.0},
    "logo, with true local changes": {"state": 0.1},
}
TASKS = ("vmas/balance", "vmas/transport", "vmas/navigation", "vmas/wheel")
TASKS += ("mamujoco/halfcheetah_2x3", "mamujoco/hopper_3x1", "mamujoco/ant_2x4", "smax/5m_vs_6m")
DATASETS = tuple(f"{task}-medium-replay" for task in TASKS)
TESTS = ("held-out", "other quality", "random")
ERRORS = ("state_error", "observation_error", "reward_error")
TOLERANCE = 0.05


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS))
    parser.add_argument("--other-quality", default="expert")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--hidden-size", type=int, default=256, help="of LOGO; the others match")
    parser.add_argument("--unroll", type=int, default=4, help="steps, after half the updates")
    parser.add_argument("--test-frames", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--report", action="store_true", help="only print what is there")
    return parser.parse_args()


def read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def count_parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def match_hidden_size(make: Callable[[int], torch.nn.Module], parameters: int) -> int:
    """The hidden size whose model comes closest to a number of parameters."""
    low, high = 1, 2
    while count_parameters(make(high)) < parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if count_parameters(make(middle)) < parameters:
            low = middle
        else:
            high = middle
    size = min((low, high), key=lambda s: abs(count_parameters(make(s)) - parameters))
    found = count_parameters(make(size))
    if abs(found / parameters - 1) > TOLERANCE:
        raise ValueError(f"No hidden size gives {parameters} parameters; nearest {found}.")
    return size


def make_world_model(name: str, spec: Any, hidden_size: int) -> Any:
    """The model, as large as LOGO with a hidden size."""
    from torchrl_logo.modules import (
        EnsembleWorldModel,
        JointWorldModel,
        LOGOWorldModel,
        RecurrentLatentWorldModel,
    )

    if name.startswith("logo"):
        return LOGOWorldModel(spec, hidden_size=hidden_size, **MODEL_ARGUMENTS.get(name, {}))
    # Parameters are counted where none are made.
    target = count_parameters(LOGOWorldModel(spec, hidden_size=hidden_size, device="meta"))

    def make(size: int, device: str | None = "meta") -> Any:
        if name == "recurrent":
            # Heads of attention divide the width.
            sizes = {"hidden_size": 4 * size, "memory_size": 4 * size}
            return RecurrentLatentWorldModel(spec, **sizes, device=device)
        if name.startswith("ensemble"):
            members = 7 if name == "ensemble of 7" else 5
            return EnsembleWorldModel(spec, members=members, hidden_size=size, device=device)
        scales = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0) if name == "joint, several scales" else ()
        return JointWorldModel(spec, hidden_size=size, frequencies=scales, device=device)

    if name == "ensemble, full members":
        target *= 5
    return make(match_hidden_size(make, target), device=None)


def time_updates(models: list[Any], dataset: Any, seed: int, updates: int = 60) -> list[float]:
    """Seconds of the processor that an update of each model takes; the models take turns."""
    from torchrl_logo.objectives.world_model import make_world_model_loss

    losses = [make_world_model_loss(model) for model in models]
    optimizers = [torch.optim.Adam(loss.parameters(), fused=True) for loss in losses]
    for model in models:
        model.fit_normalizers(dataset.data)
    rows = torch.randint(len(dataset.data), (updates, 256))
    seconds = np.zeros((len(models), updates))
    for i in range(updates):
        batch = dataset.data[rows[i]]
        for k, (loss, optimizer) in enumerate(zip(losses, optimizers, strict=True)):
            start = time.process_time()
            terms = loss(batch)
            torch.stack(list(terms.values())).sum().backward()
            torch.nn.utils.clip_grad_norm_(loss.parameters(), 10.0)
            optimizer.step()
            optimizer.zero_grad()
            seconds[k, i] = time.process_time() - start
    return [float(np.median(s)) for s in seconds]


def run_cell(name: str, model: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Trains and measures one model with one seed, in a process of its own."""
    from torchrl_logo.data import load_dataset
    from torchrl_logo.data.metadata import record_versions
    from torchrl_logo.evaluation import evaluate_world_model, measure_uncertainty, trace_open_loop
    from torchrl_logo.evaluation.latent_world_model import evaluate_latent_world_model
    from torchrl_logo.objectives.world_model import make_world_model_loss
    from torchrl_logo.trainers import WorldModelTrainer
    from torchrl_logo.trainers.latent_world_model import train_latent_world_model

    torch.set_num_threads(1)
    dataset = load_dataset(name)
    task = dataset.metadata.task
    train, held_out = dataset.split(0.8, seed=seed)
    torch.manual_seed(seed)
    world_model = make_world_model(model, dataset.spec, args.hidden_size)
    steps, relative = args.steps, None
    if model != "recurrent":
        # Copies, since a model that was timed is no longer fresh.
        pair = [make_world_model(m, dataset.spec, args.hidden_size) for m in ("logo", model)]
        logo_seconds, own_seconds = time_updates(pair, train, seed)
        relative = own_seconds / logo_seconds
        if model.endswith("equal time"):
            steps = round(args.steps / relative)
        if model.endswith("half the updates"):
            steps = args.steps // 2
    torch.manual_seed(seed)
    print(
        f"{name} {model} seed {seed}: {world_model.config}, "
        f"{count_parameters(world_model)} parameters, {steps} updates",
        flush=True,
    )
    start = time.process_time()
    best_update, unroll = steps, 1
    if model == "recurrent":
        world_model.fit_normalizers(train.data)
        train_latent_world_model(world_model, train, steps=steps, seed=seed, progress_bar=False)
    else:
        trainer = WorldModelTrainer(
            world_model,
            train,
            steps=steps,
            seed=seed,
            patience=None,
            loss=make_world_model_loss(world_model, **LOSS_ARGUMENTS.get(model, {})),
            unroll=args.unroll if model.endswith("unrolled") else 1,
            evaluation_interval=max(steps // 5, 1),
            progress_bar=False,
        )
        best_update, unroll = trainer.train().best_update, trainer.unroll
    seconds = time.process_time() - start
    # Other data than those of the default seed, which may be part of a medium-replay.
    tests = {
        "held-out": held_out,
        "other quality": load_dataset(
            f"{task}-{args.other_quality}", frames=args.test_frames, seed=1
        ),
        "random": load_dataset(f"{task}-random", frames=args.test_frames, seed=1),
    }
    measure = evaluate_latent_world_model if model == "recurrent" else evaluate_world_model
    metrics = {test: measure(world_model, data) for test, data in tests.items()}
    if model != "recurrent" and world_model.has_uncertainty:
        traces = [trace_open_loop(world_model, data) for data in tests.values()]
        pooled = torch.cat(traces)
        metrics["pooled"] = measure_uncertainty(pooled)
        # What the choices give: sums that do not fade, and the paths' distance alone.
        unfaded = pooled.get("uncertainty").square().cumsum(1).sqrt()
        metrics["pooled, without fading"] = measure_uncertainty(
            pooled.set("accumulated_uncertainty", unfaded)
        )
        if model.startswith("logo"):
            world_model.expect_errors = False
            traces = [trace_open_loop(world_model, data) for data in tests.values()]
            metrics["pooled, distance alone"] = measure_uncertainty(torch.cat(traces))
    return {
        "dataset": name,
        "model": model,
        "seed": seed,
        "steps": steps,
        "unroll": unroll,
        "update_seconds_over_logo": relative,
        "config": world_model.config,
        "parameters": count_parameters(world_model),
        "best_update": best_update,
        "training_seconds": round(seconds, 1),
        "metrics": metrics,
        "other_quality": args.other_quality,
        "test_frames": args.test_frames,
        "dataset_hash": dataset.metadata.hash,
        "versions": record_versions(),
    }


def report(path: Path) -> None:
    """Prints means over seeds, and geometric means over datasets of LOGO's errors over joint's."""
    rows = read_rows(path)
    datasets = sorted({row["dataset"] for row in rows})
    models = [model for model in MODELS if any(row["model"] == model for row in rows)]

    def mean(dataset: str, model: str, *path: str) -> float:
        """Of the entry at ``path`` over the rows that have it; NaN if none has."""
        values = []
        for row in rows:
            if row["dataset"] == dataset and row["model"] == model:
                entry: Any = row
                for key in path:
                    entry = entry.get(key, {})
                values += [entry] if isinstance(entry, int | float) else []
        return float(np.mean(values)) if values else float("nan")

    figures = ["one_step/" + error for error in ERRORS] + ["one_step/termination_auc"]
    figures += ["one_step/action_mask_f1"]
    figures += [f"open_loop/{error}/{k}" for error in ERRORS for k in (1, 5, 10, 15)]
    figures += ["open_loop/state_error_p99/15"]
    summary: dict[str, Any] = {"seeds": {}, "means": {}, "ratios": {}, "uncertainty": {}}
    for dataset in datasets:
        counts = {m: sum(r["dataset"] == dataset and r["model"] == m for r in rows) for m in models}
        summary["seeds"][dataset] = counts
        print(f"\n{dataset}: means over seeds {counts}")
        summary["means"][dataset] = {
            name: {m: round(mean(dataset, m, name), 3) for m in models}
            for name in ("parameters", "training_seconds", "update_seconds_over_logo")
        }
        for name, values in summary["means"][dataset].items():
            print(f"  {name:47}" + "".join(f"{m} {v:<12g}" for m, v in values.items()))
        for test in TESTS:
            for figure in figures:
                values = {m: mean(dataset, m, "metrics", test, figure) for m in models}
                if not np.isnan(list(values.values())).all():
                    summary["means"][dataset][f"{test}/{figure}"] = values
                    parts = "".join(f"{m} {v:<12.4g}" for m, v in values.items())
                    print(f"  {test:14} {figure:32}{parts}")

    # "best joint": by each figure, the best of its variants.
    rivals = [
        ("logo", "joint"),
        ("logo, unrolled", "joint, unrolled"),
        ("logo", "best joint"),
        ("logo, unrolled", "best joint"),
        ("logo", "joint, equal time"),
        ("logo", "ensemble"),
        ("logo", "ensemble, equal time"),
        ("logo", "recurrent"),
        *((ablation, "logo") for ablation in MODELS if ablation.startswith("logo, ")),
    ]
    for ours, rival in rivals:
        print(f"\n{ours} over {rival}: {', '.join(datasets)}, and their geometric mean")
        for name in (f"{test}/{figure}" for test in TESTS for figure in figures):
            ratios = {}
            for dataset in datasets:
                values = dict(summary["means"][dataset].get(name, {}))
                joint = [values.get(m, np.nan) for m in JOINTS]
                values["best joint"] = float(np.min(joint))  # NaN unless all are there
                # Without an error of the rival's (a constant feature) there is no ratio.
                ratio = values.get(ours, np.nan) / (values.get(rival, np.nan) or np.nan)
                if np.isfinite(ratio) and ratio > 0:
                    ratios[dataset] = ratio
            if ratios and "error" in name:
                over_all = float(np.exp(np.mean(np.log(list(ratios.values())))))
                place = summary["ratios"].setdefault(f"{ours} / {rival}", {})
                place[name] = {**ratios, "geometric_mean": over_all}
                parts = "".join(f"{ratios.get(dataset, np.nan):8.3f}" for dataset in datasets)
                print(f"  {name:45}{parts}   {over_all:.3f}")

    print("\nUncertainty, accumulated along the rollout: rho with the error, error kept at 50%")
    for dataset in datasets:
        for test in (*TESTS, "pooled"):
            prefix = "" if test == "pooled" else "open_loop/"
            found = {
                m: [
                    mean(dataset, m, "metrics", test, prefix + figure)
                    for figure in ("accumulated_uncertainty_rho", "kept_error_ratio")
                ]
                for m in models
                if not m.startswith("joint")
            }
            summary["uncertainty"][f"{dataset}/{test}"] = found
            parts = "   ".join(f"{m} {rho:.3f} {kept:.3f}" for m, (rho, kept) in found.items())
            print(f"  {dataset:30} {test:14} {parts}")
    text = json.dumps(replace_missing(summary), indent=2, allow_nan=False) + "\n"
    path.with_name(f"{path.stem}_summary.json").write_text(text)


def replace_missing(entry: Any) -> Any:
    """The summary with ``null``, which JSON has, for NaN and infinities, which it has not."""
    if isinstance(entry, dict):
        return {key: replace_missing(value) for key, value in entry.items()}
    if isinstance(entry, list):
        return [replace_missing(value) for value in entry]
    return None if isinstance(entry, float) and not np.isfinite(entry) else entry


def main() -> None:
    args = parse_arguments()
    RESULTS.mkdir(parents=True, exist_ok=True)
    if not args.report:
        done = {(r["dataset"], r["model"], r["seed"]) for r in read_rows(args.rows)}
        # Seed by seed, so that what is there after any time is a fair comparison.
        cells = [
            (dataset, model, seed)
            for seed in args.seeds
            for dataset in args.datasets
            for model in args.models
            if (dataset, model, seed) not in done
        ]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(args.processes, mp_context=context) as pool:
            futures = [pool.submit(run_cell, *cell, args) for cell in cells]
            for future in as_completed(futures):
                row = future.result()
                with args.rows.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                error = row["metrics"]["held-out"]["open_loop/state_error/15"]
                print(
                    f"{row['dataset']} {row['model']} seed {row['seed']}: 15-step state error "
                    f"{error:.4f} ({row['training_seconds']:.0f} s)",
                    flush=True,
                )
    report(args.rows)


if __name__ == "__main__":
    main()
