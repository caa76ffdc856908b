"""How the error of what is kept falls as the most uncertain is dropped."""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = ["RiskCoverage", "risk_coverage"]


class RiskCoverage(NamedTuple):
    """Mean errors of the kept shares, over the mean error of all.

    Attributes:
        coverage: the shares that are kept, ``[K]``, from ``1 / K`` to 1.
        risk: with the least uncertain kept, ``[K]``.
        oracle: with the least wrong kept, ``[K]``: no order does better.
        excess_area: mean of ``risk - oracle`` over that of an order at random, whose risk is 1: 0
            is an uncertainty that knows all, 1 one that knows nothing.
    """

    coverage: torch.Tensor
    risk: torch.Tensor
    oracle: torch.Tensor
    excess_area: float


def risk_coverage(
    uncertainty: torch.Tensor, error: torch.Tensor, *, shares: int = 20
) -> RiskCoverage:
    """Measures selective prediction, after El-Yaniv and Wiener (JMLR 2010).

    Args:
        uncertainty (torch.Tensor): any shape.
        error (torch.Tensor): the true errors, none negative, same shape.

    Keyword Args:
        shares (int): how many shares are measured. Defaults to ``20``.

    Raises:
        ValueError: if the shapes differ, there are fewer values than shares, or no error is
            positive.

    Examples:
        >>> found = risk_coverage(torch.tensor([0.1, 0.2, 0.4, 0.3]),
        ...                       torch.tensor([1.0, 3.0, 2.0, 6.0]), shares=2)
        >>> found.risk.tolist(), found.oracle.tolist()
        ([0.6666666666666666, 1.0], [0.5, 1.0])
    """
    if uncertainty.shape != error.shape or error.numel() < shares or shares < 1:
        raise ValueError(
            f"uncertainty and error must have the same shape and at least {shares} values, found "
            f"{tuple(uncertainty.shape)} and {tuple(error.shape)}."
        )
    error = error.flatten().double()
    if not (error >= 0).all() or not error.sum() > 0:
        raise ValueError("error must not be negative or NaN, and not zero everywhere.")
    coverage = torch.arange(1, shares + 1, dtype=torch.float64, device=error.device) / shares
    kept = (coverage * error.numel()).round().long().clamp_min(1)  # [K]

    def mean_of_first(order: torch.Tensor) -> torch.Tensor:
        return error[order].cumsum(0)[kept - 1] / kept / error.mean()

    risk = mean_of_first(uncertainty.flatten().argsort(stable=True))
    oracle = mean_of_first(error.argsort(stable=True))
    excess = (risk - oracle).mean() / (1 - oracle).mean().clamp_min(1e-12)
    return RiskCoverage(coverage, risk, oracle, float(excess))
