"""Collects every embedded dataset twice, and looks whether it is the same and in its place.

    python benchmarks/datasets.py

For each task and quality: the hash of two collections in two folders and two processes, the mean
return with its 95% bootstrap interval over episodes, and the seconds that collecting took. Each
dataset is one row of ``benchmarks/results/datasets.jsonl``; the same command goes on where it
stopped. ``--check`` collects once what has a row there, on another machine say, writes the hashes
and what machine it was to ``benchmarks/results/datasets_check.jsonl``, and fails where one differs.
``--report`` prints the table and whether random < medium-replay < medium < expert holds with
intervals that do not overlap.

PyTorch computes matrix products and many functions with Intel's MKL, which takes other ways on
processors of other makers, with results that differ in the last bit. ``--check --mkl intel`` tells
MKL that any processor is Intel's (which needs a C compiler): where hashes then agree, nothing else
differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

RESULTS = Path(__file__).resolve().parent / "results" / "datasets.jsonl"
CHECKED = RESULTS.with_name("datasets_check.jsonl")
# What MKL asks its processor, answered with yes.
AS_INTEL = "int mkl_serv_intel_cpu_true(void) { return 1; }"
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


def find_processor() -> str:
    """The processor's name: other processors may round differently."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    found = {key.strip(): value.strip() for key, value in found.items()}
    numbers = [found.get(key, "?") for key in ("cpu family", "model", "stepping")]
    return f"{found.get('model name', '?')} (family, model, stepping: {', '.join(numbers)})"


def run(names: list[str], frames: int, processes: int, times: int) -> Iterator[dict[str, Any]]:
    """One row a dataset, which is collected so many times in as many processes."""
    context = multiprocessing.get_context("spawn")
    # A process ends after each collection: the second one shares nothing with the first.
    with ProcessPoolExecutor(processes, mp_context=context, max_tasks_per_child=1) as pool:
        futures = [
            [pool.submit(collect_once, name, frames) for _ in range(times)] for name in names
        ]
        for name, collections in zip(names, futures, strict=True):
            found = [future.result() for future in collections]
            row = found[0] | {"processor": find_processor()}
            if times > 1:
                row["same_hash_again"] = len({f["hash"] for f in found}) == 1
            print(f"{name}: return {row['mean_return']:g}, {row['seconds']:.0f} s", flush=True)
            yield row


def append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


@contextlib.contextmanager
def as_on_intel() -> Iterator[None]:
    """Processes that are started meanwhile take MKL's ways for Intel's processors."""
    before = os.environ.get("LD_PRELOAD")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "as_intel.so")
        command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
        subprocess.run(command, input=AS_INTEL.encode(), check=True)
        os.environ["LD_PRELOAD"] = str(library)
        try:
            yield
        finally:
            del os.environ["LD_PRELOAD"]
            if before is not None:
                os.environ["LD_PRELOAD"] = before


def check(names: list[str], processes: int, mkl: str) -> list[str]:
    """Collects once what was collected before, and finds the datasets whose hash is another."""
    rows = read_rows(RESULTS)
    checked = {key[:-1]: row for key, row in read_rows(CHECKED, "mkl").items() if key[-1] == mkl}
    names = [name for name in names if (name,) in rows]
    with as_on_intel() if mkl == "intel" else contextlib.nullcontext():
        for frames in sorted({rows[name,]["frames"] for name in names}):
            missing = [n for n in names if (n,) not in checked and rows[n,]["frames"] == frames]
            for row in run(missing, frames, processes, times=1):
                key = (row["dataset"],)
                checked[key] = row | {"mkl": mkl, "same_hash": row["hash"] == rows[key]["hash"]}
                append(CHECKED, checked[key])
    return [name for name in names if not checked[name,]["same_hash"]]


def read_rows(path: Path, *further: str) -> dict[tuple[str, ...], dict[str, Any]]:
    """The rows of a file by dataset and further fields."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines() if line]
    return {tuple(row[field] for field in ("dataset", *further)): row for row in rows}


def report() -> None:
    rows = {name: row for (name,), row in read_rows(RESULTS).items()}
    for task in sorted({name.rsplit("-", 1)[0].removesuffix("-medium") for name in rows}):
        found = [rows[f"{task}-{quality}"] for quality in ORDER if f"{task}-{quality}" in rows]
        # Neighbours' intervals do not overlap.
        apart = all(
            a["interval"][1] < b["interval"][0] for a, b in zip(found[:-1], found[1:], strict=True)
        )
        same = all(row["same_hash_again"] for row in found)
        means = "  ".join(f"{row['mean_return']:10.2f}" for row in found)
        print(f"{task:26}{means}   apart: {apart}   same hash twice: {same}")
    checked = read_rows(CHECKED, "processor", "mkl")
    for processor, mkl in sorted({key[1:] for key in checked}):
        found = [row["same_hash"] for key, row in checked.items() if key[1:] == (processor, mkl)]
        print(f"{processor}, MKL for {mkl}: same hash in {sum(found)} of {len(found)}")


def main() -> None:
    from torchrl_logo.data import available_datasets

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", default=None, help="all by default")
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--mkl", choices=("this processor", "intel"), default="this processor")
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    names = args.datasets or list(available_datasets())
    if args.check:
        differ = check(names, args.processes, args.mkl)
        raise SystemExit(f"Other hashes than committed: {differ}" if differ else 0)
    if not args.report:
        known = read_rows(RESULTS)
        missing = [name for name in names if (name,) not in known]
        for row in run(missing, args.frames, args.processes, times=2):
            append(RESULTS, row)
    report()


if __name__ == "__main__":
    main()
