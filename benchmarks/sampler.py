"""Time of a batch from UncertaintySampler, and from TorchRL's uniform and prioritized samplers.

    python benchmarks/sampler.py --sizes 100000 1000000 10000000

A batch is an index and its gather from a buffer in memory. The samplers take turns, in an order
that alternates; ratios are medians over the rounds of one run. Beside it: the time to re-weight
everything, the time of an append and the draw after it, and how far the distribution of many
draws is from the weights (a chi-squared statistic over bins of equal uncertainty).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torchrl.data import (
    LazyTensorStorage,
    PrioritizedSampler,
    RandomSampler,
    TensorDictReplayBuffer,
)

from torchrl_logo.data import UncertaintySampler
from torchrl_logo.data.metadata import record_versions

RESULTS = Path(__file__).resolve().parent / "results" / "sampler.json"
STATE_SIZE = 8
APPENDED = 1024
BINS = 100


def make_buffers(size: int) -> tuple[dict[str, TensorDictReplayBuffer], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    uncertainty = torch.rand(size, generator=generator) * 20
    state = torch.rand(size, STATE_SIZE, generator=generator)
    data = TensorDict({"state": state, "uncertainty": uncertainty}, [size])
    storage = LazyTensorStorage(size)
    samplers = {
        "uniform": RandomSampler(),
        "prioritized": PrioritizedSampler(size, alpha=1.0, beta=0.0),
        "uncertainty": UncertaintySampler(size, C=16.0, temperature=1.0),
    }
    buffers = {}
    for name, sampler in samplers.items():
        # One storage: all of them gather from the same memory.
        buffers[name] = TensorDictReplayBuffer(
            storage=storage, sampler=sampler, priority_key="uncertainty"
        )
    buffers["uniform"].extend(data)
    index = torch.arange(size)
    weight = ((16 - uncertainty).clamp_min(0)).exp()
    buffers["prioritized"].sampler.extend(index)
    buffers["prioritized"].sampler.update_priority(index, weight, storage=storage)
    buffers["uncertainty"].sampler.update_priority(index, uncertainty, storage=storage)
    return buffers, uncertainty


def measure_seconds(run: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def take_turns(runs: dict[str, Callable[[], object]], rounds: int, repeats: int) -> dict[str, Any]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for number in range(rounds):
        for name in list(runs)[:: 1 if number % 2 == 0 else -1]:
            times[name].append(measure_seconds(runs[name], repeats))
    row: dict[str, Any] = {f"{n}_us": statistics.median(t) * 1e6 for n, t in times.items()}
    for other in set(runs) - {"uncertainty"}:
        ratios = [a / b for a, b in zip(times["uncertainty"], times[other], strict=True)]
        row[f"uncertainty_over_{other}"] = statistics.median(ratios)
    return row


def measure_distribution(
    buffer: TensorDictReplayBuffer, uncertainty: torch.Tensor, draws: int
) -> dict[str, Any]:
    """Draws against the weights, computed on their own in float64."""
    weight = (16 - uncertainty.double()).clamp_min(0).exp()
    expected = torch.zeros(BINS, dtype=torch.float64)
    bins = (uncertainty * (BINS / 20)).long().clamp_max(BINS - 1)
    expected.scatter_add_(0, bins, weight)
    expected *= draws / weight.sum()
    index, _ = buffer.sampler.sample(buffer.storage, draws)
    found = torch.bincount(bins[index], minlength=BINS).double()
    # Bins of few expected draws are pooled: the statistic is of its distribution only beyond.
    many = expected >= 5
    found = torch.cat([found[many], found[~many].sum().view(1)])
    expected = torch.cat([expected[many], expected[~many].sum().view(1)])
    found, expected = found[expected > 0], expected[expected > 0]
    degrees = len(expected) - 1
    chi = float(((found - expected) ** 2 / expected).sum())
    # Standard deviations from the mean of the chi-squared distribution.
    z = (chi - degrees) / (2 * degrees) ** 0.5
    return {"draws": draws, "chi_squared": chi, "degrees": degrees, "z": z}


def measure_size(size: int, batch_sizes: list[int], rounds: int) -> list[dict[str, Any]]:
    buffers, uncertainty = make_buffers(size)
    rows: list[dict[str, Any]] = []
    for batch in batch_sizes:

        def draw_from(name: str, batch: int = batch) -> Callable[[], object]:
            return lambda: buffers[name].sample(batch)

        row = take_turns({name: draw_from(name) for name in buffers}, rounds, 5)
        rows.append({"measured": "draw", "size": size, "batch": batch, **row})
    storage = buffers["uniform"].storage
    index, weight = torch.arange(size), (16 - uncertainty).clamp_min(0).exp()

    def reweight(name: str, value: torch.Tensor) -> Callable[[], object]:
        sampler = buffers[name].sampler

        def run() -> None:
            sampler.update_priority(index, value, storage=storage)
            sampler.sample(storage, 1)

        return run

    runs = {
        "prioritized": reweight("prioritized", weight),
        "uncertainty": reweight("uncertainty", uncertainty),
    }
    rows.append({"measured": "reweight", "size": size, **take_turns(runs, 3, 1)})
    sampler = buffers["uncertainty"].sampler

    def append() -> None:
        sampler.update_priority(index[:APPENDED], uncertainty[:APPENDED], storage=storage)
        sampler.sample(storage, 1)

    append()
    times = [measure_seconds(append, 1) for _ in range(rounds)]
    median = statistics.median(times) * 1e6
    rows.append({"measured": "append", "size": size, "appended": APPENDED, "us": median})
    moments = measure_distribution(buffers["uncertainty"], uncertainty, 1_000_000)
    rows.append({"measured": "distribution", "size": size, **moments})
    return rows


def plot_rows(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 3.5))
    drawn = [row for row in rows if row["measured"] == "draw"]
    for batch in sorted({row["batch"] for row in drawn}):
        for name in ("uniform", "prioritized", "uncertainty"):
            chosen = [row for row in drawn if row["batch"] == batch]
            x = [row["size"] for row in chosen]
            y = [row[f"{name}_us"] for row in chosen]
            axis.loglog(x, y, marker="o", label=f"{name}, batch {batch}")
    axis.set_xlabel("transitions stored")
    axis.set_ylabel("µs a batch")
    axis.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**5, 10**6, 10**7])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[256, 4096])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for size in options.sizes:
        for row in measure_size(size, options.batch_sizes, options.rounds):
            print(json.dumps(row), flush=True)
            rows.append(row)
        result = {"versions": record_versions(), "threads": 1, "cores": os.cpu_count()}
        options.out.write_text(json.dumps({**result, "rows": rows}, indent=1) + "\n")
        plot_rows(rows, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
