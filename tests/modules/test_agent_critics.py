"""Critics of single agents."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule

from torchrl_logo.data import TaskSpec
from torchrl_logo.modules import Normalizer, make_agent_critic, make_agent_value

SPEC = TaskSpec(
    n_agents=3,
    observation_size=4,
    state_size=5,
    action_size=2,
    action_low=(-1.0, -1.0),
    action_high=(1.0, 1.0),
)
DISCRETE = TaskSpec(n_agents=3, observation_size=4, state_size=5, action_size=6, discrete=True)
BOTH = pytest.mark.parametrize("make", [make_agent_critic, make_agent_value])


def make_data(*batch: int) -> TensorDict:
    torch.manual_seed(1)
    agents = {"observation": torch.randn(*batch, 3, 4), "action": torch.rand(*batch, 3, 2)}
    return TensorDict({"agents": agents}, batch)


def value(network: TensorDictModule, data: TensorDict) -> torch.Tensor:
    return network(data.clone())[network.out_keys[0]]


@pytest.mark.parametrize("share_params", [True, False])
@BOTH
def test_each_agent_is_valued_alone(
    make: Callable[..., TensorDictModule], share_params: bool
) -> None:
    torch.manual_seed(0)
    network = make(SPEC, hidden_sizes=(32,), share_params=share_params)
    data = make_data(2, 8)
    before = value(network, data)
    assert before.shape == (2, 8, 3, 1)
    for key in network.in_keys:
        changed = data.clone()
        changed[key][..., 1, :] += 1
        after = value(network, changed)
        torch.testing.assert_close(after[..., [0, 2], :], before[..., [0, 2], :], rtol=0, atol=0)
        assert (after[..., 1, :] != before[..., 1, :]).all()
    same = value(network, make_data(1).apply(torch.ones_like))
    assert torch.allclose(same[0, 0], same[0, 1]) is share_params


@BOTH
def test_value_is_the_network_on_the_normalised_observation(
    make: Callable[..., TensorDictModule],
) -> None:
    torch.manual_seed(0)
    normalizer = Normalizer(4)
    normalizer.fit(torch.randn(50, 4) * 3 + 1)
    network = make(SPEC, hidden_sizes=(7,), normalizer=normalizer)
    data = make_data(5)
    first_bias, first, last_bias, last = [p for _, p in sorted(network.named_parameters())]
    observation, action = (data["agents", name] for name in ("observation", "action"))
    x = normalizer(observation)
    if make is make_agent_critic:
        x = torch.cat([x, action], -1)
    hidden = (x @ first.T + first_bias).clamp_min(0)
    torch.testing.assert_close(value(network, data), hidden @ last.T + last_bias)


def test_layout() -> None:
    observation, action = ("agents", "observation"), ("agents", "action")
    critic, state_value = make_agent_critic(SPEC), make_agent_value(DISCRETE)
    assert critic.in_keys == [observation, action]
    assert critic.out_keys == [("agents", "state_action_value")]
    assert state_value.in_keys == [observation]
    assert state_value.out_keys == [("agents", "state_value")]


def test_critics_of_discrete_actions_are_refused() -> None:
    with pytest.raises(ValueError, match="make_agent_critic needs continuous actions"):
        make_agent_critic(DISCRETE)
