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


def test_additive_value_is_joint_value_plus_the_sum_of_local_ones() -> None:
    torch.manual_seed(0)
    sizes = {"n_agents": 3, "action_size": 2, "observation_size": 4, "hidden_sizes": (7,)}
    critic = CentralizedCritic(5, local_values=True, **sizes)
    state, observation = torch.randn(6, 5), torch.randn(6, 3, 4)
    action = torch.randn(6, 3, 2)
    inputs = torch.cat([state, *observation.unbind(-2), *action.unbind(-2)], -1)
    expected = critic.network(inputs)
    for agent in range(3):
        local = torch.cat([observation[:, agent], action[:, agent]], -1)
        expected = expected + critic.local_network._empty_net(local)
    torch.testing.assert_close(critic(state, observation, action), expected)
    # the agents' own networks, where they share none, differ
    unshared = CentralizedCritic(5, local_values=True, share_params=False, **sizes)
    swapped = [value.flip(-2) for value in (observation, action)]
    local = unshared.local_network
    assert not torch.allclose(local(observation, action).sum(-2), local(*swapped).sum(-2))


def test_critic_of_kind_joint_has_no_local_values() -> None:
    critic = make_centralized_critic(SPEC, kind="joint")
    assert critic.in_keys == ["state", ("agents", "observation"), ("agents", "action")]
    assert critic.module.local_network is None
    assert critic.module.network[0].in_features == 5 + 3 * (4 + 2)


def test_factory_reads_and_writes_the_layout() -> None:
    torch.manual_seed(0)
    normalizer = Normalizer(5)
    normalizer.fit(torch.randn(20, 5) * 3 + 1)
    seen = Normalizer(4)
    seen.fit(torch.randn(20, 4) * 2 - 1)
    critic = make_centralized_critic(SPEC, normalizer=normalizer, observation_normalizer=seen)
    data = TensorDict(
        {
            "state": torch.randn(4, 5),
            ("agents", "observation"): torch.randn(4, 3, 4),
            ("agents", "action"): torch.rand(4, 3, 2),
        },
        [4],
    )
    value = critic(data.clone())["state_action_value"]
    local = data["agents", "observation"], data["agents", "action"]
    torch.testing.assert_close(value, critic.module(data["state"], *local))
    # standardised by the normalisers it was given
    for given, size in ((normalizer, 5), (seen, 4)):
        given.fit(torch.randn(20, size) - 5)
        before, value = value, critic(data.clone())["state_action_value"]
        assert (value != before).all()


def test_discrete_tasks_are_refused() -> None:
    spec = TaskSpec(n_agents=2, observation_size=4, state_size=5, action_size=6, discrete=True)
    with pytest.raises(ValueError, match="continuous"):
        make_centralized_critic(spec)


def test_wrong_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\['additive', 'joint', 'state'\], found 'sum'"):
        make_centralized_critic(SPEC, kind="sum")
    with pytest.raises(ValueError, match="local_values=True needs observation_size"):
        CentralizedCritic(5, n_agents=3, action_size=2, local_values=True)
