"""Training from a memory-mapped dataset: its rate against the same data in memory, and its memory.

    python benchmarks/larger_than_memory.py --transitions 10000000

Writes a dataset of random transitions into a temporary folder (3.4 GB for the default), and reads
it once, so that the page cache is warm. Then, all in one thread:

- an update (batch, loss, gradient, Adam) of the world model and of MACQL, with batches from the
  mapped dataset, from the same dataset held in memory, and from TorchRL's own storage in memory.
  They take turns in one process, in an order that alternates; ratios are medians over the rounds,
  of processor seconds, and the page faults that had to read the disk are counted beside them;
- in a process of its own, `WorldModelTrainer` and `OfflineTrainer` with `in_memory=False`: the
  greatest anonymous memory (what the system cannot drop), over that before the dataset was opened,
  and the greatest file-backed memory (pages of the dataset, which it can).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from torchrl_logo.data import OfflineDataset, TaskSpec
from torchrl_logo.data.dataset import write_metadata
from torchrl_logo.data.mapped_files import count_bytes, file_of, write_rows
from torchrl_logo.data.metadata import record_versions
from torchrl_logo.modules import LOGOWorldModel
from torchrl_logo.objectives import LOGOWorldModelLoss
from torchrl_logo.trainers import OfflineTrainer, WorldModelTrainer

RESULTS = Path(__file__).resolve().parent / "results" / "larger_than_memory.json"
EPISODE, CHUNK = 100, 100_000
SPEC = TaskSpec(
    n_agents=3,
    observation_size=8,
    state_size=12,
    action_size=2,
    action_low=(-1.0, -1.0),
    action_high=(1.0, 1.0),
)


def make_chunk(first: int, count: int) -> TensorDict:
    """Whole episodes, whose state is a random walk that actions push."""
    generator = torch.Generator().manual_seed(first)
    episodes = count // EPISODE
    action = torch.rand(episodes, EPISODE, 3, 2, generator=generator) * 2 - 1
    step = torch.randn(episodes, EPISODE + 1, 12, generator=generator) * 0.02
    step[:, 1:, :6] += 0.1 * action.flatten(2)
    state = step.cumsum(1)
    observation = torch.cat([state[..., None, :6].expand(-1, -1, 3, 6)] * 2, -1)[..., :8]
    row = torch.arange(first, first + count)
    last = (row % EPISODE == EPISODE - 1).unsqueeze(-1)
    now, later = slice(0, EPISODE), slice(1, EPISODE + 1)
    following = {
        "agents": TensorDict({"observation": observation[:, later].flatten(0, 1)}, [count, 3]),
        "state": state[:, later].flatten(0, 1),
        "reward": -state[:, later, :2].square().sum(-1, keepdim=True).flatten(0, 1),
        "done": last,
        "terminated": torch.zeros_like(last),
        "truncated": last,
    }
    agents = {"observation": observation[:, now].flatten(0, 1), "action": action.flatten(0, 1)}
    return TensorDict(
        {
            "agents": TensorDict(agents, [count, 3]),
            "state": state[:, now].flatten(0, 1),
            "next": TensorDict(following, [count]),
            "episode": row // EPISODE,
            "step": row % EPISODE,
        },
        [count],
    )


def write_dataset(folder: Path, transitions: int) -> int:
    """Writes it chunk by chunk; returns its size in bytes."""
    chunk = make_chunk(0, min(CHUNK, transitions))
    whole = chunk[:1].expand(transitions).memmap_like(str(folder / "data"))
    keys = list(whole.keys(True, True))
    size = count_bytes(whole)
    del whole
    for first in range(0, transitions, CHUNK):
        chunk = make_chunk(first, min(CHUNK, transitions - first))
        for key in keys:
            write_rows(file_of(folder / "data", key), first, chunk.get(key))
    write_metadata(folder, SPEC, quality=None, reference_returns=None, provenance={})
    return size


def read_memory(name: str) -> int:
    """Bytes, from Linux' account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


class MemoryWatch:
    """The greatest anonymous and file-backed memory while it runs, looked at 20 times a second."""

    def __init__(self) -> None:
        self.anonymous = self.mapped = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            self.anonymous = max(self.anonymous, read_memory("RssAnon"))
            self.mapped = max(self.mapped, read_memory("RssFile"))

    def end(self) -> None:
        self._ended.set()
        self._thread.join()


