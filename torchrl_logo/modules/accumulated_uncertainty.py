"""How the uncertainty of a rollout's steps adds up, and how a step's own is told from the sum."""

from __future__ import annotations

import torch

__all__ = ["accumulate_uncertainty", "recover_step_uncertainty"]


def accumulate_uncertainty(accumulated: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    r"""The root of the sum of squares of all steps so far.

    .. math:: U_t = \sqrt{U_{t-1}^2 + u_t^2}

    Steps that err independently of each other add up so. (The paper weights by the step's
    uncertainty; accumulating it along the rollout is ours. Over plain sums, the root of squares
    lets one very doubtful step weigh as it should: it ranks the errors of rollouts better.)

    Args:
        accumulated (torch.Tensor): up to the last step, ``[*]``; zero at a rollout's start.
        step (torch.Tensor): of the step, ``[*]``, not negative.

    Examples:
        >>> accumulate_uncertainty(torch.tensor([3.0]), torch.tensor([4.0]))
        tensor([5.])
    """
    return torch.hypot(accumulated, step)


def recover_step_uncertainty(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """The uncertainty of the step between two accumulated ones, ``[*]``.

    Args:
        before (torch.Tensor): accumulated up to the step, ``[*]``.
        after (torch.Tensor): accumulated with it, ``[*]``.

    Examples:
        >>> recover_step_uncertainty(torch.tensor([3.0]), torch.tensor([5.0]))
        tensor([4.])
    """
    # A product and not a difference of squares, which would lose small steps to rounding.
    return ((after - before) * (after + before)).clamp_min(0.0).sqrt()
