"""OMAR's numbers, gradients, and what it learns."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.objectives import SoftUpdate

from torchrl_logo.data import TaskSpec
from torchrl_logo.modules import make_gaussian_actor
from torchrl_logo.modules.decentralized_mlp import DecentralizedMLP
from torchrl_logo.objectives import BCLoss, OMARLoss

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
LOW, HIGH = (-1.0, 0.0), (1.0, 3.0)
ROWS = 7
OBSERVATION, ACTION = ("agents", "observation"), ("agents", "action")
VALUE = ("agents", "state_action_value")
NORMAL = NormalDist()


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
    """Rows that go on, that are truncated and that are terminated."""
    torch.manual_seed(1)
    low, high = torch.tensor(LOW).double(), torch.tensor(HIGH).double()
    kind = torch.arange(ROWS).unsqueeze(-1) % 3
    action = low + torch.rand(ROWS, n_agents, 2).double() * (high - low)
    return TensorDict(
        {
            "agents": {"observation": torch.randn(ROWS, n_agents, 3).double(), "action": action},
            "next": {
                "agents": {"observation": torch.randn(ROWS, n_agents, 3).double()},
                "reward": torch.randn(ROWS, 1).double(),
                "done": kind > 0,
                "terminated": kind == 2,
                "truncated": kind == 1,
            },
        },
        [ROWS],
    )


class Actor(nn.Module):
    """A linear layer, moved near the middle of the bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, observation: Tensor) -> Tensor:
        return self.layer(observation) + 0.5


