"""Discrete batch-constrained Q-learning: its numbers, gradients, and what it learns."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.modules import QMixer, VDNMixer
from torchrl.objectives import SoftUpdate

from torchrl_logo.data import TaskSpec
from torchrl_logo.modules import make_categorical_actor
from torchrl_logo.objectives import BCLoss, DiscreteMABCQLoss

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
ROWS, ACTIONS = 9, 5


def make_loss(n_agents: int = 2, mixer: str = "qmix", **kwargs: Any) -> DiscreteMABCQLoss:
    torch.manual_seed(0)
    observation = [("agents", "observation")]
    mixed = [("agents", "chosen_action_value")]
    mixers: dict[str, Any] = {
        "qmix": lambda: (QMixer((4,), 6, n_agents, "cpu"), [*mixed, "state"]),
        "vdn": lambda: (VDNMixer(n_agents, "cpu"), mixed),
    }
    module, reads = mixers[mixer]()
    loss = DiscreteMABCQLoss(
        TensorDictModule(nn.Linear(3, ACTIONS), observation, [("agents", "logits")]),
        TensorDictModule(nn.Linear(3, ACTIONS), observation, [("agents", "action_value")]),
        TensorDictModule(module, reads, ["chosen_action_value"]),
        **kwargs,
    ).double()
    # targets that differ from the networks, as they do in training
    loss.target_action_value_network_params.data.mul_(-0.7)
    loss.target_mixer_network_params.data.mul_(0.6)
    return loss


def make_batch(n_agents: int = 2) -> TensorDict:
    """Rows that go on, that are truncated and that are terminated."""
    torch.manual_seed(1)
    kind = torch.arange(ROWS).unsqueeze(-1) % 3
    action = torch.randint(ACTIONS, (ROWS, n_agents))
    mask, next_mask = (torch.rand(ROWS, n_agents, ACTIONS) < 0.6 for _ in range(2))
    mask.scatter_(-1, action.unsqueeze(-1), True)
    next_mask.scatter_(-1, torch.randint(ACTIONS, (ROWS, n_agents, 1)), True)

    def observe() -> Tensor:
        return 2 * torch.randn(ROWS, n_agents, 3).double()

    return TensorDict(
        {
            "agents": {"observation": observe(), "action": action, "action_mask": mask},
            "state": torch.randn(ROWS, 4).double(),
            "next": {
                "agents": {"observation": observe(), "action_mask": next_mask},
                "state": torch.randn(ROWS, 4).double(),
                "reward": torch.randn(ROWS, 1).double(),
                "done": kind > 0,
                "terminated": kind == 2,
                "truncated": kind == 1,
            },
        },
        [ROWS],
    )


def make_single() -> TensorDict:
    """The batch in single precision."""
    return make_batch().apply(lambda value: value.float() if value.is_floating_point() else value)


class Reference:
    """The losses, row by row and agent by agent, from the formulas of the class's description."""

    def __init__(self, loss: DiscreteMABCQLoss, mixer: str) -> None:
        self.loss, self.mixer = loss, mixer

    @staticmethod
    def linear(params: Any, x: Tensor) -> list[float]:
        return (params["weight"].detach() @ x + params["bias"].detach()).tolist()

    def mix(self, params: Any, utilities: list[float], state: Tensor) -> float:
        if self.mixer == "vdn":
            return sum(utilities)
        p = params["module"]
        w1, b1 = self.linear(p["hyper_w_1"], state), self.linear(p["hyper_b_1"], state)
        w2 = self.linear(p["hyper_w_final"], state)
        inner = torch.tensor(self.linear(p["V", "0"], state)).double().clamp_min(0)
        total = self.linear(p["V", "2"], inner)[0]
        for k in range(6):
            x = b1[k] + sum(q * abs(w1[6 * i + k]) for i, q in enumerate(utilities))
            total += abs(w2[k]) * (x if x > 0 else math.exp(x) - 1)
        return total

    def row(self, row: TensorDict) -> dict[str, float]:
        loss, following = self.loss, row["next"]
        behaviour = loss.behaviour_network_params["module"]
        online = loss.action_value_network_params["module"]
        target = loss.target_action_value_network_params["module"]
        chosen, log_prob, bootstrap, permitted = [], 0.0, [], 0
        n_agents = row["agents", "action"].shape[0]
        for i in range(n_agents):
            o, a = row["agents", "observation"][i], int(row["agents", "action"][i])
            available = row["agents", "action_mask"][i].tolist()
            weights = [
                math.exp(x) if m else 0.0
                for x, m in zip(self.linear(behaviour, o), available, strict=True)
            ]
            log_prob += math.log(weights[a] / sum(weights)) / n_agents
            chosen.append(self.linear(online, o)[a])

            o = following["agents", "observation"][i]
            available = following["agents", "action_mask"][i].tolist()
            weights = [
                math.exp(x) if m else 0.0
                for x, m in zip(self.linear(behaviour, o), available, strict=True)
            ]
            share = [w / sum(weights) for w in weights]
            may = [
                j
                for j in range(ACTIONS)
                if available[j] and share[j] / max(share) >= loss.threshold
            ]
            permitted += len(may)
            values = self.linear(online, o)
            best = max(may, key=lambda j: values[j])
            bootstrap.append(self.linear(target, o)[best])
        pred = self.mix(loss.mixer_network_params, chosen, row["state"])
        value = self.mix(loss.target_mixer_network_params, bootstrap, following["state"])
        ended = float(following["terminated"])
        goal = float(following["reward"]) + 0.99 * (1 - ended) * value
        error = abs(pred - goal)
        huber = error**2 / 2 if error < 1 else error - 0.5
        return {
            "loss_qvalue": huber if loss.loss_function == "smooth_l1" else error**2,
            "loss_behaviour": -log_prob,
            "pred_value": pred,
            "target_value": goal,
            "bc_log_prob": log_prob,
            "permitted_actions": permitted / n_agents,
        }

    def compute(self, batch: TensorDict) -> dict[str, float]:
        rows = [self.row(batch[b]) for b in range(len(batch))]
        weights = batch.get("priority_weight", torch.ones(len(batch))).tolist()
        out = {}
        for name in rows[0]:
            w = weights if name.startswith("loss_") else [1.0] * len(rows)
            out[name] = sum(a * r[name] for a, r in zip(w, rows, strict=True)) / sum(w)
        return out


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("mixer", ["qmix", "vdn"])
@pytest.mark.parametrize("n_agents", [1, 2, 5])
@pytest.mark.parametrize(
    "kwargs",
    [{}, {"threshold": 0.0, "loss_function": "l2"}, {"threshold": 0.8}, {"threshold": 1.0}],
    ids=["default", "q_learning", "strict", "greedy_behaviour"],
)
def test_losses_are_the_formulas(
    n_agents: int, mixer: str, weighted: bool, kwargs: dict[str, Any]
) -> None:
    loss, batch = make_loss(n_agents, mixer, **kwargs), make_batch(n_agents)
    if weighted:
        batch["priority_weight"] = torch.linspace(0, 3, ROWS).double()
    found = loss(batch)
    expected = Reference(loss, mixer).compute(batch)
    assert set(found.keys()) == set(expected)
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=1e-5), name


