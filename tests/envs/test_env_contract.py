"""What every simulator's environments promise; new files of ``envs`` are found by themselves.

A family whose packages are not installed is skipped with the message that says what to install.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensordict import TensorDictBase
from torchrl.collectors import Collector
from torchrl.envs import EnvBase
from torchrl.envs.utils import check_env_specs

import torchrl_logo.envs
from torchrl_logo.data import TaskSpec
from torchrl_logo.data.validation import layout_shapes
from torchrl_logo.envs import available_tasks, make_env
from torchrl_logo.envs.registry import _simulators

TASKS_EACH = 2  # of a simulator that does not name its CONTRACT_TASKS
SIMULATORS = _simulators()

# Rows wherever there are several: SMAX compiles for each number of them for seconds.
SEVERAL = 3


def contract_tasks(prefix: str) -> list[str]:
    module = SIMULATORS[prefix]
    return list(getattr(module, "CONTRACT_TASKS", module.available_tasks()[:TASKS_EACH]))


TASKS = [task for prefix in SIMULATORS for task in contract_tasks(prefix)]
KEYS = [("agents", "observation"), "state"]

# Scenarios in which nothing is drawn: each episode starts alike, and follows from its actions.
WITHOUT_CHANCE = {"vmas/give_way"}


def make(task: str, **kwargs) -> EnvBase:
    """The task's environment, or a skip where its packages are missing."""
    try:
        return make_env(task, **kwargs)
    except ImportError as error:
        if "is not installed" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> str:
    return request.param


def draw_actions(env: EnvBase, steps: int, seed: int = 7) -> TensorDictBase | torch.Tensor:
    """Actions ``[steps, E, N, ...]`` that do not depend on what the environment shows."""
    torch.manual_seed(seed)
    return torch.stack([env.full_action_spec["agents", "action"].rand() for _ in range(steps)])


def follow(env: EnvBase, actions: torch.Tensor) -> TensorDictBase:
    """Steps through actions over the ends of episodes: ``[T, E]``.

    A discrete action that is not available gives way to the first one that is.
    """
    step = env.reset()
    steps = []
    for action in actions:
        mask = step.get(("agents", "action_mask"), None)
        if mask is not None:
            allowed = mask.gather(-1, action.unsqueeze(-1)).squeeze(-1)
            action = torch.where(allowed, action, mask.int().argmax(-1))
        step["agents", "action"] = action
        done, step = env.step_and_maybe_reset(step)
        steps.append(done)
    return torch.stack(steps)


def test_every_file_of_the_folder_that_names_tasks_is_found() -> None:
    folder = Path(torchrl_logo.envs.__file__).parent
    declared = {p.stem for p in folder.glob("*.py") if "\nTASK_PREFIX = " in p.read_text()}
    assert declared == {module.__name__.rpartition(".")[2] for module in SIMULATORS.values()}
    assert {"vmas", "mpe", "pettingzoo", "smac"} <= set(SIMULATORS)


@pytest.mark.parametrize("prefix", sorted(SIMULATORS))
def test_tasks_carry_the_simulators_prefix(prefix: str) -> None:
    tasks = SIMULATORS[prefix].available_tasks()
    assert len(set(tasks)) == len(tasks) and set(tasks) <= set(available_tasks())
    assert contract_tasks(prefix)
    assert all(name.startswith(f"{prefix}/") for name in [*tasks, *contract_tasks(prefix)])
    with pytest.raises(ValueError, match="no_such_scenario"):
        make_env(f"{prefix}/no_such_scenario")


