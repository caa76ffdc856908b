"""MACQL's numbers, gradients, and what it learns."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from torchrl_logo.data import TaskSpec
from torchrl_logo.modules import make_centralized_critic, make_gaussian_actor
from torchrl_logo.objectives import BCLoss, MACQLLoss, macql

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


def make_batch(n_agents: int = 2, rows: int = ROWS) -> TensorDict:
    """Rows that go on, that are truncated and that are terminated."""
    torch.manual_seed(1)
    low, high = torch.tensor(LOW).double(), torch.tensor(HIGH).double()
    kind = torch.arange(rows).unsqueeze(-1) % 3
    action = low + torch.rand(rows, n_agents, 2).double() * (high - low)
    action[0] = high  # at the bound, where the behaviour term needs its margin
    return TensorDict(
        {
            "agents": {"observation": torch.randn(rows, n_agents, 3).double(), "action": action},
            "state": torch.randn(rows, 4).double(),
            "next": {
                "agents": {"observation": torch.randn(rows, n_agents, 3).double()},
                "state": torch.randn(rows, 4).double(),
                "reward": torch.randn(rows, 1).double(),
                "done": kind > 0,
                "terminated": kind == 2,
                "truncated": kind == 1,
            },
        },
        [rows],
    )


def make_loss(n_agents: int = 2, **kwargs: Any) -> MACQLLoss:
    torch.manual_seed(0)
    spec = make_spec(n_agents)
    actor = make_gaussian_actor(spec, hidden_sizes=(6,))
    critic = make_centralized_critic(spec, kind="state", hidden_sizes=(6,))
    loss = MACQLLoss(actor, critic, action_spec=spec.action_spec(), **kwargs).double()
    # targets that differ from the critics, as they do in training
    loss.target_qvalue_network_params.data.mul_(0.7)
    return loss


class Reference:
    """The losses, row by row, from the formulas of the class's description."""

    def __init__(self, loss: MACQLLoss, draws: dict[str, Tensor]) -> None:
        self.loss, self.draws = loss, draws
        self.actor = copy.deepcopy(loss.get_stateful_net("actor_network"))
        self.critics = [self.unpack(loss.qvalue_network_params, k) for k in range(2)]
        self.targets = [self.unpack(loss.target_qvalue_network_params, k) for k in range(2)]

    @staticmethod
    def unpack(params: Any, k: int) -> list[Tensor]:
        layers = params["module", "network"]
        return [layers[i, name][k].detach() for i in ("0", "2") for name in ("weight", "bias")]

    @staticmethod
    def value(layers: list[Tensor], state: Tensor, action: Tensor) -> float:
        x = torch.cat([state, action.flatten()])
        hidden = (layers[0] @ x + layers[1]).clamp_min(0)
        return (layers[2] @ hidden + layers[3]).item()

    def log_density(self, observation: Tensor, action: Tensor) -> float:
        """Log-density of a joint action: Gaussians through tanh, moved into the bounds."""
        data = TensorDict({("agents", "observation"): observation}, [])
        with torch.no_grad():
            data = self.actor.module[0](data)
        total = 0.0
        for i in range(action.shape[0]):
            for j in range(2):
                mu = data["agents", "loc"][i, j].item()
                sigma = data["agents", "scale"][i, j].item()
                half = (HIGH[j] - LOW[j]) / 2
                u = (action[i, j].item() - (HIGH[j] + LOW[j]) / 2) / half
                x = math.atanh(u)
                normal = math.exp(-(((x - mu) / sigma) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi))
                total += math.log(normal / ((1 - u**2) * half))
        return total

    def row(self, batch: TensorDict, b: int) -> dict[str, float]:
        loss, n = self.loss, self.loss.num_samples
        row, following = batch[b], batch["next"][b]
        state, action = row["state"], row["agents", "action"]
        observation = row["agents", "observation"]
        next_observation = following["agents", "observation"]
        n_agents = action.shape[0]
        log_uniform = -n_agents * sum(math.log(top - a) for a, top in zip(LOW, HIGH, strict=True))
        bootstrap = min(
            self.value(q, following["state"], self.draws["there"][0, b]) for q in self.targets
        )
        ended = float(following["terminated"])
        target = float(following["reward"]) + 0.99 * (1 - ended) * bootstrap
        td, gap, data = 0.0, 0.0, 0.0
        spread = []
        for q in self.critics:
            data_value = self.value(q, state, action)
            td += (data_value - target) ** 2 / 2
            data += data_value
            values, exponentials = [], 0.0
            for name in ("uniform", "here", "there"):
                for j in range(n):
                    drawn = self.draws[name][j, b]
                    values.append(self.value(q, state, drawn))
                    if name == "uniform":
                        log_mu = log_uniform
                    else:
                        log_mu = self.log_density(
                            observation if name == "here" else next_observation, drawn
                        )
                    exponentials += math.exp(values[-1] / loss.temperature - log_mu)
            gap += loss.temperature * math.log(exponentials / (3 * n)) - data_value
            mean = sum(values) / len(values)
            spread.append(math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)))
        chosen = self.draws["policy"][b]
        inside = action.clone()
        for j in range(2):
            margin = 1e-3 * (HIGH[j] - LOW[j]) / 2
            inside[:, j] = inside[:, j].clamp(LOW[j] + margin, HIGH[j] - margin)
        return {
            "td": td,
            "gap": gap,
            "data": data,
            "spread": sum(spread) / 2,
            "value": min(self.value(q, state, chosen) for q in self.critics),
            "log_pi": self.log_density(observation, chosen),
            "behaviour": self.log_density(observation, inside) / n_agents,
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

        penalty = mean([r["gap"] for r in rows], real)
        penalised = real
        if loss.penalize_imagined:  # pushed down everywhere, up at the data's actions alone
            everywhere = mean([r["gap"] + r["data"] for r in rows])
            penalty = everywhere - mean([r["data"] for r in rows], real)
            penalised = None
        alpha = float(loss.min_q_weight.detach())
        scale = sum(r["spread"] for r in rows) / len(rows) if loss.normalize_q else 1.0
        out = {
            "loss_qvalue": mean([r["td"] for r in rows]),
            "loss_cql": alpha * penalty,
            "loss_actor": mean(
                [(loss.entropy_coeff * r["log_pi"] - r["value"]) / scale for r in rows]
            )
            - loss.bc_coeff * mean([r["behaviour"] for r in rows], real),
        }
        if loss.lagrange_thresh is not None:
            allowed = mean([2 * loss.lagrange_thresh] * len(rows), penalised)
            out["loss_min_q_weight"] = -alpha * (penalty - allowed)
        return out


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Actions that the loss draws, as values only: the reference has its own densities."""
    recorded: dict[str, Tensor] = {}
    sample, rand = macql.sample_with_joint_density, torch.rand

    def record_sample(dist: Any, batch_size: torch.Size, num_samples: int | None = None) -> Any:
        action, log_prob = sample(dist, batch_size, num_samples)
        name = "policy" if num_samples is None else ("there" if "here" in recorded else "here")
        recorded[name] = action.detach()
        return action, log_prob

    def record_uniform(*args: Any, **kwargs: Any) -> Tensor:
        unit = rand(*args, **kwargs)
        low, high = torch.tensor(LOW).to(unit), torch.tensor(HIGH).to(unit)
        recorded["uniform"] = low + unit * (high - low)
        return unit

    monkeypatch.setattr(macql, "sample_with_joint_density", record_sample)
    monkeypatch.setattr(torch, "rand", record_uniform)
    return recorded


VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "fixed": {"bc_coeff": 0.5, "entropy_coeff": 0.1, "min_q_weight": 2.0},
    "lagrangian": {"lagrange_thresh": 0.3, "min_q_weight": 0.7, "num_samples": 2},
    "temperature": {"temperature": 2.5, "normalize_q": False, "entropy_coeff": 0.2},
    "penalized": {"penalize_imagined": True, "bc_coeff": 1.0},
    "penalized lagrangian": {"penalize_imagined": True, "lagrange_thresh": 0.3},
}


@pytest.mark.parametrize("columns", ["plain", "weights", "imagined", "both"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("n_agents", [1, 2, 5])
def test_values_are_the_formulas(
    n_agents: int, variant: str, columns: str, draws: dict[str, Tensor]
) -> None:
    if n_agents != 2 and columns in ("weights", "imagined"):
        columns = "both"
    batch = make_batch(n_agents)
    if columns in ("weights", "both"):
        batch["priority_weight"] = torch.linspace(0.1, 3, ROWS).double()
    if columns in ("imagined", "both"):
        batch["imagined"] = (torch.arange(ROWS) > 3).unsqueeze(-1)
    loss = make_loss(n_agents, **VARIANTS[variant])
    out = loss(batch)
    expected = Reference(loss, draws).compute(batch)
    assert set(expected) == {key for key in out.keys() if key.startswith("loss_")}
    for key, value in expected.items():
        assert out[key].item() == pytest.approx(value, rel=1e-5), key


def test_order_of_agents_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, loss = make_batch(5), make_loss(5, bc_coeff=0.5)
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
    n = loss.num_samples
    monkeypatch.setattr(
        torch, "rand", lambda shape, **_: torch.linspace(0.1, 0.9, n).view(n, 1, 1, 1).expand(shape)
    )
    for params in (loss.qvalue_network_params, loss.target_qvalue_network_params):
        weight = params["module", "network", "0", "weight"].data
        weight[..., 4:] = weight[..., 4:6].repeat(1, 1, 5)
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted = batch.clone()
    for place in (permuted, permuted["next"]):
        place["agents"] = place["agents"].apply(lambda value: value[:, order])
    torch.testing.assert_close(loss(permuted).to_dict(), loss(batch).to_dict())


def gradients(loss: MACQLLoss, value: Tensor) -> set[str]:
    loss.zero_grad()
    value.backward(retain_graph=True)
    return {
        name.split(".")[0]
        for name, p in loss.named_parameters()
        if p.grad is not None and p.grad.abs().sum() > 0
    }


def test_each_loss_trains_its_own_networks() -> None:
    loss = make_loss(lagrange_thresh=1.0, bc_coeff=0.5)
    out = loss(make_batch())
    assert gradients(loss, out["loss_actor"]) == {"actor_network_params"}
    assert gradients(loss, out["loss_qvalue"]) == {"qvalue_network_params"}
    assert gradients(loss, out["loss_cql"]) == {"qvalue_network_params"}
    assert gradients(loss, out["loss_min_q_weight"]) == {"log_min_q_weight"}
    assert not any(t.requires_grad for t in loss.target_qvalue_network_params.values(True, True))
    assert not any(value.requires_grad for key, value in out.items() if not key.startswith("loss_"))


def test_actor_follows_updated_critics() -> None:
    loss, batch = make_loss(normalize_q=False), make_batch()
    torch.manual_seed(2)
    before = loss(batch)["loss_actor"].item()
    loss.qvalue_network_params["module", "network", "2", "bias"].data.add_(3.0)
    torch.manual_seed(2)
    assert loss(batch)["loss_actor"].item() == pytest.approx(before - 3, rel=1e-9)


def test_learned_weight_rises_with_the_gap() -> None:
    batch = make_batch()
    for threshold, sign in ((-100.0, -1), (100.0, 1)):
        loss = make_loss(lagrange_thresh=threshold)
        loss(batch)["loss_min_q_weight"].backward()
        assert math.copysign(1, loss.log_min_q_weight.grad.item()) == sign


def test_no_penalty_without_weight() -> None:
    loss = make_loss(min_q_weight=0.0)
    out = loss(make_batch())
    assert out["loss_cql"].item() == 0 and out["min_q_weight"].item() == 0
    (out["loss_cql"] + out["loss_qvalue"]).backward()
    assert all(p.grad.isfinite().all() for p in loss.qvalue_network_params.parameters())


def test_batch_without_real_rows_has_no_penalty() -> None:
    batch = make_batch().set("imagined", torch.ones(ROWS, 1, dtype=torch.bool))
    out = make_loss(bc_coeff=1.0)(batch)
    assert out["loss_cql"].item() == 0 and out["loss_actor"].isfinite()


def test_padding_counts_for_nothing() -> None:
    loss, batch = make_loss(bc_coeff=0.5), make_batch()
    batch["imagined"] = (torch.arange(ROWS) > 3).unsqueeze(-1)
    mask = torch.arange(ROWS).unsqueeze(-1) < 5
    padded = batch.clone().set(("collector", "mask"), mask)
    padded["state"][5:] = math.nan
    # the same shapes, for the same draws, with another filling of the padded rows
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
    weights = make_loss().qvalue_network_params["module", "network", "0", "weight"]
    assert (weights[0] != weights[1]).any()


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda b: b.pop("state"), KeyError, r"reads \[.{0,2}state.{0,2}\], which are missing"),
        (lambda b: b["next"].pop("reward"), KeyError, "reads .*next.*reward.*which are missing"),
        (
            lambda b: b["next"].set("reward", torch.zeros(ROWS)),
            ValueError,
            r"\('next', 'reward'\) of shape \(7, 1\), found \(7,\)",
        ),
        (
            lambda b: b["agents"].set("action", torch.zeros(ROWS, 2, 3)),
            ValueError,
            r"\('agents', 'action'\) of shape \(7, 2, 2\), found \(7, 2, 3\)",
        ),
        (
            lambda b: b["agents"].set("action", torch.zeros(ROWS, 2, 2, dtype=torch.long)),
            ValueError,
            "continuous actions .* found torch.int64",
        ),
        (
            lambda b: b.set("imagined", torch.zeros(ROWS, 1)),
            ValueError,
            "'imagined' of dtype bool, found torch.float32",
        ),
    ],
)
def test_bad_batches_are_refused(change: Any, error: type[Exception], match: str) -> None:
    batch = make_batch()
    change(batch)
    with pytest.raises(error, match=match):
        make_loss()(batch)


class PerAgentCritic(nn.Module):
    """A critic that values each agent, where the team's value is expected."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, action: Tensor) -> Tensor:
        return self.layer(action)


def test_bad_networks_are_refused() -> None:
    spec, batch = make_spec(), make_batch()
    batch = batch.apply(lambda t: t.float() if t.is_floating_point() else t)
    critic = TensorDictModule(
        PerAgentCritic(), in_keys=[("agents", "action")], out_keys=["state_action_value"]
    )
    loss = MACQLLoss(make_gaussian_actor(spec), critic, action_spec=spec.action_spec())
    with pytest.raises(ValueError, match=r"'state_action_value' of shape \(2, 7, 1\), found"):
        loss(batch)
    blind = TensorDictModule(nn.Linear(4, 1), in_keys=["state"], out_keys=["state_action_value"])
    loss = MACQLLoss(make_gaussian_actor(spec), blind, action_spec=spec.action_spec())
    with pytest.raises(ValueError, match="must read the action"):
        loss(batch)
    named = TensorDictModule(nn.Linear(4, 1), in_keys=["state"], out_keys=["q"])
    loss = MACQLLoss(make_gaussian_actor(spec), named, action_spec=spec.action_spec())
    loss.set_keys(action="state")
    loss.action_low = torch.zeros(4)
    with pytest.raises(KeyError, match="write 'state_action_value'; it writes"):
        loss._value(batch, batch["state"], loss.qvalue_network_params)


def test_bad_arguments_are_refused() -> None:
    discrete = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=6, discrete=True)
    with pytest.raises(ValueError, match="continuous actions.*found Categorical"):
        make_loss_with_spec(discrete.action_spec())
    with pytest.raises(ValueError, match=r"without batch dimensions, found \(5, 2, 2\)"):
        make_loss_with_spec(make_spec().action_spec().expand(5, 2, 2))
    unbounded = make_spec().action_spec()
    unbounded.space.high = torch.full((2, 2), math.inf)
    with pytest.raises(ValueError, match="finite action bounds"):
        make_loss_with_spec(unbounded)
    for name in ("min_q_weight", "bc_coeff", "entropy_coeff", "action_margin"):
        with pytest.raises(ValueError, match=name):
            make_loss(**{name: -1.0})
    with pytest.raises(ValueError, match="temperature"):
        make_loss(temperature=0.0)
    with pytest.raises(ValueError, match="lagrange_thresh"):
        make_loss(lagrange_thresh=1.0, min_q_weight=0.0)
    with pytest.raises(ValueError, match="reduction"):
        make_loss(reduction="median")


