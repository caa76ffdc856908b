"""OMIGA's numbers, gradients, and what it learns."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.objectives import SoftUpdate

from torchrl_logo.data import TaskSpec
from torchrl_logo.modules import (
    make_action_value_network,
    make_agent_critic,
    make_agent_value,
    make_categorical_actor,
    make_gaussian_actor,
    make_linear_mixer,
)
from torchrl_logo.objectives import BCLoss, OMIGALoss

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
LOW, HIGH = (-1.0, 0.0), (1.0, 3.0)
ROWS, ACTIONS, MARGIN, GAMMA = 9, 4, 1e-3, 0.99
OBSERVATION, ACTION = ("agents", "observation"), ("agents", "action")
MASK, LOCAL = ("agents", "action_mask"), ("agents", "state_action_value")
KINDS = pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])


def make_spec(discrete: bool, n_agents: int = 2) -> TaskSpec:
    sizes = {"n_agents": n_agents, "observation_size": 3, "state_size": 4}
    if discrete:
        return TaskSpec(**sizes, action_size=ACTIONS, discrete=True)
    return TaskSpec(**sizes, action_size=2, action_low=LOW, action_high=HIGH)


def make_batch(discrete: bool, n_agents: int = 2) -> TensorDict:
    """Rows that go on, that are truncated and that are terminated."""
    torch.manual_seed(1)
    kind = torch.arange(ROWS).unsqueeze(-1) % 3

    def observe() -> dict[str, Any]:
        agents = {"observation": torch.randn(ROWS, n_agents, 3).double()}
        return {"agents": agents, "state": torch.randn(ROWS, 4).double()}

    outcome = {
        "reward": torch.randn(ROWS, 1).double(),
        "done": kind > 0,
        "terminated": kind == 2,
        "truncated": kind == 1,
    }
    batch = TensorDict({**observe(), "next": {**observe(), **outcome}}, [ROWS])
    if discrete:
        mask = torch.rand(ROWS, n_agents, ACTIONS) < 0.6
        batch[ACTION] = torch.randint(ACTIONS, (ROWS, n_agents))
        batch[MASK] = mask.scatter(-1, batch[ACTION].unsqueeze(-1), True)
    else:
        low, high = torch.tensor(LOW).double(), torch.tensor(HIGH).double()
        batch[ACTION] = low + torch.rand(ROWS, n_agents, 2).double() * (high - low)
        batch[ACTION][0, 0] = low  # on the bounds
        batch[ACTION][1, 0] = high
    return batch


def make_networks(spec: TaskSpec, width: int = 5) -> dict[str, TensorDictModule]:
    sizes: dict[str, Any] = {"hidden_sizes": (width,), "activation_class": nn.Tanh}
    make_actor = make_categorical_actor if spec.discrete else make_gaussian_actor
    make_critic = make_action_value_network if spec.discrete else make_agent_critic
    return {
        "actor_network": make_actor(spec, **sizes),
        "qvalue_network": make_critic(spec, **sizes),
        "value_network": make_agent_value(spec, **sizes),
        "mixer_network": make_linear_mixer(spec, **sizes),
    }


def make_loss(discrete: bool, n_agents: int = 2, **kwargs: Any) -> OMIGALoss:
    torch.manual_seed(0)
    spec = make_spec(discrete, n_agents)
    arguments = {
        **make_networks(spec),
        "action_spec": spec.action_spec(),
        "alpha": 0.15,
        "exponent_clip": 1.0,
        **kwargs,
    }
    loss = OMIGALoss(**arguments).double()
    # targets that differ from the networks, as they do in training; values that are clipped
    loss.qvalue_network_params.data.mul_(2.0)
    loss.mixer_network_params.data.mul_(1.5)
    for name, factor in (("qvalue", 1.8), ("value", 1.2), ("mixer", 0.8)):
        getattr(loss, f"target_{name}_network_params").data.mul_(factor)
    return loss


class Network:
    """An MLP of one hidden layer, in plain Python."""

    def __init__(self, params: Any) -> None:
        items = params.items(True, True)
        layers = {str(key): v.detach() for key, v in items if key[-1] in ("weight", "bias")}
        self.layers = [layers[key].tolist() for key in sorted(layers)]

    def __call__(self, x: list[float]) -> list[float]:
        first_bias, first, last_bias, last = self.layers
        hidden = [
            math.tanh(sum(w * v for w, v in zip(row, x, strict=True)) + b)
            for row, b in zip(first, first_bias, strict=True)
        ]
        return [
            sum(w * v for w, v in zip(row, hidden, strict=True)) + b
            for row, b in zip(last, last_bias, strict=True)
        ]


def clip(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)


class Reference:
    """The losses, row by row and agent by agent, from the formulas of the class's description."""

    def __init__(
        self, loss: OMIGALoss, names: tuple[str, ...] = ("qvalue", "value", "mixer")
    ) -> None:
        self.loss, self.discrete = loss, loss.has_discrete_actions
        self.online = {name: Network(getattr(loss, f"{name}_network_params")) for name in names}
        self.delayed = {
            name: Network(getattr(loss, f"target_{name}_network_params")) for name in names
        }
        self.actor = Network(loss.actor_network_params)

    def mixing(self, networks: dict[str, Network], row: TensorDict) -> tuple[list[float], float]:
        *weights, offset = networks["mixer"](row["state"].tolist())
        return [abs(w) for w in weights], offset

    def value_action(self, networks: dict[str, Network], row: TensorDict, i: int) -> float:
        observation, action = row[OBSERVATION][i].tolist(), row[ACTION][i].tolist()
        if self.discrete:
            return networks["qvalue"](observation)[action]
        return networks["qvalue"]([*observation, *action])[0]

    def log_prob(self, row: TensorDict, i: int) -> float:
        out, action = self.actor(row[OBSERVATION][i].tolist()), row[ACTION][i].tolist()
        if self.discrete:
            open_ = [a for a, is_open in enumerate(row[MASK][i].tolist()) if is_open]
            return out[action] - math.log(sum(math.exp(out[a]) for a in open_))
        total = 0.0
        for j, (low, high) in enumerate(zip(LOW, HIGH, strict=True)):
            half = (high - low) / 2
            # the location, and the deviation of TorchRL's mapping "biased_softplus_1.0"
            bias = math.log(math.expm1(1.0 - 1e-2))
            scale = math.log1p(math.exp(out[2 + j] + bias)) + 1e-2
            # bounds of the size that float32 has them
            ends = [bound[i, j].item() for bound in (self.loss.action_low, self.loss.action_high)]
            assert ends == pytest.approx([low + MARGIN * half, high - MARGIN * half], rel=1e-6)
            x = clip(action[j], *ends)
            unit = (x - low) / half - 1
            z = (math.atanh(unit) - out[j]) / scale
            total -= z * z / 2 + math.log(scale * math.sqrt(2 * math.pi))
            total -= math.log(half * (1 - unit * unit))
        return total

    def row(self, row: TensorDict) -> dict[str, float]:
        n, following = row[OBSERVATION].shape[0], row["next"]
        weights, offset = self.mixing(self.online, row)
        pred = offset + sum(
            w * self.value_action(self.online, row, i) for i, w in enumerate(weights)
        )
        weights, offset = self.mixing(self.delayed, following)
        bootstrap = offset
        for i, w in enumerate(weights):
            bootstrap += w * self.delayed["value"](following[OBSERVATION][i].tolist())[0]
        target = following["reward"].item()
        if not following["terminated"].item():
            target += GAMMA * bootstrap
        weights, _ = self.mixing(self.delayed, row)
        alpha, c = self.loss.alpha, self.loss.exponent_clip
        out = {"loss_value": 0.0, "loss_actor": 0.0, "advantage": 0.0, "clip_fraction": 0.0}
        for i, w in enumerate(weights):
            value = self.online["value"](row[OBSERVATION][i].tolist())[0]
            advantage = self.value_action(self.delayed, row, i) - value
            z = w * advantage / alpha
            exponential = math.exp(z) if z < c else math.exp(c) * (1 + z - c)
            out["loss_value"] += (exponential + w * value / alpha) / n
            out["loss_actor"] -= math.exp(clip(z, -c, c)) * self.log_prob(row, i) / n
            out["advantage"] += advantage / n
            out["clip_fraction"] += (abs(z) > c) / n
        return {
            **out,
            "pred_value": pred,
            "target_value": target,
            "loss_qvalue": (pred - target) ** 2,
        }