class Critic(nn.Module):
    """A weighted sum of the sines of an agent's observation and action."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 1)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.layer(torch.sin(2 * torch.cat([observation, action], -1)))


def make_loss(n_agents: int = 2, **kwargs: Any) -> OMARLoss:
    torch.manual_seed(0)
    networks = {
        "actor_network": TensorDictModule(Actor(), [OBSERVATION], [ACTION]),
        "qvalue_network": TensorDictModule(Critic(), [OBSERVATION, ACTION], [VALUE]),
    }
    arguments = {**networks, "action_spec": make_spec(n_agents).action_spec(), **kwargs}
    loss = OMARLoss(**arguments).double()
    # targets that differ from the networks, as they do in training; critics with large values
    loss.qvalue_network_params.data.mul_(3.0)
    loss.target_qvalue_network_params.data.mul_(0.7)
    loss.target_actor_network_params.data.mul_(-1.5)
    return loss


def half(j: int) -> float:
    return (HIGH[j] - LOW[j]) / 2


def middle(j: int) -> float:
    return (HIGH[j] + LOW[j]) / 2


def clip(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)


class Reference:
    """The losses, row by row and agent by agent, from the formulas of the class's description."""

    def __init__(self, loss: OMARLoss, normal: list[Tensor], uniform: list[Tensor]) -> None:
        # what the loss draws, in its order
        self.loss, (self.noise, *self.search_noise) = loss, normal
        self.uniform, *self.near = uniform

    @staticmethod
    def linear(params: Any, x: list[float], k: int | None = None) -> list[float]:
        weight, bias = params["module", "layer", "weight"], params["module", "layer", "bias"]
        if k is not None:
            weight, bias = weight[k], bias[k]
        return [
            sum(w * v for w, v in zip(row, x, strict=True)) + b
            for row, b in zip(weight.tolist(), bias.tolist(), strict=True)
        ]

    def act(self, params: Any, observation: list[float]) -> list[float]:
        return [x + 0.5 for x in self.linear(params, observation)]

    def value(self, params: Any, k: int, observation: list[float], action: list[float]) -> float:
        return self.linear(params, [math.sin(2 * x) for x in [*observation, *action]], k)[0]

    def draw_near(self, around: list[float], shares: list[float]) -> tuple[list[float], float]:
        """An action by the inverse of a cut off Gaussian's distribution, and its density."""
        std, action, density = self.loss.proposal_std, [], 1.0
        for j, share in enumerate(shares):
            centre = clip((around[j] - middle(j)) / half(j), -1, 1)
            below, above = (NORMAL.cdf((end - centre) / std) for end in (-1, 1))
            z = NORMAL.inv_cdf(below + share * (above - below))
            action.append(middle(j) + half(j) * (centre + std * z))
            density *= NORMAL.pdf(z) / (std * half(j) * (above - below))
        return action, density

    def search(self, observation: list[float], policy: list[float], b: int, i: int) -> list[float]:
        loss, params = self.loss, self.loss.qvalue_network_params
        mean, std = [0.0, 0.0], [loss.search_std] * 2
        for noise in self.search_noise:
            units = [
                [clip(mean[j] + std[j] * noise[k, b, i, j].item(), -1, 1) for j in range(2)]
                for k in range(loss.search_samples)
            ]
            actions = [[middle(j) + half(j) * u[j] for j in range(2)] for u in units]
            values = [self.value(params, 0, observation, a) for a in actions]
            shares = [math.exp(loss.search_beta * v) for v in values]
            std = [
                math.sqrt(sum((u[j] - mean[j]) ** 2 for u in units) / len(units)) for j in range(2)
            ]
            mean = [
                sum(s * u[j] for s, u in zip(shares, units, strict=True)) / sum(shares)
                for j in range(2)
            ]
        best = max(values)
        if self.value(params, 0, observation, policy) >= best:
            return policy
        return actions[values.index(best)]

    def agent(self, batch: TensorDict, b: int, i: int) -> dict[str, float]:
        loss, row, following = self.loss, batch[b], batch["next"][b]
        params, nets = loss.qvalue_network_params, range(2)
        observation, data = row[OBSERVATION][i].tolist(), row[ACTION][i].tolist()
        next_observation = following[OBSERVATION][i].tolist()
        smoothed = self.act(loss.target_actor_network_params, next_observation)
        for j in range(2):
            noise = self.noise[b, i, j].item() * loss.policy_noise
            noise = clip(noise, -loss.noise_clip, loss.noise_clip)
            smoothed[j] = clip(smoothed[j] + half(j) * noise, LOW[j], HIGH[j])
        targets = loss.target_qvalue_network_params
        least = min(self.value(targets, k, next_observation, smoothed) for k in nets)
        ended = float(following["terminated"])
        target = float(following["reward"]) + 0.99 * (1 - ended) * least
        pred = [self.value(params, k, observation, data) for k in nets]
        policy = self.act(loss.actor_network_params, observation)
        there = self.act(loss.actor_network_params, next_observation)
        volume = math.prod(top - end for end, top in zip(LOW, HIGH, strict=True))
        draws = []
        for n in range(loss.num_samples):
            shares = self.uniform[n, b, i].tolist()
            action = [LOW[j] + (HIGH[j] - LOW[j]) * shares[j] for j in range(2)]
            draws.append((action, 1 / volume))
            for around, near in zip((policy, there), self.near, strict=True):
                draws.append(self.draw_near(around, near[n, b, i].tolist()))
        gap = 0.0
        for k in nets:
            total = sum(
                math.exp(self.value(params, k, observation, a) / loss.temperature) / density
                for a, density in draws
            )
            gap += loss.temperature * math.log(total / len(draws)) - pred[k]
        best = self.search(observation, policy, b, i)
        distance = sum(((policy[j] - best[j]) / half(j)) ** 2 for j in range(2))
        value, coeff = self.value(params, 0, observation, policy), loss.rectification_coeff
        return {
            "loss_qvalue": sum((q - target) ** 2 for q in pred),
            "loss_cql": loss.min_q_weight * gap,
            "loss_actor": coeff * distance - (1 - coeff) * value,
            "pred_value": sum(pred) / 2,
            "target_value": target,
            "conservative_gap": gap / 2,
            "search_distance": distance,
            "search_gain": self.value(params, 0, observation, best) - value,
        }

    def compute(self, batch: TensorDict) -> dict[str, float]:
        n_agents = batch[ACTION].shape[1]
        weights = batch.get("priority_weight", torch.ones(len(batch))).tolist()
        out: dict[str, float] = {}
        for b in range(len(batch)):
            for i in range(n_agents):
                for name, value in self.agent(batch, b, i).items():
                    share = 1 / len(batch)
                    if name.startswith("loss_"):
                        share = weights[b] / sum(weights)
                    out[name] = out.get(name, 0.0) + share * value / n_agents
        return out


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Tensor]]:
    """The standard normal and the uniform numbers that the loss draws."""
    recorded: dict[str, list[Tensor]] = {"normal": [], "uniform": []}
    normal, uniform = torch.distributions.normal._standard_normal, torch.rand

    def record_normal(*args: Any, **kwargs: Any) -> Tensor:
        recorded["normal"].append(normal(*args, **kwargs))
        return recorded["normal"][-1]

    def record_uniform(*args: Any, **kwargs: Any) -> Tensor:
        recorded["uniform"].append(uniform(*args, **kwargs))
        return recorded["uniform"][-1]

    monkeypatch.setattr(torch.distributions.normal, "_standard_normal", record_normal)
    monkeypatch.setattr(torch, "rand", record_uniform)
    return recorded


VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "other": {
        "rectification_coeff": 0.2,
        "search_iterations": 2,
        "search_samples": 4,
        "search_std": 0.5,
        "search_beta": 3.0,
        "min_q_weight": 0.3,
        "temperature": 2.5,
        "num_samples": 3,
        "proposal_std": 0.6,
        "policy_noise": 1.5,
        "noise_clip": 0.9,
    },
}


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("n_agents", [1, 2, 5])
def test_losses_are_the_formulas(
    n_agents: int, variant: str, weighted: bool, draws: dict[str, list[Tensor]]
) -> None:
    batch, loss = make_batch(n_agents), make_loss(n_agents, **VARIANTS[variant])
    for recorded in draws.values():
        recorded.clear()
    if weighted:
        batch["priority_weight"] = torch.linspace(0, 3, ROWS).double()
    found = loss(batch)
    assert len(draws["normal"]) == 1 + loss.search_iterations and len(draws["uniform"]) == 3
    expected = Reference(loss, **draws).compute(batch)
    assert set(found.keys()) == set(expected)
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=1e-5), name


def test_search_takes_the_policy_where_nothing_better_is_drawn() -> None:
    loss, batch = make_loss(5, **VARIANTS["other"]), make_batch(5)
    action = loss._act(batch, loss.actor_network_params).detach()
    assert (action < loss.action_low).any()  # a policy outside the bounds is searched as well
    value = loss._first_value(batch, action).detach()
    best, best_value = loss._search(batch, action, value)
    torch.testing.assert_close(loss._first_value(batch, best).detach(), best_value)
    # a policy that is good already is beaten for some agents only
    again, again_value = loss._search(batch, best, best_value)
    kept = (again == best).all(-1)
    assert kept.any() and not kept.all()
    assert (best_value >= value).all() and (again_value[~kept] > best_value[~kept]).all()
    torch.testing.assert_close(again_value[kept], best_value[kept])


def test_penalty_integrates() -> None:
    """The penalty's soft maximum is the logarithm of an integral, whatever the proposals."""
    torch.manual_seed(0)
    share = (torch.arange(400).double() + 0.5) / 400  # the middles of a grid's cells
    axes = [low + share * (high - low) for low, high in zip(LOW, HIGH, strict=True)]
    points = torch.cartesian_prod(*axes)
    loss = make_loss(1, num_samples=20000, proposal_std=0.5, temperature=0.8)
    batch = make_batch(1)[:2]
    out = loss(batch)
    inputs = batch.select(OBSERVATION).expand(160000, 2)
    actions = points.reshape(-1, 1, 1, 2).expand(-1, 2, -1, -1)
    values = loss._value(inputs, actions, loss.qvalue_network_params)  # [nets, points, B, 1]
    integral = torch.logsumexp(values / 0.8, 1) + math.log(6.0 / 160000)
    pred = loss._value(batch, batch[ACTION], loss.qvalue_network_params)
    expected = (0.8 * integral - pred).sum(0).mean()
    assert out["loss_cql"].item() == pytest.approx(expected.item(), abs=0.02)


