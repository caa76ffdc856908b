"""Discrete MACQL's numbers, gradients, and what it learns."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from tests.objectives.mixed_value_reference import (
    ACTIONS,
    EMBED,
    ROWS,
    greedy,
    joint_actions,
    make_batch,
    make_spec,
    td_loss,
    teams,
    weighted_mean,
)
from torchrl_logo.data import TaskSpec
from torchrl_logo.modules import make_action_value_network, make_categorical_actor, make_mixer
from torchrl_logo.objectives import BCLoss, DiscreteMACQLLoss, discrete_macql

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def make_loss(n_agents: int = 2, kind: str = "qmix", **kwargs: Any) -> DiscreteMACQLLoss:
    torch.manual_seed(0)
    spec = make_spec(n_agents)
    network = make_action_value_network(spec, hidden_sizes=(6,))
    mixer = make_mixer(spec, kind, mixing_embed_dim=EMBED)
    loss = DiscreteMACQLLoss(network, mixer, **kwargs).double()
    # targets that differ from the networks, as they do in training
    loss.target_action_value_network_params.data.mul_(-1.3)
    return loss


def exact_penalty(loss: DiscreteMACQLLoss, row: TensorDict) -> float:
    team, t = teams(loss)[0], loss.temperature
    total = sum(math.exp(team.total(row, action) / t) for action in joint_actions(row))
    return t * math.log(total) - team.total(row, row["agents", "action"].tolist())


def sampled_penalty(loss: DiscreteMACQLLoss, row: TensorDict, draws: Tensor) -> float:
    team, t = teams(loss)[0], loss.temperature
    best = greedy(team, row)
    total, count = math.exp(team.total(row, best) / t), len(joint_actions(row))
    for action in draws.tolist():
        assert tuple(action) in joint_actions(row)
        if action != best:
            total += count * math.exp(team.total(row, action) / t) / len(draws)
    return t * math.log(total) - team.total(row, row["agents", "action"].tolist())


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    recorded: list[Tensor] = []
    sample = discrete_macql.sample_available_actions

    def record(mask: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
        actions, log_prob = sample(mask, num_samples)
        recorded.append(actions)
        return actions, log_prob

    monkeypatch.setattr(discrete_macql, "sample_available_actions", record)
    return recorded


@pytest.mark.parametrize("kind_of_batch", ["plain", "weighted", "imagined"])
@pytest.mark.parametrize("kwargs", [{}, {"temperature": 2.5, "min_q_weight": 0.7}])
@pytest.mark.parametrize("kind", ["qmix", "vdn"])
@pytest.mark.parametrize("n_agents", [1, 2, 5])
def test_values_are_the_formulas(
    n_agents: int,
    kind: str,
    kwargs: dict[str, float],
    kind_of_batch: str,
    draws: list[Tensor],
) -> None:
    batch = make_batch(n_agents)
    if kind_of_batch != "plain":
        batch["priority_weight"] = torch.linspace(0.1, 3, ROWS).double()
    if kind_of_batch == "imagined":
        batch["imagined"] = torch.arange(ROWS).unsqueeze(-1) % 2 == 1
    loss = make_loss(n_agents, kind, num_samples=20, **kwargs)
    out = loss(batch)
    team, delayed = teams(loss)
    assert bool(draws) is (kind == "qmix")
    gaps = [
        sampled_penalty(loss, row, draws[0][:, b]) if draws else exact_penalty(loss, row)
        for b, row in enumerate(batch)
    ]
    expected = {
        "loss_qvalue": weighted_mean([td_loss(team, delayed, row) for row in batch], batch),
        "loss_cql": loss.min_q_weight * weighted_mean(gaps, batch, real=True),
        "conservative_gap": sum(gaps) / ROWS,
        "pred_value": sum(team.total(r, r["agents", "action"].tolist()) for r in batch) / ROWS,
    }
    for key, value in expected.items():
        assert out[key].item() == pytest.approx(value, rel=1e-5), key


def test_draws_stand_for_all_joint_actions() -> None:
    batch = make_batch(3)
    loss = make_loss(3, num_samples=20_000, reduction="none")
    gaps = loss(batch)["conservative_gap"].tolist()
    for gap, row in zip(gaps, batch, strict=True):
        assert gap == pytest.approx(exact_penalty(loss, row), abs=0.02)


def test_mixers_may_see_draws_as_a_batch() -> None:
    batch = make_batch(3)
    outs = []
    for deactivate_vmap in (False, True):
        loss = make_loss(3, deactivate_vmap=deactivate_vmap)
        torch.manual_seed(2)
        outs.append(loss(batch))
    torch.testing.assert_close(outs[0].to_dict(), outs[1].to_dict())


@pytest.mark.parametrize("deactivate_vmap", [False, True])
def test_batches_may_be_views(deactivate_vmap: bool) -> None:
    loss = make_loss(reduction="none", deactivate_vmap=deactivate_vmap)
    turned = torch.stack([make_batch(), make_batch()]).transpose(0, 1)
    torch.manual_seed(2)
    found = loss(turned)
    torch.manual_seed(2)
    torch.testing.assert_close(found.to_dict(), loss(turned.contiguous()).to_dict())


class Table(nn.Module):
    """Values of each row's actions, as they are."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values)

    def forward(self, observation: Tensor) -> Tensor:
        return self.values.expand(*observation.shape[:-1], ACTIONS)


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
    values, outs = torch.randn(2, ACTIONS).double(), []
    for filling in (0.0, 1e4, 1e300):
        values[0, 2] = values[1, 0] = filling
        table = Table(values.clone())
        network = TensorDictModule(
            table, in_keys=[("agents", "observation")], out_keys=[("agents", "action_value")]
        )
        loss = DiscreteMACQLLoss(network, mixer)
        torch.manual_seed(2)
        outs.append(loss(batch))
        (outs[-1]["loss_qvalue"] + outs[-1]["loss_cql"]).backward()
        gradient = loss.action_value_network_params["module", "values"].grad
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


