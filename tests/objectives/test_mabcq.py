"""Continuous batch-constrained Q-learning: its numbers, gradients, and what it learns."""

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
    make_action_vae,
    make_gaussian_actor,
    make_perturbation_network,
)
from torchrl_logo.objectives import BCLoss, MABCQLoss

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
LOW, HIGH = (-1.0, 0.0), (1.0, 3.0)
ROWS, LATENTS, PHI = 7, 3, 0.2


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 2 * LATENTS)

    def forward(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_scale = self.layer(torch.cat([observation, action], -1)).chunk(2, -1)
        return loc, log_scale.exp()


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 + LATENTS, 2)

    def forward(self, observation: Tensor, latent: Tensor) -> Tensor:
        return self.layer(torch.cat([observation, latent], -1))


class Perturbation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 2)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return action + PHI * torch.tanh(self.layer(torch.cat([observation, action], -1)))


class Critic(nn.Module):
    """A weighted sum over features of the state and the joint action, with a square."""

    def __init__(self, n_agents: int) -> None:
        super().__init__()
        self.layer = nn.Linear(4 + 2 * n_agents, 1)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        return self.layer(torch.cat([state, action.flatten(-2)], -1).square())


def make_spec(n_agents: int = 2) -> TaskSpec:
    return TaskSpec(
        n_agents=n_agents,
        observation_size=3,
        state_size=4,
        action_size=2,
        action_low=LOW,
        action_high=HIGH,
    )


OBSERVATION, ACTION = ("agents", "observation"), ("agents", "action")
LATENT = ("agents", "latent")
MOMENTS = [("agents", "latent_loc"), ("agents", "latent_scale")]


def make_networks(n_agents: int = 2) -> dict[str, Any]:
    return {
        "encoder_network": TensorDictModule(Encoder(), [OBSERVATION, ACTION], MOMENTS),
        "decoder_network": TensorDictModule(Decoder(), [OBSERVATION, LATENT], [ACTION]),
        "perturbation_network": TensorDictModule(Perturbation(), [OBSERVATION, ACTION], [ACTION]),
        "qvalue_network": [
            TensorDictModule(Critic(n_agents), ["state", ACTION], ["state_action_value"])
            for _ in range(2)
        ],
    }


def make_loss(n_agents: int = 2, **kwargs: Any) -> MABCQLoss:
    torch.manual_seed(0)
    spec = make_spec(n_agents).action_spec()
    arguments = {**make_networks(n_agents), "action_spec": spec, "latent_size": LATENTS, **kwargs}
    loss = MABCQLoss(**arguments).double()
    # targets that differ from the networks, as they do in training
    loss.target_qvalue_network_params.data.mul_(0.7)
    loss.target_perturbation_network_params.data.mul_(-0.5)
    return loss


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


