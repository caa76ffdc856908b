"""MAMBA's world model: its step by hand, sequences against steps, codes and heads."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from torchrl_logo.data import TaskSpec
from torchrl_logo.modules import RecurrentLatentWorldModel
from torchrl_logo.modules import recurrent_latent_world_model as module
from torchrl_logo.modules.recurrent_latent_world_model import draw_code

CONTINUOUS = TaskSpec(
    n_agents=3,
    observation_size=4,
    state_size=5,
    action_size=2,
    action_low=(-1.0, -1.0),
    action_high=(1.0, 1.0),
)
DISCRETE = TaskSpec(n_agents=3, observation_size=4, state_size=5, action_size=6, discrete=True)
SMALL: dict[str, Any] = {
    "memory_size": 7,
    "code_groups": 2,
    "code_classes": 3,
    "hidden_size": 8,
    "attention_heads": 2,
}


def make(spec: TaskSpec = CONTINUOUS, **kwargs: Any) -> RecurrentLatentWorldModel:
    torch.manual_seed(0)
    return RecurrentLatentWorldModel(spec, **{**SMALL, **kwargs})


@pytest.fixture
def without_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """The likeliest codes in place of draws, so that numbers can be compared."""
    monkeypatch.setattr(module, "draw_code", lambda logits, generator=None: likeliest(logits))


def likeliest(logits: torch.Tensor) -> torch.Tensor:
    return nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits).flatten(-2)


def run_mlp(mlp: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    linears = [layer for layer in mlp if isinstance(layer, nn.Linear)]
    for layer in linears[:-1]:
        x = nn.functional.elu(x @ layer.weight.T + layer.bias)
    return x @ linears[-1].weight.T + linears[-1].bias


def attend(layer: Any, x: torch.Tensor, heads: int) -> torch.Tensor:
    """A transformer's layer over the agents ``[N, D]`` of one step, as its paper writes it."""
    attention, size = layer.self_attn, x.shape[-1]
    projected = x @ attention.in_proj_weight.T + attention.in_proj_bias
    query, key, value = projected.split(size, -1)
    width, parts = size // heads, []
    for head in range(heads):
        cut = slice(head * width, (head + 1) * width)
        scores = query[:, cut] @ key[:, cut].T / math.sqrt(width)
        parts.append(scores.softmax(-1) @ value[:, cut])
    mixed = torch.cat(parts, -1) @ attention.out_proj.weight.T + attention.out_proj.bias
    x = nn.functional.layer_norm(x + mixed, [size], layer.norm1.weight, layer.norm1.bias)
    inner = (x @ layer.linear1.weight.T + layer.linear1.bias).relu()
    fed = inner @ layer.linear2.weight.T + layer.linear2.bias
    return nn.functional.layer_norm(x + fed, [size], layer.norm2.weight, layer.norm2.bias)


def remember_by_hand(
    model: RecurrentLatentWorldModel, latent: torch.Tensor, action: torch.Tensor
) -> torch.Tensor:
    """The next memories ``[N, H]`` of one team."""
    memory, code = latent[:, : model.memory_size], latent[:, model.memory_size :]
    message = run_mlp(model.mixer, torch.cat([code, action], -1))
    for layer in getattr(model.attention, "layers", ()):
        message = attend(layer, message, 2)
    gru = model.memory
    inputs = message @ gru.weight_ih.T + gru.bias_ih
    hidden = memory @ gru.weight_hh.T + gru.bias_hh
    (ri, ui, ni), (rh, uh, nh) = inputs.chunk(3, -1), hidden.chunk(3, -1)
    reset, update = (ri + rh).sigmoid(), (ui + uh).sigmoid()
    return (1 - update) * (ni + reset * nh).tanh() + update * memory


@pytest.mark.parametrize("layers", [0, 1, 2])
@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])
@pytest.mark.usefixtures("without_draws")
def test_an_imagined_step_is_memory_prior_and_heads(spec: TaskSpec, layers: int) -> None:
    model = make(spec, attention_layers=layers).double()
    latent = torch.randn(3, model.latent_size, dtype=torch.float64)
    if spec.discrete:
        raw = torch.tensor([5, 0, 2])
        action = torch.eye(6, dtype=torch.float64)[raw]
        assert (model.encode_action(raw) == action).all()
    else:
        action = torch.rand(3, 2, dtype=torch.float64)
    found = model.imagine_step(latent, action)
    memory = remember_by_hand(model, latent, action)
    code = likeliest(run_mlp(model.prior_head, memory).view(3, 2, 3))
    expected = torch.cat([memory, code], -1)
    torch.testing.assert_close(found, expected)
    decoded = model.decode(found)
    torch.testing.assert_close(decoded.observation, run_mlp(model.observation_head, expected))
    torch.testing.assert_close(decoded.state, run_mlp(model.state_head, expected.reshape(-1)))
    torch.testing.assert_close(decoded.reward, run_mlp(model.reward_head, expected).mean(0))
    logit = run_mlp(model.termination_head, expected).mean(0)
    torch.testing.assert_close(decoded.termination_logit, logit)
    if spec.discrete:
        mask = run_mlp(model.action_mask_head, expected)
        torch.testing.assert_close(decoded.action_mask_logit, mask)
    else:
        assert decoded.action_mask_logit is None


