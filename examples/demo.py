"""The main job in one command: offline data become a better policy through a world model.

Trains BC, model-free MACQL and LOGO on one shipped medium-replay dataset, evaluates each final
policy, and prints a table. Every run is in MLflow. ``make demo`` runs it with its defaults.

    python examples/demo.py --task vmas/balance --seed 0
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from torchrl_logo.data import load_dataset
from torchrl_logo.data.reference_returns import reference_returns
from torchrl_logo.mistakes import explain_mistakes
from torchrl_logo.trainers import train_tracked

METHODS = ("bc", "macql", "logo")


def positive(text: str) -> int:
    """Looked at here, and not only in the processes that train."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, found {text}")
    return int(text)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="vmas/balance", help="a task with embedded data")
    parser.add_argument("--quality", default="medium-replay")
    parser.add_argument(
        "--steps", type=positive, default=6000, help="policy updates of MACQL and LOGO"
    )
    parser.add_argument("--bc-steps", type=positive, default=3000)
    parser.add_argument("--world-model-steps", type=positive, default=3000)
    parser.add_argument("--episodes", type=positive, default=128, help="of the final evaluation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs") / "demo")
    parser.add_argument("--processes", type=positive, default=min(2, os.cpu_count() or 1))
    return parser.parse_args()


def train_one(method: str, args: argparse.Namespace) -> dict:
    """Trains and evaluates one method; runs in a process of its own."""
    torch.set_num_threads(1)
    dataset = load_dataset(f"{args.task}-{args.quality}")
    tracked = train_tracked(
        method,
        dataset,
        steps=args.bc_steps if method == "bc" else args.steps,
        seed=args.seed,
        eval_episodes=args.episodes,
        experiment="demo",
        runs_dir=args.out.parent,
        **({"world_model_steps": args.world_model_steps} if method == "logo" else {}),
    )
    evaluation = tracked.evaluation
    return {
        "return": evaluation.mean,
        "interval": list(evaluation.interval),
        "normalized": evaluation.normalized,
        "normalized_interval": list(evaluation.normalized_interval or ()),
        "run_id": tracked.run_id,
        "ui_command": tracked.ui_command,
    }


def train_all(args: argparse.Namespace) -> dict[str, dict]:
    """Trains LOGO beside the two baselines, which together take about as long."""
    queues = [["logo"], ["macql", "bc"]] if args.processes > 1 else [["bc", "macql", "logo"]]
    context = multiprocessing.get_context("spawn")
    futures, pools = {}, []
    for position, methods in enumerate(queues):
        # Each process draws its progress bar on a line of its own.
        os.environ |= {"TQDM_POSITION": str(position), "TQDM_MININTERVAL": "1"}
        pools.append(ProcessPoolExecutor(1, mp_context=context))
        futures |= {method: pools[-1].submit(train_one, method, args) for method in methods}
    trained = {method: future.result() for method, future in futures.items()}
    for pool in pools:
        pool.shutdown()
    return trained


@explain_mistakes
def main() -> None:
    args = parse_arguments()
    start = time.monotonic()
    dataset = load_dataset(f"{args.task}-{args.quality}")  # generated on first use
    print(dataset, flush=True)
    reference = reference_returns(args.task)
    if reference is None:
        raise SystemExit(f"{args.task} has no reference returns: the demo needs embedded data.")
    trained = train_all(args)

    data_return = float(dataset.returns.mean())
    fixed = {"random": reference.random, "dataset": data_return, "expert": reference.expert}
    rows = [(name, value, None, reference.normalize(value), None) for name, value in fixed.items()]
    for method in METHODS:
        row = trained[method]
        label = method.upper()
        rows.insert(
            -1,
            (label, row["return"], row["interval"], row["normalized"], row["normalized_interval"]),
        )
    print(f"\n{args.task}, {args.quality} data, final policies over {args.episodes} episodes")
    print(f"{'':10}{'return':>10}{'95% interval':>20}{'normalised':>14}{'95% interval':>18}")
    for name, value, interval, score, score_interval in rows:
        spread = "" if interval is None else f"[{interval[0]:.2f}, {interval[1]:.2f}]"
        score_spread = (
            "" if score_interval is None else f"[{score_interval[0]:.1f}, {score_interval[1]:.1f}]"
        )
        print(f"{name:10}{value:>10.2f}{spread:>20}{score:>14.1f}{score_spread:>18}")
    print("(intervals: bootstrap over episodes of this one seed)")

    result = {
        "task": args.task,
        "dataset": f"{args.task}-{args.quality}",
        "dataset_hash": dataset.metadata.hash,
        "seed": args.seed,
        "episodes": args.episodes,
        "random": reference.random,
        "dataset_return": data_return,
        **{method: trained[method]["return"] for method in METHODS},
        "expert": reference.expert,
        "normalized": {
            "dataset": reference.normalize(data_return),
            **{method: trained[method]["normalized"] for method in METHODS},
        },
        "intervals": {method: trained[method]["interval"] for method in METHODS},
        "mlflow_run_ids": [trained[method]["run_id"] for method in METHODS],
        "seconds": time.monotonic() - start,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"\n{result['seconds']:.0f} s; written to {args.out / 'result.json'}")
    print(f"See the runs:  .venv/bin/{trained['logo']['ui_command']}")


if __name__ == "__main__":
    main()
