"""Steps a second of a random policy in the package's environments and in the bare simulators.

    python benchmarks/envs.py --tasks vmas/balance mpe/simple_spread

A step is one of one simulator, with all of its agents. The package's environment goes through
``rand_action`` and ``step_and_maybe_reset``, which write whole transitions; the bare simulator is
given random actions through its own interface and is reset where an episode ends. Both take turns
in one process, so that what else the machine does falls on both; rates and their ratio are medians
over the rounds. Simulators are found by themselves; one that ``BARE`` does not name has no ratio.
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

from torchrl_logo.data.metadata import record_versions
from torchrl_logo.envs import make_env
from torchrl_logo.envs.registry import _simulators

RESULTS = Path(__file__).resolve().parent / "results" / "envs.json"
_NAMES = {
    "vmas": "balance transport navigation wheel discovery sampling reverse_transport give_way "
    "ball_passage",
    "mpe": "simple_spread simple_spread_discrete simple_reference simple_speaker_listener",
    "mamujoco": "halfcheetah_2x3 halfcheetah_6x1 hopper_3x1 ant_2x4 walker2d_2x3 swimmer_10x2",
    "smax": "2s3z 3s_vs_5z 5m_vs_6m 6h_vs_8z",
}
TASKS = [f"{family}/{name}" for family, names in _NAMES.items() for name in names.split()]
NUM_ENVS = {"vmas": (1, 8, 64, 1024), "mamujoco": (64,), "smax": (1, 64)}


def make_bare_vmas(name: str, num_envs: int) -> Callable[[], None]:
    import vmas

    from torchrl_logo.envs.vmas import _SCENARIO_KWARGS

    env = vmas.make_env(
        name, num_envs=num_envs, continuous_actions=True, seed=0, **_SCENARIO_KWARGS.get(name, {})
    )
    limit = make_env(f"vmas/{name}").max_steps
    clock = 0

    def step() -> None:
        nonlocal clock
        *_, done, _ = env.step([env.get_random_action(agent) for agent in env.agents])
        clock += 1
        if clock % limit == 0:
            env.reset()
            return
        # VMAS resets either one simulation or all of them.
        for index in done.nonzero().flatten().tolist():
            env.reset_at(index)

    return step


def make_bare_mpe(name: str, num_envs: int) -> Callable[[], None]:
    import importlib

    from torchrl_logo.envs.mpe import _SCENARIOS

    module_name, options = _SCENARIOS[name.removesuffix("_discrete")]
    module = importlib.import_module(f"mpe2.{module_name}")
    envs = [
        module.parallel_env(continuous_actions=not name.endswith("_discrete"), **options)
        for _ in range(num_envs)
    ]
    for index, env in enumerate(envs):
        env.reset(seed=index)

    def step() -> None:
        for env in envs:
            env.step({agent: env.action_space(agent).sample() for agent in env.agents})
            env.state()
            if not env.agents:
                env.reset()

    return step


def make_bare_mamujoco(name: str, num_envs: int) -> Callable[[], None]:
    # gymnasium's robots themselves: nobody gathers what each agent observes.
    envs = [make_env(f"mamujoco/{name}")._team.single_agent_env for _ in range(num_envs)]
    for index, env in enumerate(envs):
        env.reset(seed=index)

    def step() -> None:
        for env in envs:
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            if terminated or truncated:
                env.reset()

    return step


def make_bare_smax(name: str, num_envs: int) -> Callable[[], None]:
    import jax
    import jax.numpy as jnp
    from jaxmarl.environments.smax import HeuristicEnemySMAX, map_name_to_scenario

    simulator = HeuristicEnemySMAX(scenario=map_name_to_scenario(name))

    def start(key: Any) -> tuple[Any, ...]:
        observations, state = simulator.reset(key)
        return observations, state, simulator.get_avail_actions(state)

    def advance(key: Any, state: Any, available: Any) -> tuple[Any, ...]:
        choice, own = jax.random.split(key)
        keys = jax.random.split(choice, simulator.num_allies)
        actions = {
            agent: jax.random.categorical(keys[i], jnp.where(available[agent] > 0, 0.0, -jnp.inf))
            for i, agent in enumerate(simulator.agents)
        }
        observations, state, rewards, dones, _ = simulator.step_env(own, state, actions)
        available = simulator.get_avail_actions(state)
        return observations, state, available, rewards, dones["__all__"]

    @jax.jit
    def restart(key: Any, done: Any, old: Any) -> Any:
        new = jax.vmap(start)(jax.random.split(key, num_envs))
        return jax.tree.map(
            lambda a, b: jnp.where(done.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, old
        )

    advance_all = jax.jit(
        lambda key, *old: jax.vmap(advance)(jax.random.split(key, num_envs), *old)
    )
    split = jax.jit(lambda key: tuple(jax.random.split(key, 3)))
    key, first = jax.random.split(jax.random.PRNGKey(0))
    current = jax.jit(jax.vmap(start))(jax.random.split(first, num_envs))

    def step() -> None:
        nonlocal key, current
        key, own, fresh = split(key)
        *current, rewards, done = advance_all(own, *current[1:])
        current = tuple(current)
        # Calls return before they are computed.
        jax.block_until_ready((current, rewards))
        if done.any():
            current = jax.block_until_ready(restart(fresh, done, current))

    # Both are compiled before anything is timed.
    step()
    restart(key, jnp.ones(num_envs, bool), current)
    return step


# How a family's simulator is stepped without the package: makes what steps all simulators once.
BARE: dict[str, Callable[[str, int], Callable[[], None]]] = {
    "vmas": make_bare_vmas,
    "mpe": make_bare_mpe,
    "mamujoco": make_bare_mamujoco,
    "smax": make_bare_smax,
}


def make_packaged(task: str, num_envs: int) -> Callable[[], None]:
    env = make_env(task, num_envs=num_envs, seed=0)
    tensordict = env.reset()

    def step() -> None:
        nonlocal tensordict
        _, tensordict = env.step_and_maybe_reset(env.rand_action(tensordict))

    return step


def measure(step: Callable[[], None], num_envs: int, seconds: float) -> float:
    """Steps a second, over ``seconds`` or one step of each simulator, whichever is longer."""
    start, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - start < seconds:
        step()
        count += num_envs
    return count / (time.perf_counter() - start)


def run(task: str, num_envs: int, rounds: int, seconds: float) -> dict[str, Any]:
    prefix, _, name = task.partition("/")
    steps = {"packaged": make_packaged(task, num_envs)}
    if prefix in BARE:
        steps["bare"] = BARE[prefix](name, num_envs)
    for step in steps.values():
        step()  # whatever is compiled or allocated once
    rates: dict[str, list[float]] = {kind: [] for kind in steps}
    for _ in range(rounds):
        for kind, step in steps.items():
            rates[kind].append(measure(step, num_envs, seconds))
    row: dict[str, Any] = {"task": task, "num_envs": num_envs, "rounds": rounds}
    for kind, found in rates.items():
        row[f"{kind}_steps_per_second"] = round(statistics.median(found), 1)
    if "bare" in rates:
        ratios = [a / b for a, b in zip(rates["packaged"], rates["bare"], strict=True)]
        row["ratio"] = round(statistics.median(ratios), 3)
        row["ratios"] = [round(ratio, 3) for ratio in ratios]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--families", nargs="+", help="all tasks of these, by their prefix")
    parser.add_argument("--num-envs", type=int, nargs="+", help="rows; each family has its own")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.6, help="of a round, for each of both")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tasks = list(args.tasks)
    if args.families:
        modules = _simulators()
        tasks = [task for family in args.families for task in modules[family].available_tasks()]

    kept = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    rows = {(row["task"], row["num_envs"]): row for row in kept}
    for task in tasks:
        for num_envs in args.num_envs or NUM_ENVS.get(task.partition("/")[0], (1, 8, 64)):
            row = run(task, num_envs, args.rounds, args.seconds)
            row["threads"], row["versions"] = torch.get_num_threads(), record_versions()
            rows[task, num_envs] = row
            print(json.dumps({k: v for k, v in row.items() if k != "versions"}), flush=True)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    unfinished = RESULTS.with_suffix(".unfinished")
    unfinished.write_text(
        json.dumps({"cores": os.cpu_count(), "rows": list(rows.values())}, indent=1)
    )
    unfinished.replace(RESULTS)


if __name__ == "__main__":
    main()
