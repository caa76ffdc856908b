"""SMAC against a stand-in with the interface that TorchRL's wrapper and smacv2's README name.

StarCraft II itself is on no machine that runs these tests.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torchrl.collectors import Collector
from torchrl.envs.libs import smacv2 as torchrl_smacv2
from torchrl.envs.utils import check_env_specs

from torchrl_logo.data import TaskSpec
from torchrl_logo.envs import available_tasks, make_env

AGENTS, ENEMIES, ACTIONS = 2, 3, 4


class StarCraft2Env:
    """A game of two allies whose course depends on its seed and episode alone.

    The second ally dies in step 2. Step 4 wins in odd episodes; even ones go on to the limit.
    """

    made: list[StarCraft2Env] = []

    def __init__(self, map_name: str, seed: int | None = None, crash_at: int = 99) -> None:
        self.map_name, self.seed, self.crash_at = map_name, seed, crash_at
        self.n_agents, self.n_enemies, self.n_actions = AGENTS, ENEMIES, ACTIONS
        self.episode_limit = 6
        self.episode = self.clock = self.restarts = 0
        self.generator = np.random.default_rng(seed)
        self.offset = 0.0
        self.closed = False
        self.taken: list[np.ndarray] = []
        StarCraft2Env.made.append(self)

    def get_obs_size(self) -> int:
        return 3

    def get_state_size(self) -> int:
        return 5

    def get_obs(self) -> list[np.ndarray]:
        second = np.zeros(3) if self.clock >= 2 else np.full(3, self.offset)
        return [np.array([self.offset, self.clock / 10, 0.0]), second]

    def get_state(self) -> np.ndarray:
        return np.array([self.offset, self.clock, self.episode, 0, 1.0], dtype=np.float32)

    def get_avail_actions(self) -> list[list[int]]:
        return [[0, 1, 1, self.clock % 2], [1, 0, 0, 0] if self.clock >= 2 else [0, 1, 1, 1]]

    def reset(self):
        self.episode += 1
        self.clock = 0
        self.offset = self.generator.random()
        return self.get_obs(), self.get_state()

    def step(self, actions):
        for agent, action in enumerate(actions):
            assert self.get_avail_actions()[agent][action], (
                f"Agent {agent} cannot perform action {action}"
            )
        self.taken.append(np.asarray(actions))
        self.clock += 1
        if self.clock == self.crash_at:
            self.restarts += 1
            return 0, True, {}
        won = self.clock == 4 and self.episode % 2 == 1
        info = {"battle_won": won, "dead_allies": int(self.clock >= 2), "dead_enemies": 3 * won}
        if self.clock == self.episode_limit:
            info["episode_limit"] = True
        return 0.5 * self.clock, won or self.clock == self.episode_limit, info

    def get_stats(self):
        return {"restarts": self.restarts, "battles_won": 0}

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def game(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[StarCraft2Env]:
    """The stand-in as an installed package, and a folder as the game's."""
    package, module = ModuleType("smacv2"), ModuleType("smacv2.env")
    module.StarCraft2Env = StarCraft2Env
    module.StarCraftCapabilityEnvWrapper = type("StarCraftCapabilityEnvWrapper", (), {})
    package.env = module
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "smacv2", package)
    monkeypatch.setitem(sys.modules, "smacv2.env", module)
    monkeypatch.setattr(torchrl_smacv2, "_has_smacv2", True)
    monkeypatch.setenv("SC2PATH", str(tmp_path))
    monkeypatch.setattr(StarCraft2Env, "made", [])
    return StarCraft2Env


@pytest.mark.parametrize("num_envs", [1, 3])
def test_specs(game: type[StarCraft2Env], num_envs: int) -> None:
    env = make_env("smac/5m_vs_6m", num_envs=num_envs, seed=4)
    check_env_specs(env)
    spec = TaskSpec.from_env(env)
    assert (spec.n_agents, spec.observation_size, spec.state_size) == (2, 3, 5)
    assert (spec.action_size, spec.discrete, spec.max_steps) == (4, True, 6)
    assert spec.task == "smac/5m_vs_6m"
    assert [made.map_name for made in game.made] == ["5m_vs_6m"] * num_envs
    assert [made.seed for made in game.made] == [4 + i for i in range(num_envs)]


