"""Draws from a team's policy with the log-density of the joint action."""

from __future__ import annotations

import torch
from torchrl.modules.distributions.utils import rsample_and_log_prob

__all__ = ["sample_with_joint_density"]


def sample_with_joint_density(
    dist: torch.distributions.Distribution,
    batch_size: torch.Size,
    num_samples: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Draws joint actions and their log-density, :math:`\sum_i \log \pi_i(a_i|o_i)`.

    Args:
        dist (Distribution): distribution over ``[*batch, N, d_a]`` whose ``log_prob`` is per
            agent, ``[*batch, N]``, or joint, ``[*batch]``.
        batch_size (torch.Size): the batch dimensions.
        num_samples (int, optional): number of draws; without it there is no leading dimension.

    Returns:
        Actions ``[num_samples, *batch, N, d_a]`` and log-densities ``[num_samples, *batch]``, both
        differentiable with respect to the distribution's parameters. The density is that of the
        value before squashing, so that saturated actions keep the right one.

    Examples:
        >>> from torch.distributions import Independent, Normal
        >>> dist = Independent(Normal(torch.zeros(5, 3, 2), torch.ones(5, 3, 2)), 1)
        >>> action, log_prob = sample_with_joint_density(dist, torch.Size([5]), 4)
        >>> action.shape, log_prob.shape
        (torch.Size([4, 5, 3, 2]), torch.Size([4, 5]))
    """
    shape = torch.Size(() if num_samples is None else (num_samples,))
    action, log_prob = rsample_and_log_prob(dist, shape)
    joint = len(shape) + len(batch_size)
    if log_prob.ndim > joint:
        log_prob = log_prob.flatten(joint).sum(-1)
    return action, log_prob
