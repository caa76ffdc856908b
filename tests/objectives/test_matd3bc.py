"""MATD3+BC's numbers, gradients, and what it learns."""

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
from torchrl_logo.modules import make_centralized_critic, make_gaussian_actor
from torchrl_logo.objectives import BCLoss, MATD3BCLoss

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
LOW, HIGH = (-1.0, 0.0), (1.0, 3.0)
ROWS = 7
OBSERVATION, ACTION = ("agents", "observation"), ("agents", "action")


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
            "state": torch.randn(ROWS, 4).double(),
            "next": {
                "agents": {"observation": torch.randn(ROWS, n_agents, 3).double()},
                "state": torch.randn(ROWS, 4).double(),
                "reward": torch.randn(ROWS, 1).double(),
                "done": kind > 0,
                "terminated": kind == 2,
                "truncated": kind == 1,
            },
        },
        [ROWS],
    )


class Linear(nn.Module):
    """A linear layer on all that it is given, or on its squares."""

    def __init__(self, in_size: int, out_size: int, *, square: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(in_size, out_size)
        self.square = square

    def forward(self, first: Tensor, action: Tensor | None = None) -> Tensor:
        x = first if action is None else torch.cat([first, action.flatten(-2)], -1)
        return self.layer(x.square() if self.square else x)


def make_actor() -> TensorDictModule:
    return TensorDictModule(Linear(3, 2), [OBSERVATION], [ACTION])


def make_critic(n_agents: int) -> TensorDictModule:
    network = Linear(4 + 2 * n_agents, 1, square=True)
    return TensorDictModule(network, ["state", ACTION], ["state_action_value"])


def make_loss(n_agents: int = 2, **kwargs: Any) -> MATD3BCLoss:
    torch.manual_seed(0)
    networks = {"actor_network": make_actor(), "qvalue_network": make_critic(n_agents)}
    arguments = {**networks, "action_spec": make_spec(n_agents).action_spec(), **kwargs}
    loss = MATD3BCLoss(**arguments).double()
    # targets that differ from the networks, as they do in training; actions that get clipped
    loss.target_qvalue_network_params.data.mul_(0.7)
    loss.target_actor_network_params.data.mul_(-1.5)
    return loss


class Reference:
    """The losses, row by row and agent by agent, from the formulas of the class's description."""

    def __init__(self, loss: MATD3BCLoss, noise: Tensor) -> None:
        self.loss, self.noise = loss, noise

    @staticmethod
    def linear(params: Any, x: list[float], k: int | None = None) -> list[float]:
        weight, bias = params["module", "layer", "weight"], params["module", "layer", "bias"]
        if k is not None:
            weight, bias = weight[k], bias[k]
        return [
            sum(w * v for w, v in zip(row, x, strict=True)) + b
            for row, b in zip(weight.tolist(), bias.tolist(), strict=True)
        ]

    def act(self, params: Any, observations: Tensor) -> list[list[float]]:
        return [self.linear(params, observation) for observation in observations.tolist()]

    def value(self, params: Any, k: int, state: Tensor, joint: list[list[float]]) -> float:
        inputs = [*state.tolist(), *(x for action in joint for x in action)]
        return self.linear(params, [x * x for x in inputs], k)[0]

    def row(self, batch: TensorDict, b: int) -> dict[str, Any]:
        loss, row, following = self.loss, batch[b], batch["next"][b]
        nets = range(loss.qvalue_network_params.batch_size[0])
        smoothed = self.act(loss.target_actor_network_params, following[OBSERVATION])
        for i, action in enumerate(smoothed):
            for j in range(2):
                half = (HIGH[j] - LOW[j]) / 2
                noise = self.noise[b, i, j].item() * loss.policy_noise
                noise = min(max(noise, -loss.noise_clip), loss.noise_clip)
                action[j] = min(max(action[j] + half * noise, LOW[j]), HIGH[j])
        least = min(
            self.value(loss.target_qvalue_network_params, k, following["state"], smoothed)
            for k in nets
        )
        ended = float(following["terminated"])
        target = float(following["reward"]) + 0.99 * (1 - ended) * least
        data, params = row[ACTION].tolist(), loss.qvalue_network_params
        pred = [self.value(params, k, row["state"], data) for k in nets]
        policy = self.act(loss.actor_network_params, row[OBSERVATION])
        error = 0.0
        for chosen, taken in zip(policy, data, strict=True):
            for j in range(2):
                error += ((chosen[j] - taken[j]) / ((HIGH[j] - LOW[j]) / 2)) ** 2
        return {
            "loss_qvalue": sum((q - target) ** 2 for q in pred),
            "first": pred[0],
            "value": self.value(params, 0, row["state"], policy),
            "pred_value": sum(pred) / len(pred),
            "target_value": target,
            "bc_error": error / (2 * len(data)),
        }

    def compute(self, batch: TensorDict) -> dict[str, float]:
        rows = [self.row(batch, b) for b in range(len(batch))]
        weights = batch.get("priority_weight", torch.ones(len(batch))).tolist()
        kept = [True] * len(rows)
        if "imagined" in batch.keys():
            kept = (~batch["imagined"].squeeze(-1)).tolist()

        def mean(name: str, w: list[float]) -> float:
            return sum(a * r[name] for a, r in zip(w, rows, strict=True)) / sum(w)

        ones = [1.0] * len(rows)
        scale = self.loss.alpha / (sum(abs(r["first"]) for r in rows) / len(rows))
        real = [w if k else 0.0 for w, k in zip(weights, kept, strict=True)]
        return {
            "loss_qvalue": mean("loss_qvalue", weights),
            "loss_actor": -scale * mean("value", weights) + mean("bc_error", real),
            "pred_value": mean("pred_value", ones),
            "target_value": mean("target_value", ones),
            "bc_error": mean("bc_error", ones),
            "q_scale": scale,
        }


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The standard normal numbers that the loss draws."""
    recorded: list[Tensor] = []
    draw = torch.distributions.normal._standard_normal

    def record(*args: Any, **kwargs: Any) -> Tensor:
        recorded.append(draw(*args, **kwargs))
        return recorded[-1]

    monkeypatch.setattr(torch.distributions.normal, "_standard_normal", record)
    return recorded


VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "noisy": {"policy_noise": 1.5, "noise_clip": 0.9, "alpha": 0.4, "num_qvalue_nets": 3},
}


@pytest.mark.parametrize("columns", ["plain", "weights", "imagined", "both"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("n_agents", [1, 2, 5])
def test_losses_are_the_formulas(
    n_agents: int, variant: str, columns: str, noise: list[Tensor]
) -> None:
    loss, batch = make_loss(n_agents, **VARIANTS[variant]), make_batch(n_agents)
    if columns in ("weights", "both"):
        batch["priority_weight"] = torch.linspace(0, 3, ROWS).double()
    if columns in ("imagined", "both"):
        batch["imagined"] = (torch.arange(ROWS) > 3).unsqueeze(-1)
    found = loss(batch)
    assert len(noise) == 1
    expected = Reference(loss, noise[0]).compute(batch)
    assert set(found.keys()) == set(expected)
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=1e-5), name


def test_cases_of_the_reference_occur(noise: list[Tensor]) -> None:
    # the test above would not see clipping that never happens
    loss, batch = make_loss(**VARIANTS["noisy"]), make_batch()
    loss(batch)
    size = noise[0].abs() * loss.policy_noise
    assert (size > loss.noise_clip).any() and (size < loss.noise_clip).any()
    action = loss._act(batch["next"], loss.target_actor_network_params)
    assert (action < loss.action_low).any() and (action > loss.action_low).any()


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
    def same(shape: Any, dtype: torch.dtype, device: Any) -> Tensor:
        return torch.linspace(-1, 1, shape[-1], dtype=dtype, device=device).expand(shape)

    monkeypatch.setattr(torch.distributions.normal, "_standard_normal", same)
    loss, batch, order = make_loss(3), make_batch(3), [2, 0, 1]
    for params in (loss.qvalue_network_params, loss.target_qvalue_network_params):
        # critics that treat agents alike
        weight = params["module", "layer", "weight"].data
        weight[..., 4:] = weight[..., 4:6].repeat(1, 1, 3)
    permuted = batch.clone()
    permuted[OBSERVATION] = batch[OBSERVATION][:, order]
    permuted[ACTION] = batch[ACTION][:, order]
    permuted["next"][OBSERVATION] = batch["next"][OBSERVATION][:, order]
    found, expected = loss(permuted), loss(batch)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)


def test_a_stochastic_actor_acts_on_its_deterministic_action() -> None:
    spec = make_spec()
    torch.manual_seed(0)
    actor = make_gaussian_actor(spec, hidden_sizes=(6,))
    loss = MATD3BCLoss(
        actor,
        make_centralized_critic(spec, kind="state", hidden_sizes=(6,)),
        action_spec=spec.action_spec(),
    )
    batch = make_batch().apply(lambda x: x.float() if x.is_floating_point() else x)
    action = actor.get_dist(batch.select(OBSERVATION)).deterministic_sample
    error = ((action - batch[ACTION]) / loss.half_range).square().mean((-2, -1))
    out = loss(batch)
    torch.testing.assert_close(out["bc_error"], error.mean().detach())
    # the same at each call: nothing is drawn but the target's noise
    assert loss(batch)["loss_actor"] == out["loss_actor"]
    assert loss(batch)["target_value"] != out["target_value"]


def test_each_loss_trains_its_own_networks() -> None:
    loss = make_loss()
    out = loss(make_batch())
    for key, network in (("loss_qvalue", "qvalue_network"), ("loss_actor", "actor_network")):
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


def test_the_scale_has_no_gradient() -> None:
    loss, batch = make_loss(), make_batch()
    loss(batch)["loss_actor"].backward()
    weight = loss.actor_network_params["module", "layer", "weight"]
    expected = weight.grad.clone()
    loss.zero_grad()
    scale = loss(batch)["q_scale"].item()
    action = loss._act(batch, loss.actor_network_params)
    value = loss._value(batch, action, loss.qvalue_network_params.detach())[0]
    error = ((action - batch[ACTION]) / loss.half_range).square().mean()
    (error - scale * value.mean()).backward()
    torch.testing.assert_close(weight.grad, expected)


def test_scaling_all_values_leaves_the_actor_alone() -> None:
    batch, losses = make_batch(), []
    for factor in (1.0, 1000.0):
        loss = make_loss()
        loss.qvalue_network_params.data.mul_(factor)
        losses.append(loss(batch)["loss_actor"].item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)


def test_batch_without_real_rows_has_no_distance() -> None:
    loss, batch = make_loss(), make_batch()
    imagined = batch.clone().set("imagined", torch.ones(ROWS, 1, dtype=torch.bool))
    out = loss(imagined)
    expected = loss(batch)["loss_actor"] - out["bc_error"]
    torch.testing.assert_close(out["loss_actor"], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_does_not_overflow(dtype: torch.dtype) -> None:
    batch = make_batch().apply(lambda x: x.float() if x.is_floating_point() else x)
    with torch.autocast("cpu", dtype=dtype):
        out = make_loss().float()(batch)
    assert all(value.isfinite() for value in out.values())


def test_padding_counts_for_nothing() -> None:
    loss, batch = make_loss(), make_batch()
    batch["imagined"] = (torch.arange(ROWS) > 3).unsqueeze(-1)
    mask = torch.arange(ROWS).unsqueeze(-1) < 5
    padded = batch.clone().set(("collector", "mask"), mask)
    padded["state"][5:] = math.nan
    torch.manual_seed(3)
    with_nan = loss(padded)
    torch.manual_seed(3)
    filled = loss(batch.clone().set(("collector", "mask"), mask))
    torch.manual_seed(3)
    short = loss(batch[:5])
    for key in with_nan.keys():
        torch.testing.assert_close(with_nan[key], filled[key])
    # the noise has another shape in the shorter batch
    for key in ("loss_actor", "pred_value", "bc_error", "q_scale"):
        torch.testing.assert_close(with_nan[key], short[key])


def test_caller_keeps_its_batch() -> None:
    batch = make_batch()
    before = batch.clone()
    make_loss()(batch)
    assert set(batch.keys(True, True)) == set(before.keys(True, True))
    assert (batch == before).all()


def test_critics_start_differently() -> None:
    weights = make_loss().qvalue_network_params["module", "layer", "weight"]
    assert (weights[0] != weights[1]).any()


class Quadratic(nn.Module):
    """A critic that can be exact soon: of state and joint action, all products of two."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(25, 1)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([torch.ones_like(state[..., :1]), state, action.flatten(-2)], -1)
        return self.layer((x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2))


def test_learns_the_compromise_of_value_and_data() -> None:
    """One step, whose best joint action is half the state; the data's actions are uniform."""
    torch.manual_seed(0)
    spec = TaskSpec(
        n_agents=2,
        observation_size=1,
        state_size=2,
        action_size=1,
        action_low=(-1.0,),
        action_high=(1.0,),
    )
    rows = 512
    state, action = torch.rand(rows, 2) * 2 - 1, torch.rand(rows, 2, 1) * 2 - 1

    def pay(action: Tensor) -> Tensor:
        return -((action.squeeze(-1) - 0.5 * state).square().sum(-1, keepdim=True))

    ended = torch.ones(rows, 1, dtype=torch.bool)
    # each agent sees its own part of the state
    step = {"agents": {"observation": state.unsqueeze(-1)}, "state": state}
    outcome = {"reward": pay(action), "done": ended, "terminated": ended}
    batch = TensorDict({**step, "next": {**step, **outcome}}, [rows])
    batch[ACTION] = action

    def actor() -> Any:
        return make_gaussian_actor(spec, hidden_sizes=(32,))

    critic = TensorDictModule(Quadratic(), ["state", ACTION], ["state_action_value"])
    td3bc = MATD3BCLoss(actor(), critic, action_spec=spec.action_spec())
    bc = BCLoss(actor(), action_spec=spec.action_spec())
    updater = SoftUpdate(td3bc, tau=0.05)
    for loss in (td3bc, bc):
        optimizer = torch.optim.Adam(loss.parameters(), lr=3e-2)
        for i in range(300):
            out = loss(batch)
            if i % 2:
                out.pop("loss_actor" if loss is td3bc else "bc_log_prob")  # delayed
            optimizer.zero_grad()
            sum(v for k, v in out.items() if k.startswith("loss_")).backward()
            optimizer.step()
            if loss is td3bc:
                updater.step()
    with torch.no_grad():
        chosen, cloned = (
            loss.get_stateful_net("actor_network").get_dist(batch).deterministic_sample
            for loss in (td3bc, bc)
        )
    # the least of lambda (x - s/2)^2 + x^2 / 2, as the mean over two agents' actions is
    weight = 2.5 / pay(action).abs().mean()
    compromise = (0.5 * state * weight / (weight + 0.5)).unsqueeze(-1)
    assert (chosen - compromise).square().mean().sqrt() < 0.02
    assert pay(cloned).mean() < -0.1 < -0.01 < pay(chosen).mean()


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
        (
            lambda b: b.set("imagined", torch.zeros(ROWS, dtype=torch.bool)),
            ValueError,
            r"'imagined' of shape \(7, 1\), found \(7,\)",
        ),
    ],
)
def test_bad_batches_are_refused(change: Any, error: type[Exception], match: str) -> None:
    batch = make_batch()
    change(batch)
    with pytest.raises(error, match=match):
        make_loss()(batch)


