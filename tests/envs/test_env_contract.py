"""What every simulator's environments promise; new files of ``envs`` are found by themselves."""

from __future__ import annotations

import pytest
import torch
from torchrl.envs.utils import check_env_specs

from torchrl_logo.data import TaskSpec
from torchrl_logo.data.validation import layout_shapes
from torchrl_logo.envs import make_env
from torchrl_logo.envs.registry import _simulators

TASKS_EACH = 2  # of a simulator; its own test file looks at more
SIMULATORS = _simulators()
TASKS = [task for module in SIMULATORS.values() for task in module.available_tasks()[:TASKS_EACH]]


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> str:
    return request.param


def test_tasks_carry_the_simulators_prefix() -> None:
    assert SIMULATORS
    for prefix, module in SIMULATORS.items():
        tasks = module.available_tasks()
        assert tasks and len(set(tasks)) == len(tasks)
        assert all(name.startswith(f"{prefix}/") for name in tasks)
        with pytest.raises(ValueError, match="no_such_scenario"):
            make_env(f"{prefix}/no_such_scenario")


def test_specs(task: str) -> None:
    env = make_env(task, num_envs=2, seed=0)
    check_env_specs(env)
    assert env.batch_size == (2,)
    assert env.task == task


def test_layout(task: str) -> None:
    """Whole rollouts have the layout's keys, shapes and dtypes, and follow on one another."""
    env = make_env(task, num_envs=2, seed=0)
    spec = TaskSpec.from_env(env)
    rollout = env.rollout(4, break_when_any_done=False)
    for key, (shape, dtype, _) in layout_shapes(spec).items():
        if key in ("episode", "step"):
            continue
        assert rollout[key].shape == (2, 4, *shape), key
        assert rollout[key].dtype == dtype, key
        assert rollout[key].isfinite().all(), key
    after = rollout["next"]
    assert torch.equal(after["done"], after["terminated"] | after["truncated"])
    goes_on = ~after["done"][:, :-1].squeeze(-1)
    assert goes_on.any()
    for key in ("state", ("agents", "observation")):
        assert torch.equal(after[key][:, :-1][goes_on], rollout[key][:, 1:][goes_on])
    assert rollout["step"][:, 0].eq(0).all()
    assert torch.equal(after["step"], rollout["step"] + 1)
    for agent, size in enumerate(spec.observation_sizes):
        assert not rollout["agents", "observation"][:, :, agent, size:].any()


def test_seed_decides_the_episode(task: str) -> None:
    def run(seed: int) -> torch.Tensor:
        env = make_env(task, num_envs=2, seed=seed)
        torch.manual_seed(0)  # of the actions
        return env.rollout(3, break_when_any_done=False)["next", "state"]

    first = run(0)
    assert torch.equal(first, run(0))
    assert not torch.equal(first, run(1))


@pytest.mark.parametrize("simulator", sorted(SIMULATORS))
def test_episodes_end_at_the_latest_at_the_limit(simulator: str) -> None:
    env = make_env(SIMULATORS[simulator].available_tasks()[0], num_envs=1, seed=0)
    rollout = env.rollout(env.max_steps + 1)
    steps = rollout.shape[-1]
    assert steps <= env.max_steps
    last = rollout[0, -1]["next"]
    assert last["done"].all()
    assert last["truncated"].item() == (steps == env.max_steps)
