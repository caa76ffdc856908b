"""Imagined transitions a second through a TorchRL collector, and of the bare networks in a loop.

    python benchmarks/imagined.py --parallel 64 1024 16384 --agents 3 10 30

The floor calls the same actor and the same world model's ``predict`` in a plain loop, which feeds
back what was predicted, without resets, clamping, accumulated uncertainty or storing (the actor is
called through its TensorDict). Both sample actions and take turns in one process, in an order that
alternates; the ratio is a median over the rounds, of processor seconds (all run on one thread),
which other programs disturb less than the clock. For some sizes the collector also runs a compiled
``predict``, against the same eager floor, and the peak memory of one batch is measured: with the
collector that `OfflineTrainer` uses, which keeps all steps and stacks them, and with one that
writes each step into a replay buffer.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_logo.data import TaskSpec
from torchrl_logo.data.metadata import record_versions
from torchrl_logo.envs import ImaginedEnv
from torchrl_logo.modules import LOGOWorldModel, make_gaussian_actor

RESULTS = Path(__file__).resolve().parent / "results" / "imagined.json"
OBSERVATION, STATE, ACTION, HORIZON, HIDDEN = 16, 32, 2, 15, 64
# Where compiled networks, and memory, are measured too: (agents, rollouts).
COMPILED = [(3, 1024), (10, 1024)]
WEIGHED = [(3, 16384), (10, 16384)]


def make_parts(n_agents: int) -> tuple[LOGOWorldModel, TensorDictModuleBase, TensorDict]:
    spec = TaskSpec(
        n_agents=n_agents,
        observation_size=OBSERVATION,
        state_size=STATE,
        action_size=ACTION,
        action_low=(-1.0,) * ACTION,
        action_high=(1.0,) * ACTION,
    )
    torch.manual_seed(0)
    model = LOGOWorldModel(spec, hidden_size=HIDDEN)
    # An untrained model would end half of the rollouts at each step, and reset them.
    model.termination_bias.fill_(-10.0)
    actor = make_gaussian_actor(spec, hidden_sizes=[HIDDEN, HIDDEN])
    observation, state = torch.randn(1000, n_agents, OBSERVATION), torch.randn(1000, STATE)
    starts = TensorDict({"agents": {"observation": observation}, "state": state}, [1000])
    return model, actor, starts


def measure(n_agents: int, parallel: int, rounds: int, compiled: bool) -> dict[str, Any]:
    model, actor, starts = make_parts(n_agents)
    observation, state = starts["agents", "observation"], starts["state"]
    frames = parallel * HORIZON
    batches = iter(make_collector(model, actor, starts, parallel))
    row = torch.randint(1000, (parallel,))

    @torch.no_grad()
    @set_exploration_type(ExplorationType.RANDOM)  # as collectors do
    def run_floor() -> None:
        now, seen = state[row], observation[row]
        for _ in range(HORIZON):
            policy_input = TensorDict({"agents": TensorDict({"observation": seen})}, [parallel])
            action = actor(policy_input)["agents", "action"]
            prediction = model.predict(now, seen, action)
            now, seen = prediction.state, prediction.observation

    runs = {"floor": run_floor, "collector": lambda: next(batches)}
    if compiled:
        fast = copy.deepcopy(model)
        fast.predict = torch.compile(fast.predict)  # type: ignore[method-assign]
        fast_batches = iter(make_collector(fast, actor, starts, parallel))
        runs["compiled"] = lambda: next(fast_batches)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name in list(runs)[:: 1 if number % 2 == 0 else -1]:
            start = time.process_time()
            runs[name]()
            if number:  # the first round warms up
                times[name].append(time.process_time() - start)
    rates = {f"{name}_per_s": frames / statistics.median(t) for name, t in times.items()}
    shares = {
        f"{name}_over_floor": statistics.median(
            a / b for a, b in zip(times["floor"], times[name], strict=True)
        )
        for name in runs
        if name != "floor"
    }
    return {"n_agents": n_agents, "parallel": parallel, "rounds": rounds, **rates, **shares}


def make_collector(
    model: LOGOWorldModel,
    actor: TensorDictModuleBase,
    starts: TensorDict,
    parallel: int,
    streamed: bool = False,
) -> Collector:
    env = ImaginedEnv(model, starts, batch_size=parallel, horizon=HORIZON, seed=0)
    if streamed:
        own = {"replay_buffer": TensorDictReplayBuffer(storage=LazyTensorStorage(HORIZON))}
        settings = {"extend_buffer": False, **own}
    else:
        settings = {"use_buffers": False, "return_same_td": True}
    return Collector(
        env,
        actor,
        frames_per_batch=parallel * HORIZON,
        total_frames=-1,
        track_traj_ids=False,
        **settings,
    )


def measure_memory(n_agents: int, parallel: int, streamed: bool) -> dict[str, Any]:
    """Peak memory of one batch over what is resident before it, and over the batch's own size."""
    model, actor, starts = make_parts(n_agents)
    next(iter(make_collector(model, actor, starts, 64, streamed)))  # loads what is loaded once
    before = read_memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on
    collector = make_collector(model, actor, starts, parallel, streamed)
    batch = next(iter(collector))
    grown = read_memory("VmHWM") - before
    if streamed:
        batch = collector.replay_buffer[:]
    tensors = {
        x.untyped_storage().data_ptr(): x.untyped_storage() for x in batch.values(True, True)
    }
    size = sum(storage.nbytes() for storage in tensors.values())
    return {
        "n_agents": n_agents,
        "parallel": parallel,
        "streamed": streamed,
        "batch_mb": size / 1e6,
        "peak_mb": grown / 1e6,
        "peak_over_batch": grown / size,
    }


def read_memory(name: str) -> int:
    """Bytes, from Linux' account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def run_alone(function: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """In a process of its own, whose memory nothing else has used."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def plot_rows(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 3.5))
    for n_agents in sorted({row["n_agents"] for row in rows}):
        chosen = [row for row in rows if row["n_agents"] == n_agents]
        x = [row["parallel"] for row in chosen]
        axis.semilogx(x, [row["collector_over_floor"] for row in chosen], "o-", label=n_agents)
    axis.set_xlabel("parallel rollouts")
    axis.set_ylabel("collector's rate over the floor's")
    axis.legend(title="agents")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parallel", type=int, nargs="+", default=[64, 1024, 16384])
    parser.add_argument("--agents", type=int, nargs="+", default=[3, 10, 30])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    memory: list[dict[str, Any]] = []
    for parallel in options.parallel:
        for n_agents in options.agents:
            compiled = (n_agents, parallel) in COMPILED
            # the largest take minutes each
            rounds = max(options.rounds * min(1024, parallel) // parallel, 2)
            rows.append(measure(n_agents, parallel, rounds, compiled))
            if (n_agents, parallel) in WEIGHED:
                for streamed in (False, True):
                    memory.append(run_alone(measure_memory, n_agents, parallel, streamed))
                    print(json.dumps(memory[-1]), flush=True)
            print(json.dumps(rows[-1]), flush=True)
            head = {"versions": record_versions(), "threads": 1, "cores": os.cpu_count()}
            found = {**head, "rows": rows, "memory": memory}
            options.out.write_text(json.dumps(found, indent=1) + "\n")
            plot_rows(rows, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