def test_each_loss_trains_the_networks_and_not_the_targets() -> None:
    loss = make_loss()
    out = loss(make_batch())
    for key in ("loss_qvalue", "loss_cql"):
        loss.zero_grad()
        out[key].backward(retain_graph=True)
        reached = {n.split(".")[0] for n, p in loss.named_parameters() if p.grad is not None}
        assert reached == {"action_value_network_params", "mixer_network_params"}
    for params in (loss.target_action_value_network_params, loss.target_mixer_network_params):
        assert not any(value.requires_grad for value in params.values(True, True))
    assert not any(value.requires_grad for key, value in out.items() if not key.startswith("loss_"))


def test_padding_counts_for_nothing() -> None:
    loss, batch = make_loss(), make_batch()
    batch["collector", "mask"] = torch.arange(ROWS).unsqueeze(-1) < 5
    padded = batch.clone()
    padded["state"][5:] = math.nan
    outs = []
    for data in (batch, padded):
        torch.manual_seed(3)
        outs.append(loss(data))
    torch.testing.assert_close(outs[1].to_dict(), outs[0].to_dict())


def test_half_precision_does_not_overflow() -> None:
    loss, batch = make_loss().float(), make_batch()
    batch = batch.apply(lambda v: v.float() if v.is_floating_point() else v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = loss(batch)
        (out["loss_qvalue"] + out["loss_cql"]).backward()
    assert all(value.isfinite() for value in out.values())
    assert all(p.grad.isfinite().all() for p in loss.parameters())


def test_caller_keeps_its_batch() -> None:
    batch = make_batch()
    before = batch.clone()
    make_loss()(batch)
    assert set(batch.keys(True, True)) == set(before.keys(True, True))
    assert (batch == before).all()


MASK = torch.ones(ROWS, 2, ACTIONS, dtype=torch.bool)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        (
            ("agents", "action"),
            torch.zeros(ROWS, 2),
            r"discrete actions of int64 in \('agents', 'action'\), found torch.float32",
        ),
        (
            ("agents", "action"),
            torch.zeros(ROWS, 2, ACTIONS, dtype=torch.long),
            r"\('agents', 'action'\) of shape \(7, 'N'\), found \(7, 2, 3\)",
        ),
        (
            ("agents", "action_mask"),
            MASK[:, :1],
            r"\('agents', 'action_mask'\) of shape \(7, 2, 3\), found \(7, 1, 3\)",
        ),
        (
            ("next", "agents", "action_mask"),
            MASK.float(),
            r"\('next', 'agents', 'action_mask'\) of dtype bool, found torch.float32",
        ),
        (
            ("next", "reward"),
            torch.zeros(ROWS, 2),
            r"\('next', 'reward'\) of shape \(7, 1\), found \(7, 2\)",
        ),
    ],
)
def test_bad_batches_are_refused(key: Any, value: Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=f"^DiscreteMACQLLoss.*{match}"):
        make_loss()(make_batch().set(key, value))


