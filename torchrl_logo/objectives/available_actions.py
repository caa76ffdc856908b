"""Actions that masks leave open: uniform draws of them, and values that heed nothing else."""

from __future__ import annotations

import torch

__all__ = ["fill_unavailable", "sample_available_actions"]


def fill_unavailable(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Replaces what belongs to unavailable actions by the least number of the dtype.

    Args:
        values (torch.Tensor): ``[*]``, floats.
        mask (torch.Tensor): ``[*]`` bool, true where available.

    Returns:
        Values of the same shape; the gradient of what was replaced is zero.

    Examples:
        >>> values = torch.tensor([1.0, 2.0, 3.0])
        >>> fill_unavailable(values, torch.tensor([True, True, False])).argmax()
        tensor(1)
    """
    return torch.where(mask, values, torch.finfo(values.dtype).min)


def sample_available_actions(
    mask: torch.Tensor, num_samples: int
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Draws joint actions, each agent's uniformly from those that it has available.

    Args:
        mask (torch.Tensor): ``[*, N, A]`` bool, true where available.
        num_samples (int): number of draws, ``n``.

    Returns:
        Actions ``[n, *, N]`` int64, and the log-probability ``[*]`` that all draws have,
        :math:`-\sum_i \log |A_i|`. An agent without any available action gets the first one, with
        log-probability zero.

    Examples:
        >>> mask = torch.tensor([[True, False, True], [False, True, False]])
        >>> actions, log_prob = sample_available_actions(mask, 4)
        >>> actions.shape, (actions[:, 0] == 1).any(), (actions[:, 1] == 1).all()
        (torch.Size([4, 2]), tensor(False), tensor(True))
        >>> log_prob  # -log(2) - log(1)
        tensor(-0.6931)
    """
    ranks = mask.cumsum(-1)  # the k-th available action is the first of rank k
    count = ranks[..., -1:]
    uniform = torch.rand((*count.shape[:-1], num_samples), device=mask.device)  # [*, N, n]
    # in float32 the product with a draw just below one can round up to the count itself
    drawn = ((uniform * count).long() + 1).minimum(count)
    actions = torch.searchsorted(ranks, drawn).clamp_max(mask.shape[-1] - 1)  # [*, N, n]
    log_prob = -count.squeeze(-1).clamp_min(1).log().sum(-1)
    return actions.movedim(-1, 0), log_prob
