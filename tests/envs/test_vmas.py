"""VMAS tasks, against VMAS itself."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import vmas
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.envs.utils import check_env_specs

from torchrl_logo.data import TaskSpec
from torchrl_logo.envs import make_env
from torchrl_logo.envs.vmas import (
    _SCENARIO_KWARGS,
    _UNSUPPORTED,
    VmasTeamEnv,
    available_tasks,
    build_env,
)

SCENARIOS = ["balance", "transport", "navigation", "wheel"]


def make_raw(scenario: str, num_envs: int, seed: int):
    """VMAS' own environment, just reset."""
    raw = vmas.make_env(
        scenario,
        num_envs=num_envs,
        continuous_actions=True,
        max_steps=None,
        **_SCENARIO_KWARGS.get(scenario, {}),
    )
    raw.seed(seed)
    raw.reset()
    return raw


def read_entities(raw) -> torch.Tensor:
    """The state, entity by entity and number by number."""
    columns = []
    for entity in [*raw.world.landmarks, *raw.world.agents]:
        for value in (entity.state.pos, entity.state.vel, entity.state.rot, entity.state.ang_vel):
            columns += [value[:, i] for i in range(value.shape[1])]
    return torch.stack(columns, -1)


def draw_actions(steps: int, num_envs: int, n_agents: int, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return scale * (2 * torch.rand(steps, num_envs, n_agents, 2, generator=generator) - 1)


def follow(env: VmasTeamEnv, actions: torch.Tensor) -> TensorDict:
    """Steps through given actions ``[T, E, N, 2]``, over the ends of episodes: ``[T, E]``."""
    step = env.reset()
    steps = []
    for action in actions:
        step["agents", "action"] = action
        done, step = env.step_and_maybe_reset(step)
        steps.append(done)
    return torch.stack(steps)


@pytest.mark.parametrize("scenario", [*SCENARIOS, "discovery", "passage", "flocking"])
def test_a_step_is_vmas_own(scenario: str) -> None:
    """State, observations, the mean reward and ends are those of the same seed and actions."""
    env = make_env(f"vmas/{scenario}", num_envs=3, seed=5)
    raw = make_raw(scenario, 3, seed=5)
    actions = draw_actions(6, 3, len(raw.agents))
    step = env.reset()
    torch.testing.assert_close(step["state"], read_entities(raw), rtol=0, atol=0)
    rewards = []
    for action in actions:
        step["agents", "action"] = action
        step = env.step(step)
        observations, reward, done, _ = raw.step(list(action.unbind(1)))
        following = step["next"]
        torch.testing.assert_close(following["state"], read_entities(raw), rtol=0, atol=0)
        torch.testing.assert_close(
            following["agents", "observation"], torch.stack(observations, 1), rtol=0, atol=0
        )
        reward = [r.reshape(3) for r in reward]  # wheel has a dimension more
        expected = sum(reward) / len(reward)
        torch.testing.assert_close(following["reward"], expected.unsqueeze(-1))
        assert (following["terminated"].squeeze(-1) == done).all()
        rewards.append(torch.stack(reward, -1))
        step = step["next"].exclude("reward")
    if scenario in SCENARIOS or scenario == "discovery":
        spread = torch.stack(rewards).std(-1)
        assert scenario == "navigation" or not spread.any()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_specs(scenario: str) -> None:
    env = make_env(f"vmas/{scenario}", num_envs=2, seed=0)
    check_env_specs(env)
    assert env.full_action_spec["agents", "action"].shape == (2, env.n_agents, 2)


def test_time_limit_truncates_and_never_terminates() -> None:
    env = VmasTeamEnv("transport", num_envs=2, max_steps=4, seed=0)
    rollout = env.rollout(9, break_when_any_done=False)
    limit = [False, False, False, True] * 2 + [False]
    for simulation in rollout["next"]:
        assert simulation["truncated"].flatten().tolist() == limit
        assert simulation["done"].flatten().tolist() == limit
        assert not simulation["terminated"].any()
        assert simulation["step"].flatten().tolist() == [1, 2, 3, 4, 1, 2, 3, 4, 1]
    assert rollout["step"][0].flatten().tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0]


