"""Joint densities against sums that are written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Independent, Normal

from torchrl_logo.modules.squashed_normal import SquashedNormal
from torchrl_logo.objectives.joint_density import sample_with_joint_density, sum_over_agents


@pytest.mark.parametrize("num_samples", [None, 3])
@pytest.mark.parametrize("event_dims", [0, 1, 2], ids=["components", "agents", "joint"])
def test_density_is_the_product_over_agents(event_dims: int, num_samples: int | None) -> None:
    torch.manual_seed(0)
    loc, scale = torch.randn(5, 2, 3).double(), torch.rand(5, 2, 3).double() + 0.5
    dist = Independent(Normal(loc, scale), event_dims)
    action, log_prob = sample_with_joint_density(dist, torch.Size([5]), num_samples)
    z = (action - loc) / scale
    expected = (-(z**2) / 2 - scale.log() - math.log(2 * math.pi) / 2).sum((-1, -2))
    torch.testing.assert_close(log_prob, expected)


def test_saturated_actions_keep_their_density() -> None:
    # In float32 the action is the bound itself: its own inverse would be a quite different value.
    loc, one = torch.full((1, 2, 1), 20.0), torch.ones(1)
    dist = SquashedNormal(loc, torch.full((1, 2, 1), 0.1), low=-one, high=one)
    torch.manual_seed(0)
    action, log_prob = sample_with_joint_density(dist, torch.Size([1]))
    assert (action > 0.9999).all()
    torch.manual_seed(0)
    x = (loc + 0.1 * torch.randn(1, 2, 1)).double()
    # log (1 - tanh(x)^2) = log 4 - 2x - 2 log(1 + exp(-2x)), which is stable for large x
    slope = math.log(4) - 2 * x - 2 * torch.log1p((-2 * x).exp())
    normal = -(((x - 20) / 0.1) ** 2) / 2 - math.log(0.1) - math.log(2 * math.pi) / 2
    expected = (normal - slope).sum().float().reshape(1)
    torch.testing.assert_close(log_prob, expected, rtol=1e-4, atol=1e-3)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"batch \(5,\); found shape \(2,\)"):
        sum_over_agents(torch.zeros(2), torch.Size([5]))