def make_loss_with_spec(action_spec: Any) -> MACQLLoss:
    spec = make_spec()
    return MACQLLoss(
        make_gaussian_actor(spec), make_centralized_critic(spec), action_spec=action_spec
    )


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
    state = torch.rand(rows, 2) * 2 - 1
    action = torch.rand(rows, 2, 1) * 2 - 1

    def pay(state: Tensor, action: Tensor) -> Tensor:
        # both agents must meet at a place that the state names; the best is 0
        return -((action.squeeze(-1) - 0.5 * state).square().sum(-1, keepdim=True))

    ended = torch.ones(rows, 1, dtype=torch.bool)
    step = {"agents": {"observation": state.unsqueeze(1).expand(rows, 2, 2)}, "state": state}
    outcome = {"reward": pay(state, action), "done": ended, "terminated": ended}
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
            loc = loss.get_stateful_net("actor_network").get_dist(data).deterministic_sample
        return pay(state, loc).mean().item()

    def actor() -> Any:
        # unshared: each agent has its own place to be
        return make_gaussian_actor(spec, hidden_sizes=(32,), share_params=False)

    cloned = train(BCLoss(actor(), action_spec=spec.action_spec()), 50)
    critic = make_centralized_critic(spec, hidden_sizes=(32,))
    learned = train(
        MACQLLoss(
            actor(), critic, action_spec=spec.action_spec(), min_q_weight=0.05, num_samples=2
        ),
        200,
    )
    assert cloned < -0.1  # the data's mean action is zero, whatever the state
    assert learned > -0.05