def test_scenario_terminates(monkeypatch: pytest.MonkeyPatch) -> None:
    env = VmasTeamEnv("balance", num_envs=4, max_steps=2, seed=0)
    step = env.rand_action(env.reset())
    ends = torch.tensor([True, False, True, False])
    monkeypatch.setattr(env.scenario, "done", lambda: ends)
    first = env.step(step)["next"]
    assert first["terminated"].flatten().tolist() == ends.tolist()
    assert not first["truncated"].any()
    assert first["done"].flatten().tolist() == ends.tolist()
    # At the limit a row that terminates is both.
    last = env.step(env.rand_action(first.exclude("reward")))["next"]
    assert last["terminated"].flatten().tolist() == ends.tolist()
    assert last["truncated"].all() and last["done"].all()


def test_last_step_of_an_episode_is_the_true_one() -> None:
    """In a collector, which resets by itself, as well."""
    actions = draw_actions(5, 3, 4)

    def act(tensordict: TensorDict) -> TensorDict:
        return tensordict.set(("agents", "action"), actions[int(tensordict["step"][0]) % 5])

    env = VmasTeamEnv("transport", num_envs=3, max_steps=5, seed=2)
    collector = Collector(env, act, frames_per_batch=36, total_frames=36)
    batch = next(iter(collector))
    collector.shutdown()
    raw = make_raw("transport", 3, seed=2)
    for action in actions:
        observations, *_ = raw.step(list(action.unbind(1)))
    last = batch[:, 4]["next"]
    assert last["done"].all() and not batch[:, :4]["next", "done"].any()
    torch.testing.assert_close(last["state"], read_entities(raw), rtol=0, atol=0)
    torch.testing.assert_close(last["agents", "observation"], torch.stack(observations, 1))
    assert not (batch[:, 5]["state"] == last["state"]).all(-1).any()
    raw.reset()
    torch.testing.assert_close(batch[:, 5]["state"], read_entities(raw), rtol=0, atol=0)


def test_same_seed_same_episodes_whatever_runs_between() -> None:
    actions = draw_actions(7, 2, 4)
    alone = follow(VmasTeamEnv("transport", num_envs=2, max_steps=3, seed=1), actions)

    env = VmasTeamEnv("transport", num_envs=2, max_steps=3, seed=1)
    other = VmasTeamEnv("wheel", num_envs=2, max_steps=2)
    raw = make_raw("transport", 2, seed=9)
    step = env.reset()
    steps = []
    for action in actions:
        torch.rand(3), np.random.rand(), random.random()
        other.rollout(3, break_when_any_done=False)
        raw.reset()
        step["agents", "action"] = action
        done, step = env.step_and_maybe_reset(step)
        steps.append(done)
    assert (torch.stack(steps)["next", "state"] == alone["next", "state"]).all()

    env.set_seed(1)
    again = follow(env, actions)
    assert (again["next", "state"] == alone["next", "state"]).all()
    changed = follow(VmasTeamEnv("transport", num_envs=2, max_steps=3, seed=3), actions)
    assert not (changed["state"][0] == alone["state"][0]).all(-1).any()


def test_environments_leave_the_process_random_state_alone() -> None:
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    expected = torch.rand(2), np.random.rand(), random.random()
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    make_env("vmas/transport", num_envs=2)
    env = make_env("vmas/transport", num_envs=2, seed=4)
    env.set_seed(3)
    follow(env, draw_actions(2, 2, 4))
    assert torch.equal(torch.rand(2), expected[0])
    assert (np.random.rand(), random.random()) == expected[1:]


def test_unseeded_environments_share_no_episode() -> None:
    starts = []
    for env in [VmasTeamEnv("transport", num_envs=1) for _ in range(3)]:
        starts += [env.reset()["state"] for _ in range(4)]
    distinct = {tuple(start.flatten().tolist()) for start in starts}
    assert len(distinct) == len(starts)


