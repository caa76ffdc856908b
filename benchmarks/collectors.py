"""Imagined transitions a second of one process, of several, and of Ray's, which take turns.

    python benchmarks/collectors.py
    python benchmarks/collectors.py --ray     # needs the extra: pip install "torchrl-logo[ray]"

Each collects the same number of transitions a batch from ``ImaginedEnv``, with the same networks
and one thread a process: TorchRL's ``Collector`` in this process, ``MultiSyncCollector`` over two
processes and, with ``--ray``, ``RayCollector`` over two actors of a cluster of this machine alone.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torchrl.collectors import Collector, MultiSyncCollector

from torchrl_logo.data import TaskSpec
from torchrl_logo.data.metadata import record_versions
from torchrl_logo.envs import ImaginedEnv
from torchrl_logo.modules import LOGOWorldModel, make_gaussian_actor

RESULTS = Path(__file__).resolve().parent / "results" / "collectors.json"
PROCESSES, HORIZON = 2, 15
SPEC = TaskSpec(
    n_agents=3,
    observation_size=16,
    state_size=32,
    action_size=2,
    action_low=(-1.0, -1.0),
    action_high=(1.0, 1.0),
)


def make_parts() -> tuple[LOGOWorldModel, TensorDict, Any]:
    torch.manual_seed(0)
    rows, n_agents = 4096, SPEC.n_agents
    agents = {"observation": torch.randn(rows, n_agents, SPEC.observation_size)}
    starts = TensorDict({"agents": agents, "state": torch.randn(rows, SPEC.state_size)}, [rows])
    model = LOGOWorldModel(SPEC, hidden_size=64)
    # an untrained model would end half of all rollouts at each step
    with torch.no_grad():
        model.termination_bias.fill_(-10.0)
    return model, starts, make_gaussian_actor(SPEC, hidden_sizes=(64, 64))


def make_collectors(rollouts: int, ray: bool) -> dict[str, Any]:
    model, starts, actor = make_parts()

    def make_env(count: int, seed: int) -> Any:
        return functools.partial(
            ImaginedEnv, model, starts, batch_size=count, horizon=HORIZON, seed=seed
        )

    shares = [make_env(rollouts // PROCESSES, seed) for seed in range(PROCESSES)]
    common = {"frames_per_batch": rollouts * HORIZON, "total_frames": 10**9}
    made = {
        "one process": Collector(
            make_env(rollouts, 0), actor, auto_register_policy_transforms=False, **common
        ),
        "two processes": MultiSyncCollector(
            shares, actor, auto_register_policy_transforms=False, **common
        ),
    }
    if ray:
        from torchrl.collectors.distributed import RayCollector

        made["two Ray actors"] = RayCollector(
            shares,
            actor,
            sync=True,
            ray_init_config={
                "num_cpus": PROCESSES,
                "include_dashboard": False,
                "log_to_driver": False,
            },
            remote_configs={"num_cpus": 1, "num_gpus": 0},
            collector_kwargs={"auto_register_policy_transforms": False},
            **common,
        )
    return made


def measure(rollouts: int, rounds: int, ray: bool) -> dict[str, Any]:
    collectors = make_collectors(rollouts, ray)
    batches: dict[str, Iterator[Any]] = {name: iter(each) for name, each in collectors.items()}
    seconds: dict[str, list[float]] = {name: [] for name in collectors}
    for number in range(rounds + 2):
        for name in list(batches)[:: 1 if number % 2 == 0 else -1]:
            start = time.perf_counter()
            batch = next(batches[name])
            assert batch.numel() == rollouts * HORIZON, (name, batch.shape)
            if number > 1:  # the first ones start processes
                seconds[name].append(time.perf_counter() - start)
    for collector in collectors.values():
        collector.shutdown()
    row: dict[str, Any] = {"rollouts": rollouts, "horizon": HORIZON, "rounds": rounds}
    alone = seconds["one process"]
    for name, found in seconds.items():
        row[f"{name}, transitions/s"] = rollouts * HORIZON / statistics.median(found)
        row[f"{name}, speed over one"] = statistics.median(
            a / b for a, b in zip(alone, found, strict=True)
        )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(count, options.rounds, options.ray) for count in options.rollouts]
    for row in rows:
        print(json.dumps(row))
    head = {"versions": record_versions(), "threads": 1, "cores": os.cpu_count()}
    head |= {"load": os.getloadavg()[0]}
    options.out.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
