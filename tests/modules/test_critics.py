"""Centralised critics."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_logo.data import TaskSpec
from torchrl_logo.modules import CentralizedCritic, Normalizer, make_centralized_critic

SPEC = TaskSpec(
    n_agents=3,
    observation_size=4,
    state_size=5,
    action_size=2,
    action_low=(-1.0, -1.0),
    action_high=(1.0, 1.0),
)


def test_value_is_the_network_on_state_and_all_actions() -> None:
    torch.manual_seed(0)
    critic = CentralizedCritic(5, n_agents=3, action_size=2, hidden_sizes=(7,))
    state, action = torch.randn(4, 6, 5), torch.randn(4, 6, 3, 2)
    first, last = critic.network[0], critic.network[2]
    x = torch.cat([state, *action.unbind(-2)], -1)
    hidden = (x @ first.weight.T + first.bias).clamp_min(0)
    torch.testing.assert_close(critic(state, action), hidden @ last.weight.T + last.bias)


def test_factory_reads_and_writes_the_layout() -> None:
    torch.manual_seed(0)
    normalizer = Normalizer(5)
    normalizer.fit(torch.randn(20, 5) * 3 + 1)
    critic = make_centralized_critic(SPEC, normalizer=normalizer)
    data = TensorDict({"state": torch.randn(4, 5), ("agents", "action"): torch.rand(4, 3, 2)}, [4])
    value = critic(data.clone())["state_action_value"]
    torch.testing.assert_close(value, critic.module(data["state"], data["agents", "action"]))
    # standardised by the normaliser it was given
    normalizer.fit(torch.randn(20, 5) - 5)
    assert (critic(data)["state_action_value"] != value).all()


def test_discrete_tasks_are_refused() -> None:
    spec = TaskSpec(n_agents=2, observation_size=4, state_size=5, action_size=6, discrete=True)
    with pytest.raises(ValueError, match="continuous"):
        make_centralized_critic(spec)
