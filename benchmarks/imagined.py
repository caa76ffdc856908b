"""Imagined transitions a second through a TorchRL collector, and of the bare networks in a loop.

    python benchmarks/imagined.py --parallel 64 1024 16384 --agents 3 10 30

The floor calls the same actor and the same world model's ``predict`` in a plain loop, which feeds
back what was predicted, without resets, clamping, accumulated uncertainty or storing (the actor is
called through its TensorDict). Both sample actions and take turns in one process, in an order that
alternates; the ratio is a median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_logo.data import TaskSpec
from torchrl_logo.data.metadata import record_versions
from torchrl_logo.envs import ImaginedEnv
from torchrl_logo.modules import LOGOWorldModel, make_gaussian_actor

RESULTS = Path(__file__).resolve().parent / "results" / "imagined.json"
OBSERVATION, STATE, ACTION, HORIZON, HIDDEN = 16, 32, 2, 5, 64


def measure(n_agents: int, parallel: int, rounds: int) -> dict[str, Any]:
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
    actor = make_gaussian_actor(spec, hidden_sizes=[HIDDEN, HIDDEN])
    observation, state = torch.randn(1000, n_agents, OBSERVATION), torch.randn(1000, STATE)
    starts = TensorDict({"agents": {"observation": observation}, "state": state}, [1000])
    env = ImaginedEnv(model, starts, batch_size=parallel, horizon=HORIZON, seed=0)
    frames = parallel * HORIZON
    collector = Collector(env, actor, frames_per_batch=frames, total_frames=-1)
    batches = iter(collector)
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

    def run_collector() -> None:
        next(batches)

    runs = {"floor": run_floor, "collector": run_collector}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name in list(runs)[:: 1 if number % 2 == 0 else -1]:
            start = time.perf_counter()
            runs[name]()
            if number:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    collector.shutdown()
    ratios = [a / b for a, b in zip(times["floor"], times["collector"], strict=True)]
    rates = {f"{name}_per_s": frames / statistics.median(t) for name, t in times.items()}
    share = {"collector_over_floor": statistics.median(ratios)}
    return {"n_agents": n_agents, "parallel": parallel, "rounds": rounds, **rates, **share}


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
    for parallel in options.parallel:
        for n_agents in options.agents:
            rows.append(measure(n_agents, parallel, options.rounds))
            print(json.dumps(rows[-1]), flush=True)
            head = {"versions": record_versions(), "threads": 1, "cores": os.cpu_count()}
            options.out.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")
            plot_rows(rows, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
