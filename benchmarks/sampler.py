"""Time of a batch from UncertaintySampler, and from TorchRL's uniform and prioritized samplers.

    python benchmarks/sampler.py --sizes 100000 1000000 10000000

A batch is an index and its gather from a buffer in memory; a draw is the index alone. The samplers
take turns, in an order that alternates; ratios are medians over the rounds of one run, of this
process's processor seconds (all run on one thread), which other programs disturb less than the
clock. Beside it: the time to re-weight everything by new uncertainties and by another temperature,
the time of an append and the draw after it, and how far the distribution of many draws is from the
weights, in bins of equal uncertainty down to the rarest.
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
C, MOST = 16.0, 20.0
APPENDED = 1024
# Draws of a turn: the sampler makes up to 16,384 ahead, which must not fall between the turns.
DRAWN = 32_768
# 64 bins of a quarter up to C, and one of all beyond: the rarest transitions, exp(-16) as heavy.
BINS = 64


def make_buffers(size: int) -> tuple[dict[str, TensorDictReplayBuffer], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    uncertainty = torch.rand(size, generator=generator) * MOST
    state = torch.rand(size, STATE_SIZE, generator=generator)
    data = TensorDict({"state": state, "uncertainty": uncertainty}, [size])
    storage = LazyTensorStorage(size)
    samplers = {
        "uniform": RandomSampler(),
        "prioritized": PrioritizedSampler(size, alpha=1.0, beta=0.0),
        "uncertainty": UncertaintySampler(size, C=C, temperature=1.0),
    }
    buffers = {}
    for name, sampler in samplers.items():
        # One storage: all of them gather from the same memory.
        buffers[name] = TensorDictReplayBuffer(
            storage=storage, sampler=sampler, priority_key="uncertainty"
        )
    buffers["uniform"].extend(data)
    index = torch.arange(size)
    weight = ((C - uncertainty).clamp_min(0)).exp()
    buffers["prioritized"].sampler.extend(index)
    buffers["prioritized"].sampler.update_priority(index, weight, storage=storage)
    buffers["uncertainty"].sampler.update_priority(index, uncertainty, storage=storage)
    return buffers, uncertainty


def measure_seconds(run: Callable[[], object], repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        run()
    return (time.process_time() - start) / repeats


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
    weight = (C - uncertainty.double()).clamp_min(0).exp()
    bins = (uncertainty * (BINS / C)).long().clamp_max(BINS)
    expected = torch.bincount(bins, weight, minlength=BINS + 1)
    expected *= draws / weight.sum()
    found = torch.zeros(BINS + 1, dtype=torch.int64)
    for _ in range(draws // 100_000):
        index, _ = buffer.sampler.sample(buffer.storage, 100_000)
        found += torch.bincount(bins[index], minlength=BINS + 1)
    chi = float(((found - expected) ** 2 / expected).sum())
    # Standard deviations from the mean of the chi-squared distribution.
    z = (chi - BINS) / (2 * BINS) ** 0.5
    return {
        "draws": draws,
        "chi_squared": chi,
        "degrees": BINS,
        "z": z,
        "least_expected_in_a_bin": float(expected.min()),
        "rarest_share_of_transitions": float((bins == BINS).double().mean()),
        "rarest_expected": float(expected[BINS]),
        "rarest_found": int(found[BINS]),
    }


def measure_size(size: int, batch_sizes: list[int], rounds: int) -> list[dict[str, Any]]:
    buffers, uncertainty = make_buffers(size)
    storage = buffers["uniform"].storage
    rows: list[dict[str, Any]] = []
    for batch in batch_sizes:

        def sample_from(name: str, batch: int = batch) -> Callable[[], object]:
            return lambda: buffers[name].sample(batch)

        def draw_from(name: str, batch: int = batch) -> Callable[[], object]:
            return lambda: buffers[name].sampler.sample(storage, batch)

        for measured, run in (("batch", sample_from), ("draw", draw_from)):
            row = take_turns({name: run(name) for name in buffers}, rounds, DRAWN // batch)
            rows.append({"measured": measured, "size": size, "batch": batch, **row})
    index, weight = torch.arange(size), (C - uncertainty).clamp_min(0).exp()

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
    rows.append({"measured": "reweight", "size": size, **take_turns(runs, 9, 1)})
    sampler = buffers["uncertainty"].sampler

    def reheat() -> None:
        sampler.temperature = 1.5 if sampler.temperature == 1.0 else 1.0
        sampler.sample(storage, 1)

    def reheat_prioritized() -> None:  # weights at the other temperature have to be computed
        runs["prioritized"]()
        (C - uncertainty).clamp_min(0).exp()

    both = {"prioritized": reheat_prioritized, "uncertainty": reheat}
    rows.append({"measured": "temperature", "size": size, **take_turns(both, 9, 1)})
    sampler.temperature = 1.0
    start = 0

    def append() -> None:  # overwrites the oldest, as a full buffer does
        nonlocal start
        chosen = slice(start, start + APPENDED)
        start = (start + APPENDED) % (size - APPENDED)
        sampler.update_priority(index[chosen], uncertainty[chosen], storage=storage)
        sampler.sample(storage, 1)

    append()
    times = [measure_seconds(append, 1) for _ in range(10 * rounds)]
    rows.append(
        {
            "measured": "append",
            "size": size,
            "appended": APPENDED,
            "us": statistics.median(times) * 1e6,
            "mean_us": statistics.mean(times) * 1e6,
            "times": len(times),
        }
    )
    moments = measure_distribution(buffers["uncertainty"], uncertainty, 100_000_000)
    rows.append({"measured": "distribution", "size": size, **moments})
    return rows


def plot_rows(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 3.5))
    drawn = [row for row in rows if row["measured"] == "batch"]
    for batch in sorted({row["batch"] for row in drawn}):
        for name in ("uniform", "prioritized", "uncertainty"):
            chosen = [row for row in drawn if row["batch"] == batch]
            x = [row["size"] for row in chosen]
            y = [row[f"{name}_us"] for row in chosen]
            axis.loglog(x, y, marker="o", label=f"{name}, batch {batch}")
    axis.set_xlabel("transitions stored")
    axis.set_ylabel("µs of processor time a batch")
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
