"""A figure of how errors grow along a rollout, feature group by feature group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from torchrl_logo.record.plots import make_panels, to_numpy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_error_by_horizon"]

_COLOR = "#30638e"


def plot_error_by_horizon(errors: Mapping[str, torch.Tensor]) -> Figure:
    """Plots errors against the steps ahead, a panel for each group of features.

    Shown are the median over rollouts, the band between the 10th and the 90th percentile, and
    the root of the mean square, which rare large errors decide.

    Args:
        errors (dict): by name the errors ``[W, T]`` of W rollouts, in standard deviations.

    Returns:
        matplotlib.figure.Figure: the figure.

    Raises:
        ValueError: if there are no errors, or one is not ``[W, T]``.

    Examples:
        >>> figure = plot_error_by_horizon({"position": torch.rand(8, 15)})
        >>> figure.axes[0].get_title()
        'position'
    """
    wrong = {name: tuple(e.shape) for name, e in errors.items() if e.ndim != 2 or not e.numel()}
    if wrong or not errors:
        raise ValueError(f"errors must be [W, T] each, found {wrong or 'none'}.")
    figure, panels = make_panels(1, len(errors), (3.2, 2.8))
    for axes, (name, error) in zip(panels.flat, errors.items(), strict=True):
        values = np.abs(to_numpy(error))  # [W, T]
        steps = np.arange(1, values.shape[1] + 1)
        low, middle, high = np.quantile(values, [0.1, 0.5, 0.9], axis=0)
        axes.fill_between(steps, low, high, color=_COLOR, alpha=0.15, label="10% to 90%")
        axes.plot(steps, middle, color=_COLOR, label="median")
        square = np.sqrt(np.square(values).mean(0))
        axes.plot(steps, square, color=_COLOR, ls="--", label="root mean square")
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("steps ahead")
        axes.set_ylim(bottom=0)
        axes.locator_params(axis="x", integer=True)
    panels[0, 0].set_ylabel("error / standard deviation")
    panels[0, 0].legend(fontsize=8, frameon=False)
    return figure
