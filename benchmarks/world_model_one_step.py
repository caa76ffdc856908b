"""One-step and 15-step errors of LOGO's model and a joint one, at equal parameters and updates.

    python benchmarks/world_model_one_step.py --tasks vmas/balance vmas/transport --seeds 0 1 2 3 4

Each (task, seed, model) is one row of ``benchmarks/results/world_model_one_step.jsonl``; the same
command goes on where it stopped, and prints the table at its end. Errors are measured on the
episodes that the seed's split holds out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch

RESULTS = Path(__file__).resolve().parent / "results"
ROWS = RESULTS / "world_model_one_step.jsonl"
MODELS = ("logo", "joint")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["vmas/balance", "vmas/transport"])
    parser.add_argument("--quality", default="medium-replay")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--hidden-size", type=int, default=256, help="of LOGO; the joint matches")
    parser.add_argument("--processes", type=int, default=2)
    return parser.parse_args()


def read_rows() -> list[dict[str, Any]]:
    if not ROWS.exists():
        return []
    return [json.loads(line) for line in ROWS.read_text().splitlines() if line]


def run_cell(task: str, quality: str, model: str, seed: int, args: argparse.Namespace) -> dict:
    """Trains and measures one model with one seed, in a process of its own."""
    from torchrl_logo.data import load_dataset
    from torchrl_logo.data.metadata import record_versions
    from torchrl_logo.modules import JointWorldModel, LOGOWorldModel
    from torchrl_logo.trainers import WorldModelTrainer

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    dataset = load_dataset(f"{task}-{quality}")
    logo = LOGOWorldModel.from_dataset(dataset, hidden_size=args.hidden_size)
    size = sum(p.numel() for p in logo.parameters())
    world_model = (
        logo if model == "logo" else JointWorldModel.from_dataset(dataset, match_parameters=size)
    )
    start = time.monotonic()
    result = WorldModelTrainer(
        world_model, dataset, steps=args.steps, seed=seed, patience=None, progress_bar=False
    ).train()
    return {
        "task": task,
        "quality": quality,
        "model": model,
        "seed": seed,
        "steps": args.steps,
        "parameters": sum(p.numel() for p in world_model.parameters()),
        "best_update": result.best_update,
        "metrics": result.metrics,
        "dataset_hash": dataset.metadata.hash,
        "versions": record_versions(),
        "seconds": round(time.monotonic() - start, 1),
    }


def report() -> None:
    from torchrl_logo.evaluation import bootstrap_interval

    rows = read_rows()
    for task in sorted({row["task"] for row in rows}):
        print(f"\n{task}: errors on held-out episodes, mean [95% interval] over seeds")
        for metric in (
            "one_step/state_error",
            "one_step/observation_error",
            "one_step/reward_error",
            "open_loop/state_error/15",
        ):
            parts = []
            for model in MODELS:
                values = np.array(
                    [
                        r["metrics"][metric]
                        for r in rows
                        if r["task"] == task and r["model"] == model
                    ]
                )
                if len(values) > 1:
                    low, high = bootstrap_interval(values)
                    parts.append(f"{model} {values.mean():.4f} [{low:.4f}, {high:.4f}]")
            print(f"  {metric:28} " + "   ".join(parts))


def main() -> None:
    args = parse_arguments()
    RESULTS.mkdir(parents=True, exist_ok=True)
    done = {(r["task"], r["quality"], r["model"], r["seed"]) for r in read_rows()}
    cells = [
        (task, args.quality, model, seed)
        for seed in args.seeds
        for task in args.tasks
        for model in MODELS
        if (task, args.quality, model, seed) not in done
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.processes, mp_context=context) as pool:
        futures = [pool.submit(run_cell, *cell, args) for cell in cells]
        for future in as_completed(futures):
            row = future.result()
            with ROWS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            error = row["metrics"]["one_step/state_error"]
            print(
                f"{row['task']} {row['model']} seed {row['seed']}: one-step state error "
                f"{error:.4f} ({row['parameters']} parameters, {row['seconds']:.0f} s)",
                flush=True,
            )
    report()


if __name__ == "__main__":
    main()