def test_looping_over_critics_gives_the_same() -> None:
    batch, results = make_batch(), []
    for deactivate in (False, True):
        loss = make_loss(deactivate_vmap=deactivate)
        torch.manual_seed(3)
        results.append(loss(batch))
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value)


def test_order_of_agents_does_not_matter_with_shared_parameters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def same_normal(shape: Any, dtype: torch.dtype, device: Any) -> Tensor:
        return torch.linspace(-1, 1, shape[-1], dtype=dtype, device=device).expand(shape)

    def same_uniform(shape: Any, **kwargs: Any) -> Tensor:
        return torch.linspace(0.1, 0.9, shape[-1], **kwargs).expand(shape)

    batch, order = make_batch(3), [2, 0, 1]
    monkeypatch.setattr(torch.distributions.normal, "_standard_normal", same_normal)
    monkeypatch.setattr(torch, "rand", same_uniform)
    loss = make_loss(3)
    permuted = batch.clone()
    permuted[OBSERVATION] = batch[OBSERVATION][:, order]
    permuted[ACTION] = batch[ACTION][:, order]
    permuted["next"][OBSERVATION] = batch["next"][OBSERVATION][:, order]
    found, expected = loss(permuted), loss(batch)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)


def test_a_policy_outside_the_bounds_has_finite_losses() -> None:
    loss, batch = make_loss(), make_batch()
    loss.actor_network_params["module", "layer", "bias"].data.fill_(1e4)
    out = loss.float()(batch.apply(lambda x: x.float() if x.is_floating_point() else x))
    assert all(value.isfinite() for value in out.values())


def test_proposals_stay_within_the_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = make_loss(proposal_std=0.01).float()
    around = torch.tensor(LOW).expand(5, 2, 2)
    for share in (0.0, 1.0):
        monkeypatch.setattr(
            torch, "rand", lambda shape, share=share, **kw: torch.full(shape, share)
        )
        action, log_density = loss._draw_near(around)
        assert (action >= loss.action_low).all() and (action <= loss.action_high).all()
        assert log_density.isfinite().all()


def test_each_loss_trains_its_own_networks() -> None:
    loss = make_loss()
    out = loss(make_batch())
    expected = {
        "loss_qvalue": "qvalue_network",
        "loss_cql": "qvalue_network",
        "loss_actor": "actor_network",
    }
    for key, network in expected.items():
        loss.zero_grad()
        out[key].backward(retain_graph=True)
        reached = {
            name.split("_params")[0]
            for name, parameter in loss.named_parameters()
            if parameter.grad is not None and (parameter.grad != 0).any()
        }
        assert reached == {network}
    for targets in (loss.target_actor_network_params, loss.target_qvalue_network_params):
        assert not any(t.requires_grad for t in targets.values(True, True))
    assert not any(value.requires_grad for key, value in out.items() if "loss" not in key)


