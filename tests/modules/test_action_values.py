"""Utility networks."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_logo.data import TaskSpec
from torchrl_logo.modules import Normalizer, make_action_value_network

SPEC = TaskSpec(n_agents=3, observation_size=4, state_size=5, action_size=6, discrete=True)


def value(network: torch.nn.Module, observation: torch.Tensor) -> torch.Tensor:
    data = TensorDict({("agents", "observation"): observation}, observation.shape[:-2])
    return network(data)["agents", "action_value"]


@pytest.mark.parametrize("share_params", [True, False])
def test_each_agent_values_its_own_observation(share_params: bool) -> None:
    torch.manual_seed(0)
    network = make_action_value_network(SPEC, hidden_sizes=(7,), share_params=share_params)
    observation = torch.randn(2, 8, 3, 4)
    before = value(network, observation)
    assert before.shape == (2, 8, 3, 6)
    observation[..., 1, :] += 1
    after = value(network, observation)
    torch.testing.assert_close(after[..., [0, 2], :], before[..., [0, 2], :], rtol=0, atol=0)
    assert (after[..., 1, :] != before[..., 1, :]).any(-1).all()
    same = value(network, torch.ones(3, 4))
    assert torch.equal(same[0], same[1]) is share_params


def test_value_is_the_network_on_the_normalised_observation() -> None:
    torch.manual_seed(0)
    normalizer = Normalizer(4)
    normalizer.fit(torch.randn(50, 4) * 3 + 1)
    network = make_action_value_network(SPEC, hidden_sizes=(7,), normalizer=normalizer)
    observation = torch.randn(5, 3, 4)
    weights = [p.detach() for name, p in sorted(network.named_parameters())]
    first_bias, first, last_bias, last = weights
    hidden = (normalizer(observation) @ first.T + first_bias).clamp_min(0)
    torch.testing.assert_close(value(network, observation), hidden @ last.T + last_bias)


def test_continuous_tasks_are_refused() -> None:
    spec = TaskSpec(
        n_agents=2,
        observation_size=4,
        state_size=5,
        action_size=1,
        action_low=(-1.0,),
        action_high=(1.0,),
    )
    with pytest.raises(ValueError, match="discrete actions"):
        make_action_value_network(spec)
