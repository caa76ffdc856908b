"""Updates of two processes that share a batch, against one process that has all of it.

    python benchmarks/data_parallel.py --batches 1024 4096 16384

Two processes with one thread each, over gloo. While the first makes updates alone, the other
waits; then both make the same update from half of the rows each and average their gradients. The
two take turns in one run; beside them, the exchange of the gradients by itself.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import distributed, multiprocessing, nn

from torchrl_logo.data import TaskSpec
from torchrl_logo.data.metadata import record_versions
from torchrl_logo.modules import LOGOWorldModel, make_centralized_critic, make_gaussian_actor
from torchrl_logo.objectives import MACQLLoss
from torchrl_logo.objectives.world_model import make_world_model_loss
from torchrl_logo.trainers.data_parallel import average_gradients, take_share

RESULTS = Path(__file__).resolve().parent / "results" / "data_parallel.json"
N, OBSERVATION, STATE, ACTION, PROCESSES = 3, 16, 32, 2, 2


def make_batch(rows: int) -> TensorDict:
    def observe() -> dict[str, Any]:
        agents = {"observation": torch.randn(rows, N, OBSERVATION)}
        return {"agents": agents, "state": torch.randn(rows, STATE)}

    now = observe()
    now["agents"]["action"] = torch.rand(rows, N, ACTION) * 1.8 - 0.9
    end = torch.zeros(rows, 1, dtype=torch.bool)
    outcome = {"reward": torch.randn(rows, 1), "done": end, "terminated": end}
    return TensorDict({**now, "next": {**observe(), **outcome}}, [rows])


def make_losses() -> dict[str, nn.Module]:
    bounds = {"action_low": (-1.0,) * ACTION, "action_high": (1.0,) * ACTION}
    spec = TaskSpec(
        n_agents=N, observation_size=OBSERVATION, state_size=STATE, action_size=ACTION, **bounds
    )
    torch.manual_seed(0)
    return {
        "world model": make_world_model_loss(LOGOWorldModel(spec)),
        "macql": MACQLLoss(
            make_gaussian_actor(spec),
            make_centralized_critic(spec),
            action_spec=spec.action_spec(),
        ),
    }


def make_update(loss: nn.Module) -> Callable[[TensorDict, bool], None]:
    parameters = [p for p in loss.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=1e-4, fused=True)

    def update(batch: TensorDict, shared: bool) -> None:
        losses = loss(take_share(batch) if shared else batch)
        torch.stack([v for k, v in losses.items() if k.startswith("loss_")]).sum().backward()
        if shared:
            average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        optimizer.zero_grad()

    return update


def measure(run: Callable[[], None] | None) -> float:
    """Seconds until all processes are through; those without ``run`` wait."""
    distributed.barrier()
    start = time.perf_counter()
    if run is not None:
        run()
    distributed.barrier()
    return time.perf_counter() - start


def run_process(rank: int, folder: str, batches: list[int], rounds: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES
    )
    rows = []
    for name, loss in make_losses().items():
        update = make_update(loss)
        count = sum(p.numel() for p in loss.parameters() if p.requires_grad)
        flat = nn.Parameter(torch.zeros(count))
        flat.grad = torch.zeros(count)
        for size in batches:
            torch.manual_seed(1)
            batch = make_batch(size)
            runs: dict[str, Callable[[], None] | None] = {
                "alone": functools.partial(update, batch, False) if rank == 0 else None,
                "shared": functools.partial(update, batch, True),
                "exchange": functools.partial(average_gradients, [flat]),
            }
            times: dict[str, list[float]] = {key: [] for key in runs}
            for number in range(rounds + 1):
                for key in list(runs)[:: 1 if number % 2 == 0 else -1]:
                    found = measure(runs[key])
                    if number:  # the first round warms up
                        times[key].append(found)
            pairs = zip(times["alone"], times["shared"], strict=True)
            row = {"trained": name, "batch": size, "parameters": count, "megabytes": count * 4e-6}
            row |= {f"{key}_ms": statistics.median(t) * 1e3 for key, t in times.items()}
            row |= {"rounds": rounds, "speedup": statistics.median(a / b for a, b in pairs)}
            rows.append(row)
            if rank == 0:
                print(json.dumps(row), flush=True)
    if rank == 0:
        Path(folder, "rows.json").write_text(json.dumps(rows))
    distributed.barrier()
    distributed.destroy_process_group()


def plot_rows(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 3.5))
    for name in dict.fromkeys(row["trained"] for row in rows):
        chosen = [row for row in rows if row["trained"] == name]
        axis.semilogx(
            [r["batch"] for r in chosen], [r["speedup"] for r in chosen], "o-", label=name
        )
    axis.axhline(1, color="gray", linewidth=0.8)
    axis.set(xlabel="batch of both", ylabel="speed of two processes over one")
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.start_processes(
            run_process,
            (folder, options.batches, options.rounds),
            nprocs=PROCESSES,
            start_method="spawn",
        )
        rows = json.loads(Path(folder, "rows.json").read_text())
    head = {"versions": record_versions(), "threads": 1, "cores": os.cpu_count()}
    head |= {"load": os.getloadavg()[0]}
    options.out.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")
    plot_rows(rows, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
