"""MPE tasks against mpe2's own environments, stepped side by side."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("mpe2")

from mpe2 import simple_reference_v3, simple_speaker_listener_v4, simple_spread_v3  # noqa: E402

from torchrl_logo.data import TaskSpec  # noqa: E402
from torchrl_logo.envs import available_tasks, make_env  # noqa: E402

BARE = {
    "simple_spread": (simple_spread_v3, {"local_ratio": 0.0}),
    "simple_reference": (simple_reference_v3, {"local_ratio": 0.0}),
    "simple_speaker_listener": (simple_speaker_listener_v4, {}),
}
NAMES = [f"{name}{kind}" for name in BARE for kind in ("", "_discrete")]


def make_bare(name: str):
    module, options = BARE[name.removesuffix("_discrete")]
    return module.parallel_env(continuous_actions=not name.endswith("_discrete"), **options)


def record_seeds(env) -> list[list[int]]:
    """The seeds that each simulator is reset with from here on."""
    seeds: list[list[int]] = [[] for _ in env.simulators]
    for own, simulator in zip(seeds, env.simulators, strict=True):

        def reset(seed=None, options=None, _own=own, _reset=simulator.reset):
            _own.append(seed)
            return _reset(seed=seed, options=options)

        simulator.reset = reset
    return seeds


@pytest.mark.parametrize("name", NAMES)
def test_an_episode_is_mpe2_s_own(name: str) -> None:
    """Observations, masks, state, reward and the end, to the true last step, and the next start."""
    env = make_env(f"mpe/{name}", num_envs=3, seed=3)
    seeds = record_seeds(env)
    rollout = env.rollout(28, break_when_any_done=False)
    for index in range(3):
        bare = make_bare(name)
        seen, _ = bare.reset(seed=seeds[index][0])
        for t in range(25):
            row = rollout[index, t]
            joint = {}
            for i, agent in enumerate(bare.possible_agents):
                size = seen[agent].size
                found = row["agents", "observation"][i]
                assert np.array_equal(found[:size].numpy(), seen[agent])
                assert not found[size:].any()
                space = bare.action_space(agent)
                action = row["agents", "action"][i].numpy()
                if name.endswith("_discrete"):
                    mask = row["agents", "action_mask"][i]
                    assert mask[: space.n].all() and not mask[space.n :].any()
                    joint[agent] = int(action)
                else:
                    joint[agent] = action[: space.shape[0]]
            assert np.array_equal(row["state"].numpy(), bare.state())
            seen, rewards, _, truncations, _ = bare.step(joint)
            assert len(set(rewards.values())) == 1
            torch.testing.assert_close(
                row["next", "reward"].item(), rewards[bare.possible_agents[0]]
            )
            assert row["next", "truncated"].item() == any(truncations.values()) == (t == 24)
            assert not row["next", "terminated"].any()
        last = rollout[index, 24]["next"]
        assert last["done"].all() and np.array_equal(last["state"].numpy(), bare.state())
        for i, agent in enumerate(bare.possible_agents):
            found = last["agents", "observation"][i][: seen[agent].size]
            assert np.array_equal(found.numpy(), seen[agent])
        bare.reset(seed=seeds[index][1])
        assert np.array_equal(rollout[index, 25]["state"].numpy(), bare.state())
        assert rollout[index, 25]["step"].item() == 0
    assert len({seed for own in seeds for seed in own}) == 6


def test_reward_of_spread_is_the_distance_to_landmarks() -> None:
    """The reward by hand, from what the first agent sees of landmarks and of the others."""
    env = make_env("mpe/simple_spread", num_envs=8, seed=0)
    rollout = env.rollout(20)
    view = rollout["next", "agents", "observation"][:, :, 0]
    landmarks = view[..., 4:10].unflatten(-1, (3, 2))
    others = view[..., 10:14].unflatten(-1, (2, 2))
    agents = torch.cat([torch.zeros_like(others[..., :1, :]), others], -2)
    nearest = torch.cdist(landmarks, agents).min(-1).values
    torch.testing.assert_close(rollout["next", "reward"].squeeze(-1), -nearest.sum(-1))


def test_speaker_says_what_the_listener_hears() -> None:
    """A word is three numbers of the speaker; what is written beside them reaches nobody."""
    env = make_env("mpe/simple_speaker_listener", num_envs=1, seed=0)
    spec = TaskSpec.from_env(env)
    assert spec.observation_sizes == (3, 11) and env.action_sizes == [3, 5]
    heard = []
    for beside in (0.0, 1.0):
        env.set_seed(0)
        step = env.reset()
        action = torch.tensor([[[0.1, 0.7, 0.2, beside, beside], [0.0] * 5]])
        step["agents", "action"] = action
        heard.append(env.step(step)["next", "agents", "observation"][0, 1])
    torch.testing.assert_close(heard[0][-3:], torch.tensor([0.1, 0.7, 0.2]))
    assert torch.equal(*heard)


def test_an_action_that_an_agent_has_not_is_refused() -> None:
    env = make_env("mpe/simple_speaker_listener_discrete", num_envs=2, seed=0)
    step = env.reset()
    state = step["state"].clone()
    step["agents", "action"] = torch.tensor([[0, 4], [3, 0]])
    with pytest.raises(ValueError, match=r"'speaker_0' of simulator 1.* 3; available.*\[0, 1, 2\]"):
        env.step(step)
    # Nothing was stepped.
    step["agents", "action"] = torch.tensor([[0, 0], [0, 0]])
    assert (env.step(step)["next", "step"] == 1).all()
    assert (state == env.reset(step.exclude("next"))["state"]).logical_not().any()


def test_names() -> None:
    assert {f"mpe/{name}" for name in NAMES} == {
        task for task in available_tasks() if task.startswith("mpe/")
    }
    assert TaskSpec.from_env(make_env("mpe/simple_spread")).action_high == (1.0,) * 5
    assert TaskSpec.from_env(make_env("mpe/simple_spread_discrete")).action_size == 5
    with pytest.raises(ValueError, match="'simple_spred'.*mpe/simple_spread"):
        make_env("mpe/simple_spred")
    with pytest.raises(TypeError, match="'mpe' take no option local_ratio"):
        make_env("mpe/simple_spread", local_ratio=0.5)
