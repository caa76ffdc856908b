"""The classes that UncertaintySampler draws from, against the formula, for every single item."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from torchrl_logo.data import weight_classes
from torchrl_logo.data.weight_classes import WeightClasses

CPU = torch.device("cpu")


def find_probability(classes, n):
    """The probability of each item, read off the tables that a draw looks up."""
    classes._tabulate()
    keep, alias = classes._keep, classes._alias
    of_class = (keep + torch.zeros_like(keep).index_add(0, alias, 1 - keep)) / len(keep)
    place = classes._place[:n].long()
    assert bool((place >= 0).all())
    assert torch.equal(classes._item[place].long(), torch.arange(n))  # each item has its own place
    number = torch.searchsorted(classes._start, place, right=True) - 1
    inside = place - classes._start[number]
    assert bool((inside < classes._count[number]).all())
    accepted = of_class[number] / classes._count[number] * classes._share[:n].double()
    return accepted / accepted.sum(), classes._share[:n] * classes._scale[number]


def require_formula(classes, uncertainty, C, temperature):
    """The specification in float64, item by item: no rare one can hide among the others."""
    exponent = np.minimum(uncertainty.double().numpy(), C) / temperature
    weight = np.exp(exponent.min() - exponent)
    found, told = find_probability(classes, len(uncertainty))
    # An exponent of 16 is known to 16 * 6e-8 in float32.
    np.testing.assert_allclose(found.numpy(), weight / weight.sum(), rtol=5e-6, atol=0)
    np.testing.assert_allclose(told.numpy(), weight / weight.mean(), rtol=5e-6, atol=0)


@pytest.mark.parametrize("n", [1, 5, 3000, 100_000])
@pytest.mark.parametrize(("C", "temperature"), [(1.0, 1.0), (16.0, 1.0), (0.3, 0.01)])
def test_every_items_probability(n, C, temperature):
    uncertainty = torch.rand(n, generator=torch.Generator().manual_seed(n)) * C * 1.2
    classes = WeightClasses(n + 7, CPU)
    classes.build(uncertainty, C, temperature)
    require_formula(classes, uncertainty, C, temperature)
    classes.reweigh(uncertainty, 2 * temperature)
    require_formula(classes, uncertainty, C, 2 * temperature)


def test_every_probability_among_millions():
    n = 2_000_000
    uncertainty = torch.rand(n, generator=torch.Generator().manual_seed(0)) * 20
    classes = WeightClasses(n, CPU)
    classes.build(uncertainty, 16.0, 1.0)
    require_formula(classes, uncertainty, 16.0, 1.0)


@pytest.mark.parametrize("few", [1, 30, 400])
def test_every_probability_after_replacements(few):
    generator = torch.Generator().manual_seed(few)
    capacity = 2000
    uncertainty = torch.rand(capacity, generator=generator) * 5
    n = 500
    classes = WeightClasses(capacity, CPU)
    classes.build(uncertainty[:n], 4.0, 0.5)
    built = 0
    for turn in range(60):
        if turn % 3 == 0 and n < capacity:  # new ones
            item = torch.arange(n, min(n + few, capacity))
            n += len(item)
        else:
            item = torch.randperm(n, generator=generator)[:few]
            # drifts, so that classes fill up and run empty
            uncertainty[item] = torch.rand(few, generator=generator) * 5 * (1 - turn / 60)
        if not classes.replace(item, uncertainty[item]):
            classes.build(uncertainty[:n], 4.0, 0.5)
            built += 1
        assert len(classes) == n
        require_formula(classes, uncertainty[:n], 4.0, 0.5)
    assert built < 30, "most replacements must find room"


def test_items_without_uncertainty_are_taken_out_and_come_back():
    classes = WeightClasses(100, CPU)
    uncertainty = torch.rand(100, generator=torch.Generator().manual_seed(0))
    classes.build(uncertainty, 1.0, 1.0)
    gone = torch.arange(0, 100, 3)
    assert classes.replace(gone, torch.full((34,), float("nan")))
    assert len(classes) == 66
    assert not bool(torch.isin(classes.draw(20_000, None)[0], gone).any())
    assert classes.replace(gone, uncertainty[gone])
    require_formula(classes, uncertainty, 1.0, 1.0)


def test_order_and_room_bring_back_the_same_draws():
    generator = torch.Generator().manual_seed(0)
    uncertainty = torch.rand(1000, generator=generator) * 3
    first = WeightClasses(1000, CPU)
    first.build(uncertainty[:900], 2.0, 1.0)
    item = torch.randperm(900, generator=generator)[:50]
    uncertainty[item] = torch.rand(50, generator=generator)
    assert first.replace(item, uncertainty[item])
    second = WeightClasses(1000, CPU)
    second.build(uncertainty, 2.0, 1.0, order=first.order.long(), room=first.room)
    for change in (torch.arange(900, 940), torch.arange(100)):
        for classes in (first, second):
            assert classes.replace(change, uncertainty[change])
        assert torch.equal(first.order, second.order)
        assert torch.equal(
            first.draw(500, torch.Generator().manual_seed(1))[0],
            second.draw(500, torch.Generator().manual_seed(1))[0],
        )


@pytest.mark.parametrize("on_gpu", [False, True])
def test_draws_follow_the_probabilities_down_to_the_rarest(on_gpu, monkeypatch):
    n, draws = 200_000, 16_000_000
    uncertainty = torch.rand(n, generator=torch.Generator().manual_seed(0)) * 16
    classes = WeightClasses(n, CPU)
    classes.build(uncertainty, 13.0, 1.0)
    if on_gpu:  # the way that does not wait for a device
        draws = 1_000_000
        classes._tabulate()
        monkeypatch.setattr(classes, "device", torch.device("meta"))
        propose = classes._propose

        def propose_on_cpu(shape, generator):
            classes.device = CPU
            try:
                return propose(shape, generator)
            finally:
                classes.device = torch.device("meta")

        monkeypatch.setattr(classes, "_propose", propose_on_cpu)
    generator = torch.Generator().manual_seed(1)
    counts = torch.zeros(n, dtype=torch.int64)
    at_once = 20_000 if on_gpu else 200_000
    for _ in range(draws // at_once):
        counts += torch.bincount(classes.draw(at_once, generator)[0], minlength=n)
    weight = np.exp(-np.minimum(uncertainty.double().numpy(), 13.0))
    expected = weight / weight.sum() * int(counts.sum())
    # A bin for each unit of uncertainty, from items drawn 1,000 times to ones that hardly are: 13
    # to 16 holds a fifth of the items and 7e-6 of the draws.
    bins = uncertainty.long().clamp_max(13).numpy()
    found, wanted = np.bincount(bins, counts.numpy()), np.bincount(bins, expected)
    assert wanted.min() > (3 if on_gpu else 50)
    assert chisquare(found, wanted * (found.sum() / wanted.sum())).pvalue > 1e-3
    # And inside each bin, item by item: the index of dispersion of Poisson counts.
    for number in range(14):
        inside = bins == number
        statistic = ((counts.numpy()[inside] - expected[inside]) ** 2 / expected[inside]).sum()
        degrees = inside.sum()
        # counts below 1 are skewed: the chi-squared's quantiles hold by the many items only
        spread = np.sqrt(2 * degrees + (1 / expected[inside]).sum())
        assert abs(statistic - degrees) < 4.5 * spread, number


def test_range_beyond_the_classes():
    # 256 classes cannot span C / T = 10,000: they begin at the least uncertainty.
    classes = WeightClasses(300, CPU)
    uncertainty = torch.cat([torch.linspace(60.0, 60.5, 150), torch.full((150,), 99.0)])
    classes.build(uncertainty, 100.0, 0.01)
    exponent = uncertainty.double().numpy() / 0.01
    weight = np.exp(exponent.min() - exponent)
    found, _ = find_probability(classes, 300)
    likely = weight > 1e-30
    # float32 knows 60 to 4e-6, which is 4e-4 of the temperature
    np.testing.assert_allclose(
        found.numpy()[likely], (weight / weight.sum())[likely], rtol=1e-3, atol=0
    )
    assert found.numpy()[~likely].sum() < 1e-28
    assert classes.fits()
    # Without the likely half, the last class would be rejected nearly always.
    assert classes.replace(torch.arange(150), torch.full((150,), float("nan")))
    assert not classes.fits()
    # One below all others is refused, too.
    classes.build(uncertainty, 100.0, 0.01)
    assert not classes.replace(torch.tensor([3]), torch.tensor([50.0]))
    torch.testing.assert_close(find_probability(classes, 300)[0], found)


def test_chunks_do_not_matter(monkeypatch):
    uncertainty = torch.rand(5000, generator=torch.Generator().manual_seed(0)) * 3
    orders = []
    for size in (5000, 1000, 37):
        monkeypatch.setattr(weight_classes, "_ITEMS_AT_ONCE", size)
        classes = WeightClasses(5000, CPU)
        classes.build(uncertainty, 2.0, 1.0)
        require_formula(classes, uncertainty, 2.0, 1.0)
        orders.append(classes.order)
    assert torch.equal(orders[0], orders[1]) and torch.equal(orders[0], orders[2])
