"""Aggregates over seeds and datasets with stratified-bootstrap intervals.

The measures are those of Agarwal et al., "Deep Reinforcement Learning at the Edge of the
Statistical Precipice" (NeurIPS 2021, arXiv 2108.13264). Scores are arrays ``[seeds, datasets]``;
the bootstrap redraws the seeds of each dataset on its own (the strata), and intervals are
percentile intervals.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "Estimate",
    "Summary",
    "interquartile_mean",
    "performance_profile",
    "probability_of_improvement",
    "summarize",
]

FloatArray = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A statistic with its bootstrap interval.

    Attributes:
        value: the statistic of the scores themselves.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclasses.dataclass(frozen=True)
class Summary:
    """What :func:`summarize` says of one method.

    Attributes:
        mean: mean over all seeds and datasets.
        iqm: interquartile mean over all seeds and datasets.
        seeds: number of seeds of each dataset.
        datasets: number of datasets.
    """

    mean: Estimate
    iqm: Estimate
    seeds: int
    datasets: int


def interquartile_mean(scores: npt.ArrayLike, axis: int | None = None) -> Any:
    """Mean of the middle half of the scores.

    A quarter of the scores, rounded down, is left out at each end, so that single runs that
    failed or excelled do not decide the result.

    Args:
        scores (array-like): of any shape.
        axis (int, optional): where to take the mean. Defaults to all scores at once.

    Raises:
        ValueError: if there are no scores.

    Examples:
        >>> float(interquartile_mean([0.0, 10.0, 20.0, 90.0]))
        15.0
    """
    array = np.asarray(scores, dtype=np.float64)
    if axis is None:
        array, axis = array.reshape(-1), 0
    if not array.size:
        raise ValueError(
            f"interquartile_mean expected scores, found none (shape {list(array.shape)}): pass "
            "one a run."
        )
    cut = array.shape[axis] // 4
    middle = np.sort(array, axis=axis).take(range(cut, array.shape[axis] - cut), axis=axis)
    return middle.mean(axis=axis)


def summarize(
    scores: Mapping[str, npt.ArrayLike],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Summary]:
    """Mean and interquartile mean of each method, with stratified-bootstrap intervals.

    Args:
        scores (mapping): from the method's name to its final scores (usually normalised),
            ``[seeds, datasets]``, or ``[seeds]`` for one dataset.

    Keyword Args:
        confidence (float): probability mass of the intervals. Defaults to ``0.95``.
        resamples (int): bootstrap samples. Defaults to ``2000``.
        seed (int): of the bootstrap.

    Raises:
        ValueError: if scores have another number of dimensions, fewer than two seeds (there is
            nothing to resample: an interval would claim certainty), NaN or infinity.

    Examples:
        >>> result = summarize({"logo": [50.0, 60.0, 70.0, 80.0], "bc": [10.0, 10.0, 10.0, 10.0]})
        >>> result["logo"].iqm.value, result["logo"].mean.low < 65 < result["logo"].mean.high
        (65.0, True)
        >>> print(result["bc"].mean)
        10.00 [10.00, 10.00]
    """
    arrays = {name: _as_scores(name, value) for name, value in scores.items()}
    _check_bootstrap(confidence, resamples)
    out = {}
    for name, array in arrays.items():
        # Each method's interval is the same whatever other methods it is listed with.
        samples = _resample(array, resamples, np.random.default_rng(seed))  # [R, S, D]
        flat = samples.reshape(resamples, -1)
        out[name] = Summary(
            mean=_estimate(float(array.mean()), flat.mean(-1), confidence),
            iqm=_estimate(
                float(interquartile_mean(array)), interquartile_mean(flat, axis=-1), confidence
            ),
            seeds=array.shape[0],
            datasets=array.shape[1],
        )
    return out


def probability_of_improvement(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Probability that a run of ``x`` beats a run of ``y`` on the same dataset.

    The mean over datasets of the Mann-Whitney statistic: the share of pairs of runs in which
    ``x`` has the higher score, where a tie counts half.

    Args:
        x (array-like): scores of one method, ``[seeds, datasets]`` or ``[seeds]``.
        y (array-like): scores of the other; the number of seeds may differ.

    Keyword Args:
        confidence (float): probability mass of the interval. Defaults to ``0.95``.
        resamples (int): bootstrap samples. Defaults to ``2000``.
        seed (int): of the bootstrap.

    Raises:
        ValueError: as :func:`summarize`, or if the numbers of datasets differ.

    Examples:
        >>> probability_of_improvement([1.0, 2.0, 3.0], [0.0, 2.0]).value  # 4 wins, 1 tie of 6
        0.75
    """
    first, second = _as_scores("x", x), _as_scores("y", y)
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"x and y need scores on the same datasets, found {first.shape[1]} and "
            f"{second.shape[1]} of them."
        )
    _check_bootstrap(confidence, resamples)
    pairs = first[:, None], second[None]
    wins = (pairs[0] > pairs[1]) + 0.5 * (pairs[0] == pairs[1])  # [S, T, D]
    rng = np.random.default_rng(seed)
    # How often each run is in each bootstrap sample: the pairs need not be resampled themselves.
    counts = [
        _count(_draw(array.shape, resamples, rng), array.shape[0]) for array in (first, second)
    ]
    total = np.einsum("rsd,std,rtd->r", counts[0], wins, counts[1], optimize=True)
    return _estimate(float(wins.mean()), total / wins.size, confidence)


