"""Agents' own networks in losses, which put other parameters into them while they call them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict, from_module
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.objectives import LossModule, SoftUpdate

from tests.objectives.loss_cases import CONTINUOUS, DISCRETE
from tests.objectives.test_loss_contract import make_batch
from torchrl_logo.data import TaskSpec
from torchrl_logo.modules import (
    make_action_value_network,
    make_categorical_actor,
    make_centralized_critic,
    make_gaussian_actor,
    make_mixer,
)
from torchrl_logo.modules.decentralized_mlp import DecentralizedMLP
from torchrl_logo.objectives import BCLoss, DiscreteMACQLLoss, MACQLLoss, MATD3BCLoss, OMARLoss

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
N = 3


def make_network(device: str | None = None) -> DecentralizedMLP:
    torch.manual_seed(0)
    return DecentralizedMLP(4, 2, N, num_cells=(7, 5), share_params=False, device=device)


def apply_by_hand(params: TensorDict, x: torch.Tensor) -> torch.Tensor:
    """Outputs ``[B, N, 2]``, agent by agent and layer by layer."""
    outputs = []
    for agent in range(N):
        h = x[:, agent]
        layers = sorted((key for key in params.keys() if params[key].keys()), key=int)
        for depth, layer in enumerate(layers):
            h = h @ params[layer, "weight"][agent].T + params[layer, "bias"][agent]
            h = h.relu() if depth < len(layers) - 1 else h
        outputs.append(h)
    return torch.stack(outputs, 1)


def test_output_is_each_agents_own_network() -> None:
    network, x = make_network(), torch.randn(6, N, 4)
    torch.testing.assert_close(network(x), apply_by_hand(network.params.data, x))
    assert len(list(network.parameters())) == 6
    assert all(parameter.shape[0] == N for parameter in network.parameters())


@pytest.mark.parametrize("as_parameters", [False, True], ids=["tensors", "parameters"])
def test_parameters_that_are_put_in_are_used(as_parameters: bool) -> None:
    network, x = make_network(), torch.randn(6, N, 4)
    before = network(x)
    mine = from_module(network)
    other = mine.data.clone().apply_(torch.Tensor.normal_)
    if as_parameters:
        other = other.apply(nn.Parameter)
    expected = apply_by_hand(other["_empty_net"].data, x)
    with other.to_module(network, preserve_module_state=False):
        torch.testing.assert_close(network(x), expected)
    torch.testing.assert_close(network(x), before)
    named = {".".join(key): value for key, value in other.items(True, True)}
    found = torch.func.functional_call(network, named, (x,))
    torch.testing.assert_close(found, expected)


def test_gradients_reach_parameters_that_are_put_in() -> None:
    network, x = make_network(), torch.randn(6, N, 4)
    other = from_module(network).data.clone().requires_grad_()
    with other.to_module(network, preserve_module_state=False):
        network(x)[:, 1].sum().backward()
    for value in other.values(True, True):
        assert (value.grad[1] != 0).any() and not value.grad[[0, 2]].any()
    assert all(parameter.grad is None for parameter in network.parameters())


def test_vectorised_over_sets_of_parameters() -> None:
    network, x = make_network(), torch.randn(6, N, 4)
    sets = torch.stack([from_module(network).data.clone() * scale for scale in (0.5, 2.0)])

    def call(params: TensorDict) -> torch.Tensor:
        with params.to_module(network, preserve_module_state=False):
            return network(x)

    found = torch.vmap(call)(sets)
    expected = torch.stack([apply_by_hand(params["_empty_net"], x) for params in sets])
    torch.testing.assert_close(found, expected)


def test_devices_and_compilation() -> None:
    network, x = make_network("meta"), torch.randn(6, N, 4)
    network(x.to("meta")).sum().backward()
    assert all(parameter.grad.shape == parameter.shape for parameter in network.parameters())
    network = make_network()
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), network(x))
    double = make_network().double()
    assert double(x.double()).dtype is torch.float64


def test_state_dict_and_reset() -> None:
    network, x = make_network(), torch.randn(6, N, 4)
    other = DecentralizedMLP(4, 2, N, num_cells=(7, 5), share_params=False)
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(other(x), network(x))
    other.reset_parameters()
    assert (other(x) != network(x)).all()
    same = other(torch.ones(1, N, 4))
    assert (same[:, 0] != same[:, 1]).all()


def make_macql(device: str = "cpu") -> LossModule:
    actor = make_gaussian_actor(CONTINUOUS, hidden_sizes=(6,), share_params=False, device=device)
    critics = [
        make_centralized_critic(CONTINUOUS, hidden_sizes=(6,), device=device) for _ in range(2)
    ]
    return MACQLLoss(actor, critics, action_spec=CONTINUOUS.action_spec(), bc_coeff=0.5)


def make_matd3bc(device: str = "cpu") -> LossModule:
    actor = make_gaussian_actor(CONTINUOUS, hidden_sizes=(6,), share_params=False, device=device)
    critics = [
        make_centralized_critic(CONTINUOUS, hidden_sizes=(6,), device=device) for _ in range(2)
    ]
    return MATD3BCLoss(actor, critics, action_spec=CONTINUOUS.action_spec())


def make_omar(device: str = "cpu") -> LossModule:
    actor = make_gaussian_actor(CONTINUOUS, hidden_sizes=(6,), share_params=False, device=device)
    critics = [
        TensorDictModule(
            DecentralizedMLP(3 + 2, 1, 2, num_cells=(6,), share_params=False, device=device),
            in_keys=[("agents", "observation"), ("agents", "action")],
            out_keys=[("agents", "state_action_value")],
        )
        for _ in range(2)
    ]
    return OMARLoss(actor, critics, action_spec=CONTINUOUS.action_spec())


def make_discrete_macql(device: str = "cpu") -> LossModule:
    network = make_action_value_network(
        DISCRETE, hidden_sizes=(6,), share_params=False, device=device
    )
    return DiscreteMACQLLoss(network, make_mixer(DISCRETE, "vdn", device=device))


def make_bc(device: str = "cpu") -> LossModule:
    actor = make_categorical_actor(DISCRETE, hidden_sizes=(6,), share_params=False, device=device)
    return BCLoss(actor, action_spec=DISCRETE.action_spec(), delay_actor=True)


LOSSES = pytest.mark.parametrize(
    "make", [make_macql, make_matd3bc, make_omar, make_discrete_macql, make_bc]
)


def spec_of(make: Callable[..., LossModule]) -> TaskSpec:
    return DISCRETE if make in (make_discrete_macql, make_bc) else CONTINUOUS


def total(out: TensorDict) -> torch.Tensor:
    return sum(value for key, value in out.items() if key.startswith("loss_"))


@LOSSES
def test_losses_train_each_agents_own_parameters(make: Callable[..., LossModule]) -> None:
    torch.manual_seed(0)
    loss, batch = make(), make_batch(spec_of(make))
    total(loss(batch)).backward()
    own = [p for name, p in loss.named_parameters() if "_empty_net" in name and p.shape[0] == 2]
    assert own
    for parameter in loss.parameters():
        assert parameter.grad is not None
    for parameter in own:
        assert not torch.equal(parameter.grad[0], parameter.grad[1])


@LOSSES
def test_soft_updates_move_the_targets(make: Callable[..., LossModule]) -> None:
    torch.manual_seed(0)
    loss, batch = make(), make_batch(spec_of(make))
    loss(batch)
    soft = SoftUpdate(loss, tau=0.25)
    names = [name for name, _ in loss.named_children() if name.startswith("target_")]
    expected = {}
    for name in names:
        network, target = getattr(loss, name.removeprefix("target_")), getattr(loss, name)
        for key, value in network.items(True, True):
            # buffers, such as action bounds, have no moving average
            if isinstance(value, nn.Parameter):
                moved = value.data.add_(1.0)
                expected[name, key] = target[key].data + 0.25 * (moved - target[key].data)
    assert expected
    soft.step()
    for (name, key), value in expected.items():
        torch.testing.assert_close(getattr(loss, name)[key].data, value)


def test_targets_are_what_the_target_parameters_say() -> None:
    torch.manual_seed(0)
    loss, batch = make_discrete_macql(), make_batch(DISCRETE)
    before = loss(batch)["target_value"]
    loss.target_action_value_network_params.data.mul_(-2.0)
    assert loss(batch)["target_value"] != before


@LOSSES
def test_losses_on_devices_without_values(make: Callable[..., LossModule]) -> None:
    loss, batch = make(device="meta"), make_batch(spec_of(make), "meta")
    total(loss(batch)).backward()
    assert all(parameter.grad is not None for parameter in loss.parameters())


# the others take seconds each, and put parameters in as these do
@pytest.mark.parametrize("make", [make_discrete_macql, make_bc])
def test_losses_compile(make: Callable[..., LossModule]) -> None:
    torch.manual_seed(0)
    loss, batch = make(), make_batch(spec_of(make))
    torch.manual_seed(2)
    expected = loss(batch)
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.manual_seed(2)
    torch.testing.assert_close(total(compiled(batch)), total(expected))
