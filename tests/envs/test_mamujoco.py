"""MaMuJoCo tasks, against gymnasium-robotics' own environments."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from torchrl.envs.utils import check_env_specs

from torchrl_logo.data import TaskSpec
from torchrl_logo.data.metadata import record_versions
from torchrl_logo.envs import make_env
from torchrl_logo.envs.mamujoco import MaMuJoCoTeamEnv, available_tasks, build_env

pytest.importorskip("mujoco")
mamujoco_v1 = pytest.importorskip("gymnasium_robotics").mamujoco_v1

NUM_ENVS = 2

# name of the task, of gymnasium-robotics' environment, and the sizes of observations
TASKS = [
    ("halfcheetah_2x3", "HalfCheetah", "2x3", [12, 12]),
    ("halfcheetah_6x1", "HalfCheetah", "6x1", [9, 9, 8, 9, 9, 8]),
    ("hopper_3x1", "Hopper", "3x1", [8, 9, 8]),
    ("ant_2x4", "Ant", "2x4", [63, 63]),
    ("walker2d_2x3", "Walker2d", "2x3", [12, 12]),
    ("swimmer_10x2", "ManySegmentSwimmer", "10x2", [5, *[6] * 8, 5]),
    ("swimmer_2x1", "Swimmer", "2x1", [6, 6]),
    ("humanoid_9|8", "Humanoid", "9|8", [242, 170]),
    ("manysegmentant_2x3", "ManySegmentAnt", "2x3", [165, 167]),
    ("reacher_2x1", "Reacher", "2x1", [7, 10]),
]


def pad(rows: list[np.ndarray], width: int) -> np.ndarray:
    """Rows of different lengths as ``[N, width]`` float32."""
    out = np.zeros((len(rows), width), dtype=np.float32)
    for row, values in zip(out, rows, strict=True):
        row[: len(values)] = values
    return out


def require_same(step: Any, index: int, simulator: Any, observations: dict[str, Any]) -> None:
    """State and observations are the simulator's, to the last bit of float32."""
    width = step["agents", "observation"].shape[-1]
    expected = pad([observations[name] for name in simulator.possible_agents], width)
    np.testing.assert_array_equal(step["agents", "observation"][index].numpy(), expected)
    np.testing.assert_array_equal(
        step["state"][index].numpy(), simulator.state().astype(np.float32)
    )


@pytest.mark.parametrize(("name", "scenario", "split", "sizes"), TASKS)
def test_a_step_is_gymnasium_robotics_own(name, scenario, split, sizes) -> None:
    """Over random episodes and their ends: observations, state, reward and terminations."""
    env = make_env(f"mamujoco/{name}", num_envs=NUM_ENVS, seed=3)
    assert env.observation_sizes == sizes
    raw = [mamujoco_v1.parallel_env(scenario, split, agent_obsk=1) for _ in range(NUM_ENVS)]
    step = env.reset()
    for index, simulator in enumerate(raw):
        observations, _ = simulator.reset(seed=env._seeds[index])
        require_same(step, index, simulator, observations)
    bounds = env.full_action_spec["agents", "action"].space
    for space in map(raw[0].action_space, raw[0].possible_agents):
        assert (space.low == bounds.low.unique().item()).all()
        assert (space.high == bounds.high.unique().item()).all()
    torch.manual_seed(0)
    ended = 0
    for _ in range(60):
        action = env.rand_action(step)["agents", "action"]
        after, step = env.step_and_maybe_reset(step)
        for index, simulator in enumerate(raw):
            agents = simulator.possible_agents
            own = {
                agent: action[index, i, : simulator.action_space(agent).shape[0]].numpy()
                for i, agent in enumerate(agents)
            }
            observations, rewards, terminations, truncations, _ = simulator.step(own)
            require_same(after["next"], index, simulator, observations)
            assert after["next", "reward"][index].item() == np.float32(rewards[agents[0]])
            assert after["next", "terminated"][index].item() == terminations[agents[0]]
            assert after["next", "truncated"][index].item() == truncations[agents[0]]
            if terminations[agents[0]] or truncations[agents[0]]:
                ended += 1
                observations, _ = simulator.reset()
                require_same(step, index, simulator, observations)
                assert step["step"][index] == 0
    if scenario in ("Hopper", "Walker2d", "Humanoid", "Reacher"):
        assert ended > 0  # these fall under random actions, or end after 50 steps


def test_velocities_that_a_state_clips_are_observed_as_they_are() -> None:
    env = build_env("walker2d_2x3", seed=0)
    env.reset()
    simulator = env._simulators[0]
    simulator.set_state(simulator.data.qpos, np.linspace(-40.0, 40.0, simulator.model.nv))
    out = env.step(env.rand_action())["next"]
    velocities = simulator.data.qvel.astype(np.float32)
    assert np.abs(velocities).max() > 10
    np.testing.assert_array_equal(out["state"][0, 8:].numpy(), velocities.clip(-10, 10))
    observations = out["agents", "observation"].numpy()
    np.testing.assert_array_equal(observations[0, :, -3:], np.tile(velocities[:3], (2, 1)))


@pytest.mark.parametrize("name", ["halfcheetah_2x3", "humanoid_9|8"])
def test_specs(name: str) -> None:
    check_env_specs(build_env(name, num_envs=2, seed=0))