def test_the_package_and_its_list_of_tasks_import_no_simulator() -> None:
    # TorchRL imports MuJoCo by itself where it is installed.
    code = (
        "import sys, torchrl.envs; before = set(sys.modules); "
        "import torchrl_logo.envs; torchrl_logo.envs.available_tasks(); "
        "print(sorted({'pettingzoo', 'mpe2', 'pygame', 'mujoco', 'gymnasium_robotics', 'jax', "
        "'jaxmarl', 'smacv2'} & (set(sys.modules) - before)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("num_envs", [1, SEVERAL])
def test_specs(task: str, num_envs: int) -> None:
    env = make(task, num_envs=num_envs, seed=0)
    check_env_specs(env)
    assert env.batch_size == (num_envs,)
    assert env.task == task
    assert list(env.group_map) == ["agents"]


@pytest.mark.parametrize("num_envs", [1, SEVERAL])
def test_layout(task: str, num_envs: int) -> None:
    """Whole rollouts have the layout's keys, shapes and dtypes, and follow on one another."""
    env = make(task, num_envs=num_envs, seed=0)
    spec = TaskSpec.from_env(env)
    rollout = env.rollout(4, break_when_any_done=False)
    for key, (shape, dtype, _) in layout_shapes(spec).items():
        if key in ("episode", "step"):
            continue
        assert rollout[key].shape == (num_envs, 4, *shape), key
        assert rollout[key].dtype == dtype, key
        assert rollout[key].isfinite().all(), key
    assert not rollout.requires_grad
    after = rollout["next"]
    assert torch.equal(after["done"], after["terminated"] | after["truncated"])
    goes_on = ~after["done"][:, :-1].squeeze(-1)
    assert goes_on.any()
    for key in KEYS + [("agents", "action_mask")] * spec.discrete:
        assert torch.equal(after[key][:, :-1][goes_on], rollout[key][:, 1:][goes_on])
    assert rollout["step"][:, 0].eq(0).all()
    assert torch.equal(after["step"], rollout["step"] + 1)
    for agent, size in enumerate(spec.observation_sizes):
        assert not rollout["agents", "observation"][:, :, agent, size:].any()


def test_spec_is_the_layout_s(task: str) -> None:
    """The environment's specs are those that its task spec makes, up to masks of the moment."""
    env = make(task, num_envs=SEVERAL, seed=0)
    spec = TaskSpec.from_env(env)
    for key, expected in spec.observation_spec(env.device).expand(SEVERAL).items(True, True):
        found = env.full_observation_spec[key]
        assert found.shape == expected.shape and found.dtype == expected.dtype, key
    action, expected = env.full_action_spec["agents", "action"], spec.action_spec(env.device)
    assert action.shape == (SEVERAL, *expected.shape) and action.dtype == expected.dtype
    assert env.full_reward_spec["reward"].shape == (SEVERAL, 1)


def test_seed_decides_the_episode(task: str) -> None:
    """Whatever runs between, and whoever draws numbers."""
    env = make(task, num_envs=SEVERAL, seed=0)
    # Over the end of an episode, where that is near.
    steps = env.max_steps + 3 if env.max_steps and env.max_steps <= 40 else 8
    actions = draw_actions(env, steps)
    first = follow(env, actions)
    torch.rand(5)
    again = make(task, num_envs=SEVERAL, seed=0)
    other = make(task, num_envs=SEVERAL, seed=1)
    different = follow(other, actions)
    second = follow(again, actions)
    env.set_seed(0)
    third = follow(env, actions)
    for key in [*KEYS, "reward", "done"]:
        assert torch.equal(first["next", key], second["next", key]), key
        assert torch.equal(first["next", key], third["next", key]), key
    if task in WITHOUT_CHANCE:
        return
    assert not torch.equal(first["next", "state"], different["next", "state"])
    # The simulators of one batch have episodes of their own, and so have successive episodes.
    assert not torch.equal(first["state"][0, 0], first["state"][0, 1])
    starts = first["state"][first["step"].squeeze(-1) == 0]
    assert len(starts.unique(dim=0)) == len(starts)


def test_partial_reset_changes_the_marked_rows_only(task: str) -> None:
    """And what the other rows go through from there is what they would have gone through."""
    env, undisturbed = (make(task, num_envs=SEVERAL, seed=0) for _ in range(2))
    actions = draw_actions(env, 6)
    before, expected = follow(env, actions[:3])[-1]["next"], follow(undisturbed, actions)
    # Random actions end an episode of some tasks within these steps: these rows are not compared.
    compared = ~expected["next", "done"][:3].any(0).squeeze(-1)
    compared[1] = False
    assert compared.any()
    step = before.exclude("reward").clone()
    step["_reset"] = ~compared.unsqueeze(-1)
    after = env.reset(step)
    assert (after["step"].squeeze(-1) == torch.where(compared, 3, 0)).all()
    for key in KEYS:
        assert torch.equal(after[key][compared], before[key][compared])
    assert not torch.equal(after["state"][1], before["state"][1])
    for action, wanted in zip(actions[3:], expected[3:], strict=True):
        mask = after.get(("agents", "action_mask"), None)
        if mask is not None:
            allowed = mask.gather(-1, action.unsqueeze(-1)).squeeze(-1)
            action = torch.where(allowed, action, mask.int().argmax(-1))
        after["agents", "action"] = action
        after = env.step(after)["next"]
        for key in [*KEYS, "reward", "done"]:
            torch.testing.assert_close(after[key][compared], wanted["next", key][compared])
        compared = compared & ~after["done"].squeeze(-1)
        after = after.exclude("reward")


def test_masks(task: str) -> None:
    """Each agent has an action, random actions are available ones, and none is out of range."""
    env = make(task, num_envs=SEVERAL, seed=0)
    spec = TaskSpec.from_env(env)
    rollout = env.rollout(10, break_when_any_done=False)
    if not spec.discrete:
        assert ("agents", "action_mask") not in rollout.keys(True)
        low, high = (torch.tensor(b) for b in (spec.action_low, spec.action_high))
        action = rollout["agents", "action"]
        assert ((action >= low) & (action <= high)).all()
        return
    mask, action = rollout["agents", "action_mask"], rollout["agents", "action"]
    assert mask.any(-1).all() and rollout["next", "agents", "action_mask"].any(-1).all()
    assert mask.gather(-1, action.unsqueeze(-1)).all()


@pytest.mark.parametrize("simulator", sorted(SIMULATORS))
def test_episodes_end_at_the_latest_at_the_limit(simulator: str) -> None:
    env = make(contract_tasks(simulator)[0], num_envs=1, seed=0)
    rollout = env.rollout(env.max_steps + 1)
    steps = rollout.shape[-1]
    assert steps <= env.max_steps
    last = rollout[0, -1]["next"]
    assert last["done"].all() and not rollout[0, :-1]["next", "done"].any()
    assert last["truncated"].item() == (steps == env.max_steps)
    assert last["terminated"].item() == (steps < env.max_steps)


@pytest.mark.parametrize("simulator", sorted(SIMULATORS))
def test_collectors_store_the_true_last_step(simulator: str) -> None:
    """What a collector, which resets by itself, stores at an end is not the next start."""
    env = make(contract_tasks(simulator)[0], num_envs=SEVERAL, seed=0)
    frames = SEVERAL * (env.max_steps + 2)
    # Without a policy, a collector's random actions would heed no mask.
    collector = Collector(env, env.rand_action, frames_per_batch=frames, total_frames=frames)
    batch = next(iter(collector))
    collector.shutdown(close_env=False)
    after, before = batch["next", "state"][:, :-1], batch["state"][:, 1:]
    ended = batch["next", "done"][:, :-1].squeeze(-1)
    assert ended.any()
    assert not (after[ended] == before[ended]).all(-1).any()
    assert torch.equal(after[~ended], before[~ended])
    assert (batch["step"][:, 1:][ended] == 0).all()
    limit = batch["next", "step"][:, :-1][ended].squeeze(-1) == env.max_steps
    assert torch.equal(batch["next", "truncated"][:, :-1][ended].squeeze(-1), limit)
