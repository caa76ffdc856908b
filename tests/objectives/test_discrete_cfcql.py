"""Discrete CFCQL's numbers, gradients, and what it learns."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.modules import QMixer

from tests.objectives.mixed_value_reference import (
    ACTIONS,
    EMBED,
    ROWS,
    Team,
    available,
    make_batch,
    make_spec,
    td_loss,
    teams,
    weighted_mean,
)
from torchrl_logo.data import TaskSpec
from torchrl_logo.modules import make_action_value_network, make_categorical_actor, make_mixer
from torchrl_logo.objectives import DiscreteCFCQLLoss, DiscreteMACQLLoss

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def make_loss(
    n_agents: int = 2, kind: str = "qmix", behaviour: bool = True, **kwargs: Any
) -> DiscreteCFCQLLoss:
    torch.manual_seed(0)
    spec = make_spec(n_agents)
    network = make_action_value_network(spec, hidden_sizes=(6,))
    mixer = make_mixer(spec, kind, mixing_embed_dim=EMBED)
    if behaviour:
        kwargs["behaviour_network"] = make_categorical_actor(spec, hidden_sizes=(6,))
    loss = DiscreteCFCQLLoss(network, mixer, **kwargs).double()
    # targets that differ from the networks, as they do in training
    loss.target_action_value_network_params.data.mul_(-1.3)
    return loss


def softmax(values: list[float]) -> list[float]:
    total = sum(map(math.exp, values))
    return [math.exp(value) / total for value in values]


class Reference:
    """The losses, row by row, from the formulas of the class's description."""

    def __init__(self, loss: DiscreteCFCQLLoss) -> None:
        self.loss, (self.team, self.delayed) = loss, teams(loss)
        self.behaviour = None
        if loss.behaviour_network is not None:
            self.behaviour = Team(loss.behaviour_network_params, TensorDict({}, []))

    def row(self, row: TensorDict) -> dict[str, float]:
        t, action = self.loss.temperature, row["agents", "action"].tolist()
        n_agents, soft_maxima, divergences, likelihood = len(action), [], [], 0.0
        for i, actions in enumerate(available(row)):
            values = [self.team.total(row, [*action[:i], a, *action[i + 1 :]]) for a in actions]
            soft_maxima.append(t * math.log(sum(math.exp(value / t) for value in values)))
            if self.behaviour is not None:
                logits = self.behaviour.utilities(row["agents", "observation"])[i]
                beta = softmax([logits[a] for a in actions])
                mu = softmax([value / t for value in values])
                pairs = zip(mu, beta, strict=True)
                divergences.append(sum(m * math.log(m / b) for m, b in pairs))
                likelihood += math.log(beta[actions.index(action[i])]) / n_agents
        weights = [1 / n_agents] * n_agents
        if self.behaviour is not None:
            weights = softmax([self.loss.divergence_temperature * d for d in divergences])
        pushed = sum(w * v for w, v in zip(weights, soft_maxima, strict=True))
        out = {
            "loss_qvalue": td_loss(self.team, self.delayed, row),
            "loss_cql": self.loss.min_q_weight * (pushed - self.team.total(row, action)),
        }
        if self.behaviour is not None:
            out["loss_behaviour"] = -likelihood
            out["behaviour_divergence"] = sum(divergences) / n_agents
        return out

    def compute(self, batch: TensorDict) -> dict[str, float]:
        rows = [self.row(row) for row in batch]
        out = {
            key: weighted_mean([row[key] for row in rows], batch, real=key != "loss_qvalue")
            for key in rows[0]
        }
        if "behaviour_divergence" in out:
            # statistics are not weighted
            out["behaviour_divergence"] = sum(r["behaviour_divergence"] for r in rows) / len(rows)
        return out


@pytest.mark.parametrize("kind_of_batch", ["plain", "weighted", "imagined"])
@pytest.mark.parametrize(
    "kwargs",
    [{}, {"behaviour": False}, {"temperature": 0.4, "divergence_temperature": 6.0}],
    ids=["defaults", "equal", "sharp"],
)
@pytest.mark.parametrize("kind", ["qmix", "vdn"])
@pytest.mark.parametrize("n_agents", [1, 2, 5])
def test_values_are_the_formulas(
    n_agents: int, kind: str, kwargs: dict[str, Any], kind_of_batch: str
) -> None:
    batch = make_batch(n_agents)
    if kind_of_batch != "plain":
        batch["priority_weight"] = torch.linspace(0.1, 3, ROWS).double()
    if kind_of_batch == "imagined":
        batch["imagined"] = torch.arange(ROWS).unsqueeze(-1) % 2 == 1
    loss = make_loss(n_agents, kind, **kwargs)
    out = loss(batch)
    expected = Reference(loss).compute(batch)
    assert {k for k in out.keys() if k.startswith("loss_")} <= set(expected)
    for key, value in expected.items():
        # with one action there is no divergence
        assert out[key].item() == pytest.approx(value, rel=1e-5, abs=1e-12), key


