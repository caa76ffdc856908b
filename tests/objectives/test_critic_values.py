"""Stacked critics on plain tensors, against each critic called by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from torchrl_logo.data import TaskSpec
from torchrl_logo.modules import (
    Normalizer,
    make_agent_critic,
    make_centralized_critic,
    make_gaussian_actor,
)
from torchrl_logo.modules.centralized_critic import CentralizedCritic
from torchrl_logo.objectives import MACQLLoss, OMARLoss
from torchrl_logo.objectives.critic_values import value_actions

SPEC = TaskSpec(
    n_agents=3,
    observation_size=5,
    state_size=4,
    action_size=2,
    action_low=(-1.0, -1.0),
    action_high=(1.0, 1.0),
)
ROWS, NETS = 6, 3
ACTION = ("agents", "action")


def make_normalizer(size: int) -> Normalizer:
    normalizer = Normalizer(size)
    normalizer.fit(torch.randn(20, size) * 3 + 1)
    return normalizer


def make_loss(kind: str, **kwargs: Any) -> Any:
    """A loss in float64 whose critics, and constants of normalisers, differ."""
    torch.manual_seed(0)
    sizes = {"hidden_sizes": (7, 6), **kwargs}
    observation = make_normalizer(SPEC.observation_size)
    made: dict[str, Any] = {"action_spec": SPEC.action_spec(), "num_qvalue_nets": NETS}
    if kind == "agents":
        critic = make_agent_critic(SPEC, normalizer=observation, **sizes)
        loss = OMARLoss(make_gaussian_actor(SPEC), critic, **made).double()
    else:
        state = make_normalizer(SPEC.state_size)
        critic = make_centralized_critic(
            SPEC, kind=kind, normalizer=state, observation_normalizer=observation, **sizes
        )
        loss = MACQLLoss(make_gaussian_actor(SPEC), critic, **made).double()
    for key, value in loss.qvalue_network_params.items(True, True):
        if key[-1] in ("mean", "inverse_scale"):
            value += torch.arange(NETS).view(NETS, *[1] * (value.ndim - 1))
    return loss


def make_batch(*batch_size: int) -> TensorDict:
    agents = {
        "observation": torch.randn(*batch_size, 3, 5),
        "action": torch.randn(*batch_size, 3, 2),
    }
    batch = {"agents": agents, "state": torch.randn(*batch_size, 4)}
    return TensorDict(batch, batch_size).double()


def value_each(loss: Any, batch: TensorDict, action: Tensor) -> Tensor:
    """Values of each critic, which is called for each draw by itself."""
    values = []
    for params in loss.qvalue_network_params.unbind(0):
        with params.to_module(loss.qvalue_network, preserve_module_state=False):
            draws = [
                loss.qvalue_network(batch.clone().set(ACTION, draw))[
                    loss.tensor_keys.state_action_value
                ]
                for draw in action.flatten(0, action.ndim - batch.ndim - 3)
            ]
        values.append(torch.stack(draws))
    found = torch.stack(values).squeeze(-1)
    return found.view(NETS, *action.shape[: action.ndim - batch.ndim - 2], *found.shape[2:])


def value(loss: Any, batch: TensorDict, action: Tensor) -> Tensor:
    shape = (3, 1) if isinstance(loss, OMARLoss) else (1,)
    return value_actions(
        loss, batch, action, loss.qvalue_network_params, action_dims=2, value_shape=shape
    )


def gradient(loss: Any, values: Tensor, action: Tensor) -> list[Tensor]:
    trained = [p for p in loss.qvalue_network_params.parameters() if p.requires_grad]
    return list(torch.autograd.grad(values.sin().sum(), [action, *trained]))


@pytest.mark.parametrize("batch_size", [(ROWS,), (2, 3), ()])
@pytest.mark.parametrize("draws", [(4,), (1,), (2, 5)])
@pytest.mark.parametrize("kind", ["state", "joint", "additive", "agents"])
def test_values_and_gradients_are_those_of_each_critic(
    kind: str, draws: tuple[int, ...], batch_size: tuple[int, ...]
) -> None:
    loss, batch = make_loss(kind), make_batch(*batch_size)
    action = torch.randn(*draws, *batch_size, 3, 2, dtype=torch.float64, requires_grad=True)
    assert loss.qvalue_network.module.can_value_stacked
    found, expected = value(loss, batch, action), value_each(loss, batch, action)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient(loss, found, action), gradient(loss, expected, action))


def test_an_action_without_draws() -> None:
    loss, batch = make_loss("additive"), make_batch(ROWS)
    action = batch[ACTION]
    torch.testing.assert_close(
        value(loss, batch, action), value_each(loss, batch, action.unsqueeze(0)).squeeze(1)
    )


class Doubled(CentralizedCritic):
    """A critic whose call is not its parent's."""

    def forward(self, state: Tensor, *local: Tensor) -> Tensor:
        return 2 * super().forward(state, *local)


@pytest.mark.parametrize("change", ["override", "hook", "replaced", "unshared", "prelu"])
def test_other_calls_count(change: str) -> None:
    """What a call would do besides is done: then critics are called as any others."""
    kwargs: dict[str, Any] = {}
    if change == "unshared":
        kwargs["share_params"] = False
    if change == "prelu":
        kwargs["activation_class"] = nn.PReLU
    loss, batch = make_loss("additive", **kwargs), make_batch(ROWS)
    action = torch.randn(4, ROWS, 3, 2, dtype=torch.float64)
    plain = value_each(loss, batch, action)
    network, factor = loss.qvalue_network, 2
    if change == "override":
        network.module.__class__ = Doubled
    elif change == "hook":
        network.module.register_forward_hook(lambda module, inputs, out: 2 * out)
    elif change == "replaced":
        forward = network.module.forward
        network.module.forward = lambda *inputs: 2 * forward(*inputs)
    else:
        factor = 1
    torch.testing.assert_close(value(loss, batch, action), factor * plain)


def test_another_task_is_refused() -> None:
    loss, batch = make_loss("joint"), make_batch(ROWS)
    wider = TensorDict({**batch, "state": torch.randn(ROWS, 9).double()}, [ROWS])
    with pytest.raises(ValueError, match="made for 4 features, found 9"):
        value(loss, wider, batch[ACTION])
    loss = make_loss("agents")
    with pytest.raises(ValueError, match="features each"):
        value(loss, batch, torch.randn(4, ROWS, 3, 5).double())