def test_episodes_are_the_game_s_own(game: type[StarCraft2Env]) -> None:
    # TorchRL's wrapper plays one reset of its own when it is made, so ours starts in the second.
    env = make_env("smac/3m", num_envs=2, seed=0)
    rollout = env.rollout(10, break_when_any_done=False)
    for index in range(2):
        bare = StarCraft2Env("3m", seed=index)
        for _ in range(env.games[index]._env.episode - 2):
            bare.reset()
        for length in (6, 4):
            obs, state = bare.reset()
            for t in range(length):
                row = rollout[index, t if length == 6 else 6 + t]
                torch.testing.assert_close(row["state"], torch.tensor(state))
                found = row["agents", "observation"].double()
                torch.testing.assert_close(found, torch.tensor(np.array(obs)), atol=1e-6, rtol=0)
                mask = torch.tensor(bare.get_avail_actions()).bool()
                assert torch.equal(row["agents", "action_mask"], mask)
                reward, done, info = bare.step(row["agents", "action"].numpy())
                obs, state = bare.get_obs(), bare.get_state()
                after = row["next"]
                assert after["reward"].item() == reward and after["done"].item() == done
                assert after["battle_won"].item() == info["battle_won"]
                assert after["truncated"].item() == info.get("episode_limit", False)
                assert after["terminated"].item() == (done and "episode_limit" not in info)
                torch.testing.assert_close(after["state"], torch.tensor(state))
                assert after["step"].item() == t + 1


def test_a_game_that_crashed_is_truncated(game: type[StarCraft2Env]) -> None:
    from torchrl_logo.envs.smac import SmacTeamEnv

    env = SmacTeamEnv("3m", num_envs=1, seed=0, crash_at=3)
    last = env.rollout(10)[0, -1]["next"]
    assert last["step"].item() == 3
    assert last["truncated"].item() and not last["terminated"].item()
    assert not last["battle_won"].item()


def test_seeds_and_partial_resets(game: type[StarCraft2Env]) -> None:
    env = make_env("smac/3m", num_envs=2, seed=0)
    first = env.reset()["state"]
    other = make_env("smac/3m", num_envs=2, seed=7).reset()["state"]
    assert not torch.equal(first, other)
    old = [game_._env for game_ in env.games]
    env.set_seed(0)
    assert all(started.closed for started in old)
    assert torch.equal(env.reset()["state"], first)

    step = env.rollout(3)[:, -1]["next"].exclude("reward").clone()
    before = step["state"].clone()
    step["_reset"] = torch.tensor([[True], [False]])
    after = env.reset(step)
    assert torch.equal(after["state"][1], before[1]) and not torch.equal(
        after["state"][0], before[0]
    )
    assert after["step"].flatten().tolist() == [0, 3]
    following = env.step(env.rand_action(after))["next"]
    assert following["step"].flatten().tolist() == [1, 4]


def test_runs_in_a_collector(game: type[StarCraft2Env]) -> None:
    env = make_env("smac/3m", num_envs=2, seed=0)

    def act(tensordict):
        mask = tensordict["agents", "action_mask"].float()
        return tensordict.set(("agents", "action"), mask.argmax(-1))

    collector = Collector(env, act, frames_per_batch=40, total_frames=40)
    batch = next(iter(collector))
    collector.shutdown()
    ended = batch["next", "done"].squeeze(-1)
    assert set(batch["next", "step"][ended].flatten().tolist()) == {4, 6}
    assert torch.equal(batch["next", "battle_won"][ended], batch["next", "terminated"][ended])
    assert all(started.closed for started in game.made)


def test_a_missing_package_says_what_to_install() -> None:
    if torchrl_smacv2._has_smacv2:
        pytest.skip("smacv2 is installed")
    with pytest.raises(ImportError, match="smacv2 is not installed.*smacv2.git.*SC2PATH"):
        make_env("smac/5m_vs_6m")


def test_a_missing_game_says_where_it_was_looked_for(
    game: type[StarCraft2Env], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SC2PATH", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere.*SC2PATH.*install StarCraft II"):
        make_env("smac/5m_vs_6m")
    assert not game.made


def test_unknown_map_names_the_nearest() -> None:
    assert "smac/2s3z" in available_tasks()
    with pytest.raises(ValueError, match="'5m_vs_7m'.*smac/5m_vs_6m"):
        make_env("smac/5m_vs_7m")