def test_the_time_limit_truncates() -> None:
    env = MaMuJoCoTeamEnv("HalfCheetah", "2x3", num_envs=2, max_steps=3, seed=0)
    rollout = env.rollout(7, break_when_any_done=False)
    done = torch.tensor([False, False, True, False, False, True, False])
    for index in range(2):
        assert torch.equal(rollout["next", "truncated"][index, :, 0], done)
        assert torch.equal(rollout["next", "done"][index, :, 0], done)
    assert not rollout["next", "terminated"].any()
    # The last state of an episode leads on from the one before it, and not to the next episode.
    moved = (rollout["next", "state"] - rollout["state"])[:, :, :8].abs().amax((-1, -2))
    jumped = rollout["next", "state"][:, 2] - rollout["state"][:, 3]
    assert (moved < 1.0).all() and (jumped.abs().amax(-1) > 0.01).all()
    assert build_env("halfcheetah_2x3").max_steps == 1000
    assert build_env("reacher_2x1").max_steps == 50


def test_a_partial_reset_leaves_the_others_alone() -> None:
    env = build_env("hopper_3x1", num_envs=3, seed=0)
    other = build_env("hopper_3x1", num_envs=3, seed=0)
    step, untouched = env.reset(), other.reset()
    torch.manual_seed(0)
    for _ in range(3):
        action = env.rand_action()["agents", "action"]
        step["agents", "action"] = action
        untouched["agents", "action"] = action
        step = env.step(step)["next"].exclude("reward")
        untouched = other.step(untouched)["next"].exclude("reward")
    mask = torch.tensor([[False], [True], [False]])
    step = env.reset(step.set("_reset", mask))
    assert step["step"].flatten().tolist() == [3, 0, 3]
    assert torch.equal(step["state"][[0, 2]], untouched["state"][[0, 2]])
    assert not torch.equal(step["state"][1], untouched["state"][1])
    action = env.rand_action()["agents", "action"]
    step["agents", "action"] = action
    untouched["agents", "action"] = action
    step, untouched = env.step(step)["next"], other.step(untouched)["next"]
    assert torch.equal(step["state"][[0, 2]], untouched["state"][[0, 2]])
    assert torch.equal(step["reward"][[0, 2]], untouched["reward"][[0, 2]])


def test_seeds_reproduce_whatever_runs_beside() -> None:
    def follow(num_envs: int, seed: int) -> torch.Tensor:
        env = build_env("hopper_3x1", num_envs=num_envs, seed=seed)
        first = env.reset()["state"]
        return torch.stack([first, env.reset()["state"]])[:, :2]

    assert torch.equal(follow(2, 0), follow(5, 0))
    assert not torch.equal(follow(2, 0), follow(2, 1))
    env = build_env("hopper_3x1", num_envs=2, seed=9)
    before = torch.get_rng_state()
    env.set_seed(0)
    assert torch.equal(env.reset()["state"], follow(2, 0)[0])
    assert torch.equal(before, torch.get_rng_state())
    states = [build_env("hopper_3x1", num_envs=2).reset()["state"] for _ in range(2)]
    assert not torch.equal(states[0], states[1])


def test_steps_do_not_change_what_was_written_before() -> None:
    env = build_env("walker2d_2x3", num_envs=2, seed=0)
    first = env.reset()
    kept = first.clone()
    for _ in range(2):
        env.step(env.rand_action())
    assert (first == kept).all()


def test_the_task_is_described() -> None:
    spec = TaskSpec.from_env(build_env("humanoid_9|8", num_envs=2))
    assert spec.task == "mamujoco/humanoid_9|8"
    assert spec.observation_sizes == (242, 170)
    assert spec.action_low == pytest.approx((-0.4,) * 9)
    assert spec.max_steps == 1000
    assert record_versions()["mujoco"][0].isdigit()


def test_padded_actions_are_ignored() -> None:
    env = build_env("humanoid_9|8", seed=0)
    assert env.action_sizes == [9, 8]

    def move(padding: float) -> torch.Tensor:
        env.set_seed(0)
        step = env.reset()
        step["agents", "action"] = torch.zeros(1, 2, 9)
        step["agents", "action"][0, 1, 8] = padding
        return env.step(step)["next", "state"]

    assert torch.equal(move(0.0), move(0.4))


def test_actions_must_be_finite() -> None:
    env = build_env("hopper_3x1", num_envs=2, seed=0)
    step = env.reset()
    step["agents", "action"] = torch.tensor([0.0, float("nan")]).reshape(2, 1, 1).expand(2, 3, 1)
    with pytest.raises(ValueError, match=r"\('agents', 'action'\) must be finite.*\[1\]"):
        env.step(step)


@pytest.mark.parametrize("name", ["halfchetah_2x3", "halfcheetah_3x2", "swimmer_0x2", "ant"])
def test_unknown_tasks_name_the_nearest_and_all(name: str) -> None:
    with pytest.raises(ValueError, match=f"no task '{name}'. Nearest: mamujoco/") as error:
        make_env(f"mamujoco/{name}")
    assert all(task in str(error.value) for task in available_tasks())


@pytest.mark.parametrize("wrong", [{"num_envs": 0}, {"max_steps": 0}, {"agent_obsk": -1}])
def test_wrong_numbers_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be at least"):
        MaMuJoCoTeamEnv("Hopper", "3x1", **wrong)


def test_a_missing_simulator_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(ImportError, match=r"pip install torchrl-logo\[mamujoco\]"):
        build_env("hopper_3x1")
