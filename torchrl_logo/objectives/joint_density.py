"""Draws from a team's policy, and the log-density of joint actions."""

from __future__ import annotations

import torch
from torchrl.modules.distributions.utils import rsample_and_log_prob

__all__ = ["sample_with_joint_density", "sum_over_agents"]


def sum_over_agents(log_prob: torch.Tensor, batch_size: torch.Size) -> torch.Tensor:
    r"""Log-density of the joint action, :math:`\sum_i \log \pi_i(a_i|o_i)`.

    Args:
        log_prob (torch.Tensor): ``[*batch]``, joint already, or with further dimensions, whose
            entries are independent: agents ``[*batch, N]``, or components ``[*batch, N, d_a]``.
        batch_size (torch.Size): the batch dimensions.

    Returns:
        ``[*batch]``.

    Raises:
        ValueError: if ``log_prob`` does not begin with the batch dimensions.

    Examples:
        >>> sum_over_agents(torch.ones(5, 3), torch.Size([5]))
        tensor([3., 3., 3., 3., 3.])
    """
    joint = len(batch_size)
    if log_prob.shape[:joint] != batch_size:
        raise ValueError(
            "The actor's log_prob must be joint, [*batch], or per agent, [*batch, N], with batch "
            f"{tuple(batch_size)}; found shape {tuple(log_prob.shape)}."
        )
    return log_prob.flatten(joint).sum(-1) if log_prob.ndim > joint else log_prob


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

    Raises:
        ValueError: if the distribution's ``log_prob`` does not have the batch dimensions.

    Examples:
        >>> from torch.distributions import Independent, Normal
        >>> dist = Independent(Normal(torch.zeros(5, 3, 2), torch.ones(5, 3, 2)), 1)
        >>> action, log_prob = sample_with_joint_density(dist, torch.Size([5]), 4)
        >>> action.shape, log_prob.shape
        (torch.Size([4, 5, 3, 2]), torch.Size([4, 5]))
    """
    shape = torch.Size(() if num_samples is None else (num_samples,))
    action, log_prob = rsample_and_log_prob(dist, shape)
    return action, sum_over_agents(log_prob, shape + batch_size)