class Sum(nn.Module):
    """A sum that the loss does not know as one."""

    def forward(self, values: Tensor) -> Tensor:
        return values.sum(-2)


def test_sums_need_no_mixed_alternatives() -> None:
    batch, loss = make_batch(4), make_loss(4, "vdn")
    key = ("agents", "chosen_action_value")
    hidden = TensorDictModule(Sum(), in_keys=[key], out_keys=["chosen_action_value"])
    torch.manual_seed(0)
    spec = make_spec(4)
    network = make_action_value_network(spec, hidden_sizes=(6,))
    behaviour = make_categorical_actor(spec, hidden_sizes=(6,))
    other = DiscreteCFCQLLoss(network, hidden, behaviour_network=behaviour).double()
    other.target_action_value_network_params.data.mul_(-1.3)
    assert loss.additive and not other.additive
    torch.testing.assert_close(other(batch).to_dict(), loss(batch).to_dict())


class OtherMixer(QMixer):
    """The same numbers, but not known to be: each joint action has to be mixed."""


@pytest.mark.parametrize("deactivate_vmap", [False, True])
def test_other_mixers_are_called_for_each_alternative(deactivate_vmap: bool) -> None:
    batch, loss = make_batch(3), make_loss(3)
    spec = make_spec(3)
    mixer = make_mixer(spec, "qmix")
    mixer = TensorDictModule(OtherMixer((4,), EMBED, 3, "cpu"), mixer.in_keys, mixer.out_keys)
    other = DiscreteCFCQLLoss(
        make_action_value_network(spec, hidden_sizes=(6,)),
        mixer,
        behaviour_network=make_categorical_actor(spec, hidden_sizes=(6,)),
        deactivate_vmap=deactivate_vmap,
    ).double()
    other.load_state_dict(loss.state_dict())
    torch.testing.assert_close(other(batch).to_dict(), loss(batch).to_dict())


@pytest.mark.parametrize("kind", ["qmix", "vdn"])
def test_unavailable_actions_have_no_influence(kind: str) -> None:
    torch.manual_seed(0)
    batch = make_batch(2)
    # agent 0 never has action 2, agent 1 never action 0
    for place in (batch, batch["next"]):
        mask = torch.ones(ROWS, 2, ACTIONS, dtype=torch.bool)
        mask[:, 0, 2] = mask[:, 1, 0] = False
        place["agents", "action_mask"] = mask
    batch["agents", "action"] = torch.tensor([1, 2]).expand(ROWS, 2)
    mixer = make_mixer(make_spec(2), kind).double()
    tables, outs = torch.randn(2, 2, ACTIONS).double(), []

    class Table(nn.Module):
        def __init__(self, values: Tensor) -> None:
            super().__init__()
            self.values = nn.Parameter(values)

        def forward(self, observation: Tensor) -> Tensor:
            return self.values.expand(*observation.shape[:-1], ACTIONS)

    def table(values: Tensor, name: str) -> TensorDictModule:
        key = ("agents", "observation")
        return TensorDictModule(Table(values.clone()), in_keys=[key], out_keys=[("agents", name)])

    for filling in (0.0, 1e4, 1e300):
        tables[:, 0, 2] = tables[:, 1, 0] = filling
        network, behaviour = table(tables[0], "action_value"), table(tables[1], "logits")
        loss = DiscreteCFCQLLoss(network, mixer, behaviour_network=behaviour)
        outs.append(loss(batch))
        sum(value for key, value in outs[-1].items() if key.startswith("loss_")).backward()
        for params in (loss.action_value_network_params, loss.behaviour_network_params):
            gradient = params["module", "values"].grad
            assert gradient[0, 2] == 0 and gradient[1, 0] == 0
            assert (gradient[0, :2] != 0).all() and (gradient[1, 1:] != 0).all()
    for out in outs[1:]:
        torch.testing.assert_close(out.to_dict(), outs[0].to_dict(), rtol=0, atol=0)


def test_order_of_agents_does_not_matter() -> None:
    batch, loss = make_batch(5), make_loss(5, "vdn")
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted = batch.clone()
    for place in (permuted, permuted["next"]):
        place["agents"] = place["agents"].apply(lambda value: value[:, order])
    torch.testing.assert_close(loss(permuted).to_dict(), loss(batch).to_dict())


