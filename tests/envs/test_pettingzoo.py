"""PettingZoo environments of all kinds, mostly over a team whose rules are known by heart."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torchrl.envs.utils import check_env_specs

pettingzoo = pytest.importorskip("pettingzoo")
spaces = pytest.importorskip("gymnasium.spaces")

from torchrl_logo.data import TaskSpec  # noqa: E402
from torchrl_logo.envs import make_env  # noqa: E402
from torchrl_logo.envs.pettingzoo import PettingZooTeamEnv  # noqa: E402


class Team(pettingzoo.ParallelEnv):
    """Agent i observes i + 1 numbers, all the clock, and leaves for good after ``lives[i]`` steps.

    Rewards are i + 1 (or 1 with ``shared``). The rest are truncated after ``limit`` steps.
    """

    metadata = {"name": "team"}

    def __init__(
        self,
        lives: tuple[int, ...] = (2, 99, 4),
        limit: int = 6,
        shared: bool = False,
        masks: str = "",
        has_state: bool = True,
        start: int = 0,
        both: bool = False,
    ) -> None:
        self.possible_agents = [f"unit_{i}" for i in range(len(lives))]
        self.lives, self.limit, self.shared, self.masks = lives, limit, shared, masks
        self.has_state, self.start, self.both = has_state, start, both
        self.max_cycles = limit
        self.joint: list[dict[str, Any]] = []

    def observation_space(self, agent):
        box = spaces.Box(-9, 99, (1 + self.possible_agents.index(agent),), np.int64)
        if self.masks == "observation":
            return spaces.Dict({"observation": box, "action_mask": spaces.MultiBinary(3)})
        return box

    def action_space(self, agent):
        return spaces.Discrete(3, start=self.start)

    def _mask(self) -> np.ndarray:
        mask = np.ones(3, np.int8)
        mask[self.clock % 3] = 0
        return mask

    def _look(self, names):
        seen = {}
        for name in names:
            value = np.full(1 + self.possible_agents.index(name), self.clock + 1, np.int64)
            seen[name] = value
            if self.masks == "observation":
                seen[name] = {"observation": value, "action_mask": self._mask()}
        infos = {n: {"action_mask": self._mask()} if self.masks == "info" else {} for n in names}
        return seen, infos

    def reset(self, seed=None, options=None):
        self.clock = 0
        self.offset = np.random.default_rng(seed).random()
        self.agents = list(self.possible_agents)
        return self._look(self.agents)

    def step(self, actions):
        assert set(actions) == set(self.agents)
        self.joint.append(actions)
        self.clock += 1
        acting = self.agents
        at_limit = self.clock >= self.limit
        dead = {
            n: self.clock >= self.lives[self.possible_agents.index(n)] or (self.both and at_limit)
            for n in acting
        }
        truncated = {n: at_limit and (self.both or not dead[n]) for n in acting}
        rewards = {n: 1.0 if self.shared else 1.0 + self.possible_agents.index(n) for n in acting}
        seen, infos = self._look(acting)
        self.agents = [n for n in acting if not dead[n] and not truncated[n]]
        return seen, rewards, dead, truncated, infos

    def state(self):
        if not self.has_state:
            raise NotImplementedError
        return np.array([self.clock, self.offset])


def make_team(num_envs: int = 1, seed: int = 0, env_kwargs: dict | None = None, **kwargs):
    kwargs = {"team_reward": "sum", **kwargs}
    return PettingZooTeamEnv(
        lambda: Team(**(env_kwargs or {})), num_envs=num_envs, seed=seed, **kwargs
    )


@pytest.mark.parametrize("masks", ["", "info", "observation"])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_specs(masks: str, num_envs: int) -> None:
    check_env_specs(make_team(num_envs, env_kwargs={"masks": masks}))


def test_agents_that_are_out_see_zeros_and_have_the_first_action() -> None:
    env = make_team()
    rollout = env.rollout(10)
    assert rollout.shape == (1, 6)
    # Agent 0 is shown its last step, and then acts no more.
    clock = torch.arange(1.0, 7)
    expected = torch.zeros(6, 3, 3)
    for agent, steps in enumerate((2, 6, 4)):
        # The simulator shows an agent the step it leaves in.
        expected[: steps + 1, agent, : agent + 1] = clock[: steps + 1, None]
    assert torch.equal(rollout["agents", "observation"][0], expected)
    mask = rollout["agents", "action_mask"][0]
    for agent, steps in enumerate((2, 6, 4)):
        assert mask[:steps, agent].all()
        assert mask[steps:, agent].eq(torch.tensor([True, False, False])).all()
    # The one that is cut off could have gone on.
    assert rollout["next", "agents", "action_mask"][0, -1, 1].all()
    assert [sorted(joint) for joint in env.simulators[0].joint] == (
        [["unit_0", "unit_1", "unit_2"]] * 2 + [["unit_1", "unit_2"]] * 2 + [["unit_1"]] * 2
    )


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("sum", [6.0, 6, 5, 5, 2, 2]), ("mean", [2.0, 2, 5 / 3, 5 / 3, 2 / 3, 2 / 3])],
)
def test_rewards_by_rule(rule: str, expected: list[float]) -> None:
    reward = make_team(team_reward=rule).rollout(10)["next", "reward"].flatten()
    torch.testing.assert_close(reward, torch.tensor(expected))


def test_rewards_that_differ_need_a_rule() -> None:
    env = make_team(team_reward="shared")
    with pytest.raises(ValueError, match=r"unit_2.*3\.0.*team_reward='mean' or 'sum'"):
        env.rollout(2)
    shared = make_team(team_reward="shared", env_kwargs={"shared": True}).rollout(10)
    assert shared["next", "reward"].flatten().tolist() == [1.0] * 6


@pytest.mark.parametrize(
    ("kwargs", "steps", "terminated", "truncated"),
    [
        ({}, 6, False, True),  # one agent is left at the limit
        ({"lives": (2, 3, 4)}, 4, True, False),  # the last one dies
        ({"lives": (2, 6, 9)}, 6, False, True),  # one dies at the limit, the other is cut off
        ({"both": True}, 6, True, True),  # the simulator says both
    ],
)
def test_ends(kwargs: dict, steps: int, terminated: bool, truncated: bool) -> None:
    rollout = make_team(env_kwargs=kwargs).rollout(10)
    assert rollout.shape == (1, steps)
    last = rollout[0, -1]["next"]
    assert last["terminated"].item() == terminated
    assert last["truncated"].item() == truncated
    assert last["state"][0] == steps
    assert not rollout[0, :-1]["next", "done"].any()


def test_a_simulator_that_has_ended_waits_for_its_reset() -> None:
    env = make_team(2)
    step = env.reset()
    for _ in range(6):
        step = env.step(env.rand_action(step))["next"].exclude("reward")
    step["_reset"] = torch.tensor([[True], [False]])
    step = env.rand_action(env.reset(step))
    after = env.step(step)["next"]
    assert after["step"].flatten().tolist() == [1, 6]
    assert after["done"].flatten().tolist() == [False, True]
    assert after["reward"].flatten().tolist() == [6.0, 0.0]


@pytest.mark.parametrize("masks", ["info", "observation"])
def test_masks_of_the_simulator(masks: str) -> None:
    rollout = make_team(num_envs=2, env_kwargs={"masks": masks}).rollout(6)
    barred = torch.arange(6) % 3
    expected = torch.ones(6, 3, dtype=torch.bool)
    expected[torch.arange(6), barred] = False
    for index in range(2):
        assert torch.equal(rollout["agents", "action_mask"][index, :, 1], expected)
        assert (rollout["agents", "action"][index, :, 1] != barred).all()


def test_actions_that_do_not_start_at_0() -> None:
    env = make_team(env_kwargs={"start": 5})
    rollout = env.rollout(2)
    passed = [[joint[n] for n in env.agent_names] for joint in env.simulators[0].joint]
    assert torch.equal(rollout["agents", "action"][0] + 5, torch.tensor(passed))
    assert TaskSpec.from_env(env).action_size == 3


def test_a_simulator_without_state_needs_a_choice() -> None:
    with pytest.raises(ValueError, match=r"no state\(\) of its own.*state='concatenate'"):
        make_team(env_kwargs={"has_state": False})
    env = make_team(env_kwargs={"has_state": False}, state="concatenate")
    rollout = env.rollout(3)
    # Without the padding: 1 + 2 + 3 numbers.
    assert rollout["state"].tolist() == [[[float(t)] * 6 for t in (1, 2, 3)]]


class Spaces(Team):
    """With other spaces than the team's."""

    def __init__(self, observation=None, action=None) -> None:
        super().__init__(lives=(9, 9))
        self.spaces = observation, action

    def observation_space(self, agent):
        return self.spaces[0] or super().observation_space(agent)

    def action_space(self, agent):
        chosen = self.spaces[1] or super().action_space(agent)
        return chosen[agent] if isinstance(chosen, dict) else chosen


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"observation": spaces.Discrete(4)}, "'unit_0' must observe a Box.*Discrete"),
        ({"action": spaces.MultiDiscrete([2, 2])}, "all Discrete or all Box.*MultiDiscrete"),
        (
            {"action": {"unit_0": spaces.Discrete(2), "unit_1": spaces.Box(0, 1, (2,))}},
            "all Discrete or all Box",
        ),
        (
            {"action": {"unit_0": spaces.Box(0, 1, (2,)), "unit_1": spaces.Box(-1, 1, (3,))}},
            "bounds differ",
        ),
    ],
)
def test_spaces_that_do_not_fit_are_refused(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PettingZooTeamEnv(lambda: Spaces(**kwargs))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"team_reward": "max"}, "team_reward must be one of .*found 'max'"),
        ({"state": "observations"}, "state must be one of .*found 'observations'"),
        ({"num_envs": 0}, "num_envs must be at least 1, found 0"),
    ],
)
def test_bad_arguments(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_team(**kwargs)


def test_options_are_part_of_the_name() -> None:
    pytest.importorskip("mpe2")
    name = "pettingzoo/mpe2:simple_spread_v3"
    with pytest.raises(ValueError, match="team_reward="):
        make_env(name, seed=0, num_envs=32).rollout(25)  # collisions: rewards differ
    env = make_env(name, seed=0, team_reward="mean", N=2, continuous_actions=True)
    assert env.task == f"{name}?team_reward=mean&N=2&continuous_actions=True"
    assert (env.n_agents, env.discrete, env.team_reward) == (2, False, "mean")
    again = make_env(env.task, seed=0)
    assert again.task == env.task
    assert TaskSpec.from_env(again) == TaskSpec.from_env(env)
    assert torch.equal(again.reset()["state"], env.reset()["state"])


@pytest.mark.parametrize("address", ["mpe2:simple_spread_v3", "mpe2.simple_spread_v3:parallel_env"])
def test_ways_to_name_one_environment(address: str) -> None:
    pytest.importorskip("mpe2")
    assert make_env(f"pettingzoo/{address}").agent_names == ["agent_0", "agent_1", "agent_2"]


def test_classes_are_environments_too(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "team_for_test", SimpleNamespace(Team=Team))
    env = make_env("pettingzoo/team_for_test:Team?limit=3&team_reward=sum")
    assert env.max_steps == 3 and env.rollout(9).shape == (1, 3)


@pytest.mark.parametrize("name", ["subprocess:run", "os:getcwd", "pettingzoo.utils:wrappers"])
def test_nothing_but_environments_is_called(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is no PettingZoo parallel environment"):
        make_env(f"pettingzoo/{name}")


def test_missing_packages_and_environments_are_named() -> None:
    with pytest.raises(ImportError, match=r"no module 'no_such_package.*installed\?"):
        make_env("pettingzoo/no_such_package:env")
    with pytest.raises(ValueError, match="'pettingzoo.sisl' has no environment 'nothing_v0'"):
        make_env("pettingzoo/pettingzoo.sisl:nothing_v0")
    with pytest.raises(ValueError, match="'pettingzoo/<module>:<env>'"):
        make_env("pettingzoo/simple_spread_v3")
