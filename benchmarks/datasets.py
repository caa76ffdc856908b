"""Collects every embedded dataset twice, and looks whether it is the same and in its place.

    python benchmarks/datasets.py

For each task and quality: the hash of two collections in two folders and two processes, the mean
return with its 95% bootstrap interval over episodes, and the seconds that collecting took. Each
dataset is one row of ``benchmarks/results/datasets.jsonl``; the same command goes on where it
stopped. ``--check`` compares the rows that are there with what this machine collects and fails
where a hash differs, ``--report`` prints the table and whether random < medium-replay < medium <
expert holds with intervals that do not overlap.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

RESULTS = Path(__file__).resolve().parent / "results" / "datasets.jsonl"
ORDER = ("random", "medium-replay", "medium", "expert")


def collect_once(name: str, frames: int) -> dict[str, Any]:
    """Collects into an empty folder, in a process of its own."""
    from torchrl_logo.data import load_dataset
    from torchrl_logo.data.metadata import record_versions

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        start = time.perf_counter()
        dataset = load_dataset(name, root=root, frames=frames)
        seconds = time.perf_counter() - start
        returns = dataset.returns.numpy()
        draws = np.random.default_rng(0).integers(len(returns), size=(2000, len(returns)))
        low, high = np.quantile(returns[draws].mean(-1), [0.025, 0.975])
        return {
            "dataset": name,
            "frames": frames,
            "transitions": len(dataset),
            "episodes": len(returns),
            "hash": dataset.metadata.hash,
            "mean_return": round(float(returns.mean()), 4),
            "interval": [round(float(low), 4), round(float(high), 4)],
            "seconds": round(seconds, 1),
            "versions": record_versions(),
        }


def run(names: list[str], frames: int, processes: int, again: bool) -> list[dict[str, Any]]:
    """One row a dataset, collected once, or twice in two processes."""
    context = multiprocessing.get_context("spawn")
    rows = []
    # A process ends after each collection: the second one shares nothing with the first.
    with ProcessPoolExecutor(processes, mp_context=context, max_tasks_per_child=1) as pool:
        futures = [
            [pool.submit(collect_once, name, frames) for _ in range(1 + again)] for name in names
        ]
        for name, pair in zip(names, futures, strict=True):
            found = [future.result() for future in pair]
            row = {**found[0], "same_hash_again": len({f["hash"] for f in found}) == 1}
            print(f"{name}: return {row['mean_return']:g}, {row['seconds']:.0f} s", flush=True)
            rows.append(row)
            if again:
                with RESULTS.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    return rows


def read_rows() -> dict[str, dict[str, Any]]:
    if not RESULTS.exists():
        return {}
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines() if line]
    return {row["dataset"]: row for row in rows}


def report(rows: dict[str, dict[str, Any]]) -> None:
    for task in sorted({name.rsplit("-", 1)[0].removesuffix("-medium") for name in rows}):
        found = [rows[f"{task}-{quality}"] for quality in ORDER if f"{task}-{quality}" in rows]
        # Neighbours' intervals do not overlap.
        apart = all(
            a["interval"][1] < b["interval"][0] for a, b in zip(found[:-1], found[1:], strict=True)
        )
        same = all(row["same_hash_again"] for row in found)
        means = "  ".join(f"{row['mean_return']:10.2f}" for row in found)
        print(f"{task:26}{means}   apart: {apart}   same hash twice: {same}")


def main() -> None:
    from torchrl_logo.data import available_datasets

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", default=None, help="all by default")
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    rows = read_rows()
    names = args.datasets or list(available_datasets())
    if args.check:
        names = [name for name in names if name in rows]
        found = run(names, args.frames, args.processes, again=False)
        differ = [row["dataset"] for row in found if row["hash"] != rows[row["dataset"]]["hash"]]
        raise SystemExit(f"Other hashes than committed: {differ}" if differ else 0)
    if not args.report:
        missing = [name for name in names if name not in rows]
        run(missing, args.frames, args.processes, again=True)
    report(read_rows())


if __name__ == "__main__":
    main()
