"""Statistics against rliable, scipy and numbers worked out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import bootstrap, mannwhitneyu, trim_mean

from torchrl_logo.evaluation import (
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
    summarize,
)
from torchrl_logo.evaluation.statistics import bootstrap_interval


def make_scores(seeds=10, datasets=6, shift=0.0, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(shift + 10 * np.arange(datasets), 5.0, size=(seeds, datasets))


@pytest.mark.parametrize("shape", [(2, 1), (5, 3), (10, 1), (7, 2)])
def test_interquartile_mean_is_the_trimmed_mean(shape):
    scores = make_scores(*shape)
    assert interquartile_mean(scores) == pytest.approx(trim_mean(scores, 0.25, axis=None))
    np.testing.assert_allclose(interquartile_mean(scores, axis=0), trim_mean(scores, 0.25, axis=0))


def test_interquartile_mean_by_hand():
    assert interquartile_mean([-1000.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1000.0]) == 3.5
    assert interquartile_mean([5.0, 1.0, 3.0]) == 3.0  # a quarter of three is none


def test_interval_matches_all_possible_resamples():
    # Three seeds have 27 equally likely resamples: the bootstrap's distribution is known.
    scores = [0.0, 3.0, 12.0]
    means = [np.mean(sample) for sample in itertools.product(scores, repeat=3)]
    for confidence in (0.5, 0.8):
        tail = (1 - confidence) / 2
        low, high = np.quantile(means, [tail, 1 - tail], method="inverted_cdf")
        estimate = summarize({"m": scores}, confidence=confidence, resamples=20_001)["m"].mean
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx((5.0, low, high))


def test_datasets_are_strata():
    # Datasets differ, seeds do not: resampling within a dataset changes nothing.
    constant = np.tile([0.0, 50.0, 100.0], (4, 1))
    summary = summarize({"m": constant})["m"]
    assert (summary.mean.low, summary.mean.value, summary.mean.high) == (50.0, 50.0, 50.0)
    assert (summary.iqm.low, summary.iqm.high) == (50.0, 50.0)
    assert (summary.seeds, summary.datasets) == (4, 3)


def test_points_match_rliable():
    # Only rliable's metrics: its intervals need a release of arch that fits the installed pandas.
    metrics = pytest.importorskip("rliable.metrics")
    x, y = make_scores(shift=2.0, seed=1), make_scores(seed=2)
    summary = summarize({"x": x})["x"]
    assert summary.mean.value == pytest.approx(metrics.aggregate_mean(x))
    assert summary.iqm.value == pytest.approx(metrics.aggregate_iqm(x))
    expected = metrics.probability_of_improvement(x, y)
    assert probability_of_improvement(x, y).value == pytest.approx(expected)


def test_strata_match_all_possible_resamples():
    scores = np.array([[0.0, 10.0], [1.0, 14.0], [5.0, 15.0]])
    redraws = [list(itertools.product(column, repeat=3)) for column in scores.T]
    means = [np.mean([*a, *b]) for a, b in itertools.product(*redraws)]  # 27 * 27
    low, high = np.quantile(means, [0.1, 0.9], method="inverted_cdf")
    estimate = summarize({"m": scores}, confidence=0.8, resamples=20_001)["m"].mean
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.18)  # one step
    # Without strata the difference between the datasets would be in the interval.
    pooled = bootstrap_interval(scores, confidence=0.8)
    assert pooled[1] - pooled[0] > 2 * (estimate.high - estimate.low)


def within_a_part_of_its_width(ours, interval):
    # Both bootstraps are random, so their ends agree but for a part of the width.
    width = interval.high - interval.low
    return abs(ours.low - interval.low) < 0.1 * width > abs(ours.high - interval.high)


def test_intervals_match_scipy():
    x, y = make_scores(datasets=1, seed=1)[:, 0], make_scores(seeds=8, datasets=1, seed=2)[:, 0]
    options = {"method": "percentile", "n_resamples": 4000, "rng": np.random.default_rng(0)}
    summary = summarize({"x": x}, resamples=4000)["x"]

    def iqm(sample, axis):
        return trim_mean(sample, 0.25, axis=axis)

    def wins(first, second, axis):
        size = first.shape[axis] * second.shape[axis]
        return mannwhitneyu(first, second, axis=axis).statistic / size

    def above(sample, axis):
        return (sample > 1.0).mean(axis)

    mean = bootstrap((x,), np.mean, **options).confidence_interval
    assert within_a_part_of_its_width(summary.mean, mean)
    middle = bootstrap((x,), iqm, **options).confidence_interval
    assert within_a_part_of_its_width(summary.iqm, middle)
    improvement = bootstrap((x, y), wins, **options).confidence_interval
    assert within_a_part_of_its_width(probability_of_improvement(x, y), improvement)
    share = bootstrap((x,), above, **options).confidence_interval
    assert within_a_part_of_its_width(performance_profile(x, [1.0])[0], share)


def test_performance_profile_by_hand():
    profile = performance_profile([[1.0, 5.0], [2.0, 5.0]], [0.0, 1.0, 1.5, 5.0])
    # At 1.5: none, one or two of the first dataset's two runs, in 1, 2 and 1 of 4 resamples.
    assert [(e.low, e.value, e.high) for e in profile] == [
        (1.0, 1.0, 1.0),
        (0.5, 0.75, 1.0),
        (0.5, 0.75, 1.0),
        (0.0, 0.0, 0.0),
    ]


def test_probability_of_improvement_is_the_mann_whitney_statistic():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, (9, 3)), rng.integers(0, 4, (6, 3))  # with ties
    expected = np.mean([mannwhitneyu(x[:, d], y[:, d]).statistic / 54 for d in range(3)])
    estimate = probability_of_improvement(x, y)
    assert estimate.value == pytest.approx(expected)
    assert estimate.low < expected < estimate.high
    swapped = probability_of_improvement(y, x)
    assert swapped.value == pytest.approx(1 - expected)


def test_probability_of_improvement_by_hand():
    better = probability_of_improvement([2.0, 3.0], [0.0, 1.0])
    assert (better.low, better.value, better.high) == (1.0, 1.0, 1.0)
    assert probability_of_improvement([[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0]] * 3).value == 0.5


def test_intervals_cover_the_true_mean():
    # 200 experiments of 20 seeds: a 95% interval misses about 10 (more, as 20 is few).
    rng = np.random.default_rng(3)
    covered = 0
    for seed in range(200):
        low, high = bootstrap_interval(rng.normal(1.0, 2.0, 20), resamples=500, seed=seed)
        covered += low < 1.0 < high
    assert 175 <= covered <= 198


def test_same_seed_same_interval_whatever_the_other_methods():
    x = make_scores()
    alone = summarize({"x": x})["x"]
    assert alone == summarize({"y": x + 1, "x": x})["x"]
    assert alone.mean.low != summarize({"x": x}, seed=1)["x"].mean.low


def test_bad_scores_are_refused():
    with pytest.raises(ValueError, match="'m'.*at least 2 seeds, found 1"):
        summarize({"m": [3.0]})
    with pytest.raises(ValueError, match="'m'.*found 1 of 3 that are NaN"):
        summarize({"m": [3.0, np.nan, 1.0]})
    with pytest.raises(ValueError, match=r"'m'.*found \[2, 2, 2\]"):
        summarize({"m": np.zeros((2, 2, 2))})
    with pytest.raises(ValueError, match="confidence"):
        summarize({"m": [1.0, 2.0]}, confidence=95)
    with pytest.raises(ValueError, match="same datasets, found 2 and 3"):
        probability_of_improvement(np.zeros((4, 2)), np.zeros((4, 3)))
