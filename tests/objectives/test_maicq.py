"""Implicit constraint Q-learning against plain loops, and on games where cloning falls short."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor, nn

from torchrl_logo.data import TaskSpec, add_next_actions
from torchrl_logo.modules import make_categorical_actor, make_gaussian_actor
from torchrl_logo.modules.squashed_normal import SquashedNormalModule
from torchrl_logo.objectives import BCLoss, DiscreteMAICQLoss, MAICQLoss
from torchrl_logo.objectives.implicit_constraint import ImplicitConstraintLoss, estimate_importance

OBSERVATION, ACTION, MASK = (("agents", key) for key in ("observation", "action", "action_mask"))
VALUE, WEIGHT = ("agents", "state_action_value"), ("agents", "mixing_weight")
LOW, HIGH = (-1.0, -1.0), (1.0, 2.0)
ROWS, ACTIONS = 9, 3
LOSSES = ["continuous", "discrete"]


def make_spec(n_agents: int, discrete: bool = False) -> TaskSpec:
    sizes = {"n_agents": n_agents, "observation_size": 3, "state_size": 4}
    if discrete:
        return TaskSpec(**sizes, action_size=ACTIONS, discrete=True)
    return TaskSpec(**sizes, action_size=2, action_low=LOW, action_high=HIGH)


def make_batch(kind: str, n_agents: int = 2) -> TensorDict:
    """Rows that go on, that are truncated and that are terminated; one next action is unknown."""
    torch.manual_seed(1)
    ended = torch.arange(ROWS).unsqueeze(-1) % 3

    def observe() -> dict[str, Any]:
        agents = {"observation": torch.randn(ROWS, n_agents, 3).double()}
        if kind == "discrete":
            mask = torch.rand(ROWS, n_agents, ACTIONS) < 0.6
            mask.scatter_(-1, torch.randint(ACTIONS, (ROWS, n_agents, 1)), True)
            agents["action_mask"] = mask
            agents["action"] = (torch.rand(mask.shape) * mask).argmax(-1)
        else:
            share = torch.rand(ROWS, n_agents, 2).double()
            agents["action"] = torch.tensor(LOW) + share * (torch.tensor(HIGH) - torch.tensor(LOW))
        return {"agents": agents, "state": torch.randn(ROWS, 4).double()}

    outcome = {
        "reward": torch.randn(ROWS, 1).double(),
        "done": ended > 0,
        "terminated": ended == 2,
        "action_recorded": torch.arange(ROWS).unsqueeze(-1) != 4,
    }
    return TensorDict({**observe(), "next": {**observe(), **outcome}}, [ROWS])


class Actor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.log_scale = nn.Parameter(torch.tensor([-0.4, 0.2]))

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        loc = self.layer(observation)
        return loc, self.log_scale.exp().expand_as(loc)


class Critic(nn.Module):
    """A weighted sum of the sines of what it reads."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.layer(torch.sin(2 * torch.cat(inputs, -1)))