@pytest.mark.parametrize(
    ("name", "network", "error", "match"),
    [
        (
            "actor_network",
            lambda: TensorDictModule(Linear(3, 1), [OBSERVATION], [ACTION]),
            ValueError,
            r"'action'\) of shape \(7, 2, 2\), found \(7, 2, 1\)",
        ),
        (
            "actor_network",
            lambda: TensorDictModule(Linear(3, 2), [OBSERVATION], ["chosen"]),
            KeyError,
            "actor_network to write .*action.*it writes",
        ),
        (
            "qvalue_network",
            lambda: TensorDictModule(Linear(4, 1), ["state"], ["state_action_value"]),
            ValueError,
            "qvalue_network must read the action",
        ),
        (
            "qvalue_network",
            lambda: TensorDictModule(Linear(8, 1), ["state", ACTION], ["value"]),
            KeyError,
            "qvalue_network to write .*state_action_value.*it writes",
        ),
        (
            "qvalue_network",
            lambda: TensorDictModule(nn.Linear(2, 1), [ACTION], ["state_action_value"]),
            ValueError,
            r"'state_action_value' of shape \(2, 7, 1\), found \(2, 7, 2, 1\)",
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
    with pytest.raises(ValueError, match="MATD3BCLoss.*continuous actions.*found Categorical"):
        make_loss(action_spec=discrete.action_spec())
    with pytest.raises(ValueError, match=r"without batch dimensions.*\(5, 2, 2\)"):
        make_loss(action_spec=make_spec().action_spec().expand(5, 2, 2))
    unbounded = make_spec().action_spec()
    unbounded.space.high = torch.full((2, 2), math.inf)
    with pytest.raises(ValueError, match="finite action bounds"):
        make_loss(action_spec=unbounded)
    for name, value in (
        ("alpha", -1.0),
        ("policy_noise", -0.1),
        ("noise_clip", -0.1),
        ("reduction", "median"),
    ):
        with pytest.raises(ValueError, match=name):
            make_loss(**{name: value})
