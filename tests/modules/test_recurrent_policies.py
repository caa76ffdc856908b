"""Networks with memory: their numbers, resets, and how they act."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict, from_module
from torch import nn
from torchrl.envs import InitTracker, TransformedEnv
from torchrl.modules import set_recurrent_mode
from torchrl.modules.utils import get_primers_from_module

from torchrl_logo.data import TaskSpec
from torchrl_logo.envs import make_env
from torchrl_logo.modules import (
    DecentralizedGRU,
    Normalizer,
    RecurrentNetwork,
    make_recurrent_action_value_network,
    make_recurrent_categorical_actor,
    make_recurrent_gaussian_actor,
)
from torchrl_logo.objectives import BCLoss

B, T, N, D, H = 4, 7, 3, 5, 6
DISCRETE = TaskSpec(n_agents=N, observation_size=D, state_size=2, action_size=4, discrete=True)
CONTINUOUS = TaskSpec(
    n_agents=N,
    observation_size=D,
    state_size=2,
    action_size=2,
    action_low=(-1.0, 0.0),
    action_high=(1.0, 4.0),
)
STATE = ("agents", "recurrent_state")
NEXT_STATE = ("next", *STATE)
SHARING = pytest.mark.parametrize("share_params", [True, False], ids=["shared", "own"])


def make_sequences(dtype: torch.dtype = torch.float32) -> TensorDict:
    """Sequences ``[B, T]`` in which episodes begin anywhere, or nowhere."""
    torch.manual_seed(1)
    is_init = torch.rand(B, T, 1) < 0.3
    is_init[0] = False
    is_init[1, 3:5] = True
    agents = {
        "observation": torch.randn(B, T, N, D, dtype=dtype),
        "action_mask": torch.rand(B, T, N, 4) < 0.7,
        "recurrent_state": torch.randn(B, T, N, H, dtype=dtype),
    }
    agents["action_mask"][..., 0] = True
    return TensorDict({"agents": agents, "is_init": is_init}, [B, T])


def run(network: nn.Module, data: TensorDict) -> TensorDict:
    with set_recurrent_mode(True):
        return network(data.clone())


def run_by_steps(network: nn.Module, data: TensorDict) -> TensorDict:
    steps, state = [], data[STATE][:, 0]
    for step in data.clone().unbind(1):
        step = network(step.set(STATE, state))
        state = step[NEXT_STATE]
        steps.append(step)
    return torch.stack(steps, 1)


MAKERS: list[Callable[..., nn.Module]] = [
    lambda **kwargs: make_recurrent_action_value_network(DISCRETE, recurrent_size=H, **kwargs),
    lambda **kwargs: make_recurrent_categorical_actor(DISCRETE, recurrent_size=H, **kwargs),
    lambda **kwargs: make_recurrent_gaussian_actor(CONTINUOUS, recurrent_size=H, **kwargs),
]
OUTPUTS = [
    [("agents", "action_value")],
    [("agents", "logits")],
    [("agents", "loc"), ("agents", "scale")],
]
ALL = pytest.mark.parametrize(
    ("make", "outputs"), list(zip(MAKERS, OUTPUTS, strict=True)), ids=["value", "discrete", "gauss"]
)


@SHARING
def test_memory_is_torchs_gru(share_params: bool) -> None:
    torch.manual_seed(0)
    gru = DecentralizedGRU(D, H, N, share_params=share_params)
    inputs, start = torch.randn(B, T, N, D), torch.randn(B, N, H)
    no_reset = torch.zeros(B, T, dtype=torch.bool)
    found = gru.unroll(inputs, no_reset, start)
    for agent in range(N):
        reference = nn.GRU(D, H, batch_first=True)
        for name, value in gru.named_parameters():
            own = value if share_params else value[agent]
            getattr(reference, f"{name}_l0").data.copy_(own)
        expected, _ = reference(inputs[:, :, agent], start[:, agent].unsqueeze(0))
        torch.testing.assert_close(found[:, :, agent], expected)
    torch.testing.assert_close(gru(inputs[:, 0], start), found[:, 0])


@SHARING
@ALL
def test_sequences_are_steps(
    make: Callable[..., nn.Module], outputs: list[tuple[str, str]], share_params: bool
) -> None:
    torch.manual_seed(0)
    network = make(share_params=share_params, hidden_sizes=(8, 7)).double()
    data = make_sequences(torch.float64)
    sequences, steps = run(network, data), run_by_steps(network, data)
    for key in [*outputs, NEXT_STATE]:
        torch.testing.assert_close(sequences[key], steps[key], rtol=1e-10, atol=1e-10)


@ALL
def test_gradients_of_sequences_are_those_of_steps(
    make: Callable[..., nn.Module], outputs: list[tuple[str, str]]
) -> None:
    torch.manual_seed(0)
    network = make(share_params=False).double()
    data = make_sequences(torch.float64)
    gradients = []
    for way in (run, run_by_steps):
        total = sum(way(network, data)[key].square().sum() for key in outputs)
        gradients.append(torch.autograd.grad(total, list(network.parameters())))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_nothing_passes_a_reset() -> None:
    network = MAKERS[0]()
    data = make_sequences()
    data["is_init"][:] = False
    data["is_init"][:, 3] = True
    before = run(network, data)["agents", "action_value"]
    data["agents", "observation"][:, :3] += 1.0
    data[STATE] += 1.0
    after = run(network, data)["agents", "action_value"]
    torch.testing.assert_close(after[:, 3:], before[:, 3:], rtol=0, atol=0)
    assert (after[:, :3] != before[:, :3]).any(-1).all()
    # and what came before matters up to the reset
    data["agents", "observation"][:, 3] += 1.0
    later = run(network, data)["agents", "action_value"]
    assert (later[:, 4:] != after[:, 4:]).any(-1).all()
    # a sequence that starts with a reset needs no state
    data["is_init"][:, 0] = True
    torch.testing.assert_close(
        run(network, data.exclude(STATE))["agents", "action_value"],
        run(network, data)["agents", "action_value"],
    )


@SHARING
def test_agents_remember_their_own_observations(share_params: bool) -> None:
    torch.manual_seed(0)
    network = MAKERS[0](share_params=share_params)
    data = make_sequences()
    before = run(network, data)["agents", "action_value"]
    data["agents", "observation"][..., 1, :] += 1
    after = run(network, data)["agents", "action_value"]
    torch.testing.assert_close(after[..., [0, 2], :], before[..., [0, 2], :], rtol=0, atol=0)
    assert (after[..., 1, :] != before[..., 1, :]).any(-1).all()
    data["agents", "observation"][:] = 1.0
    data[STATE][:] = 0.0
    same = run(network, data)["agents", "action_value"]
    assert torch.allclose(same[..., 0, :], same[..., 1, :]) is share_params


def test_observations_are_normalised() -> None:
    normalizer = Normalizer(D)
    normalizer.fit(torch.randn(50, D) * 3 + 1)
    torch.manual_seed(0)
    plain = MAKERS[0]()
    torch.manual_seed(0)
    network = MAKERS[0](normalizer=normalizer)
    data = make_sequences()
    found = run(network, data)["agents", "action_value"]
    data["agents", "observation"] = normalizer.normalize(data["agents", "observation"])
    torch.testing.assert_close(found, run(plain, data)["agents", "action_value"])


@SHARING
def test_parameters_that_are_put_in_are_used(share_params: bool) -> None:
    torch.manual_seed(0)
    network, data = MAKERS[0](share_params=share_params), make_sequences()
    sets = [from_module(network).data.clone() * scale for scale in (0.5, 2.0)]

    def call(params: TensorDict) -> torch.Tensor:
        with params.to_module(network, preserve_module_state=False), set_recurrent_mode(True):
            return network(data.copy())["agents", "action_value"]

    expected = torch.stack([call(params) for params in sets])
    assert (expected[0] != expected[1]).any()
    torch.testing.assert_close(torch.vmap(call)(torch.stack(sets)), expected)


@pytest.mark.parametrize("recurrent", [True, False], ids=["sequence", "step"])
def test_devices_and_compilation(recurrent: bool) -> None:
    network, data = MAKERS[0](), make_sequences()
    on_meta = MAKERS[0](share_params=False, device="meta")
    with set_recurrent_mode(recurrent):
        on_meta(data.to("meta"))["agents", "action_value"].sum().backward()
        torch._dynamo.reset()
        compiled = torch.compile(network, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(data.clone()), network(data.clone()))
    assert all(parameter.grad is not None for parameter in on_meta.parameters())


@pytest.mark.parametrize("share_params", [True, False], ids=["shared", "own"])
def test_acting_in_an_environment_is_running_over_what_it_recorded(share_params: bool) -> None:
    torch.manual_seed(0)
    env = make_env("vmas/balance", num_envs=B, seed=0)
    env.episode_length = 4  # so that episodes end within the rollout
    spec = TaskSpec.from_env(env)
    actor = make_recurrent_gaussian_actor(spec, recurrent_size=H, share_params=share_params)
    env = TransformedEnv(env, InitTracker())
    env.append_transform(get_primers_from_module(actor))
    with torch.no_grad():
        rollout = env.rollout(10, actor, break_when_any_done=False)
        assert rollout["is_init"].squeeze(-1)[0].nonzero().flatten().tolist() == [0, 4, 8]
        again = run(actor.module[0], rollout.exclude(("agents", "loc"), NEXT_STATE))
        # losses read no recorded states, and start from zeros
        loss = BCLoss(actor, reduction="none")(rollout.exclude(STATE))
    assert (rollout[STATE][:, 1:4] != 0).any()
    torch.testing.assert_close(again["agents", "loc"], rollout["agents", "loc"])
    inner = (rollout["agents", "action"].abs() < 1 - 1e-3).all(-1).all(-1)
    log_prob = rollout["agents", "action_log_prob"].mean(-1)
    torch.testing.assert_close(loss["bc_log_prob"][inner], log_prob[inner], rtol=1e-3, atol=1e-3)


def test_bad_input_is_refused() -> None:
    network, data = MAKERS[0](), make_sequences()
    with pytest.raises(KeyError, match=r"is_init.*InitTracker"):
        network(data.exclude("is_init"))
    with pytest.raises(KeyError, match=r"recurrent_state.*get_primers_from_module"):
        network(data.exclude(STATE))
    with pytest.raises(ValueError, match=r"is_init.*\(4, 7, 1\), found \(4, 7\)"):
        network(data.set("is_init", data["is_init"].squeeze(-1)))
    data = make_sequences().set(STATE, torch.zeros(B, T, N, H + 1))
    with pytest.raises(ValueError, match=r"recurrent_state.*\(4, 7, 3, 6\), found \(4, 7, 3, 7\)"):
        network(data)
    with pytest.raises(ValueError, match="last dimension is time"), set_recurrent_mode(True):
        network(make_sequences()[0, 0])
    with pytest.raises(ValueError, match="continuous actions; the task's are discrete"):
        make_recurrent_gaussian_actor(DISCRETE)
    for make in (make_recurrent_categorical_actor, make_recurrent_action_value_network):
        with pytest.raises(ValueError, match="discrete actions; the task's are continuous"):
            make(CONTINUOUS)


def test_keys_can_be_chosen() -> None:
    network = RecurrentNetwork(
        nn.Identity(),
        DecentralizedGRU(D, H, N),
        nn.Linear(H, 2),
        in_key="obs",
        out_keys=["out"],
        state_key="memory",
        init_key="start",
    )
    data = TensorDict(
        {
            "obs": torch.randn(B, N, D),
            "memory": torch.randn(B, N, H),
            "start": torch.zeros(B, 1, dtype=torch.bool),
        },
        [B],
    )
    found = network(data.clone())
    assert found["out"].shape == (B, N, 2)
    torch.testing.assert_close(found["next", "memory"], network.gru(data["obs"], data["memory"]))
    assert network.make_tensordict_primer().primers["memory"].shape == (N, H)
