"""Draws of available actions."""

from __future__ import annotations

import math

import pytest
import torch

from torchrl_logo.objectives.available_actions import fill_unavailable, sample_available_actions

MASK = torch.tensor(
    [
        [[True, True, True, True], [False, True, False, True]],
        [[False, False, True, False], [True, False, True, True]],
    ]
)


def test_draws_are_uniform_over_what_is_available() -> None:
    torch.manual_seed(0)
    actions, log_prob = sample_available_actions(MASK, 40_000)
    assert actions.shape == (40_000, 2, 2) and actions.dtype is torch.int64
    frequency = torch.nn.functional.one_hot(actions, 4).float().mean(0)
    torch.testing.assert_close(frequency, MASK / MASK.sum(-1, keepdim=True), atol=0.01, rtol=0)
    assert log_prob.tolist() == pytest.approx([-math.log(4 * 2), -math.log(1 * 3)])


def test_agents_draw_independently() -> None:
    torch.manual_seed(0)
    actions = sample_available_actions(torch.ones(3, 2, dtype=torch.bool), 40_000)[0]
    joint = (actions * torch.tensor([1, 2, 4])).sum(-1).bincount(minlength=8) / 40_000
    torch.testing.assert_close(joint, torch.full((8,), 0.125), atol=0.01, rtol=0)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24], ids=["least", "greatest"])
def test_ends_of_the_random_numbers_are_available(
    uniform: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, uniform))
    for count in range(1, 300):
        mask = torch.arange(302) % 301 < count
        mask[0] = False
        assert mask[sample_available_actions(mask.unsqueeze(0), 1)[0]].all()


def test_agents_without_actions_get_a_valid_index() -> None:
    actions, log_prob = sample_available_actions(torch.zeros(2, 3, dtype=torch.bool), 5)
    assert (actions == 0).all() and log_prob == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_unavailable_values_never_win(dtype: torch.dtype) -> None:
    values = torch.tensor([-1e30, 5.0, 1e30], dtype=dtype, requires_grad=True)
    filled = fill_unavailable(values, torch.tensor([True, True, False]))
    assert filled.dtype is dtype and filled.isfinite().all()
    filled.logsumexp(-1).backward()
    assert filled.argmax() == 1 and values.grad.tolist() == [0, 1, 0]
