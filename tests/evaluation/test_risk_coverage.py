"""Selective prediction, against numbers made by hand."""

from __future__ import annotations

import pytest
import torch

from torchrl_logo.evaluation import risk_coverage


def test_hand_made_numbers() -> None:
    uncertainty = torch.tensor([[4.0, 1.0], [3.0, 2.0]])
    error = torch.tensor([[8.0, 0.0], [2.0, 6.0]])  # by uncertainty: 0, 6, 2, 8; mean 4
    found = risk_coverage(uncertainty, error, shares=4)
    assert found.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert found.risk.tolist() == pytest.approx([0.0, 3 / 4, 8 / 3 / 4, 1.0])
    assert found.oracle.tolist() == pytest.approx([0.0, 1 / 4, 8 / 3 / 4, 1.0])
    # risk - oracle: 0, 1/2, 0, 0; 1 - oracle: 1, 3/4, 1/3, 0
    assert found.excess_area == pytest.approx(0.5 / (1 + 3 / 4 + 1 / 3))


def test_knowing_all_and_knowing_nothing() -> None:
    torch.manual_seed(0)
    error = torch.rand(4000).square()
    assert risk_coverage(error.exp(), error).excess_area == pytest.approx(0.0, abs=1e-9)
    assert risk_coverage(torch.rand(4000), error).excess_area == pytest.approx(1.0, abs=0.05)
    assert risk_coverage(-error, error).excess_area > 1.5


@pytest.mark.parametrize(
    ("uncertainty", "error", "message"),
    [
        (torch.ones(30), torch.ones(29), "same shape"),
        (torch.ones(3), torch.ones(3), "at least 20"),
        (torch.ones(30), -torch.ones(30), "not be negative"),
        (torch.ones(30), torch.zeros(30), "not zero everywhere"),
    ],
)
def test_bad_input(uncertainty: torch.Tensor, error: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        risk_coverage(uncertainty, error)