@pytest.mark.usefixtures("without_draws")
def test_a_sequence_is_its_steps() -> None:
    model = make()
    observation, action = torch.randn(5, 6, 3, 4), torch.rand(5, 6, 3, 2)
    following = torch.randn(5, 6, 3, 4)
    following[:, :-1] = observation[:, 1:]
    sequence = model.unroll(observation, action, following)
    memory = torch.zeros(5, 3, 7)
    for t in range(6):
        latent = model.observe(memory, observation[:, t], deterministic=True)
        torch.testing.assert_close(sequence.latent[:, t], latent)
        memory = model.remember(latent, action[:, t])
        torch.testing.assert_close(sequence.next_memory[:, t], memory)
        torch.testing.assert_close(sequence.prior_logits[:, t], model.prior_logits(memory))
        after = model.observe(memory, following[:, t], deterministic=True)
        torch.testing.assert_close(sequence.next_latent[:, t], after)
        posterior = model.posterior_logits(memory, model.encoder(following[:, t]))
        torch.testing.assert_close(sequence.posterior_logits[:, t], posterior)


@pytest.mark.usefixtures("without_draws")
def test_memories_start_anew_in_the_middle_of_a_sequence() -> None:
    model = make()
    observation, action = torch.randn(2, 6, 3, 4), torch.rand(2, 6, 3, 2)
    following = torch.randn(2, 6, 3, 4)
    is_init = torch.zeros(2, 6, dtype=torch.bool)
    is_init[1, 4] = True
    whole = model.unroll(observation, action, following, is_init)
    plain = model.unroll(observation, action, following)
    tail = model.unroll(observation[1:, 4:], action[1:, 4:], following[1:, 4:])
    for found, unbroken, fresh in zip(whole, plain, tail, strict=True):
        torch.testing.assert_close(found[0], unbroken[0])
        torch.testing.assert_close(found[1, :4], unbroken[1, :4])
        torch.testing.assert_close(found[1, 4:], fresh[0])
        assert not torch.allclose(found[1, 4:], unbroken[1, 4:])


@pytest.mark.usefixtures("without_draws")
def test_agents_are_interchangeable_and_hear_each_other() -> None:
    model = make()
    latent, action = torch.randn(5, 3, model.latent_size), torch.rand(5, 3, 2)
    order = torch.tensor([2, 0, 1])
    found = model.remember(latent, action)
    torch.testing.assert_close(model.remember(latent[:, order], action[:, order]), found[:, order])
    # another agent's action changes what an agent remembers, unless they cannot communicate
    changed = action.clone()
    changed[:, 0] += 0.5
    assert (model.remember(latent, changed)[:, 1] != found[:, 1]).any(-1).all()
    deaf = make(attention_layers=0)
    torch.testing.assert_close(
        deaf.remember(latent, changed)[:, 1:], deaf.remember(latent, action)[:, 1:]
    )


def test_codes_follow_their_probabilities_and_carry_their_gradient() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]])
    codes = draw_code(logits.expand(40_000, 2, 3)).view(-1, 2, 3)
    assert (codes.sum(-1) == 1).all() and set(codes.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(codes.mean(0), logits.softmax(-1), atol=0.01, rtol=0)
    factors = torch.randn(6)
    logits.requires_grad_()
    (draw_code(logits) * factors).sum().backward()
    assert logits.grad is not None
    found = logits.grad.clone()
    logits.grad = None
    (logits.softmax(-1).flatten() * factors).sum().backward()
    torch.testing.assert_close(found, logits.grad)


def test_a_generator_fixes_the_draws() -> None:
    logits = torch.zeros(50, 2, 3)
    draws = [draw_code(logits, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_the_state_head_teaches_the_latents_nothing() -> None:
    model = make()
    latent = torch.randn(5, 3, model.latent_size, requires_grad=True)
    model.decode(latent).state.sum().backward()
    assert latent.grad is None and model.state_head[0].weight.grad is not None


def test_predictions_are_in_the_tasks_units(tmp_path: Path) -> None:
    model = make()
    spread = torch.tensor([1.0, 10.0, 100.0, 0.0])
    data = TensorDict(
        {
            "agents": {"observation": torch.randn(50, 3, 4) * spread + 7},
            "state": torch.randn(50, 5),
            "next": {
                "agents": {"observation": torch.randn(50, 3, 4) * spread + 7},
                "state": torch.randn(50, 5) - 3,
                "reward": torch.randn(50, 1) * 4 + 2,
                "terminated": torch.arange(50).unsqueeze(-1) < 5,
            },
        },
        [50],
    )
    data["agents", "action"] = torch.rand(50, 3, 2)
    model.fit_normalizers(data)
    step = model(data.select(*model.in_keys))["next"]
    observation = data["agents", "observation"]
    assert (
        (step["agents", "observation"] - observation.mean((0, 1))).abs() < 3 * spread + 1e-3
    ).all()
    memory = model.remember(
        model.observe(torch.zeros(50, 3, 7), model.standardise(observation), deterministic=True),
        data["agents", "action"],
    )
    latent = torch.cat([memory, likeliest(model.prior_logits(memory))], -1)
    decoded = model.decode(latent)
    expected = model.state_normalizer.denormalize(decoded.state)
    torch.testing.assert_close(step["state"], expected)
    reward = model.expect_reward(decoded.reward, decoded.termination_logit)
    torch.testing.assert_close(step["reward"], reward)
    model.save(tmp_path / "model.pt")
    again = RecurrentLatentWorldModel.load(tmp_path / "model.pt")
    torch.testing.assert_close(again(data.select(*model.in_keys))["next", "state"], step["state"])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"code_groups": 0}, "code_groups must be at least 1, found 0"),
        ({"attention_layers": -1}, "attention_layers must not be negative, found -1"),
        ({"attention_heads": 3}, "must divide hidden_size 8, found 3"),
    ],
)
def test_bad_sizes_are_refused(kwargs: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**kwargs)
