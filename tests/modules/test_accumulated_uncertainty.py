"""Uncertainty along rollouts, against sums in float64."""

from __future__ import annotations

import torch

from torchrl_logo.modules import (
    accumulate_along,
    accumulate_uncertainty,
    recover_step_uncertainty,
)


def test_older_doubts_fade() -> None:
    steps = torch.rand(5, 7, generator=torch.Generator().manual_seed(0))
    t = torch.arange(7)
    weight = 0.85 ** (t - t.unsqueeze(-1)).double() * (t >= t.unsqueeze(-1))  # [from, to]
    expected = (steps.double().square() @ weight).sqrt()
    torch.testing.assert_close(accumulate_along(steps).double(), expected, atol=1e-6, rtol=1e-6)


def test_a_step_is_told_from_the_sum() -> None:
    before = torch.tensor([0.0, 1.0, 100.0])
    step = torch.tensor([0.5, 0.2, 10.0])
    after = accumulate_uncertainty(before, step)
    torch.testing.assert_close(recover_step_uncertainty(before, after), step, atol=1e-4, rtol=1e-4)
