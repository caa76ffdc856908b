"""How the uncertainty of a rollout's steps adds up, and how a step's own is told from the sum."""

from __future__ import annotations

import torch

__all__ = ["accumulate_along", "accumulate_uncertainty", "recover_step_uncertainty"]

# Errors fade: velocities are forgotten in a few steps, positions are not. Between 0.8 and 0.9
# accumulated uncertainties ranked the errors of rollouts best, on tasks of either kind.
_KEPT = 0.85


def accumulate_uncertainty(accumulated: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    r"""The root of the sum of squares of the steps so far, of which older ones fade.

    .. math:: U_t = \sqrt{0.85\, U_{t-1}^2 + u_t^2}

    Steps that err independently of each other add up so. (The paper weights by the step's
    uncertainty; accumulating it along the rollout is ours. Over plain sums, the root of squares
    lets one very doubtful step weigh as it should: it ranks the errors of rollouts better; and so
    does letting old doubts fade, as old errors do.)

    Args:
        accumulated (torch.Tensor): up to the last step, ``[*]``; zero at a rollout's start.
        step (torch.Tensor): of the step, ``[*]``, not negative.

    Examples:
        >>> accumulate_uncertainty(torch.tensor([3.0]), torch.tensor([4.0])).square()
        tensor([23.6500])
    """
    return torch.hypot(_KEPT**0.5 * accumulated, step)


def recover_step_uncertainty(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """The uncertainty of the step between two accumulated ones, ``[*]``.

    Args:
        before (torch.Tensor): accumulated up to the step, ``[*]``.
        after (torch.Tensor): accumulated with it, ``[*]``.

    Examples:
        >>> recover_step_uncertainty(torch.tensor([0.0]), torch.tensor([5.0]))
        tensor([5.])
    """
    before = _KEPT**0.5 * before
    # A product and not a difference of squares, which would lose small steps to rounding.
    return ((after - before) * (after + before)).clamp_min(0.0).sqrt()


def accumulate_along(steps: torch.Tensor) -> torch.Tensor:
    """Accumulated uncertainties of whole rollouts, ``[*, T]`` to ``[*, T]``.

    Args:
        steps (torch.Tensor): the steps' own, of rollouts from their starts.

    Examples:
        >>> accumulate_along(torch.tensor([[3.0, 4.0]])).square()
        tensor([[ 9.0000, 23.6500]])
    """
    accumulated = [steps[..., 0]]
    for step in steps.unbind(-1)[1:]:
        accumulated.append(accumulate_uncertainty(accumulated[-1], step))
    return torch.stack(accumulated, -1)
