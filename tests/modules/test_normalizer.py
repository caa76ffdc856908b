from __future__ import annotations

import pytest
import torch

from torchrl_logo.modules import Normalizer


def test_normalized_data_have_mean_0_and_spread_1() -> None:
    data = torch.randn(500, 3) * torch.tensor([1e-3, 1.0, 50.0]) + torch.tensor([0.0, 7.0, -3.0])
    normalizer = Normalizer(3)
    normalizer.fit(data)
    normal = normalizer.normalize(data)
    torch.testing.assert_close(normal.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal.std(0, correction=0), torch.ones(3))
    torch.testing.assert_close(normalizer.denormalize(normal), data, atol=1e-5, rtol=1e-5)


def test_constant_features_neither_blow_up_nor_change() -> None:
    data = torch.tensor([[0.1, 1.0], [0.1, 3.0]])
    normalizer = Normalizer(2)
    normalizer.fit(data)
    assert normalizer.normalize(torch.tensor([0.3, 1.0])).tolist() == [0.0, -1.0]
    torch.testing.assert_close(normalizer.denormalize(torch.tensor([9.0, 0.0]))[0], data[0, 0])


def test_differences_that_are_rounding_count_as_constant() -> None:
    state = torch.rand(1000, 1, dtype=torch.float32) * 100
    rounding = (state + 0.1) - state - 0.1  # not constant, and nothing but rounding
    assert rounding.std() > 0
    normalizer = Normalizer(1)
    normalizer.fit(rounding, magnitude=torch.tensor([100.0]))
    assert normalizer.scale.item() == 0.0


def test_clamp_widens_the_range_and_leaves_non_finite_values_for_others_to_see() -> None:
    normalizer = Normalizer(1)
    normalizer.fit(torch.tensor([[0.0], [10.0]]))
    inf, nan = float("inf"), float("nan")
    values = torch.tensor([[-5.0], [-0.5], [11.5], [inf], [-inf], [nan]])
    clamped = normalizer.clamp(values, 0.1).squeeze(-1)
    assert clamped[:5].tolist() == [-1.0, -0.5, 11.0, inf, -inf]
    assert clamped[5].isnan()


def test_before_fit_it_is_the_identity() -> None:
    normalizer, values = Normalizer(2), torch.tensor([1e6, -3.0])
    assert torch.equal(normalizer.normalize(values), values)
    assert torch.equal(normalizer.clamp(values, 0.5), values)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(4, 3), "expected 2 features, found 3"),
        (torch.zeros(1, 2), "two rows"),
        (torch.tensor([[0.0, float("nan")], [0.0, 1.0]]), "NaN"),
    ],
)
def test_fit_refuses_bad_data(data: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Normalizer(2).fit(data)