@pytest.mark.parametrize("n_agents", [1, 2, 5])
@KINDS
def test_losses_are_the_formulas(discrete: bool, n_agents: int) -> None:
    loss, batch = make_loss(discrete, n_agents), make_batch(discrete, n_agents)
    weights = torch.linspace(0.2, 2, ROWS).double()
    reference = Reference(loss)
    rows = [reference.row(row) for row in batch]
    plain = loss(batch)
    weighted = loss(batch.clone().set("priority_weight", weights))
    each = make_loss(discrete, n_agents, reduction="none")(batch)
    # rows below, within and above the clip
    assert 0 < plain["clip_fraction"] < 1 or n_agents == 1
    for key in loss.out_keys:
        values = torch.tensor([row[key] for row in rows], dtype=torch.float64)
        torch.testing.assert_close(each[key], values, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(plain[key], values.mean(), rtol=1e-6, atol=1e-9)
        if key.startswith("loss_"):
            values = (weights * values).sum() / weights.sum()
            torch.testing.assert_close(weighted[key], values, rtol=1e-6, atol=1e-9)
        else:
            torch.testing.assert_close(weighted[key], plain[key])


@KINDS
def test_order_of_agents_does_not_matter(discrete: bool) -> None:
    loss, batch = make_loss(discrete, 3), make_batch(discrete, 3)
    # a mixer that knows no agents: all have the first one's weight
    for params in (loss.mixer_network_params, loss.target_mixer_network_params):
        for key in ("weight", "bias"):
            layer = params["module", "network", "2", key].data
            layer[1:3] = layer[0]
    order = torch.tensor([2, 0, 1])
    turned = batch.clone()
    for place in (turned["agents"], turned["next", "agents"]):
        for key in list(place.keys()):
            place[key] = place[key][:, order]
    before, after = loss(batch), loss(turned)
    for key in loss.out_keys:
        torch.testing.assert_close(after[key], before[key])


@KINDS
def test_each_loss_trains_its_own_networks(discrete: bool) -> None:
    loss, batch = make_loss(discrete), make_batch(discrete)
    trained = {
        "loss_value": {"value_network_params"},
        "loss_qvalue": {"qvalue_network_params", "mixer_network_params"},
        "loss_actor": {"actor_network_params"},
    }
    for key, networks in trained.items():
        loss.zero_grad()
        loss(batch)[key].backward()
        reached = {
            name.split(".")[0]
            for name, parameter in loss.named_parameters()
            if parameter.grad is not None and (parameter.grad != 0).any()
        }
        assert reached == networks


class Constant(nn.Module):
    """The same value for whatever is observed."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(start))

    def forward(self, observation: Tensor) -> Tensor:
        return self.value.expand(*observation.shape[:-1], 1)


@pytest.mark.parametrize("start", [-40.0, 0.0, 40.0])
def test_values_end_at_the_soft_mean(start: float) -> None:
    """From far below as well, where a clipped exponential would push the wrong way."""
    value = TensorDictModule(Constant(start), [OBSERVATION], [("agents", "state_value")])
    loss = make_loss(False, 1, value_network=value, exponent_clip=10.0)
    batch = make_batch(False, 1)
    batch["state"] = batch["state"][:1].expand(ROWS, 4)  # one weight
    assert (loss(batch)["clip_fraction"] == 1) == (start != 0)
    optimizer = torch.optim.Rprop(loss.value_network_params.parameters(), lr=0.5)
    for _ in range(100):
        optimizer.zero_grad()
        loss(batch)["loss_value"].backward()
        optimizer.step()
    reference = Reference(loss, ("qvalue", "mixer"))
    values = [reference.value_action(reference.delayed, row, 0) for row in batch]
    (weight,), _ = reference.mixing(reference.delayed, batch[0])
    scale = loss.alpha / weight
    expected = scale * math.log(sum(math.exp(q / scale) for q in values) / ROWS)
    (found,) = loss.value_network_params.parameters()
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_unavailable_actions_have_no_part() -> None:
    loss, batch = make_loss(True), make_batch(True)
    networks = (loss.actor_network, loss.qvalue_network)
    assert [MASK in net.in_keys for net in networks] == [True, False]
    # where the last action is taken by none and open to none, it could be anything
    batch[ACTION].clamp_(max=ACTIONS - 2)
    batch[MASK][..., -1] = False
    batch[MASK].scatter_(-1, batch[ACTION].unsqueeze(-1), True)
    before = loss(batch)
    for params in (loss.actor_network_params, loss.qvalue_network_params):
        for value in params.data.values(True, True):
            if value.shape[0] == ACTIONS:
                value[-1] = 1e3
    after = loss(batch)
    for key in loss.out_keys:
        torch.testing.assert_close(after[key], before[key], rtol=0, atol=0)
    sum(after[key] for key in loss.out_keys if key.startswith("loss_")).backward()
    for params in (loss.actor_network_params, loss.qvalue_network_params):
        for parameter in params.parameters():
            if parameter.shape[0] == ACTIONS:
                assert (parameter.grad[-1] == 0).all() and (parameter.grad[:-1] != 0).any()


def train(loss: Any, batch: TensorDict, steps: int) -> None:
    updater = SoftUpdate(loss, tau=0.05) if isinstance(loss, OMIGALoss) else None
    optimizer = torch.optim.Adam(loss.parameters(), lr=2e-2)
    for _ in range(steps):
        out = loss(batch)
        optimizer.zero_grad()
        sum(value for key, value in out.items() if key.startswith("loss_")).backward()
        optimizer.step()
        if updater is not None:
            updater.step()


def make_bandit(spec: TaskSpec, action: Tensor, reward: Tensor) -> TensorDict:
    """One step, without anything to see."""
    rows = action.shape[0]
    agents = {"observation": torch.zeros(rows, 2, 3)}
    if spec.discrete:
        agents["action_mask"] = torch.ones(rows, 2, spec.action_size, dtype=torch.bool)
    step = {"agents": agents, "state": torch.zeros(rows, 4)}
    end = torch.ones(rows, 1, dtype=torch.bool)
    outcome = {"reward": reward, "done": end, "terminated": end}
    return TensorDict({**step, "next": {**step, **outcome}}, [rows]).set(ACTION, action)


def test_learns_the_rare_good_joint_action_of_a_matrix_game() -> None:
    """Both agents mostly take action 0; the others pay more, and 1 with 1 the most."""
    spec = make_spec(True)
    payoff = torch.tensor(
        [[1.0, 2.0, 0.0, 0.5], [2.0, 4.0, 0.0, 0.0], [0.0, 0.0, -2.0, 0.0], [0.5, 0.0, 0.0, -1.0]]
    )
    torch.manual_seed(0)
    action = torch.multinomial(torch.tensor([0.7, 0.15, 0.1, 0.05]), 2 * 256, True).view(256, 2)
    reward = payoff[action[:, 0], action[:, 1]].unsqueeze(-1)
    batch = make_bandit(spec, action, reward)
    networks = make_networks(spec, 16)
    train(OMIGALoss(**networks, action_spec=spec.action_spec(), alpha=0.2), batch, 200)
    cloned = make_networks(spec, 16)["actor_network"]
    train(BCLoss(cloned, action_spec=spec.action_spec()), batch, 100)

    def play(actor: Any) -> tuple[list[int], float]:
        dist = actor.get_dist(batch[:1])
        probs = dist.probs[0].detach()
        return dist.deterministic_sample[0].tolist(), (probs[0] @ payoff @ probs[1]).item()

    best, mean = play(networks["actor_network"])
    assert best == [1, 1] and mean > 3.5
    often, cloned_mean = play(cloned)
    assert often == [0, 0] and cloned_mean < 1.5


def test_learns_the_better_of_two_ways_in_continuous_actions() -> None:
    """Teams of the data go to one of two points, more often to the worse one."""
    spec = make_spec(False)
    torch.manual_seed(0)
    middle, half = torch.tensor([0.0, 1.5]), torch.tensor([1.0, 1.5])
    good = torch.rand(256, 1, 1) < 0.3
    unit = torch.where(good, 0.6, -0.5) + 0.1 * torch.randn(256, 2, 2)
    batch = make_bandit(spec, middle + half * unit.clamp(-0.99, 0.99), good.float().squeeze(-1) * 2)
    networks = make_networks(spec, 16)
    train(OMIGALoss(**networks, action_spec=spec.action_spec(), alpha=0.1), batch, 200)
    cloned = make_networks(spec, 16)["actor_network"]
    train(BCLoss(cloned, action_spec=spec.action_spec()), batch, 100)

    def act(actor: Any) -> Tensor:
        return (actor.get_dist(batch[:1]).deterministic_sample[0].detach() - middle) / half

    assert (act(networks["actor_network"]) - 0.6).abs().max() < 0.1
    assert (act(cloned) - 0.6).abs().min() > 0.4


BAD_BATCHES = [
    (False, lambda b: b.pop("state"), KeyError, "OMIGALoss reads .*state.*are missing"),
    (False, lambda b: b["next"].pop("state"), KeyError, "next.*state.*which are missing"),
    (True, lambda b: b["agents"].pop("action_mask"), KeyError, "action_mask.*are missing"),
    (
        False,
        lambda b: b["next"].set("reward", torch.zeros(ROWS)),
        ValueError,
        r"\('next', 'reward'\) of shape \(9, 1\), found \(9,\)",
    ),
    (
        False,
        lambda b: b["agents"].set("action", torch.zeros(ROWS, 2, 3)),
        ValueError,
        r"\('agents', 'action'\) of shape \(9, 2, 2\), found \(9, 2, 3\)",
    ),
    (
        False,
        lambda b: b["agents"].set("action", torch.zeros(ROWS, 2, 2, dtype=torch.int64)),
        ValueError,
        r"float \(continuous\) actions in .* found torch.int64",
    ),
    (
        True,
        lambda b: b["agents"].set("action", torch.zeros(ROWS, 2)),
        ValueError,
        r"int64 \(categorical\) actions in .* found torch.float32",
    ),
]


@pytest.mark.parametrize(("discrete", "change", "error", "match"), BAD_BATCHES)
def test_bad_batches_are_refused(
    discrete: bool, change: Any, error: type[Exception], match: str
) -> None:
    batch = make_batch(discrete)
    change(batch)
    with pytest.raises(error, match=match):
        make_loss(discrete)(batch)


@pytest.mark.parametrize(
    ("discrete", "name", "make", "error", "match"),
    [
        (
            False,
            "qvalue_network",
            lambda: make_agent_value(make_spec(False)),
            ValueError,
            "qvalue_network must itself read continuous actions",
        ),
        (
            True,
            "qvalue_network",
            lambda: make_agent_critic(make_spec(False)),
            ValueError,
            "qvalue_network must not read discrete actions",
        ),
        (
            True,
            "qvalue_network",
            lambda: TensorDictModule(nn.Linear(3, 3), [OBSERVATION], [("agents", "action_value")]),
            ValueError,
            r"'action_value'\) of shape \(9, 2, 4\), found \(9, 2, 3\)",
        ),
        (
            False,
            "value_network",
            lambda: TensorDictModule(nn.Linear(3, 1), [OBSERVATION], ["other"]),
            KeyError,
            "value_network to write .*state_value.*it writes",
        ),
        (
            False,
            "mixer_network",
            lambda: TensorDictModule(
                nn.Linear(4, 1), ["state"], ["state_action_value", ("agents", "mixing_weight")]
            ),
            ValueError,
            "mixer_network must read the agents' values",
        ),
        (
            False,
            "mixer_network",
            lambda: TensorDictModule(
                lambda local, state: local.sum(-2), [LOCAL, "state"], ["state_action_value"]
            ),
            KeyError,
            "mixer_network to write .*mixing_weight",
        ),
    ],
)
def test_bad_networks_are_refused(
    discrete: bool, name: str, make: Any, error: type[Exception], match: str
) -> None:
    loss = make_loss(discrete)
    networks = {key: loss.get_stateful_net(key) for key in make_networks(make_spec(discrete))}
    networks[name] = make().double()
    spec = make_spec(discrete).action_spec()
    with pytest.raises(error, match=match):
        OMIGALoss(**networks, action_spec=spec)(make_batch(discrete))


def test_bad_arguments_are_refused() -> None:
    for name, value in (
        ("alpha", 0.0),
        ("exponent_clip", 0.0),
        ("action_margin", 1.0),
        ("reduction", "median"),
    ):
        with pytest.raises(ValueError, match=name):
            make_loss(False, **{name: value})
    batched = make_spec(False).action_spec().expand(5, 2, 2)
    with pytest.raises(ValueError, match=r"action_spec of shape .* found Bounded.*\(5, 2, 2\)"):
        make_loss(False, action_spec=batched)