def test_each_loss_trains_its_own_networks() -> None:
    loss = make_loss()
    out = loss(make_batch())
    values = {"action_value_network_params", "mixer_network_params"}
    for key, networks in (
        ("loss_qvalue", values),
        ("loss_cql", values),
        ("loss_behaviour", {"behaviour_network_params"}),
    ):
        loss.zero_grad()
        out[key].backward(retain_graph=True)
        reached = {n.split(".")[0] for n, p in loss.named_parameters() if p.grad is not None}
        assert reached == networks
    assert not any(value.requires_grad for key, value in out.items() if not key.startswith("loss_"))


def test_half_precision_does_not_overflow() -> None:
    loss, batch = make_loss().float(), make_batch()
    batch = batch.apply(lambda v: v.float() if v.is_floating_point() else v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = loss(batch)
        sum(value for key, value in out.items() if key.startswith("loss_")).backward()
    assert all(value.isfinite() for value in out.values())
    assert all(p.grad.isfinite().all() for p in loss.parameters())


def test_bad_data_and_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="DiscreteCFCQLLoss needs discrete actions of int64"):
        make_loss()(make_batch().set(("agents", "action"), torch.zeros(ROWS, 2)))
    with pytest.raises(KeyError, match="DiscreteCFCQLLoss reads .*state.*missing"):
        make_loss()(make_batch().exclude("state"))
    spec, batch = make_spec(2), make_batch()
    batch = batch.apply(lambda v: v.float() if v.is_floating_point() else v)
    network, mixer = make_action_value_network(spec), make_mixer(spec)
    key = ("agents", "observation")
    for size, name, error, match in (
        (2, "logits", ValueError, r"'logits'\) of shape \(7, 2, 3\), found \(7, 2, 2\)"),
        (3, "scores", KeyError, "behaviour network to write .*logits.*; it writes .*scores"),
    ):
        layer = nn.Linear(3, size)
        behaviour = TensorDictModule(layer, in_keys=[key], out_keys=[("agents", name)])
        with pytest.raises(error, match=match):
            DiscreteCFCQLLoss(network, mixer, behaviour_network=behaviour)(batch)


@pytest.mark.parametrize(
    "bad", [{"divergence_temperature": -1.0}, {"min_q_weight": -1.0}, {"temperature": 0.0}]
)
def test_bad_arguments_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"DiscreteCFCQLLoss: {next(iter(bad))}"):
        make_loss(**bad)


def learn_to_be_paid(loss_class: Any, n_agents: int) -> float:
    """How much more the agents value the action that pays, which the data has one time in five."""
    spec = TaskSpec(
        n_agents=n_agents, observation_size=1, state_size=1, action_size=2, discrete=True
    )
    torch.manual_seed(0)
    rows = 512
    action = (torch.rand(rows, n_agents) < 0.2).long()
    mask = torch.ones(rows, n_agents, 2, dtype=torch.bool)
    step = {
        "agents": {"observation": torch.ones(rows, n_agents, 1), "action_mask": mask},
        "state": torch.ones(rows, 1),
    }
    ended = torch.ones(rows, 1, dtype=torch.bool)
    outcome = {"reward": action.float().mean(-1, True), "done": ended, "terminated": ended}
    batch = TensorDict({**step, "next": {**step, **outcome}}, [rows])
    batch["agents", "action"] = action
    network = make_action_value_network(spec, hidden_sizes=())
    loss = loss_class(network, make_mixer(spec, "vdn"), min_q_weight=0.2)
    optimizer = torch.optim.Adam(loss.parameters(), lr=3e-2)
    for _ in range(150):
        out = loss(batch)
        optimizer.zero_grad()
        (out["loss_qvalue"] + out["loss_cql"]).backward()
        optimizer.step()
    value = loss.get_stateful_net("action_value_network")(batch[:1].clone())
    value = value["agents", "action_value"][0]
    # the team's gain, to which each agent has its share
    return n_agents * (value[:, 1] - value[:, 0]).mean().item()


def test_pessimism_does_not_grow_with_the_agents() -> None:
    joint = {n: learn_to_be_paid(DiscreteMACQLLoss, n) for n in (1, 5)}
    counterfactual = {n: learn_to_be_paid(DiscreteCFCQLLoss, n) for n in (1, 5)}
    # one agent: the same penalty; the data's usual action pays nothing, so cloning is never paid
    assert joint[1] == pytest.approx(counterfactual[1], rel=1e-3) and joint[1] > 0.4
    assert joint[5] < 0 < 0.4 < counterfactual[5]