class Reference:
    """The losses, row by row and agent by agent, from the formulas of the class's description."""

    def __init__(self, loss: MABCQLoss, noise: list[Tensor]) -> None:
        # what the loss draws, in its order: for the latents, the target, and the policy
        self.loss, (self.posterior, self.following, self.here) = loss, noise

    @staticmethod
    def linear(params: Any, x: list[float], k: int | None = None) -> list[float]:
        weight, bias = params["module", "layer", "weight"], params["module", "layer", "bias"]
        if k is not None:
            weight, bias = weight[k], bias[k]
        return [
            sum(w * v for w, v in zip(row, x, strict=True)) + b
            for row, b in zip(weight.tolist(), bias.tolist(), strict=True)
        ]

    def generate(self, observations: Tensor, noise: Tensor, perturbation: Any) -> list[float]:
        """A joint action, agent after agent."""
        clip, joint = self.loss.latent_clip, []
        for observation, z in zip(observations.tolist(), noise.tolist(), strict=True):
            z = [min(max(x, -clip), clip) for x in z]
            action = self.linear(self.loss.decoder_network_params, [*observation, *z])
            moves = self.linear(perturbation, [*observation, *action])
            joint += [a + PHI * math.tanh(m) for a, m in zip(action, moves, strict=True)]
        return joint

    def value(self, params: Any, k: int, state: Tensor, joint: list[float]) -> float:
        return self.linear(params, [x * x for x in [*state.tolist(), *joint]], k)[0]

    def row(self, batch: TensorDict, b: int) -> dict[str, float]:
        loss, row, following = self.loss, batch[b], batch["next"][b]
        n_agents = row[ACTION].shape[0]
        mse = kl = 0.0
        for i in range(n_agents):
            observation, action = row[OBSERVATION][i].tolist(), row[ACTION][i].tolist()
            out = self.linear(loss.encoder_network_params, [*observation, *action])
            loc, scale = out[:LATENTS], [math.exp(x) for x in out[LATENTS:]]
            noise = self.posterior[b, i].tolist()
            z = [m + s * e for m, s, e in zip(loc, scale, noise, strict=True)]
            decoded = self.linear(loss.decoder_network_params, [*observation, *z])
            for j in range(2):
                half = (HIGH[j] - LOW[j]) / 2
                mse += ((decoded[j] - action[j]) / half) ** 2 / (2 * n_agents)
            for m, s in zip(loc, scale, strict=True):
                kl += (-math.log(s) + (s * s + m * m) / 2 - 0.5) / (LATENTS * n_agents)
        best = -math.inf
        for draw in range(loss.num_samples):
            joint = self.generate(
                following[OBSERVATION],
                self.following[draw, b],
                loss.target_perturbation_network_params,
            )
            values = [
                self.value(loss.target_qvalue_network_params, k, following["state"], joint)
                for k in range(2)
            ]
            weight = loss.min_weight
            best = max(best, weight * min(values) + (1 - weight) * max(values))
        ended = float(following["terminated"])
        target = float(following["reward"]) + 0.99 * (1 - ended) * best
        data = row[ACTION].flatten().tolist()
        pred = [self.value(loss.qvalue_network_params, k, row["state"], data) for k in range(2)]
        policy = self.generate(row[OBSERVATION], self.here[b], loss.perturbation_network_params)
        return {
            "loss_qvalue": sum((q - target) ** 2 for q in pred),
            "loss_vae": mse + loss.kl_coeff * kl,
            "loss_actor": -self.value(loss.qvalue_network_params, 0, row["state"], policy),
            "pred_value": sum(pred) / 2,
            "target_value": target,
            "reconstruction_error": mse,
            "kl_divergence": kl,
        }

    def compute(self, batch: TensorDict) -> dict[str, float]:
        rows = [self.row(batch, b) for b in range(len(batch))]
        weights = batch.get("priority_weight", torch.ones(len(batch))).tolist()
        out = {}
        for name in rows[0]:
            w = weights if name.startswith("loss_") else [1.0] * len(rows)
            out[name] = sum(a * r[name] for a, r in zip(w, rows, strict=True)) / sum(w)
        return out


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


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("n_agents", [1, 2, 5])
@pytest.mark.parametrize(
    "kwargs",
    [{}, {"num_samples": 1, "min_weight": 0.0, "kl_coeff": 2.0, "latent_clip": 3.0}],
    ids=["default", "other"],
)
def test_losses_are_the_formulas(
    n_agents: int, weighted: bool, kwargs: dict[str, Any], noise: list[Tensor]
) -> None:
    loss, batch = make_loss(n_agents, **kwargs), make_batch(n_agents)
    if weighted:
        batch["priority_weight"] = torch.linspace(0, 3, ROWS).double()
    found = loss(batch)
    expected = Reference(loss, noise).compute(batch)
    assert set(found.keys()) == set(expected)
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=1e-5), name


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
    action = loss.actor_network(batch.select(OBSERVATION))[ACTION]
    again = loss.actor_network(permuted.select(OBSERVATION))[ACTION]
    torch.testing.assert_close(again, action[:, order])


