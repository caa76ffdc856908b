"""Figures that tell whether a world model knows where it is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from torchrl_logo.evaluation.risk_coverage import risk_coverage
from torchrl_logo.record.plots import make_panels, to_numpy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_reliability", "plot_risk_coverage"]

_COLORS = ("#30638e", "#d1495b", "#edae49", "#00798c", "#8d5a97")


def plot_reliability(uncertainty: torch.Tensor, error: torch.Tensor, *, bins: int = 12) -> Figure:
    """Plots the error that came true against the uncertainty, in bins of equally many pairs.

    Shown are the bins' root mean squares, and the band between the 10th and the 90th percentile
    of the errors in a bin; on the diagonal uncertainty has the size of the error.

    Args:
        uncertainty (Tensor): the uncertainties, any shape.
        error (Tensor): the true errors (distances, not their squares), same shape.

    Keyword Args:
        bins (int): how many. Defaults to ``12``.

    Returns:
        matplotlib.figure.Figure: the figure.

    Raises:
        ValueError: if the shapes differ, there are fewer pairs than bins, or a value is NaN or
            negative.

    Examples:
        >>> u = torch.linspace(0.1, 1.0, 60)
        >>> plot_reliability(u, u).axes[0].get_xlabel()
        'uncertainty'
    """
    if uncertainty.shape != error.shape or uncertainty.numel() < bins:
        raise ValueError(
            f"uncertainty and error must have the same shape and at least {bins} values, found "
            f"{tuple(uncertainty.shape)} and {tuple(error.shape)}."
        )
    x, y = to_numpy(uncertainty).ravel(), to_numpy(error).ravel()
    if not ((x >= 0).all() and (y >= 0).all()):  # also finds NaN
        raise ValueError("uncertainty and error must not be negative or NaN.")
    parts = np.array_split(np.argsort(x, kind="stable"), bins)
    middle = np.array([np.sqrt(np.mean(x[part] ** 2)) for part in parts])
    found = np.array([np.sqrt(np.mean(y[part] ** 2)) for part in parts])
    low, high = np.array([np.quantile(y[part], [0.1, 0.9]) for part in parts]).T
    figure, panels = make_panels(1, 1, (4.8, 4.2))
    axes = panels[0, 0]
    shown = middle > 0
    axes.fill_between(
        middle[shown], low[shown], high[shown], color=_COLORS[0], alpha=0.15, label="10% to 90%"
    )
    axes.plot(middle[shown], found[shown], "o-", color=_COLORS[0], label="root mean square")
    if shown.any():
        ends = np.array([middle[shown].min(), middle[shown].max()])
        axes.plot(ends, ends, ls=":", color="#222222", label="as large as the uncertainty")
        axes.set_xscale("log")
        if low[shown].min() > 0:
            axes.set_yscale("log")
    axes.set_xlabel("uncertainty")
    axes.set_ylabel("error that came true")
    axes.legend(fontsize=8, frameon=False)
    return figure


def plot_risk_coverage(
    pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]], *, shares: int = 20
) -> Figure:
    """Plots the mean error of what is kept as the most uncertain is dropped.

    The dotted line of each colour is the best that any order could do.

    Args:
        pairs (dict): ``(uncertainty, error)`` by name, of a model or of a dataset each.

    Keyword Args:
        shares (int): see :func:`~torchrl_logo.evaluation.risk_coverage`.

    Returns:
        matplotlib.figure.Figure: the figure.

    Examples:
        >>> u = torch.linspace(0.1, 1.0, 60)
        >>> figure = plot_risk_coverage({"held-out": (u, u**2)})
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['held-out (excess 0.00)', 'by chance']
    """
    figure, panels = make_panels(1, 1, (4.8, 3.8))
    axes = panels[0, 0]
    for index, (name, (uncertainty, error)) in enumerate(pairs.items()):
        found = risk_coverage(uncertainty, error, shares=shares)
        color = _COLORS[index % len(_COLORS)]
        coverage = to_numpy(found.coverage)
        axes.plot(
            coverage,
            to_numpy(found.risk),
            "o-",
            markersize=3,
            color=color,
            label=f"{name} (excess {found.excess_area:.2f})",
        )
        axes.plot(coverage, to_numpy(found.oracle), ls=":", color=color)
    axes.axhline(1.0, color="#999999", lw=1, label="by chance")
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("share that is kept, the least uncertain first")
    axes.set_ylabel("mean error over that of all")
    axes.legend(fontsize=8, frameon=False)
    return figure
