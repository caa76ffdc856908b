"""Known rules for the end of episodes, against the simulators that they are taken from."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_logo.data import TaskSpec
from torchrl_logo.envs import (
    ImaginedEnv,
    known_termination,
    make_env,
    tasks_with_known_termination,
)
from torchrl_logo.modules import JointWorldModel

# A task, the simulations and steps that are compared, and whether episodes end in them.
TASKS = [
    ("vmas/balance", 200, 40, True),
    ("vmas/transport", 20, 20, False),
    ("vmas/navigation", 20, 20, False),
    ("vmas/wheel", 20, 20, False),
    ("mamujoco/hopper_3x1", 8, 60, True),
    ("mamujoco/walker2d_2x3", 8, 60, True),
    ("mamujoco/ant_2x4", 8, 120, True),
    ("mamujoco/halfcheetah_2x3", 4, 10, False),
    ("mpe/simple_spread", 2, 25, False),
    ("smax/2s3z", 16, 60, True),
]
EXTRAS = {"mamujoco": "gymnasium_robotics", "mpe": "mpe2", "smax": "jaxmarl"}


@pytest.mark.parametrize(("task", "num_envs", "steps", "ends"), TASKS)
def test_rules_agree_with_the_simulator(task: str, num_envs: int, steps: int, ends: bool) -> None:
    extra = EXTRAS.get(task.partition("/")[0])
    if extra is not None:
        pytest.importorskip(extra)
    env = make_env(task, num_envs=num_envs, seed=0)
    torch.manual_seed(0)
    data = env.rollout(steps, break_when_any_done=False)
    env.close()
    found = known_termination(task)(data)
    assert found.dtype is torch.bool and torch.equal(found, data["next", "terminated"])
    assert bool(found.any()) is ends


@pytest.mark.parametrize(
    ("task", "placed"), [("vmas/transport", ("package 0", "goal")), ("vmas/navigation", None)]
)
def test_arriving_ends_a_task(task: str, placed: tuple[str, str] | None) -> None:
    """What chance does not bring about is put there: everything that must arrive stands there."""
    env = make_env(task, num_envs=5, seed=0)
    state = env.reset()["state"]
    rule = known_termination(task)
    assert not rule(TensorDict({"next": {"state": state}}, [5])).any()
    entities = [entity.name for entity in env._env.world.entities]
    pairs = [placed] if placed else [(f"agent_{i}", f"goal {i}") for i in range(env.n_agents)]
    rows = state.unflatten(-1, (len(entities), 6)).clone()
    for moved, goal in pairs:
        rows[2:, entities.index(moved), :2] = rows[2:, entities.index(goal), :2]
    arrived = rule(TensorDict({"next": {"state": rows.flatten(-2)}}, [5]))
    assert arrived.squeeze(-1).tolist() == [False, False, True, True, True]


def test_robots_at_the_limits_of_their_ranges() -> None:
    hopper, ant = known_termination("mamujoco/hopper_3x1"), known_termination("mamujoco/ant_2x4")
    state = torch.zeros(5, 11)
    state[:, 0] = torch.tensor([0.7, 0.71, 1.0, 1.0, float("nan")])
    state[2, 1], state[3, 5] = -0.2, 100.0
    found = hopper(TensorDict({"next": {"state": state}}, [5]))
    assert found.squeeze(-1).tolist() == [True, False, True, True, True]
    state = torch.zeros(4, 105)
    state[:, 0] = torch.tensor([0.2, 1.0, 1.01, 0.19])
    found = ant(TensorDict({"next": {"state": state}}, [4]))
    assert found.squeeze(-1).tolist() == [False, False, True, True]


def test_ends_imagined_rollouts() -> None:
    env = make_env("vmas/balance", num_envs=32, seed=0)
    data = env.rollout(20, break_when_any_done=False)
    model = JointWorldModel(TaskSpec.from_env(env), hidden_size=8)
    model.fit_normalizers(data.reshape(-1))
    starts = data.reshape(-1).select(*env.observation_spec.keys(True, True)).exclude("step")
    imagined = ImaginedEnv(
        model, starts, batch_size=64, horizon=30, termination=known_termination("vmas/balance")
    )
    rollout = imagined.rollout(30, break_when_any_done=False)
    expected = known_termination("vmas/balance")(rollout)
    assert torch.equal(rollout["next", "terminated"], expected) and expected.any()


def test_unknown_rules_name_the_known_ones() -> None:
    assert "vmas/balance" in tasks_with_known_termination()
    with pytest.raises(ValueError, match="vmas/ball_passage.*vmas/balance.*termination=None"):
        known_termination("vmas/ball_passage")
