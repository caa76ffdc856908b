"""Mean ranks of methods over datasets."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from torchrl_logo.evaluation import Estimate

__all__ = ["mean_ranks"]


def mean_ranks(
    scores: Mapping[str, npt.ArrayLike],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Rank of each method's mean over seeds, 1 for the best, averaged over datasets.

    Methods with the same mean share the mean of their ranks. The interval is that of a bootstrap
    that redraws the seeds of each method on each dataset on its own.

    Args:
        scores (mapping): from the method's name to its scores ``[seeds, datasets]``.

    Keyword Args:
        confidence (float): probability mass of the intervals.
        resamples (int): bootstrap samples.
        seed (int): of the bootstrap.

    Examples:
        >>> ranks = mean_ranks({"a": [[9.0, 1.0], [9.0, 1.0]], "b": [[5.0, 5.0], [5.0, 5.0]]})
        >>> ranks["a"].value, ranks["b"].value
        (1.5, 1.5)
    """
    arrays = np.stack([np.asarray(value, dtype=np.float64) for value in scores.values()])
    methods, seeds, datasets = arrays.shape
    draws = np.random.default_rng(seed).integers(seeds, size=(resamples, methods, seeds, datasets))
    resampled = np.take_along_axis(arrays[None], draws, axis=2).mean(2)  # [R, M, D]
    samples = rankdata(-resampled, axis=1).mean(-1)  # [R, M]
    values = rankdata(-arrays.mean(1), axis=0).mean(-1)  # [M]
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(samples, [tail, 1.0 - tail], axis=0)
    return {
        name: Estimate(float(values[i]), float(low[i]), float(high[i]))
        for i, name in enumerate(scores)
    }