def performance_profile(
    scores: npt.ArrayLike,
    thresholds: Sequence[float] | FloatArray,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> list[Estimate]:
    """Share of the runs whose score is above each threshold.

    Args:
        scores (array-like): of one method, ``[seeds, datasets]`` or ``[seeds]``.
        thresholds (sequence of float): scores to compare with, ``[K]``.

    Keyword Args:
        confidence (float): probability mass of the (pointwise) intervals. Defaults to ``0.95``.
        resamples (int): bootstrap samples. Defaults to ``2000``.
        seed (int): of the bootstrap.

    Returns:
        ``K`` estimates, each between 0 and 1.

    Raises:
        ValueError: as :func:`summarize`.

    Examples:
        >>> [e.value for e in performance_profile([10.0, 50.0, 90.0, 95.0], [0, 50, 92])]
        [1.0, 0.5, 0.25]
    """
    array = _as_scores("scores", scores)
    _check_bootstrap(confidence, resamples)
    above = array[None] > np.asarray(thresholds, dtype=np.float64)[:, None, None]  # [K, S, D]
    draw = _draw(array.shape, resamples, np.random.default_rng(seed))
    counts = _count(draw, array.shape[0])  # [R, S, D]
    shares = np.einsum("rsd,ksd->kr", counts, above, optimize=True) / array.size
    return [
        _estimate(float(value.mean()), share, confidence)
        for value, share in zip(above, shares, strict=True)
    ]


def bootstrap_interval(
    values: npt.ArrayLike,
    statistic: Callable[[FloatArray], FloatArray] = lambda sample: sample.mean(-1),
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile-bootstrap interval of a statistic of independent values, such as episodes.

    Args:
        values (array-like): ``[n]``, at least two.
        statistic (callable): maps samples ``[R, n]`` to ``[R]``. Defaults to the mean.

    Keyword Args:
        confidence (float): probability mass of the interval. Defaults to ``0.95``.
        resamples (int): bootstrap samples ``R``. Defaults to ``2000``.
        seed (int): of the bootstrap.

    Raises:
        ValueError: as :func:`summarize`.

    Examples:
        >>> bootstrap_interval([3.0, 3.0, 3.0])
        (3.0, 3.0)
    """
    array = _as_scores("values", np.asarray(values).reshape(-1))
    _check_bootstrap(confidence, resamples)
    samples = _resample(array, resamples, np.random.default_rng(seed)).squeeze(-1)
    estimate = _estimate(float("nan"), statistic(samples), confidence)
    return estimate.low, estimate.high


def _as_scores(name: str, value: npt.ArrayLike) -> FloatArray:
    array = np.asarray(value, dtype=np.float64)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or not array.size:
        raise ValueError(
            f"Scores of {name!r}: expected shape [seeds, datasets] or [seeds], found "
            f"{list(np.shape(value))}. Pass the final score of each run."
        )
    if array.shape[0] < 2:
        raise ValueError(
            f"Scores of {name!r}: an interval needs at least 2 seeds, found 1: run more."
        )
    if not np.isfinite(array).all():
        raise ValueError(
            f"Scores of {name!r}: expected finite numbers, found "
            f"{int((~np.isfinite(array)).sum())} of {array.size} that are NaN or infinite."
        )
    return array


def _check_bootstrap(confidence: float, resamples: int) -> None:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be between 0 and 1, found {confidence!r}.")
    if resamples < 1:
        raise ValueError(f"resamples must be positive, found {resamples!r}.")


def _draw(
    shape: tuple[int, ...], resamples: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Seeds drawn with replacement, for each dataset on its own: ``[R, S, D]``."""
    return rng.integers(shape[0], size=(resamples, *shape))


def _resample(scores: FloatArray, resamples: int, rng: np.random.Generator) -> FloatArray:
    return scores[_draw(scores.shape, resamples, rng), np.arange(scores.shape[1])]


def _count(draw: npt.NDArray[np.int64], seeds: int) -> FloatArray:
    """How often each seed was drawn, ``[R, S, D]``."""
    resamples, _, datasets = draw.shape
    counts = np.zeros((resamples, seeds, datasets))
    rows = np.arange(resamples)[:, None, None]
    np.add.at(counts, (rows, draw, np.arange(datasets)), 1.0)
    return counts


def _estimate(value: float, samples: FloatArray, confidence: float) -> Estimate:
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(samples, [tail, 1.0 - tail])
    return Estimate(value=value, low=float(low), high=float(high))