def measure_memory(folder: Path, steps: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    model = LOGOWorldModel(SPEC, hidden_size=128)
    before = read_memory("RssAnon")
    watch = MemoryWatch()
    seconds: dict[str, float] = {}
    after: dict[str, int] = {}
    start = time.perf_counter()
    dataset = OfflineDataset.load(folder, verify=False)
    trainer = WorldModelTrainer(
        model, dataset, steps=steps, in_memory=False, progress_bar=False, seed=0
    )
    seconds["world_model_opened"] = time.perf_counter() - start
    trainer.train()
    seconds["world_model"] = time.perf_counter() - start
    after["world_model"] = watch.anonymous
    del trainer
    policy = OfflineTrainer(
        "macql",
        dataset,
        steps=steps,
        in_memory=False,
        progress_bar=False,
        eval_interval=0,
        seed=0,
    )
    policy.train()
    seconds["both"] = time.perf_counter() - start
    watch.end()
    return {
        "steps": steps,
        "anonymous_before_mb": before / 1e6,
        "anonymous_above_mb": (watch.anonymous - before) / 1e6,
        "anonymous_above_after_world_model_mb": (after["world_model"] - before) / 1e6,
        "file_backed_mb": watch.mapped / 1e6,
        "seconds": seconds,
    }


def make_updates(
    method: str, dataset: OfflineDataset, batch: int
) -> Callable[[TensorDictBase], None]:
    """One update of a model or policy from a batch."""
    torch.manual_seed(0)
    loss: Any
    if method == "world_model":
        model = LOGOWorldModel(SPEC, hidden_size=128)
        model.fit_normalizers(dataset.read_evenly(10_000))
        loss = LOGOWorldModelLoss(model)
    else:
        small = OfflineDataset(dataset[:10_000], dataset.metadata, mapped=True)
        loss = OfflineTrainer(
            method, small, steps=1, batch_size=batch, progress_bar=False, eval_interval=0
        ).loss_module
    weights = [p for p in loss.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=1e-4, fused=True)

    def update(data: TensorDictBase) -> None:
        losses = loss(data)
        total = sum(value for name, value in losses.items() if name.startswith("loss"))
        total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return update


def measure_rates(folder: Path, batches: list[int], rounds: int, updates: int) -> list[Any]:
    torch.set_num_threads(1)
    mapped = OfflineDataset.load(folder, verify=False)
    for path in (folder / "data").rglob("*.memmap"):
        with path.open("rb") as file:
            while file.read(2**24):
                pass
    copied = mapped.data.clone()
    held = OfflineDataset(copied, mapped.metadata, mapped=True)
    storage = LazyTensorStorage(len(mapped))
    storage._storage, storage.initialized = copied, True  # the same tensors, not once more
    storage._len = len(mapped)
    own = TensorDictReplayBuffer(storage=storage)
    buffers = {"mapped": mapped, "memory": held, "torchrl": own}
    rows = []
    for method in ("batch only", "world_model", "macql"):
        for batch in batches:
            update = None if method == "batch only" else make_updates(method, mapped, batch)
            times: dict[str, list[float]] = {name: [] for name in buffers}
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
            for number in range(rounds + 1):
                for name in list(buffers)[:: 1 if number % 2 == 0 else -1]:
                    start = time.process_time()
                    for _ in range(updates):
                        data = buffers[name].sample(batch)
                        if update is not None:
                            update(data)
                    if number:  # the first round warms up
                        times[name].append((time.process_time() - start) / updates)
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults
            row: dict[str, Any] = {"measured": method, "batch": batch, "read_from_disk": faults}
            for name in buffers:
                row[f"{name}_ms"] = statistics.median(times[name]) * 1e3
            for other in ("memory", "torchrl"):
                row[f"mapped_rate_over_{other}"] = statistics.median(
                    a / b for a, b in zip(times[other], times["mapped"], strict=True)
                )
            print(json.dumps(row), flush=True)
            rows.append(row)
    return rows


def plot_rows(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 3.5))
    names = [f"{row['measured']}\n{row['batch']}" for row in rows]
    axis.bar(names, [row["mapped_rate_over_memory"] for row in rows], color="tab:blue")
    axis.axhline(0.8, color="black", linestyle="--", linewidth=1)
    axis.set_ylabel("rate from mapped files over that from memory")
    axis.tick_params(axis="x", labelsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transitions", type=int, default=10**7)
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--updates", type=int, default=10, help="of a turn")
    parser.add_argument("--steps", type=int, default=250, help="of the trainings weighed")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    head = {"versions": record_versions(), "threads": 1, "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "dataset"
        root.mkdir()
        size = write_dataset(root, options.transitions)
        head |= {"transitions": options.transitions, "dataset_mb": size / 1e6}
        print(json.dumps(head), flush=True)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            memory = pool.submit(measure_memory, root, options.steps).result()
        print(json.dumps(memory), flush=True)
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            rows = pool.submit(
                measure_rates, root, options.batches, options.rounds, options.updates
            ).result()
    found = {**head, "memory": memory, "rows": rows}
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    plot_rows(rows, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
