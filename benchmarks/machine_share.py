"""The share of the machine's arithmetic that an update achieves.

    python benchmarks/machine_share.py
    python benchmarks/machine_share.py --device cuda

The floating-point operations of an update's matrix products, forward and backward, are counted by
the formulas of ``torch.utils.flop_counter`` (whose own mode does not go with TensorDict's
parameters) and divided by the time of the whole update. The machine's rate is that of the same
products, of the same shapes and layouts, alone and one after the other, on tensors that are there
already: ``share`` is the one over the other, which is also the time of the bare products over the
time of the update. ``peak`` is the rate of one large product. An update is losses, gradient,
clipping, Adam and, for policies with targets, their step; update and products take turns, and times
are medians of the processor's (on a GPU, of wall-clock times).

``--profile`` writes the operators of an update of each kind, by their own time, beside the results.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torchrl.objectives import SoftUpdate
from updates import SPEC, list_trained, make_batch, make_update, sum_losses

from torchrl_logo.data.metadata import record_versions
from torchrl_logo.modules import LOGOWorldModel, make_centralized_critic, make_gaussian_actor
from torchrl_logo.objectives import BCLoss, MACQLLoss
from torchrl_logo.objectives.world_model import make_world_model_loss

RESULTS = Path(__file__).resolve().parent / "results" / "machine_share.json"
PRODUCTS = {
    torch.ops.aten.mm.default: (0, 1),
    torch.ops.aten.addmm.default: (1, 2),
    torch.ops.aten.bmm.default: (0, 1),
    torch.ops.aten.baddbmm.default: (1, 2),
}
LARGE = 1024

Operand = tuple[tuple[int, ...], tuple[int, ...]]


class ProductRecorder(TorchDispatchMode):
    """Counts matrix products by the shapes and strides of their factors, and their operations."""

    def __init__(self) -> None:
        super().__init__()
        self.found: collections.Counter[tuple[Operand, Operand]] = collections.Counter()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in PRODUCTS:
            self.operations += flop_registry[func.overloadpacket](*args, out_val=out)
            left, right = (args[place] for place in PRODUCTS[func])
            self.found[
                (tuple(left.shape), left.stride()), (tuple(right.shape), right.stride())
            ] += 1
        return out


def make_updates(rows: int, device: str) -> dict[str, Callable[[], None]]:
    torch.manual_seed(0)
    batch, model = make_batch(rows, device), LOGOWorldModel(SPEC).to(device)
    model.fit_normalizers(batch)
    action_spec = SPEC.action_spec(device)
    losses = {
        "world model": make_world_model_loss(model),
        "macql": MACQLLoss(
            make_gaussian_actor(SPEC, device=device),
            make_centralized_critic(SPEC, device=device),
            action_spec=action_spec,
            bc_coeff=1.0,
        ),
        "bc": BCLoss(make_gaussian_actor(SPEC, device=device), action_spec=action_spec),
    }

    def make(name: str, loss: Any) -> Callable[[], None]:
        move_targets = SoftUpdate(loss, tau=0.005).step if name == "macql" else None
        return make_update(lambda: sum_losses(loss, batch), list_trained(loss), move_targets)

    return {name: make(name, loss) for name, loss in losses.items()}


def make_products(
    found: collections.Counter[tuple[Operand, Operand]], device: str
) -> Callable[[], None]:
    """All products of an update, alone."""
    calls = []
    for ((shape, stride), (other_shape, other_stride)), count in found.items():
        left = torch.empty_strided(shape, stride, device=device).normal_()
        right = torch.empty_strided(other_shape, other_stride, device=device).normal_()
        out = torch.matmul(left, right)
        multiply = torch.bmm if left.ndim == 3 else torch.mm
        calls += [(multiply, left, right, out)] * count

    def run() -> None:
        for multiply, left, right, out in calls:
            multiply(left, right, out=out)

    return run


def take_turns(runs: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, float]:
    """Median seconds of each."""
    times: dict[str, list[float]] = {name: [] for name in runs}

    def read_clock() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    for number in range(rounds + 3):
        for name in list(runs)[:: 1 if number % 2 == 0 else -1]:
            start = read_clock()
            runs[name]()
            if number >= 3:
                times[name].append(read_clock() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def measure(rows: int, rounds: int, device: str) -> list[dict[str, Any]]:
    large = torch.randn(2, LARGE, LARGE, device=device)
    out = torch.empty(LARGE, LARGE, device=device)
    measured = []
    for name, update in make_updates(rows, device).items():
        update()
        with ProductRecorder() as recorder:
            update()
        runs = {
            "update": update,
            "products": make_products(recorder.found, device),
            "large": lambda: torch.mm(large[0], large[1], out=out),
        }
        seconds = take_turns(runs, rounds, device)
        operations = recorder.operations
        row = {"trained": name, "batch": rows, "device": device, "rounds": rounds}
        row |= {"megaflop": operations / 1e6, "products": sum(recorder.found.values())}
        row |= {f"{key}_ms": value * 1e3 for key, value in seconds.items() if key != "large"}
        row["gflops"] = operations / seconds["update"] / 1e9
        row["gflops_of_its_products"] = operations / seconds["products"] / 1e9
        row["gflops_peak"] = 2 * LARGE**3 / seconds["large"] / 1e9
        row["share"] = seconds["products"] / seconds["update"]
        row["share_of_peak"] = row["gflops"] / row["gflops_peak"]
        measured.append(row)
    return measured


def write_profiles(rows: int, device: str, path: Path) -> None:
    """A table of the operators of each kind of update."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    parts = []
    for name, update in make_updates(rows, device).items():
        for _ in range(3):
            update()
        with torch.profiler.profile(activities=activities) as profile:
            for _ in range(10):
                update()
        key = "self_cuda_time_total" if device == "cuda" else "self_cpu_time_total"
        table = profile.key_averages().table(
            sort_by=key, row_limit=16, max_name_column_width=40, header=None
        )
        parts.append(f"Ten updates, {name}, batch {rows}\n{table}")
    text = "\n".join(parts)
    path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n")


def plot_rows(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 3.5))
    for name in dict.fromkeys(row["trained"] for row in rows):
        chosen = [row for row in rows if row["trained"] == name]
        axis.semilogx([r["batch"] for r in chosen], [r["share"] for r in chosen], "o-", label=name)
    axis.set(xlabel="batch", ylabel="time of the products over the update's", ylim=(0, 1))
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--profile", type=int, nargs="*", default=[], help="at these batches")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    head = {"versions": record_versions(), "threads": 1, "cores": os.cpu_count()}
    for batch in options.batches:
        rows += measure(batch, options.rounds, options.device)
        print("\n".join(json.dumps(row) for row in rows[-3:]), flush=True)
        options.out.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")
        plot_rows(rows, options.out.with_suffix(".png"))
    for batch in options.profile:
        profile = options.out.with_name(f"{options.out.stem}_profile_{batch}.txt")
        write_profiles(batch, options.device, profile)


if __name__ == "__main__":
    main()