def test_the_threshold_changes_targets() -> None:
    batch = make_batch()
    targets = [make_loss(threshold=t)(batch)["target_value"].item() for t in (0.0, 0.3, 1.0)]
    assert len(set(targets)) == 3


def test_order_of_agents_does_not_matter_with_shared_parameters() -> None:
    loss, batch, order = make_loss(3, "vdn"), make_batch(3), [2, 0, 1]
    permuted = batch.clone()
    for where in (permuted["agents"], permuted["next", "agents"]):
        for key, value in where.items():
            where[key] = value[:, order]
    found, expected = loss(permuted), loss(batch)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)
    action = loss.actor_network(batch.select("agents").clone())["agents", "action"]
    again = loss.actor_network(permuted.select("agents").clone())["agents", "action"]
    assert (again == action[:, order]).all()


def gradients(loss: DiscreteMABCQLoss, out: Tensor) -> set[str]:
    loss.zero_grad()
    out.backward()
    return {
        name.split("_params")[0]
        for name, parameter in loss.named_parameters()
        if parameter.grad is not None and (parameter.grad != 0).any()
    }


def test_gradients_stay_with_their_networks() -> None:
    loss, batch = make_loss(), make_batch()
    out = loss(batch)
    assert gradients(loss, out["loss_behaviour"]) == {"behaviour_network"}
    assert gradients(loss, loss(batch)["loss_qvalue"]) == {"action_value_network", "mixer_network"}
    assert not any(out[key].requires_grad for key in loss.out_keys if "loss" not in key)


