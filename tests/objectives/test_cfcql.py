"""Continuous CFCQL's numbers, gradients, and what it learns."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_logo.data import TaskSpec
from torchrl_logo.modules import make_centralized_critic, make_gaussian_actor
from torchrl_logo.objectives import BCLoss, CFCQLLoss, MACQLLoss

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
LOW, HIGH = (-1.0, 0.0), (1.0, 3.0)
ROWS = 7


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
    action[0] = high  # at the bound, where densities need the margin

    def observe() -> dict[str, Any]:
        agents = {"observation": torch.randn(ROWS, n_agents, 3).double()}
        return {"agents": agents, "state": torch.randn(ROWS, 4).double()}

    outcome = {"reward": torch.randn(ROWS, 1).double(), "done": kind > 0, "terminated": kind == 2}
    batch = TensorDict({**observe(), "next": {**observe(), **outcome}}, [ROWS])
    batch["agents", "action"] = action
    return batch


def make_loss(n_agents: int = 2, behaviour: bool = True, **kwargs: Any) -> CFCQLLoss:
    torch.manual_seed(0)
    spec = make_spec(n_agents)
    actor = make_gaussian_actor(spec, hidden_sizes=(6,))
    critic = make_centralized_critic(spec, kind="state", hidden_sizes=(6,))
    if behaviour:
        kwargs["behaviour_network"] = make_gaussian_actor(spec, hidden_sizes=(5,))
    loss = CFCQLLoss(actor, critic, action_spec=spec.action_spec(), **kwargs).double()
    # targets that differ from the critics, as they do in training
    loss.target_qvalue_network_params.data.mul_(0.7)
    return loss


class Gaussian:
    """Log-densities of each agent's actions: Gaussians through tanh, moved into the bounds."""

    def __init__(self, network: Any) -> None:
        self.network = copy.deepcopy(network)

    def log_density(self, observation: Tensor, i: int, action: Tensor) -> float:
        data = TensorDict({("agents", "observation"): observation}, [])
        with torch.no_grad():
            data = self.network.module[0](data)
        total = 0.0
        for j in range(2):
            mu, sigma = data["agents", "loc"][i, j].item(), data["agents", "scale"][i, j].item()
            half = (HIGH[j] - LOW[j]) / 2
            u = (action[j].item() - (HIGH[j] + LOW[j]) / 2) / half
            normal = math.exp(-(((math.atanh(u) - mu) / sigma) ** 2) / 2) / sigma
            total += math.log(normal / math.sqrt(2 * math.pi) / ((1 - u**2) * half))
        return total


class Critic:
    """A critic's value, from its weights alone."""

    def __init__(self, params: Any, k: int) -> None:
        layers = params["module", "network"]
        self.layers = [layers[i, x][k].detach() for i in ("0", "2") for x in ("weight", "bias")]

    def value(self, state: Tensor, action: Tensor) -> float:
        first, bias, last, offset = self.layers
        hidden = (first @ torch.cat([state, action.flatten()]) + bias).clamp_min(0)
        return (last @ hidden + offset).item()


def into_margin(action: Tensor) -> Tensor:
    inside = action.clone()
    for j in range(2):
        margin = 1e-3 * (HIGH[j] - LOW[j]) / 2
        inside[..., j] = inside[..., j].clamp(LOW[j] + margin, HIGH[j] - margin)
    return inside


