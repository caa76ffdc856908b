"""Behaviour cloning against densities that are written out."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import (
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
)
from torch import nn
from torchrl.modules import MaskedCategorical
from torchrl.objectives import SoftUpdate

from torchrl_logo.data import TaskSpec
from torchrl_logo.modules import make_gaussian_actor
from torchrl_logo.objectives import BCLoss

LOW, HIGH = (-1.0, 0.0), (1.0, 3.0)


def make_spec(n_agents: int = 2) -> TaskSpec:
    return TaskSpec(
        n_agents=n_agents,
        observation_size=3,
        state_size=4,
        action_size=2,
        action_low=LOW,
        action_high=HIGH,
    )


def make_batch(n_agents: int = 2) -> TensorDict:
    torch.manual_seed(1)
    low, high = torch.tensor(LOW).double(), torch.tensor(HIGH).double()
    action = low + torch.rand(6, n_agents, 2).double() * (high - low)
    action[0] = high
    observation = torch.randn(6, n_agents, 3).double()
    return TensorDict({"agents": {"observation": observation, "action": action}}, [6])


def negative_log_likelihood(
    actor: ProbabilisticTensorDictSequential, batch: TensorDict, margin: float
) -> torch.Tensor:
    """Mean over agents of the tanh-normal's negative log-density, row by row."""
    with torch.no_grad():
        out = actor.module[0](batch.clone())
    rows = []
    for b in range(len(batch)):
        total = 0.0
        n_agents = batch["agents", "action"].shape[1]
        for i in range(n_agents):
            for j in range(2):
                half = (HIGH[j] - LOW[j]) / 2
                a = batch["agents", "action"][b, i, j].item()
                a = min(max(a, LOW[j] + margin * half), HIGH[j] - margin * half)
                u = (a - (HIGH[j] + LOW[j]) / 2) / half
                mu = out["agents", "loc"][b, i, j].item()
                sigma = out["agents", "scale"][b, i, j].item()
                z = (math.atanh(u) - mu) / sigma
                normal = math.exp(-(z**2) / 2) / (sigma * math.sqrt(2 * math.pi))
                total -= math.log(normal / ((1 - u**2) * half))
        rows.append(total / n_agents)
    return torch.tensor(rows).double()


@pytest.mark.parametrize("margin", [1e-3, 0.1])
@pytest.mark.parametrize("n_agents", [1, 2, 5])
def test_loss_is_the_likelihood(n_agents: int, margin: float) -> None:
    torch.manual_seed(0)
    spec = make_spec(n_agents)
    actor = make_gaussian_actor(spec, hidden_sizes=(6,)).double()
    batch = make_batch(n_agents)
    expected = negative_log_likelihood(actor, batch, margin)
    weights = torch.linspace(0.1, 3, 6).double()
    loss = BCLoss(actor, action_spec=spec.action_spec(), action_margin=margin)
    out = loss(batch)
    assert out["loss_actor"].item() == pytest.approx(expected.mean().item(), rel=1e-5)
    assert out["bc_log_prob"].item() == pytest.approx(-expected.mean().item(), rel=1e-5)
    weighted = loss(batch.set("priority_weight", weights))["loss_actor"].item()
    assert weighted == pytest.approx(((weights * expected).sum() / weights.sum()).item(), rel=1e-5)


def test_order_of_agents_does_not_matter() -> None:
    spec, batch = make_spec(5), make_batch(5)
    actor = make_gaussian_actor(spec, hidden_sizes=(6,)).double()
    loss = BCLoss(actor, action_spec=spec.action_spec())
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted = batch.clone()
    permuted["agents"] = permuted["agents"].apply(lambda value: value[:, order])
    torch.testing.assert_close(loss(permuted).to_dict(), loss(batch).to_dict())


def test_without_a_spec_actions_are_scored_as_they_are() -> None:
    torch.manual_seed(0)
    actor = make_gaussian_actor(make_spec(), hidden_sizes=(6,)).double()
    batch = make_batch()[1:]
    expected = negative_log_likelihood(actor, batch, 0.0).mean().item()
    assert BCLoss(actor)(batch)["loss_actor"].item() == pytest.approx(expected, rel=1e-5)