def test_unavailable_actions_have_no_part() -> None:
    batch = make_batch()
    batch["agents", "action"] = batch["agents", "action"].clamp(max=3)
    for where in (batch["agents"], batch["next", "agents"]):
        where["action_mask"][..., 4] = False
    batch["agents", "action_mask"].scatter_(-1, batch["agents", "action"].unsqueeze(-1), True)
    results = []
    for offset in (0.0, 1e4, math.nan):
        loss = make_loss()
        names = ("behaviour_network", "action_value_network", "target_action_value_network")
        for name in names:
            getattr(loss, f"{name}_params")["module", "bias"].data[4] += offset
        out = loss(batch)
        (out["loss_qvalue"] + out["loss_behaviour"]).backward()
        for name in names[:2]:
            gradient = getattr(loss, f"{name}_params")["module", "weight"].grad
            assert (gradient[4] == 0).all() and (gradient[:4] != 0).any()
        chosen = loss.actor_network(batch.select("agents").clone())["agents", "action"]
        assert batch["agents", "action_mask"].gather(-1, chosen.unsqueeze(-1)).all()
        results.append((out, chosen))
    for out, chosen in results[1:]:
        for key, value in results[0][0].items():
            torch.testing.assert_close(out[key], value)
        assert (chosen == results[0][1]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_does_not_overflow(dtype: torch.dtype) -> None:
    with torch.autocast("cpu", dtype=dtype):
        out = make_loss().float()(make_single())
    assert all(value.isfinite() for value in out.values())


def test_padding_counts_for_nothing() -> None:
    loss, batch = make_loss(), make_batch()
    padded = batch.clone().set(("collector", "mask"), torch.arange(ROWS).unsqueeze(-1) < 5)
    padded["state"][5:] = math.nan
    found, expected = loss(padded), loss(batch[:5])
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)


def test_caller_keeps_its_batch() -> None:
    batch = make_batch()
    before = batch.clone()
    make_loss()(batch)
    assert set(batch.keys(True, True)) == set(before.keys(True, True))
    assert (batch == before).all()