class Reference:
    """The losses, row by row, from the formulas of the class's description."""

    def __init__(self, loss: CFCQLLoss, draws: dict[str, Tensor]) -> None:
        self.loss, self.draws = loss, draws
        self.actor = Gaussian(loss.get_stateful_net("actor_network"))
        self.behaviour = None
        if loss.behaviour_network is not None:
            self.behaviour = Gaussian(loss.get_stateful_net("behaviour_network"))
        self.critics = [Critic(loss.qvalue_network_params, k) for k in range(2)]
        self.targets = [Critic(loss.target_qvalue_network_params, k) for k in range(2)]

    def agent_weights(self, row: TensorDict, b: int, n_agents: int) -> tuple[list[float], float]:
        """The agents' weights, and their mean divergence."""
        if self.behaviour is None:
            return [1 / n_agents] * n_agents, 0.0
        observation, divergences = row["agents", "observation"], []
        for i in range(n_agents):
            drawn = into_margin(self.draws["here"][:, b, i])
            ratios = [
                self.actor.log_density(observation, i, a)
                - self.behaviour.log_density(observation, i, a)
                for a in drawn
            ]
            divergences.append(sum(ratios) / len(ratios))
        scores = [math.exp(self.loss.divergence_temperature * d) for d in divergences]
        return [score / sum(scores) for score in scores], sum(divergences) / n_agents

    def row(self, batch: TensorDict, b: int) -> dict[str, float]:
        n, t = self.loss.num_samples, self.loss.temperature
        row, following = batch[b], batch["next"][b]
        state, action = row["state"], row["agents", "action"]
        seen = {
            "here": row["agents", "observation"],
            "there": following["agents", "observation"],
        }
        n_agents = action.shape[0]
        log_uniform = -sum(math.log(top - low) for low, top in zip(LOW, HIGH, strict=True))
        weights, divergence = self.agent_weights(row, b, n_agents)
        bootstrap = min(
            q.value(following["state"], self.draws["there"][0, b]) for q in self.targets
        )
        ended = float(following["terminated"])
        target = float(following["reward"]) + 0.99 * (1 - ended) * bootstrap
        td, gap, spreads = 0.0, 0.0, []
        for q in self.critics:
            data_value = q.value(state, action)
            td += (data_value - target) ** 2 / 2
            gap -= data_value
            for i in range(n_agents):
                values, exponentials = [], 0.0
                for name in ("uniform", "here", "there"):
                    for j in range(n):
                        joint = action.clone()
                        joint[i] = self.draws[name][j, b, i]
                        values.append(q.value(state, joint))
                        log_mu = log_uniform
                        if name != "uniform":
                            log_mu = self.actor.log_density(seen[name], i, joint[i])
                        exponentials += math.exp(values[-1] / t - log_mu)
                gap += weights[i] * t * math.log(exponentials / (3 * n))
                mean = sum(values) / len(values)
                variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
                spreads.append(math.sqrt(variance))
        chosen, inside = self.draws["policy"][b], into_margin(action)

        def joint_log_density(gaussian: Gaussian, joint: Tensor) -> float:
            return sum(gaussian.log_density(seen["here"], i, joint[i]) for i in range(n_agents))

        return {
            "td": td,
            "gap": gap,
            "spread": sum(spreads) / len(spreads),
            "divergence": divergence,
            "value": min(q.value(state, chosen) for q in self.critics),
            "log_pi": joint_log_density(self.actor, chosen),
            "bc": joint_log_density(self.actor, inside) / n_agents,
            "behaviour": joint_log_density(self.behaviour, inside) / n_agents
            if self.behaviour
            else 0.0,
        }

    def compute(self, batch: TensorDict) -> dict[str, float]:
        """The mean losses of a batch."""
        loss = self.loss
        rows = [self.row(batch, b) for b in range(len(batch))]
        weight = batch.get("priority_weight", torch.ones(len(batch))).tolist()
        real = [True] * len(batch)
        if "imagined" in batch.keys():
            real = (~batch["imagined"].squeeze(-1)).tolist()

        def mean(values: list[float], kept: list[bool] | None = None) -> float:
            w = [a if kept is None or kept[b] else 0.0 for b, a in enumerate(weight)]
            return sum(a * v for a, v in zip(w, values, strict=True)) / sum(w)

        alpha = float(loss.min_q_weight.detach())
        scale = sum(r["spread"] for r in rows) / len(rows) if loss.normalize_q else 1.0
        out = {
            "loss_qvalue": mean([r["td"] for r in rows]),
            "loss_cql": alpha * mean([r["gap"] for r in rows], real),
            "loss_actor": mean(
                [(loss.entropy_coeff * r["log_pi"] - r["value"]) / scale for r in rows]
            )
            - loss.bc_coeff * mean([r["bc"] for r in rows], real),
        }
        if loss.lagrange_thresh is not None:
            excess = [r["gap"] - 2 * loss.lagrange_thresh for r in rows]
            out["loss_min_q_weight"] = -alpha * mean(excess, real)
        if self.behaviour is not None:
            out["loss_behaviour"] = -mean([r["behaviour"] for r in rows], real)
            out["behaviour_divergence"] = sum(r["divergence"] for r in rows) / len(rows)
        return out


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Actions that the loss draws, as values only: the reference has its own densities."""
    recorded: dict[str, Tensor] = {}
    draw, rand = CFCQLLoss._draw, torch.rand

    def record_draw(self: CFCQLLoss, *args: Any) -> Any:
        action, log_prob = draw(self, *args)
        name = "policy" if len(args) == 2 else ("there" if "here" in recorded else "here")
        recorded[name] = action.detach()
        return action, log_prob

    def record_uniform(*args: Any, **kwargs: Any) -> Tensor:
        unit = rand(*args, **kwargs)
        low, high = torch.tensor(LOW).to(unit), torch.tensor(HIGH).to(unit)
        recorded["uniform"] = low + unit * (high - low)
        return unit

    monkeypatch.setattr(CFCQLLoss, "_draw", record_draw)
    monkeypatch.setattr(torch, "rand", record_uniform)
    return recorded


VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "equal": {"behaviour": False, "bc_coeff": 0.5, "min_q_weight": 2.0},
    "lagrangian": {"lagrange_thresh": 0.3, "min_q_weight": 0.7, "num_samples": 2},
    "sharp": {
        "divergence_temperature": 3.0,
        "temperature": 2.5,
        "normalize_q": False,
        "entropy_coeff": 0.2,
    },
}


@pytest.mark.parametrize("columns", [(), ("weights",), ("weights", "imagined")], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("n_agents", [1, 2, 5])
def test_values_are_the_formulas(
    n_agents: int, variant: str, columns: tuple[str, ...], draws: dict[str, Tensor]
) -> None:
    batch = make_batch(n_agents)
    if "weights" in columns:
        batch["priority_weight"] = torch.linspace(0.1, 3, ROWS).double()
    if "imagined" in columns:
        batch["imagined"] = (torch.arange(ROWS) > 3).unsqueeze(-1)
    loss = make_loss(n_agents, **VARIANTS[variant])
    out = loss(batch)
    expected = Reference(loss, draws).compute(batch)
    assert {key for key in out.keys() if key.startswith("loss_")} <= set(expected)
    for key, value in expected.items():
        assert out[key].item() == pytest.approx(value, rel=1e-5), key


def test_one_agent_has_the_joint_penalty() -> None:
    batch, kwargs = make_batch(1), {"lagrange_thresh": 0.3, "bc_coeff": 0.5}
    counterfactual = make_loss(1, behaviour=False, **kwargs)
    torch.manual_seed(0)
    spec = make_spec(1)
    networks = (
        make_gaussian_actor(spec, hidden_sizes=(6,)),
        make_centralized_critic(spec, kind="state", hidden_sizes=(6,)),
    )
    joint = MACQLLoss(*networks, action_spec=spec.action_spec(), **kwargs).double()
    joint.load_state_dict(counterfactual.state_dict())
    outs = []
    for loss in (counterfactual, joint):
        torch.manual_seed(2)
        outs.append(loss(batch).to_dict())
    torch.testing.assert_close(*outs)


def test_order_of_agents_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, loss = make_batch(5), make_loss(5)
    # draws that are the same for each agent, and critics that hear no more than agents' sums
    monkeypatch.setattr(
        torch.distributions.normal,
        "_standard_normal",
        lambda shape, dtype, device: (
            torch.linspace(-1, 1, shape[0], dtype=dtype)
            .view(-1, *[1] * (len(shape) - 1))
            .expand(shape)
        ),
    )
    monkeypatch.setattr(
        torch, "rand", lambda shape, **_: torch.linspace(0.1, 0.9, 4).view(4, 1, 1, 1).expand(shape)
    )
    for params in (loss.qvalue_network_params, loss.target_qvalue_network_params):
        weight = params["module", "network", "0", "weight"].data
        weight[..., 4:] = weight[..., 4:6].repeat(1, 1, 5)
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted = batch.clone()
    for place in (permuted, permuted["next"]):
        place["agents"] = place["agents"].apply(lambda value: value[:, order])
    torch.testing.assert_close(loss(permuted).to_dict(), loss(batch).to_dict())


def test_each_loss_trains_its_own_networks() -> None:
    loss = make_loss(lagrange_thresh=1.0, bc_coeff=0.5)
    out = loss(make_batch())
    for key, network in (
        ("loss_actor", "actor_network_params"),
        ("loss_behaviour", "behaviour_network_params"),
        ("loss_qvalue", "qvalue_network_params"),
        ("loss_cql", "qvalue_network_params"),
        ("loss_min_q_weight", "log_min_q_weight"),
    ):
        loss.zero_grad()
        out[key].backward(retain_graph=True)
        reached = {
            name.split(".")[0]
            for name, p in loss.named_parameters()
            if p.grad is not None and p.grad.abs().sum() > 0
        }
        assert reached == {network}, key
    assert not any(t.requires_grad for t in loss.target_qvalue_network_params.values(True, True))
    assert not any(value.requires_grad for key, value in out.items() if not key.startswith("loss_"))


def test_agents_that_leave_the_data_weigh_more(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    spec, batch = make_spec(), make_batch()
    actor = make_gaussian_actor(spec, hidden_sizes=(), share_params=False)
    loss = CFCQLLoss(
        actor,
        make_centralized_critic(spec, kind="state", hidden_sizes=(6,)),
        action_spec=spec.action_spec(),
        behaviour_network=copy.deepcopy(actor),
        divergence_temperature=1000.0,
        num_samples=50,
    ).double()
    # the first agent's policy leaves the behaviour, the second's is the behaviour
    for key, value in loss.actor_network_params.items(True, True):
        if key[-1] == "bias":
            value.data[0] += 1.0
    torch.manual_seed(3)
    before = loss(batch)["conservative_gap"]
    value_alternatives = CFCQLLoss._value_alternatives

    def change_second_agent(self: CFCQLLoss, *args: Any) -> tuple[Tensor, Tensor]:
        data, alternatives = value_alternatives(self, *args)
        return data, alternatives * torch.tensor([1.0, 0.0])

    monkeypatch.setattr(CFCQLLoss, "_value_alternatives", change_second_agent)
    torch.manual_seed(3)
    torch.testing.assert_close(loss(batch)["conservative_gap"], before)


def test_padding_counts_for_nothing() -> None:
    loss, batch = make_loss(bc_coeff=0.5), make_batch()
    batch["imagined"] = (torch.arange(ROWS) > 3).unsqueeze(-1)
    batch["collector", "mask"] = torch.arange(ROWS).unsqueeze(-1) < 5
    padded = batch.clone()
    padded["state"][5:] = math.nan
    outs = []
    for data in (batch, padded):
        torch.manual_seed(3)
        outs.append(loss(data).to_dict())
    torch.testing.assert_close(*outs)


def test_caller_keeps_its_batch() -> None:
    batch = make_batch()
    before = batch.clone()
    make_loss()(batch)
    assert set(batch.keys(True, True)) == set(before.keys(True, True))
    assert (batch == before).all()


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        (
            ("agents", "action"),
            torch.zeros(ROWS, 2, 2, dtype=torch.long),
            "continuous actions .* found torch.int64",
        ),
        (
            ("agents", "action"),
            torch.zeros(ROWS, 2, 3),
            r"\('agents', 'action'\) of shape \(7, 2, 2\), found \(7, 2, 3\)",
        ),
        (
            ("next", "reward"),
            torch.zeros(ROWS),
            r"\('next', 'reward'\) of shape \(7, 1\), found \(7,\)",
        ),
    ],
)
def test_bad_batches_are_refused(key: Any, value: Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make_loss()(make_batch().set(key, value))


def test_missing_entries_are_named() -> None:
    with pytest.raises(KeyError, match="CFCQLLoss reads .*state.*missing"):
        make_loss()(make_batch().exclude("state"))


def test_densities_of_the_team_alone_are_refused() -> None:
    with pytest.raises(ValueError, match=r"per agent.*expected \(7, 2\), found \(7,\)"):
        make_loss()._per_agent(torch.zeros(7), torch.Size([7]))


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="CFCQLLoss: divergence_temperature"):
        make_loss(divergence_temperature=-1.0)
    discrete = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=6, discrete=True)
    spec = make_spec()
    networks = (make_gaussian_actor(spec), make_centralized_critic(spec))
    with pytest.raises(ValueError, match="continuous actions.*found Categorical"):
        CFCQLLoss(*networks, action_spec=discrete.action_spec())


def test_learns_what_behaviour_cloning_cannot() -> None:
    # One step: the team is paid for the distance to an optimum, which few actions come near.
    spec = TaskSpec(
        n_agents=2,
        observation_size=2,
        state_size=2,
        action_size=1,
        action_low=(-1.0,),
        action_high=(1.0,),
    )
    torch.manual_seed(0)
    rows = 256
    state, action = torch.rand(rows, 2) * 2 - 1, torch.rand(rows, 2, 1) * 2 - 1

    def pay(action: Tensor) -> Tensor:
        # both agents must meet at a place that the state names; the best is 0
        return -((action.squeeze(-1) - 0.5 * state).square().sum(-1, keepdim=True))

    ended = torch.ones(rows, 1, dtype=torch.bool)
    step = {"agents": {"observation": state.unsqueeze(1).expand(rows, 2, 2)}, "state": state}
    outcome = {"reward": pay(action), "done": ended, "terminated": ended}
    batch = TensorDict({**step, "next": {**step, **outcome}}, [rows])
    batch["agents", "action"] = action

    def train(loss: Any, steps: int) -> float:
        optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
        for _ in range(steps):
            out = loss(batch)
            optimizer.zero_grad()
            sum(v for k, v in out.items() if k.startswith("loss_")).backward()
            optimizer.step()
        data = batch.select(("agents", "observation"))
        with torch.no_grad():
            dist = loss.get_stateful_net("actor_network").get_dist(data)
        return pay(dist.deterministic_sample).mean().item()

    def actor() -> Any:
        # unshared: each agent has its own place to be
        return make_gaussian_actor(spec, hidden_sizes=(32,), share_params=False)

    cloned = train(BCLoss(actor(), action_spec=spec.action_spec()), 50)
    learned = train(
        CFCQLLoss(
            actor(),
            make_centralized_critic(spec, hidden_sizes=(32,)),
            action_spec=spec.action_spec(),
            behaviour_network=actor(),
            min_q_weight=0.05,
            num_samples=2,
        ),
        200,
    )
    assert cloned < -0.1  # the data's mean action is zero, whatever the state
    assert learned > -0.05
