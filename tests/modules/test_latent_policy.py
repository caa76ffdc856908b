"""Policies on latents: what they carry, resets, masks; and the critic."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import ExplorationType, set_exploration_type
from torchrl.modules.utils import get_primers_from_module

from torchrl_logo.data import TaskSpec
from torchrl_logo.modules import (
    AttentionCritic,
    LatentPolicy,
    RecurrentLatentWorldModel,
    make_latent_actor,
    make_latent_critic,
)

CONTINUOUS = TaskSpec(
    n_agents=3,
    observation_size=4,
    state_size=5,
    action_size=2,
    action_low=(-1.0, 0.0),
    action_high=(1.0, 4.0),
)
DISCRETE = TaskSpec(n_agents=3, observation_size=4, state_size=5, action_size=6, discrete=True)
SPECS = pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])


def make_policy(spec: TaskSpec) -> LatentPolicy:
    torch.manual_seed(0)
    model = RecurrentLatentWorldModel(
        spec, memory_size=7, code_groups=2, code_classes=3, hidden_size=8, attention_heads=2
    )
    return LatentPolicy(model, make_latent_actor(model, hidden_sizes=(8,)))


def make_step(spec: TaskSpec, memory: torch.Tensor, is_init: torch.Tensor) -> TensorDict:
    agents = {"observation": torch.randn(5, 3, 4), "memory": memory}
    if spec.discrete:
        agents["action_mask"] = torch.tensor([False, True, True, False, False, True]).expand(
            5, 3, 6
        )
    return TensorDict({"agents": agents, "is_init": is_init.unsqueeze(-1)}, [5])


@SPECS
def test_acting_step_by_step_is_filtering_the_sequence(spec: TaskSpec) -> None:
    policy = make_policy(spec)
    model = policy.world_model
    memory, steps = torch.full((5, 3, 7), 9.0), []
    with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
        for t in range(6):
            # all begin at 0, and row 1 anew at 4; what memory there was does not matter then
            is_init = torch.tensor([t == 0, t in (0, 4), t == 0, t == 0, t == 0])
            step = policy(make_step(spec, memory, is_init))
            assert set(map(str, policy.out_keys)) <= set(map(str, step.keys(True, True)))
            memory = step["next", "agents", "memory"]
            steps.append(step)
        memory = torch.zeros(5, 3, 7)
        for t, step in enumerate(steps):
            if t == 4:
                memory[1] = 0
            observation = model.standardise(step["agents", "observation"])
            latent = model.observe(memory, observation, deterministic=True)
            torch.testing.assert_close(step["agents", "latent"], latent)
            memory = model.remember(latent, model.encode_action(step["agents", "action"]))
            torch.testing.assert_close(step["next", "agents", "memory"], memory)


def test_codes_are_drawn_when_exploring() -> None:
    policy = make_policy(CONTINUOUS)
    step = make_step(CONTINUOUS, torch.zeros(5, 3, 7), torch.ones(5, dtype=torch.bool))
    draws = []
    for kind in (ExplorationType.RANDOM, ExplorationType.DETERMINISTIC):
        with set_exploration_type(kind):
            draws.append([policy(step.clone())["agents", "latent"] for _ in range(8)])
    assert any(not torch.equal(draws[0][0], other) for other in draws[0])
    assert all(torch.equal(draws[1][0], other) for other in draws[1])


@SPECS
def test_actions_are_in_their_bounds_and_available(spec: TaskSpec) -> None:
    policy = make_policy(spec)
    step = make_step(spec, torch.zeros(5, 3, 7), torch.ones(5, dtype=torch.bool))
    for _ in range(20):
        step = policy(step)
        action = step["agents", "action"]
        if spec.discrete:
            assert step["agents", "action_mask"].gather(-1, action.unsqueeze(-1)).all()
        else:
            assert (action >= torch.tensor([-1.0, 0.0])).all()
            assert (action <= torch.tensor([1.0, 4.0])).all()
        assert step["agents", "action_log_prob"].shape == (5, 3)


def test_torchrl_finds_its_primer() -> None:
    policy = make_policy(CONTINUOUS)
    primer = get_primers_from_module(policy)
    assert primer.primers["agents", "memory"].shape[-2:] == (3, 7)


def test_missing_entries_are_named() -> None:
    policy = make_policy(DISCRETE)
    step = make_step(DISCRETE, torch.zeros(5, 3, 7), torch.ones(5, dtype=torch.bool))
    for key in policy.in_keys:
        with pytest.raises(KeyError, match=key if isinstance(key, str) else key[-1]):
            policy(step.exclude(key))


def test_the_critic_attends_over_agents_in_any_order() -> None:
    policy = make_policy(CONTINUOUS)
    size = policy.world_model.latent_size
    critic = make_latent_critic(policy.world_model, hidden_size=8)
    assert isinstance(critic.module, AttentionCritic)
    team = torch.randn(5, 2, 3, size)
    values = critic(TensorDict({("agents", "latent"): team}, [5, 2]))["state_value"]
    assert values.shape == (5, 2, 1)
    torch.testing.assert_close(critic.module(team[..., [2, 0, 1], :]), values)
    # not a mean of what agents are worth alone: they are read together
    alone = torch.stack([critic.module(team[..., [i] * 3, :]) for i in range(3)]).mean(0)
    assert not torch.allclose(alone, values, atol=1e-4)