def test_chooses_the_best_of_what_the_data_has() -> None:
    """A common action that pays little, a rarer one that pays, and one that was never tried."""
    torch.manual_seed(0)
    spec = TaskSpec(n_agents=2, observation_size=2, state_size=4, action_size=3, discrete=True)
    rows = 512
    action = (torch.rand(rows, 2) < 0.35).long()
    agents = {
        "observation": torch.eye(2).expand(rows, 2, 2),
        "action_mask": torch.ones(rows, 2, 3, dtype=torch.bool),
    }
    ended = torch.arange(rows).unsqueeze(-1) % 2 == 0  # the others go on, and start anew
    step = {"agents": agents, "state": torch.ones(rows, 4)}
    reward = action.sum(-1, keepdim=True).float()
    outcome = {"reward": reward, "done": ended, "terminated": ended}
    batch = TensorDict({**step, "next": {**step, **outcome}}, [rows])
    batch["agents", "action"] = action
    observation = [("agents", "observation")]
    utilities = nn.Linear(2, 3)
    utilities.bias.data[2] = 10.0  # extrapolation: what was never tried looks best
    bcq = DiscreteMABCQLoss(
        make_categorical_actor(spec, hidden_sizes=(16,)),
        TensorDictModule(utilities, observation, [("agents", "action_value")]),
        TensorDictModule(
            VDNMixer(2, "cpu"), [("agents", "chosen_action_value")], ["chosen_action_value"]
        ),
        gamma=0.9,
        loss_function="l2",  # Huber's loss seeks medians, and targets have two modes here
    )
    bc = BCLoss(make_categorical_actor(spec, hidden_sizes=(16,)), action_spec=spec.action_spec())
    updater = SoftUpdate(bcq, tau=0.1)
    for loss in (bcq, bc):
        optimizer = torch.optim.Adam(loss.parameters(), lr=3e-2)
        for _ in range(300):
            out = loss(batch)
            optimizer.zero_grad()
            sum(v for k, v in out.items() if k.startswith("loss_")).backward()
            optimizer.step()
            if loss is bcq:
                updater.step()
    data = TensorDict(step, [rows])[:4]
    chosen = bcq.actor_network(data.clone())["agents", "action"]
    cloned = bc.actor_network(data.clone())["agents", "action"]
    assert (chosen == 1).all() and (cloned == 0).all()
    # 2 each step, and on with probability 0.5: 2 / (1 - 0.9 / 2)
    best = bcq.actor_network(data.clone())["agents", "action_value"][..., :2].max(-1)[0].sum(-1)
    torch.testing.assert_close(best, torch.full((4,), 2 / 0.55), rtol=0.1, atol=0)
    unconstrained = bcq.actor_network(data.clone())["agents", "action_value"].argmax(-1)
    assert (unconstrained == 2).all()


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda b: b.pop("state"), KeyError, r"reads \[.{0,2}state.{0,2}\], which are missing"),
        (
            lambda b: b["next", "agents"].pop("action_mask"),
            KeyError,
            "reads .*next.*action_mask.*which are missing",
        ),
        (
            lambda b: b["agents"].set("action", torch.zeros(ROWS, 2, 3)),
            ValueError,
            "categorical actions.*'action'.*found torch.float32",
        ),
        (
            lambda b: b["agents"].set("action", torch.zeros(ROWS, 2, 1, dtype=torch.long)),
            ValueError,
            r"'action'\) of shape \(9, 2\), found \(9, 2, 1\)",
        ),
        (
            lambda b: b["agents"].set("action_mask", torch.ones(ROWS, 2, dtype=torch.bool)),
            ValueError,
            r"'action_mask'\) of shape \[\*, N, A\].*found \(9, 2\)",
        ),
        (
            lambda b: b["agents"].set("action_mask", torch.ones(ROWS, 2, ACTIONS)),
            ValueError,
            "'action_mask'.* of dtype bool, found torch.float32",
        ),
        (
            lambda b: b["next", "agents"].set("action_mask", torch.ones(ROWS, 2, 4).bool()),
            ValueError,
            r"\('next', 'agents', 'action_mask'\) of shape \(9, 2, 5\), found \(9, 2, 4\)",
        ),
        (
            lambda b: b["next"].set("reward", torch.zeros(ROWS)),
            ValueError,
            r"\('next', 'reward'\) of shape \(9, 1\), found \(9,\)",
        ),
    ],
)
def test_bad_batches_are_refused(change: Any, error: type[Exception], match: str) -> None:
    batch = make_batch()
    change(batch)
    with pytest.raises(error, match=match):
        make_loss()(batch)


def test_bad_networks_are_refused() -> None:
    observation, batch = [("agents", "observation")], make_single()

    def make(value: Any = None, mixer: Any = None) -> DiscreteMABCQLoss:
        return DiscreteMABCQLoss(
            TensorDictModule(nn.Linear(3, 5), observation, [("agents", "logits")]),
            value or TensorDictModule(nn.Linear(3, 5), observation, [("agents", "action_value")]),
            mixer
            or TensorDictModule(
                VDNMixer(2, "cpu"), [("agents", "chosen_action_value")], ["chosen_action_value"]
            ),
        )

    assert make()(batch)["loss_qvalue"].isfinite()
    narrow = TensorDictModule(nn.Linear(3, 4), observation, [("agents", "action_value")])
    with pytest.raises(ValueError, match=r"'action_value'\) of shape \(9, 2, 5\), found \(9, 2, 4"):
        make(value=narrow)(batch)
    named = TensorDictModule(nn.Linear(3, 5), observation, [("agents", "q")])
    with pytest.raises(KeyError, match="action_value_network to write .*action_value.*it writes"):
        make(value=named)(batch)
    each = TensorDictModule(
        nn.Linear(1, 1), [("agents", "chosen_action_value")], ["chosen_action_value"]
    )
    with pytest.raises(ValueError, match=r"'chosen_action_value' of shape \(9, 1\), found"):
        make(mixer=each)(batch)
    blind = TensorDictModule(nn.Linear(4, 1), ["state"], ["chosen_action_value"])
    with pytest.raises(ValueError, match="mixer must read utilities"):
        make(mixer=blind)(batch)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [({"threshold": 1.1}, r"threshold must be in \[0, 1\]"), ({"reduction": "x"}, "reduction")],
)
def test_bad_arguments_are_refused(kwargs: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make_loss(**kwargs)