def test_missing_entries_are_named() -> None:
    with pytest.raises(KeyError, match="DiscreteMACQLLoss reads .*action_mask.*missing"):
        make_loss()(make_batch().exclude(("agents", "action_mask")))


def test_bad_networks_are_refused() -> None:
    spec, batch = make_spec(2), make_batch()
    batch = batch.apply(lambda v: v.float() if v.is_floating_point() else v)
    local, observation = ("agents", "chosen_action_value"), ("agents", "observation")
    network, mixer = make_action_value_network(spec), make_mixer(spec)

    def module(layer: nn.Module, reads: Any, writes: Any) -> TensorDictModule:
        return TensorDictModule(layer, in_keys=[reads], out_keys=[writes])

    narrow = module(nn.Linear(3, 2), observation, ("agents", "action_value"))
    with pytest.raises(ValueError, match=r"'action_value'\) of shape \(7, 2, 3\), found \(7, 2, 2"):
        DiscreteMACQLLoss(narrow, mixer)(batch)
    misnamed = module(nn.Linear(3, ACTIONS), observation, ("agents", "q"))
    with pytest.raises(KeyError, match="utility network to write .*action_value.*it writes .*q"):
        DiscreteMACQLLoss(misnamed, mixer)(batch)
    per_agent = module(nn.Linear(1, 1), local, "chosen_action_value")
    with pytest.raises(ValueError, match=r"'chosen_action_value' of shape \(7, 1\), found"):
        DiscreteMACQLLoss(network, per_agent)(batch)
    blind = module(nn.Linear(4, 1), "state", "chosen_action_value")
    with pytest.raises(ValueError, match="mixer must read the agents' values"):
        DiscreteMACQLLoss(network, blind)(batch)
    unnamed = module(nn.Linear(1, 1), local, "total")
    with pytest.raises(KeyError, match="mixer to write 'chosen_action_value'; it writes"):
        DiscreteMACQLLoss(network, unnamed)(batch)


@pytest.mark.parametrize(
    "bad", [{"num_samples": 0}, {"min_q_weight": -1.0}, {"temperature": 0.0}, {"reduction": "max"}]
)
def test_bad_arguments_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        make_loss(**bad)


#: What two agents are paid; the best of all is (0, 0).
PAYOFF = torch.tensor([[5.0, 3.0, 0.0], [3.0, 2.0, 0.0], [0.0, 0.0, 1.0]])


@pytest.mark.parametrize("masked", [False, True], ids=["open", "masked"])
def test_learns_what_behaviour_cloning_cannot(masked: bool) -> None:
    spec = TaskSpec(n_agents=2, observation_size=2, state_size=1, action_size=3, discrete=True)
    torch.manual_seed(0)
    rows = 512
    habits = torch.tensor([0.2, 0.2, 0.6]).expand(rows * 2, 3)
    action = habits.multinomial(1).view(rows, 2)
    mask = torch.ones(rows, 2, 3, dtype=torch.bool)
    if masked:
        # without its first action, agent 0 is best at its second
        mask[:, 0, 0] = False
        action[:, 0] = action[:, 0].clamp_min(1)
    agents = {"observation": torch.eye(2).expand(rows, 2, 2), "action_mask": mask}
    step, ended = {"agents": agents, "state": torch.ones(rows, 1)}, torch.ones(rows, 1).bool()
    reward = PAYOFF[action[:, 0], action[:, 1]].unsqueeze(-1)
    outcome = {"reward": reward, "done": ended, "terminated": ended}
    batch = TensorDict({**step, "next": {**step, **outcome}}, [rows])
    batch["agents", "action"] = action

    def train(loss: Any) -> None:
        optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
        for _ in range(100):
            out = loss(batch)
            optimizer.zero_grad()
            sum(v for k, v in out.items() if k.startswith("loss_")).backward()
            optimizer.step()

    cloning = BCLoss(make_categorical_actor(spec, hidden_sizes=(16,)))
    train(cloning)
    dist = cloning.get_stateful_net("actor_network").get_dist(batch[:1])
    cloned = dist.deterministic_sample[0].tolist()
    network = make_action_value_network(spec, hidden_sizes=(16,))
    learning = DiscreteMACQLLoss(network, make_mixer(spec), min_q_weight=0.1, num_samples=20)
    train(learning)
    value = learning.get_stateful_net("action_value_network")(batch[:1].clone())
    value = value["agents", "action_value"].masked_fill(~mask[:1], -math.inf)
    learned = value.argmax(-1)[0].tolist()
    assert cloned == [2, 2]
    assert learned == ([1, 0] if masked else [0, 0])