def test_gradients_stay_with_their_networks() -> None:
    loss, batch = make_loss(), make_batch()
    expected = {
        "loss_qvalue": {"qvalue_network"},
        "loss_vae": {"encoder_network", "decoder_network"},
        "loss_actor": {"perturbation_network"},
    }
    for key, networks in expected.items():
        loss.zero_grad()
        out = loss(batch)
        out[key].backward()
        reached = {
            name.split("_params")[0]
            for name, parameter in loss.named_parameters()
            if parameter.grad is not None and (parameter.grad != 0).any()
        }
        assert reached == networks
    assert not any(out[key].requires_grad for key in loss.out_keys if "loss" not in key)


def test_actor_decodes_zero_and_perturbs() -> None:
    loss, batch = make_loss(), make_batch()
    data = batch.select(OBSERVATION)
    found = loss.actor_network(data.clone())[ACTION]
    still = Reference(loss, [torch.empty(0)] * 3)
    for b in range(ROWS):
        joint = still.generate(
            data[OBSERVATION][b], torch.zeros(2, LATENTS), loss.perturbation_network_params
        )
        assert found[b].flatten().tolist() == pytest.approx(joint, rel=1e-6)
    # each agent acts on what it sees
    data[OBSERVATION][:, 1] += 1
    changed = (loss.actor_network(data)[ACTION] != found).any(-1)
    assert changed[:, 1].all() and not changed[:, 0].any()


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
    padded["state"][5:] = math.nan
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


class Quadratic(nn.Module):
    """A critic that can be exact soon: of each state, a quadratic in the joint action."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(10, 1)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        joint = action.flatten(-2)
        features = torch.cat([torch.ones_like(state[..., :1]), joint, joint.square()], -1)
        return self.layer((state.unsqueeze(-1) * features.unsqueeze(-2)).flatten(-2))


def test_moves_to_what_is_worth_more_but_not_far_from_the_data() -> None:
    """The best action is near the data's for one kind of state, and far from it for the other."""
    torch.manual_seed(0)
    spec = TaskSpec(
        n_agents=2,
        observation_size=2,
        state_size=2,
        action_size=1,
        action_low=(-1.0,),
        action_high=(1.0,),
    )
    rows = 512
    kind = (torch.arange(rows) % 2).float().unsqueeze(-1)
    state = torch.cat([kind, 1 - kind], -1)
    action = torch.rand(rows, 2, 1) - 0.5  # around zero

    def pay(state: Tensor, action: Tensor) -> Tensor:
        best = 0.15 + 0.6 * state[:, :1]  # [B, 1]
        return -(action.squeeze(-1) - best).square().sum(-1, keepdim=True)

    ended = torch.ones(rows, 1, dtype=torch.bool)
    step = {"agents": {"observation": state.unsqueeze(1).expand(rows, 2, 2)}, "state": state}
    outcome = {"reward": pay(state, action), "done": ended, "terminated": ended}
    batch = TensorDict({**step, "next": {**step, **outcome}}, [rows])
    batch[ACTION] = action
    bcq = MABCQLoss(
        *make_action_vae(spec, hidden_sizes=(16,)),
        make_perturbation_network(spec, hidden_sizes=(16,), phi=0.3),
        TensorDictModule(Quadratic(), ["state", ACTION], ["state_action_value"]),
        action_spec=spec.action_spec(),
    )
    bc = BCLoss(make_gaussian_actor(spec, hidden_sizes=(16,)), action_spec=spec.action_spec())
    updater = SoftUpdate(bcq, tau=0.05)
    for loss in (bcq, bc):
        optimizer = torch.optim.Adam(loss.parameters(), lr=2e-2)
        for step_index in range(300):
            out = loss(batch)
            if loss is bcq and step_index < 150:
                # a perturbation that follows untrained critics saturates its tanh, and stays there
                out.pop("loss_actor")
            optimizer.zero_grad()
            sum(v for k, v in out.items() if k.startswith("loss_")).backward()
            optimizer.step()
            if loss is bcq:
                updater.step()
    data = batch.select(OBSERVATION)
    with torch.no_grad():
        chosen = bcq.actor_network(data.clone())[ACTION]
        cloned = bc.actor_network.get_dist(data.clone()).deterministic_sample
    near, far = kind.squeeze(-1) == 0, kind.squeeze(-1) == 1
    assert cloned.abs().max() < 0.1
    assert (chosen[near] - 0.15).abs().max() < 0.08
    # the far optimum is at 0.75: as close as the perturbation allows, and no closer
    assert (chosen[far] > 0.2).all() and (chosen[far] < 0.45).all()
    assert pay(state, chosen).mean() > pay(state, cloned).mean() + 0.1


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
    ],
)
def test_bad_batches_are_refused(change: Any, error: type[Exception], match: str) -> None:
    batch = make_batch()
    change(batch)
    with pytest.raises(error, match=match):
        make_loss()(batch)


