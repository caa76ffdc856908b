"""Features read on several scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["read_on_scales"]


def read_on_scales(features: torch.Tensor, frequencies: Sequence[float]) -> torch.Tensor:
    """Puts the sines and cosines of features beside them.

    Contacts act within a hair's breadth, far below the spread of positions: a network that reads
    a feature on one scale only is slow to learn them. After "Fourier Features Let Networks Learn
    High Frequency Functions in Low Dimensional Domains" (arXiv 2006.10739), with the same fixed
    frequencies for each feature and no mixing of features.

    Args:
        features (torch.Tensor): standardised, ``[*, d]``.
        frequencies (Sequence[float]): radians per unit, ``K`` of them, possibly none.

    Returns:
        ``[*, (1 + 2 K) d]``: the features, then sines and cosines frequency by frequency.

    Examples:
        >>> read_on_scales(torch.zeros(2, 3), (4.0, 16.0)).shape
        torch.Size([2, 15])
    """
    return torch.cat(split_into_scales(features, frequencies), -1)


def split_into_scales(features: torch.Tensor, frequencies: Sequence[float]) -> list[torch.Tensor]:
    """What :func:`read_on_scales` puts together, for callers that add to it: one copy fewer.

    Args:
        features (torch.Tensor): standardised, ``[*, d]``.
        frequencies (Sequence[float]): radians per unit, ``K`` of them, possibly none.

    Returns:
        ``1 + 2 K`` tensors ``[*, d]``.

    Examples:
        >>> len(split_into_scales(torch.zeros(2, 3), (4.0, 16.0)))
        5
    """
    parts = [features]
    for frequency in frequencies:
        angle = frequency * features
        parts += [angle.sin(), angle.cos()]
    return parts