def test_actor_follows_updated_critics() -> None:
    loss, batch = make_loss(), make_batch()
    torch.manual_seed(2)
    before = loss(batch)["loss_actor"].item()
    loss.qvalue_network_params["module", "layer", "bias"].data.add_(3.0)
    torch.manual_seed(2)
    after = loss(batch)["loss_actor"].item()
    assert after == pytest.approx(before - (1 - loss.rectification_coeff) * 3, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_does_not_overflow(dtype: torch.dtype) -> None:
    batch = make_batch().apply(lambda x: x.float() if x.is_floating_point() else x)
    with torch.autocast("cpu", dtype=dtype):
        out = make_loss().float()(batch)
    assert all(value.isfinite() for value in out.values())


def test_padding_counts_for_nothing() -> None:
    loss, batch = make_loss(), make_batch()
    mask = torch.arange(ROWS).unsqueeze(-1) < 5
    padded = batch.clone().set(("collector", "mask"), mask)
    padded[OBSERVATION][5:] = math.nan
    torch.manual_seed(3)
    with_nan = loss(padded)
    torch.manual_seed(3)
    filled = loss(batch.clone().set(("collector", "mask"), mask))
    for key in with_nan.keys():
        torch.testing.assert_close(with_nan[key], filled[key])


def test_caller_keeps_its_batch() -> None:
    batch = make_batch()
    before = batch.clone()
    make_loss()(batch)
    assert set(batch.keys(True, True)) == set(before.keys(True, True))
    assert (batch == before).all()


def test_critics_start_differently() -> None:
    weights = make_loss().qvalue_network_params["module", "layer", "weight"]
    assert (weights[0] != weights[1]).any()


class Waves(nn.Module):
    """A critic that can be exact soon: of the action, a sum of cosines."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(9, 1)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        order = torch.arange(9, device=action.device, dtype=action.dtype)
        return self.layer(torch.cos(order * math.pi * (action + 1) / 2))


class Constant(nn.Module):
    """One action, whatever is observed; it begins at the worse of two optima."""

    def __init__(self) -> None:
        super().__init__()
        self.action = nn.Parameter(torch.tensor([-0.5]))

    def forward(self, observation: Tensor) -> Tensor:
        return self.action.expand(*observation.shape[:-1], 1)


def test_leaves_a_local_optimum() -> None:
    """Each agent is paid for one of two actions, and begins at the one that pays less."""
    spec = TaskSpec(
        n_agents=2,
        observation_size=1,
        state_size=1,
        action_size=1,
        action_low=(-1.0,),
        action_high=(1.0,),
    )
    rows = 256
    torch.manual_seed(0)
    action = torch.rand(rows, 2, 1) * 2 - 1

    def pay(action: Tensor) -> Tensor:
        near, far = ((action + 0.5) / 0.3).square(), ((action - 0.6) / 0.3).square()
        return (torch.exp(-near) + 2 * torch.exp(-far)).mean(-2)

    ended = torch.ones(rows, 1, dtype=torch.bool)
    step = {"agents": {"observation": torch.zeros(rows, 2, 1)}}
    outcome = {"reward": pay(action), "done": ended, "terminated": ended}
    batch = TensorDict({**step, "next": {**step, **outcome}}, [rows])
    batch[ACTION] = action

    def train(loss: Any) -> Tensor:
        updater = None if isinstance(loss, BCLoss) else SoftUpdate(loss, tau=0.05)
        optimizer = torch.optim.Adam(loss.parameters(), lr=2e-2)
        for i in range(200):
            out = loss(batch)
            if updater is not None and i < 80:
                out.pop("loss_actor")  # until there is a landscape
            optimizer.zero_grad()
            sum(v for k, v in out.items() if k.startswith("loss_")).backward()
            optimizer.step()
            if updater is not None:
                updater.step()
        with torch.no_grad():
            if updater is None:
                actor = loss.get_stateful_net("actor_network")
                return actor.get_dist(batch).deterministic_sample
            return loss._act(batch, loss.actor_network_params)

    def rectify(coeff: float) -> Tensor:
        actor = TensorDictModule(Constant(), [OBSERVATION], [ACTION])
        critic = TensorDictModule(Waves(), [OBSERVATION, ACTION], [VALUE])
        return train(
            OMARLoss(
                actor,
                critic,
                action_spec=spec.action_spec(),
                rectification_coeff=coeff,
                min_q_weight=0.05,
                num_samples=2,
            )
        )

    rectified, gradient = rectify(0.7), rectify(0.0)
    cloned = train(BCLoss(make_gaussian_actor(spec), action_spec=spec.action_spec()))
    assert (rectified - 0.6).abs().max() < 0.1
    assert (gradient + 0.5).abs().max() < 0.2  # stays where it began
    assert pay(rectified).mean() > 1.8
    assert pay(gradient).mean() < 1.2 and pay(cloned).mean() < 1.2


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (
            lambda b: b["agents"].pop("observation"),
            KeyError,
            r"reads \[.*agents.*observation.*\], which are missing",
        ),
        (lambda b: b["next"].pop("reward"), KeyError, "reads .*next.*reward.*which are missing"),
        (
            lambda b: b["next"].set("reward", torch.zeros(ROWS)),
            ValueError,
            r"\('next', 'reward'\) of shape \(7, 1\), found \(7,\)",
        ),
        (
            lambda b: b["next"].set("reward", torch.zeros(ROWS, 2)),
            ValueError,
            r"\('next', 'reward'\) of shape \(7, 1\), found \(7, 2\)",
        ),
        (
            lambda b: b["agents"].set("action", torch.zeros(ROWS, 2, 3)),
            ValueError,
            r"\('agents', 'action'\) of shape \(7, 2, 2\), found \(7, 2, 3\)",
        ),
        (
            lambda b: b["agents"].set("action", torch.zeros(ROWS, 2, 2, dtype=torch.long)),
            ValueError,
            "OMARLoss.*continuous actions .* found torch.int64",
        ),
    ],
)
def test_bad_batches_are_refused(change: Any, error: type[Exception], match: str) -> None:
    batch = make_batch()
    change(batch)
    with pytest.raises(error, match=match):
        make_loss()(batch)


class Narrow(nn.Module):
    """Writes one number for the team."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 1)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.layer(torch.cat([observation, action], -1)).mean(-2)


@pytest.mark.parametrize(
    ("name", "network", "error", "match"),
    [
        (
            "actor_network",
            lambda: TensorDictModule(nn.Linear(3, 1), [OBSERVATION], [ACTION]),
            ValueError,
            r"'action'\) of shape \(7, 2, 2\), found \(7, 2, 1\)",
        ),
        (
            "qvalue_network",
            lambda: TensorDictModule(nn.Linear(3, 1), [OBSERVATION], [VALUE]),
            ValueError,
            "qvalue_network must read the action",
        ),
        (
            "qvalue_network",
            lambda: TensorDictModule(Critic(), [OBSERVATION, ACTION], ["state_action_value"]),
            KeyError,
            "qvalue_network to write .*agents.*state_action_value.*it writes",
        ),
        (
            "qvalue_network",
            lambda: TensorDictModule(Narrow(), [OBSERVATION, ACTION], [VALUE]),
            ValueError,
            r"state_action_value'\) of shape \(2, 7, 2, 1\), found \(2, 7, 1\)",
        ),
    ],
)
def test_bad_networks_are_refused(
    name: str, network: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        make_loss(**{name: network()})(make_batch())


def test_bad_arguments_are_refused() -> None:
    discrete = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=6, discrete=True)
    with pytest.raises(ValueError, match="OMARLoss.*continuous actions.*found Categorical"):
        make_loss(action_spec=discrete.action_spec())
    for name, value in (
        ("rectification_coeff", 1.5),
        ("search_iterations", 0),
        ("search_samples", 0),
        ("search_std", 0.0),
        ("search_beta", -1.0),
        ("min_q_weight", -1.0),
        ("temperature", 0.0),
        ("num_samples", 0),
        ("proposal_std", 0.0),
        ("reduction", "median"),
    ):
        with pytest.raises(ValueError, match=name):
            make_loss(**{name: value})


def test_critics_of_the_package_fit() -> None:
    spec, batch = make_spec(), make_batch()
    batch = batch.apply(lambda x: x.float() if x.is_floating_point() else x)
    critic = TensorDictModule(
        DecentralizedMLP(5, 1, n_agents=2, num_cells=(6,)), [OBSERVATION, ACTION], [VALUE]
    )
    loss = OMARLoss(
        make_gaussian_actor(spec, hidden_sizes=(6,)), critic, action_spec=spec.action_spec()
    )
    weight = loss.qvalue_network_params["module", "_empty_net", "0", "weight"]
    assert (weight[0] != weight[1]).any()
    out = loss(batch)
    assert out["search_gain"] >= 0 and all(value.isfinite() for value in out.values())