class Mixer(nn.Module):
    """Weights are the absolute values of linear functions of the state."""

    def __init__(self, n_agents: int, state_size: int = 4) -> None:
        super().__init__()
        self.weight = nn.Linear(state_size, n_agents)
        self.offset = nn.Linear(state_size, 1)

    def forward(self, values: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        weight = self.weight(state).abs().unsqueeze(-1)
        return (weight * values).sum(-2) + self.offset(state), weight


class Sum(nn.Module):
    """All weights are one, in every state."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(1))

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        return values.sum(-2) + self.offset, torch.ones_like(values)


def make_actor(kind: str) -> TensorDictModule | ProbabilisticTensorDictSequential:
    if kind == "discrete":
        return TensorDictModule(nn.Linear(3, ACTIONS), [OBSERVATION], [("agents", "logits")])
    parameters = [("agents", "loc"), ("agents", "scale")]
    squash = SquashedNormalModule(
        torch.tensor(LOW),
        torch.tensor(HIGH),
        in_keys=parameters,
        out_keys=[ACTION],
        log_prob_key=("agents", "action_log_prob"),
    )
    return ProbabilisticTensorDictSequential(
        TensorDictModule(Actor(), [OBSERVATION], parameters), squash
    )


def make_loss(kind: str, n_agents: int = 2, **kwargs: Any) -> ImplicitConstraintLoss:
    torch.manual_seed(0)
    mixer = TensorDictModule(Mixer(n_agents), [VALUE, "state"], ["state_action_value", WEIGHT])
    arguments = {"mixer_network": mixer, **kwargs}
    loss: ImplicitConstraintLoss
    if kind == "discrete":
        values = ("agents", "action_value")
        critic = TensorDictModule(Critic(3, ACTIONS), [OBSERVATION], [values])
        loss = DiscreteMAICQLoss(make_actor(kind), critic, **arguments).double()
    else:
        critic = TensorDictModule(Critic(5, 1), [OBSERVATION, ACTION], [VALUE])
        arguments = {"action_spec": make_spec(n_agents).action_spec(), **arguments}
        loss = MAICQLoss(make_actor(kind), critic, **arguments).double()
    # targets that differ from the networks, as they do in training
    loss.target_critic_network_params.data.mul_(-1.7)
    loss.target_mixer_network_params.data.mul_(1.3)
    return loss


def linear(params: Any, name: str, x: list[float]) -> list[float]:
    weight, bias = (
        params["module", name, "weight"].tolist(),
        params["module", name, "bias"].tolist(),
    )
    rows = zip(weight, bias, strict=True)
    return [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in rows]


def softmax(x: list[float]) -> list[float]:
    total = sum(math.exp(v) for v in x)
    return [math.exp(v) / total for v in x]


class Reference:
    """The losses, row by row and agent by agent, from the formulas of the class's description."""

    def __init__(self, loss: ImplicitConstraintLoss, noise: Tensor | None) -> None:
        self.loss, self.noise = loss, noise
        self.discrete = isinstance(loss, DiscreteMAICQLoss)

    def values(self, params: Any, observation: list[float], action: Any) -> float:
        inputs = observation if self.discrete else [*observation, *action]
        outputs = linear(params, "layer", [math.sin(2 * x) for x in inputs])
        return outputs[action] if self.discrete else outputs[0]

    def team(self, row: TensorDict, delayed: bool) -> tuple[float, list[float], list[float]]:
        """The team's value, the agents' values and their weights."""
        name = "target_{}_network_params" if delayed else "{}_network_params"
        critic, mixer = (getattr(self.loss, name.format(k)) for k in ("critic", "mixer"))
        observations, actions = row[OBSERVATION].tolist(), row[ACTION].tolist()
        pairs = zip(observations, actions, strict=True)
        local = [self.values(critic, o, a) for o, a in pairs]
        weights = [abs(w) for w in linear(mixer, "weight", row["state"].tolist())]
        total = sum(w * q for w, q in zip(weights, local, strict=True))
        return total + linear(mixer, "offset", row["state"].tolist())[0], local, weights

    def policy(self, row: TensorDict, b: int, i: int) -> tuple[float, float]:
        """The log-probability of an agent's action, and what its policy is worth to it."""
        critic, actor = self.loss.critic_network_params, self.loss.actor_network_params
        observation, action = row[OBSERVATION][i].tolist(), row[ACTION][i].tolist()
        if self.discrete:
            weight, bias = (actor["module", k].tolist() for k in ("weight", "bias"))
            logits = [
                sum(w * x for w, x in zip(r, observation, strict=True)) + c
                for r, c in zip(weight, bias, strict=True)
            ]
            open_ = [a for a in range(ACTIONS) if row[MASK][i, a]]
            probs = dict(zip(open_, softmax([logits[a] for a in open_]), strict=True))
            baseline = sum(p * self.values(critic, observation, a) for a, p in probs.items())
            return math.log(probs[action]), baseline
        inner = actor["module", "0", "module"]
        loc = linear({("module", "layer", k): inner["layer", k] for k in ("weight", "bias")},
                     "layer", observation)  # fmt: skip
        scale = inner["log_scale"].exp().tolist()
        half = [(high - low) / 2 for low, high in zip(LOW, HIGH, strict=True)]
        middle = [(high + low) / 2 for low, high in zip(LOW, HIGH, strict=True)]
        log_prob = 0.0
        for j in range(2):
            unit = min(max((action[j] - middle[j]) / half[j], -0.999), 0.999)
            z = (math.atanh(unit) - loc[j]) / scale[j]
            log_prob -= z**2 / 2 + math.log(math.sqrt(2 * math.pi) * scale[j])
            log_prob -= math.log(half[j] * (1 - unit**2))
        assert self.noise is not None
        draws = []
        for noise in self.noise[:, b, i].tolist():
            units = [math.tanh(loc[j] + scale[j] * noise[j]) for j in range(2)]
            drawn = [middle[j] + half[j] * units[j] for j in range(2)]
            draws.append(self.values(critic, observation, drawn))
        return log_prob, sum(draws) / len(draws)

    @staticmethod
    def ratios(scaled: list[float], weights: list[float]) -> list[float]:
        pairs = zip(scaled, weights, strict=True)
        normaliser = sum(w * math.exp(x) for x, w in pairs) / sum(weights)
        return [math.exp(x) / normaliser for x in scaled]

    def compute(self, batch: TensorDict) -> dict[str, float]:
        loss, rows, n_agents = self.loss, range(len(batch)), batch[ACTION].shape[1]
        weights = batch.get("priority_weight", torch.ones(len(batch))).tolist()
        terminated = batch["next", "terminated"].squeeze(-1).tolist()
        recorded = batch["next", "action_recorded"].squeeze(-1).tolist()
        following = [self.team(batch["next"][b], True)[0] for b in rows]
        known = [b for b in rows if recorded[b] and not terminated[b]]
        tilt = dict(zip(known, self.ratios(
            [following[b] / loss.critic_temperature for b in known], [weights[b] for b in known]
        ), strict=True))  # fmt: skip
        targets = [
            float(batch["next", "reward"][b]) + 0.99 * tilt.get(b, 0.0) * following[b] for b in rows
        ]
        here = [self.team(batch[b], False) for b in rows]
        used = [b for b in rows if recorded[b] or terminated[b]]
        assert len(used) == len(batch) - 1
        qvalue = sum(weights[b] * (here[b][0] - targets[b]) ** 2 for b in used)
        actor, advantage, variance = 0.0, 0.0, 0.0
        for i in range(n_agents):
            policy = [self.policy(batch[b], b, i) for b in rows]
            gains = [here[b][1][i] - policy[b][1] for b in rows]
            scaled = [here[b][2][i] * gains[b] / loss.actor_temperature for b in rows]
            ratios = self.ratios(scaled, weights)
            terms = sum(weights[b] * ratios[b] * policy[b][0] for b in rows)
            actor -= terms / sum(weights) / n_agents
            advantage += sum(gains) / len(batch) / n_agents
            spread = [(weights[b] > 0) * ratios[b] - 1 for b in rows]
            variance += sum(x**2 for x in spread) / len(batch) / n_agents
        return {
            "loss_qvalue": qvalue / sum(weights[b] for b in used),
            "loss_actor": actor,
            "pred_value": sum(h[0] for h in here) / len(batch),
            "target_value": sum(targets) / len(batch),
            "advantage": advantage,
            "importance_variance": variance,
        }


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The standard normal numbers that the loss draws."""
    recorded: list[Tensor] = []
    normal = torch.distributions.normal._standard_normal

    def record(*args: Any, **kwargs: Any) -> Tensor:
        recorded.append(normal(*args, **kwargs))
        return recorded[-1]

    monkeypatch.setattr(torch.distributions.normal, "_standard_normal", record)
    return recorded


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize(
    "kwargs",
    [{}, {"actor_temperature": 0.7, "critic_temperature": 0.9}],
    ids=["defaults", "temperatures"],
)
@pytest.mark.parametrize("n_agents", [1, 2, 5])
@pytest.mark.parametrize("kind", LOSSES)
def test_losses_are_the_formulas(
    kind: str, n_agents: int, kwargs: dict[str, float], weighted: bool, draws: list[Tensor]
) -> None:
    batch = make_batch(kind, n_agents)
    if kind == "continuous":
        batch[ACTION][0, 0] = torch.tensor(HIGH)  # scored a little inside
    if weighted:
        batch["priority_weight"] = torch.linspace(0, 3, ROWS).double()
    loss = make_loss(kind, n_agents, **kwargs)
    draws.clear()
    out = loss(batch)
    expected = Reference(loss, draws[0] if draws else None).compute(batch)
    assert len(draws) == (kind == "continuous")
    if weighted:
        # what a row without weight would bootstrap is in no loss
        expected.pop("target_value")
    for key, value in expected.items():
        assert out[key].item() == pytest.approx(value, rel=1e-5), key


def test_importances_are_a_softmax_over_the_batch() -> None:
    torch.manual_seed(0)
    scaled = torch.randn(3, 4, 2).double() * 5
    found = estimate_importance(scaled, torch.ones(3, 4).double())
    for i in range(2):
        expected = 12 * scaled[..., i].flatten().softmax(0)
        torch.testing.assert_close(found[..., i].flatten(), expected)
    # a weight of two is a row that is there twice
    weights = torch.tensor([2.0, 0.0, 1.0]).double()
    twice = estimate_importance(scaled[[0, 0, 2], 0, 0], torch.ones(3).double())
    torch.testing.assert_close(
        estimate_importance(scaled[:, 0, 0], weights), twice[[0, 0, 2]] * (weights > 0)
    )
    # neither large values nor a batch without any row that counts break it
    huge = torch.tensor([1e6, -1e6, float("nan")])
    assert estimate_importance(huge, torch.tensor([1.0, 1.0, 0.0])).tolist() == [2.0, 0.0, 0.0]
    assert (estimate_importance(huge, torch.zeros(3)) == 0).all()


@pytest.mark.parametrize("kind", LOSSES)
def test_sequences_are_valued_as_their_steps(kind: str, draws: list[Tensor]) -> None:
    batch, loss = make_batch(kind), make_loss(kind)
    outs = []
    for shaped in (batch, batch.reshape(3, 3)):
        torch.manual_seed(2)
        outs.append(loss(shaped).to_dict())
    torch.testing.assert_close(outs[0], outs[1])


def test_padding_has_no_influence() -> None:
    batch, loss = make_batch("discrete"), make_loss("discrete")
    padded = torch.cat([batch, batch[:3]])
    padded["agents", "observation"][ROWS:] = 1e3
    padded["next", "reward"][ROWS:] = float("nan")
    padded["collector", "mask"] = (torch.arange(ROWS + 3) < ROWS).unsqueeze(-1)
    torch.testing.assert_close(loss(padded).to_dict(), loss(batch).to_dict())


@pytest.mark.parametrize("kind", LOSSES)
def test_half_precision_does_not_overflow(kind: str) -> None:
    loss = make_loss(kind).float()
    batch = make_batch(kind).apply(lambda v: v.float() if v.is_floating_point() else v)
    outs = []
    for enabled in (False, True):
        torch.manual_seed(2)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            outs.append(loss(batch))
        sum(value for key, value in outs[-1].items() if key.startswith("loss_")).backward()
        assert all(p.grad.isfinite().all() for p in loss.parameters())
    full, half = (out.float().to_dict() for out in outs)
    torch.testing.assert_close(half, full, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("kind", LOSSES)
def test_unrecorded_actions_have_no_influence(kind: str) -> None:
    batch, loss = make_batch(kind), make_loss(kind)
    unknown = batch["next", "terminated"] | ~batch["next", "action_recorded"]
    outs, gradients = [], []
    for _ in range(2):
        torch.manual_seed(2)
        loss.zero_grad()
        outs.append(loss(batch))
        (outs[-1]["loss_qvalue"] + outs[-1]["loss_actor"]).backward()
        gradients.append([parameter.grad.clone() for parameter in loss.parameters()])
        action = batch["next", "agents", "action"]
        if kind == "continuous":
            batch["next", "agents", "action"] = action.masked_fill(unknown.unsqueeze(-1), torch.nan)
        else:
            batch["next", "agents", "action"] = torch.where(unknown, (action + 1) % 3, action)
    torch.testing.assert_close(outs[0].to_dict(), outs[1].to_dict())
    torch.testing.assert_close(gradients[0], gradients[1])
    # nor has the reward of a row that has no target
    row = int((~batch["next", "action_recorded"]).nonzero()[0, 0])
    batch["next", "reward"][row] += 100.0
    torch.testing.assert_close(loss(batch)["loss_qvalue"], outs[0]["loss_qvalue"])


def test_unavailable_actions_have_no_influence() -> None:
    batch, outs = make_batch("discrete"), []
    batch[MASK] = torch.tensor([[True, True, False], [False, True, True]]).expand(ROWS, 2, 3)
    batch[ACTION] = torch.tensor([1, 2]).expand(ROWS, 2)
    batch["next", "agents", "action"] = batch[ACTION].clone()
    torch.manual_seed(0)
    tables = torch.randn(2, 2, ACTIONS).double()

    class Table(nn.Module):
        def __init__(self, values: Tensor) -> None:
            super().__init__()
            self.values = nn.Parameter(values.clone())

        def forward(self, observation: Tensor) -> Tensor:
            return self.values.expand(*observation.shape[:-1], ACTIONS)

    for filling in (0.0, 1e4, 1e300):
        tables[:, 0, 2] = tables[:, 1, 0] = filling
        critic, actor = (
            TensorDictModule(Table(values), [OBSERVATION], [("agents", name)])
            for values, name in zip(tables, ("action_value", "logits"), strict=True)
        )
        torch.manual_seed(0)
        mixer = TensorDictModule(Mixer(2), [VALUE, "state"], ["state_action_value", WEIGHT])
        loss = DiscreteMAICQLoss(actor, critic, mixer.double())
        outs.append(loss(batch))
        (outs[-1]["loss_qvalue"] + outs[-1]["loss_actor"]).backward()
        for params in (loss.critic_network_params, loss.actor_network_params):
            gradient = params["module", "values"].grad
            assert gradient[0, 2] == 0 and gradient[1, 0] == 0
            assert gradient[0, 1] != 0 and gradient[1, 2] != 0
    for out in outs[1:]:
        torch.testing.assert_close(out.to_dict(), outs[0].to_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("kind", LOSSES)
def test_order_of_agents_does_not_matter(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def same(shape: Any, dtype: torch.dtype, device: Any) -> Tensor:
        return torch.linspace(-1, 1, shape[-1], dtype=dtype, device=device).expand(shape)

    monkeypatch.setattr(torch.distributions.normal, "_standard_normal", same)
    batch, order = make_batch(kind, 5), torch.tensor([3, 0, 4, 1, 2])
    mixer = TensorDictModule(Sum(), [VALUE], ["state_action_value", WEIGHT])
    loss = make_loss(kind, 5, mixer_network=mixer)
    permuted = batch.clone()
    for place in (permuted, permuted["next"]):
        place["agents"] = place["agents"].apply(lambda value: value[:, order])
    torch.testing.assert_close(loss(permuted).to_dict(), loss(batch).to_dict())


@pytest.mark.parametrize("kind", LOSSES)
def test_each_loss_trains_its_own_networks(kind: str) -> None:
    loss = make_loss(kind)
    out = loss(make_batch(kind))
    critics = {"critic_network_params", "mixer_network_params"}
    for key, networks in (("loss_qvalue", critics), ("loss_actor", {"actor_network_params"})):
        loss.zero_grad()
        out[key].backward(retain_graph=True)
        reached = {n.split(".")[0] for n, p in loss.named_parameters() if p.grad is not None}
        assert reached == networks
    assert not any(value.requires_grad for key, value in out.items() if "loss" not in key)


def test_actors_of_the_package_are_read_before_their_masks() -> None:
    spec, batch = make_spec(2, True), make_batch("discrete")
    batch = batch.apply(lambda value: value.float() if value.is_floating_point() else value)
    actor = make_categorical_actor(spec, hidden_sizes=(6,))
    outs = []
    for network in (
        actor,
        TensorDictModule(actor[0].module, [OBSERVATION], [("agents", "logits")]),
    ):
        critic = TensorDictModule(Critic(3, ACTIONS), [OBSERVATION], [("agents", "action_value")])
        mixer = TensorDictModule(Sum(), [VALUE], ["state_action_value", WEIGHT])
        loss = DiscreteMAICQLoss(network, critic, mixer)
        loss.critic_network_params["module", "layer", "weight"].data.fill_(0.3)
        loss.critic_network_params["module", "layer", "bias"].data.copy_(torch.arange(3.0))
        outs.append(loss(batch)["loss_actor"])
    torch.testing.assert_close(outs[0], outs[1])


@pytest.mark.parametrize("kind", LOSSES)
def test_bad_data_are_refused(kind: str) -> None:
    loss, batch = make_loss(kind), make_batch(kind)
    following = ("next", "agents", "action")
    with pytest.raises(KeyError, match=r"'next', 'agents', 'action'.*add_next_actions"):
        loss(batch.exclude(following))
    with pytest.raises(KeyError, match="reads .*state.*missing"):
        loss(batch.exclude("state"))
    with pytest.raises(ValueError, match=r"'reward'\) of shape \(9, 1\), found \(9, 2\)"):
        loss(batch.clone().set(("next", "reward"), torch.zeros(ROWS, 2)))
    with pytest.raises(ValueError, match=r"'action_recorded'\) of dtype bool, found torch.int64"):
        loss(batch.clone().set(("next", "action_recorded"), torch.ones(ROWS, 1).long()))
    other = make_batch("discrete" if kind == "continuous" else "continuous")
    bad = batch.clone().set(ACTION, other[ACTION])
    with pytest.raises(ValueError, match=r"expected \('agents', 'action'\) of shape"):
        loss(bad)
    bad = batch.clone().set(following, batch[following][:, :1])
    with pytest.raises(ValueError, match=r"'next', 'agents', 'action'\) of shape"):
        loss(bad)
    dtype = torch.int32 if kind == "continuous" else torch.float32
    match = "continuous actions in .*int32" if kind == "continuous" else "discrete .*float32"
    with pytest.raises(ValueError, match=match):
        loss(batch.clone().set(ACTION, batch[ACTION].to(dtype)))


def test_bad_networks_are_refused() -> None:
    batch = make_batch("discrete")
    for place in (batch, batch["next"]):
        place["x"] = place["state"]

    def mixer(values: Any, *written: Any) -> TensorDictModule:
        return TensorDictModule(Mixer(2), [values, "state"], list(written))

    cases = (
        (mixer("x", "state_action_value", WEIGHT), ValueError, "mixer must read the agents"),
        (
            mixer(VALUE, "y", WEIGHT),
            KeyError,
            "mixer_network to write 'state_action_value'; it writes",
        ),
        (
            mixer(VALUE, "state_action_value", "w"),
            KeyError,
            "mixer_network to write .*mixing_weight",
        ),
        (
            mixer(VALUE, "z", "state_action_value"),
            ValueError,
            r"of shape \(9, 1\), found \(9, 2, 1",
        ),
    )
    for network, error, match in cases:
        with pytest.raises(error, match=match):
            make_loss("discrete", mixer_network=network)(batch)
    actor = TensorDictModule(nn.Linear(3, 2), [OBSERVATION], [("agents", "logits")])
    good = make_loss("discrete")
    bad = DiscreteMAICQLoss(actor, good.critic_network, good.mixer_network)
    with pytest.raises(ValueError, match=r"'logits'\) of shape \(9, 2, 3\), found \(9, 2, 2\)"):
        bad.double()(batch)


@pytest.mark.parametrize(
    "bad",
    [
        {"actor_temperature": 0.0},
        {"critic_temperature": -1.0},
        {"reduction": "max"},
        {"num_samples": 0},
        {"action_margin": 1.0},
    ],
)
def test_bad_arguments_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"MAICQLoss: {next(iter(bad))}"):
        make_loss("continuous", **bad)


def test_actions_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match=r"action_spec of shape \[N, d_a\]"):
        make_loss("continuous", action_spec=make_spec(2, True).action_spec())


def make_game(kind: str) -> TensorDict:
    """One step in which most of the data's teams take a poor joint action, and some a good one."""
    torch.manual_seed(0)
    rows = 512
    good = (torch.arange(rows) % 5 < 2).unsqueeze(-1)
    ended = torch.ones(rows, 1, dtype=torch.bool)
    agents: dict[str, Any] = {"observation": torch.ones(rows, 2, 3)}
    if kind == "discrete":
        agents["action"] = good.long().expand(rows, 2).contiguous()
        agents["action_mask"] = torch.ones(rows, 2, ACTIONS, dtype=torch.bool)
    else:
        centre = torch.where(good, 0.5, -0.5).unsqueeze(-1)
        agents["action"] = centre + 0.05 * torch.randn(rows, 2, 2)
    outcome = {"reward": 0.5 + 0.5 * good.float(), "done": ended, "terminated": ended}
    step = {"agents": agents, "state": torch.ones(rows, 4)}
    following = {"agents": {"observation": agents["observation"]}, "state": step["state"]}
    data = TensorDict({**step, "next": {**following, **outcome}}, [rows])
    data["episode"], data["step"] = torch.arange(rows), torch.zeros(rows, dtype=torch.int64)
    return add_next_actions(data)


@pytest.mark.parametrize("kind", LOSSES)
def test_good_actions_are_taken_that_the_data_seldom_have(kind: str) -> None:
    batch, spec = make_game(kind), make_spec(2, kind == "discrete")
    torch.manual_seed(0)
    chosen = {}
    for method in ("bc", "maicq"):
        maker = make_categorical_actor if kind == "discrete" else make_gaussian_actor
        actor = maker(spec, hidden_sizes=(16,))
        mixer = TensorDictModule(Mixer(2), [VALUE, "state"], ["state_action_value", WEIGHT])
        if method == "bc":
            loss: Any = BCLoss(actor, action_spec=spec.action_spec())
        elif kind == "discrete":
            critic = TensorDictModule(Critic(3, 3), [OBSERVATION], [("agents", "action_value")])
            loss = DiscreteMAICQLoss(actor, critic, mixer)
        else:
            critic = TensorDictModule(Critic(5, 1), [OBSERVATION, ACTION], [VALUE])
            loss = MAICQLoss(actor, critic, mixer, action_spec=spec.action_spec())
        optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
        for _ in range(300):
            out = loss(batch)
            optimizer.zero_grad()
            sum(value for key, value in out.items() if key.startswith("loss_")).backward()
            optimizer.step()
        inputs = batch[:1].select(*actor.in_keys)
        with torch.no_grad():
            dist = actor.get_dist(inputs)
            chosen[method] = dist.mode if kind == "discrete" else dist.deterministic_sample
    if kind == "discrete":
        assert (chosen["bc"] == 0).all() and (chosen["maicq"] == 1).all()
    else:
        # cloning lies between the two joint actions, where the data have none
        assert (chosen["bc"].abs() < 0.3).all()
        assert (chosen["maicq"] - 0.5).abs().max() < 0.15