def test_partial_reset_changes_the_marked_rows_only() -> None:
    env = make_env("vmas/wheel", num_envs=3, seed=0)
    step = env.rollout(4)[:, -1]["next"].exclude("reward")
    before = step.clone()
    step["_reset"] = torch.tensor([[False], [True], [False]])
    after = env.reset(step)
    assert after["step"].flatten().tolist() == [4, 0, 4]
    for key in ("state", ("agents", "observation")):
        assert (after[key][[0, 2]] == before[key][[0, 2]]).all()
        assert (after[key][1] != before[key][1]).any()
    torch.testing.assert_close(after["state"], read_entities(env._env), rtol=0, atol=0)
    # The rows go on from where they are.
    going_on = env.step(env.rand_action(after))
    assert going_on["next", "step"].flatten().tolist() == [5, 1, 5]


def test_unequal_observations_are_padded() -> None:
    env = VmasTeamEnv("simple_tag", num_envs=2, seed=0)
    assert env.observation_sizes == [16, 16, 16, 14]
    raw = make_raw("simple_tag", 2, seed=0)
    found = env.reset()["agents", "observation"]
    expected = [raw.scenario.observation(agent) for agent in raw.agents]
    assert found.shape == (2, 4, 16)
    for index, observation in enumerate(expected):
        size = observation.shape[-1]
        assert (found[:, index, :size] == observation).all()
        assert not found[:, index, size:].any()
    assert TaskSpec.from_env(env).observation_sizes == (16, 16, 16, 14)
    check_env_specs(env)


@pytest.mark.parametrize("task", available_tasks())
def test_every_listed_task_is_built(task: str) -> None:
    env = make_env(task, num_envs=1, seed=0)
    spec = TaskSpec.from_env(env)
    rollout = env.rollout(2)
    assert rollout["agents", "observation"].shape[2:] == (spec.n_agents, spec.observation_size)
    assert rollout["next", "reward"].isfinite().all()
    assert spec.state_size == 6 * len(env._env.world.entities)


def test_list_has_the_promised_and_lacks_the_unsupported() -> None:
    assert {f"vmas/{scenario}" for scenario in SCENARIOS} < set(available_tasks())
    assert not {f"vmas/{scenario}" for scenario in _UNSUPPORTED} & set(available_tasks())


@pytest.mark.parametrize("scenario", sorted(_UNSUPPORTED))
def test_scenario_that_is_no_team_task_is_refused(scenario: str) -> None:
    with pytest.raises(ValueError, match=f"vmas/{scenario} is no team task: "):
        build_env(scenario)


def test_scenario_that_does_not_fit_the_layout_is_refused() -> None:
    with pytest.raises(ValueError, match="one size, found .*: 2, .*: 3"):
        VmasTeamEnv("diff_drive", num_envs=1)
    with pytest.raises(ValueError, match=r"speak are not supported, found \['agent_0'"):
        VmasTeamEnv("simple_reference", num_envs=1)


def test_unknown_scenario_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="'blance'.*vmas/balance"):
        build_env("blance")


@pytest.mark.parametrize("argument", ["num_envs", "max_steps"])
def test_sizes_must_be_positive(argument: str) -> None:
    with pytest.raises(ValueError, match=f"{argument} must be at least 1, found 0"):
        VmasTeamEnv("balance", **{"num_envs": 1, argument: 0})


def test_device_argument() -> None:
    env = make_env("vmas/balance", num_envs=1, device=torch.device("cpu"))
    assert env.device == torch.device("cpu") == env.reset()["state"].device


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    """All tensors are there, and the seed and the process' generator are kept apart there too."""
    actions = draw_actions(5, 2, 4).cuda()
    first = follow(
        VmasTeamEnv("transport", num_envs=2, max_steps=2, seed=1, device="cuda"), actions
    )
    torch.cuda.manual_seed(0)
    expected = torch.rand(2, device="cuda")
    torch.cuda.manual_seed(0)
    env = VmasTeamEnv("transport", num_envs=2, max_steps=2, seed=1, device="cuda")
    second = follow(env, actions)
    assert torch.equal(torch.rand(2, device="cuda"), expected)
    assert second["next", "state"].device.type == "cuda"
    torch.testing.assert_close(first["state"], second["state"])