def make_masked_actor() -> ProbabilisticTensorDictSequential:
    return ProbabilisticTensorDictSequential(
        TensorDictModule(
            nn.Linear(3, 5),
            in_keys=[("agents", "observation")],
            out_keys=[("agents", "logits")],
        ),
        ProbabilisticTensorDictModule(
            in_keys={"logits": ("agents", "logits"), "mask": ("agents", "action_mask")},
            out_keys=[("agents", "action")],
            distribution_class=MaskedCategorical,
        ),
    )


def test_masked_categorical_actor() -> None:
    torch.manual_seed(0)
    actor = make_masked_actor()
    mask = torch.rand(6, 2, 5) < 0.6
    action = torch.randint(5, (6, 2))
    mask.scatter_(-1, action.unsqueeze(-1), True)
    agents = {"observation": torch.randn(6, 2, 3), "action": action, "action_mask": mask}
    batch = TensorDict({"agents": agents}, [6])
    spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=5, discrete=True)
    loss = BCLoss(actor, action_spec=spec.action_spec())
    assert ("agents", "action_mask") in loss.in_keys
    out = loss(batch)
    logits = actor.module[0].module(agents["observation"]).detach()
    probability = logits.exp() * mask
    probability = probability / probability.sum(-1, keepdim=True)
    chosen = probability.gather(-1, action.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(out["loss_actor"].detach(), -chosen.log().mean())
    # An action that is not available in any row has no part in the gradient.
    agents["action_mask"][..., 4] = False
    agents["action"].clamp_(max=3)
    agents["action_mask"].scatter_(-1, agents["action"].unsqueeze(-1), True)
    loss.zero_grad()
    loss(TensorDict({"agents": agents}, [6]))["loss_actor"].backward()
    gradient = loss.actor_network_params["module", "0", "module", "weight"].grad
    assert (gradient[4] == 0).all() and (gradient[:4] != 0).any()


def test_learns_the_behaviour() -> None:
    torch.manual_seed(0)
    spec = make_spec()
    actor = make_gaussian_actor(spec, hidden_sizes=(16,))
    batch = TensorDict({("agents", "observation"): torch.randn(128, 2, 3)}, [128])
    low, high = torch.tensor(LOW), torch.tensor(HIGH)
    wanted = batch["agents", "observation"][..., :2].tanh() * 0.8
    batch["agents", "action"] = (low + high) / 2 + wanted * (high - low) / 2
    loss = BCLoss(actor, action_spec=spec.action_spec())
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss(batch)["loss_actor"].backward()
        optimizer.step()
    found = loss.get_stateful_net("actor_network").get_dist(batch).deterministic_sample
    assert (found - batch["agents", "action"]).abs().mean() < 0.1


def test_delayed_actor_is_a_moving_average() -> None:
    spec = make_spec()
    loss = BCLoss(make_gaussian_actor(spec), action_spec=spec.action_spec(), delay_actor=True)
    updater = SoftUpdate(loss, tau=0.1)
    key = ("module", "0", "module", "0", "_empty_net", "0", "weight")
    before = loss.target_actor_network_params[key].clone()
    loss.actor_network_params[key].data.add_(1.0)
    updater.step()
    torch.testing.assert_close(loss.target_actor_network_params[key], before + 0.1)


def test_bad_input_is_refused() -> None:
    spec = make_spec()
    loss = BCLoss(make_gaussian_actor(spec), action_spec=spec.action_spec())
    batch = make_batch().float()
    with pytest.raises(KeyError, match="BCLoss reads .*action.*which are missing"):
        loss(batch.exclude(("agents", "action")))
    with pytest.raises(ValueError, match=r"shape \(6, 2, 2\), found \(6, 2\)"):
        loss(batch.clone().set(("agents", "action"), torch.zeros(6, 2)))
    with pytest.raises(ValueError, match="continuous actions .* found torch.int64"):
        loss(batch.clone().set(("agents", "action"), torch.zeros(6, 2, 2, dtype=torch.long)))
    with pytest.raises(ValueError, match=r"action_margin must be in \[0, 1\), found 1"):
        BCLoss(make_gaussian_actor(spec), action_margin=1.0)
    with pytest.raises(ValueError, match="reduction"):
        BCLoss(make_gaussian_actor(spec), reduction="median")
