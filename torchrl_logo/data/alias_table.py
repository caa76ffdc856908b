"""Walker's alias table: a draw from a discrete distribution in constant time."""

from __future__ import annotations

import torch

__all__ = ["make_alias_table"]


@torch.no_grad()
def make_alias_table(mass: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Makes the table from which outcomes are drawn with probability proportional to ``mass``.

    A slot ``s`` is drawn uniformly from the :math:`G` slots. With probability ``keep[s]`` the
    outcome is ``s``, and ``alias[s]`` otherwise (Walker, 1977, "An Efficient Method for Generating
    Discrete Random Variables with General Distributions").

    The table is made without a loop: slots with less than an average mass are filled up, in order,
    from those with more, in order. Who fills whom is where the running sum of what is lacking meets
    the running sum of what is in excess (Hübschle-Schneider and Sanders, "Parallel Weighted Random
    Sampling", 2022, use the same split to work in parallel).

    Args:
        mass (torch.Tensor): float64 ``[G]``, not negative, with a finite and positive sum.

    Returns:
        ``keep`` float64 ``[G]``, within 0 and 1, and ``alias`` int64 ``[G]``. An outcome without
        mass is never drawn: its ``keep`` is exactly 0, and nobody's alias is it.

    Examples:
        >>> keep, alias = make_alias_table(torch.tensor([3.0, 0.0, 1.0], dtype=torch.float64))
        >>> keep, alias
        (tensor([1.0000, 0.0000, 0.7500], dtype=torch.float64), tensor([0, 0, 0]))
        >>> (keep + torch.zeros(3).double().index_add(0, alias, 1 - keep)) / 3  # the distribution
        tensor([0.7500, 0.0000, 0.2500], dtype=torch.float64)
    """
    share = mass * (len(mass) / mass.sum())  # 1: the slot's own
    keep = share.clamp(max=1.0)
    alias = torch.arange(len(mass), device=mass.device)
    is_full = share >= share.max().clamp(max=1.0)  # by rounding, none may be above 1
    lacking, full = (~is_full).nonzero().squeeze(-1), is_full.nonzero().squeeze(-1)
    keep[full] = 1.0
    if not len(lacking):
        return keep, alias
    lack = (1 - share[lacking]).cumsum(0)
    excess = (share[full] - 1).clamp_(min=0.0).cumsum(0)
    # A lacking slot is filled by the first full one that has not been used up before it.
    before = torch.cat([lack.new_zeros(1), lack[:-1]])
    giver = torch.searchsorted(excess, before).clamp_(max=len(full) - 1)
    alias[lacking] = full[giver]
    # A full slot that gave more than it had is filled by the next one. The last one cannot be, but
    # for rounding.
    taker = torch.searchsorted(lack, excess[:-1], right=True).clamp_(max=len(lacking) - 1)
    overdrawn = (lack[taker] - excess[:-1]).clamp_(0.0, 1.0)
    keep[full[:-1]] = 1 - overdrawn
    alias[full[:-1]] = full[1:]
    return keep, alias