class Narrow(nn.Module):
    """Writes less than it should, whatever it reads."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.sizes = sizes

    def forward(self, observation: Tensor, *others: Tensor) -> Any:
        out = tuple(self.layer(observation).expand(*observation.shape[:-1], s) for s in self.sizes)
        return out if len(out) > 1 else out[0]


@pytest.mark.parametrize(
    ("name", "network", "error", "match"),
    [
        (
            "encoder_network",
            lambda: TensorDictModule(Narrow(2, 2), [OBSERVATION, ACTION], MOMENTS),
            ValueError,
            r"latent_loc'\) of shape \(7, 2, 3\), found \(7, 2, 2\)",
        ),
        (
            "encoder_network",
            lambda: TensorDictModule(Narrow(3, 3), [OBSERVATION, ACTION], ["mean", MOMENTS[1]]),
            KeyError,
            "encoder_network to write .*latent_loc.*it writes",
        ),
        (
            "decoder_network",
            lambda: TensorDictModule(Narrow(1), [OBSERVATION, LATENT], [ACTION]),
            ValueError,
            r"'action'\) of shape \(7, 2, 2\), found \(7, 2, 1\)",
        ),
        (
            "decoder_network",
            lambda: TensorDictModule(Narrow(2), [OBSERVATION], [ACTION]),
            ValueError,
            "decoder_network must read .*latent",
        ),
        (
            "perturbation_network",
            lambda: TensorDictModule(Narrow(2), [OBSERVATION, ACTION], ["moved"]),
            ValueError,
            "perturbation_network must write .*action.*it writes",
        ),
        (
            "qvalue_network",
            lambda: TensorDictModule(nn.Linear(4, 1), ["state"], ["state_action_value"]),
            ValueError,
            "qvalue_network must read .*action",
        ),
        (
            "qvalue_network",
            lambda: TensorDictModule(Narrow(1), [OBSERVATION, ACTION], ["state_action_value"]),
            ValueError,
            r"'state_action_value' of shape \(2, 10, 7, 1\), found \(2, 10, 7, 2, 1\)",
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
    with pytest.raises(ValueError, match="continuous actions.*found Categorical"):
        make_loss(action_spec=discrete.action_spec())
    with pytest.raises(ValueError, match=r"without batch dimensions.*\(5, 2, 2\)"):
        make_loss(action_spec=make_spec().action_spec().expand(5, 2, 2))
    unbounded = make_spec().action_spec()
    unbounded.space.high = torch.full((2, 2), math.inf)
    with pytest.raises(ValueError, match="finite action bounds"):
        make_loss(action_spec=unbounded)
    for name, value in (
        ("num_samples", 0),
        ("min_weight", 1.5),
        ("kl_coeff", -1.0),
        ("latent_clip", 0.0),
        ("reduction", "median"),
    ):
        with pytest.raises(ValueError, match=name):
            make_loss(**{name: value})
