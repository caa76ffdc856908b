"""Figures that tell how a run went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

# matplotlib takes half a second to import, which trainings without figures need not wait for.
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "plot_histogram",
    "plot_learning_curves",
    "plot_open_loop",
    "plot_uncertainty_against_error",
]

_TRUE, _PREDICTED, _POINTS = "#222222", "#d1495b", "#30638e"
_MAX_POINTS = 5000  # more would only make the picture slow and black
_BINS = 15


def plot_learning_curves(
    metrics: Mapping[str, Sequence[tuple[float, float]]], *, step_name: str = "step"
) -> Figure:
    """Plots one panel for each metric.

    A metric that is always positive and spans more than two orders of magnitude gets a
    logarithmic axis. Values that are not finite leave gaps, and their number is in the title.

    Args:
        metrics (dict): for each name the points ``(step, value)``.

    Keyword Args:
        step_name (str): what a step is, for the axis.

    Returns:
        matplotlib.figure.Figure: the figure.

    Raises:
        ValueError: if there is no metric, or a metric has no points.

    Examples:
        >>> figure = plot_learning_curves({"loss": [(0, 2.0), (1, 1.0)], "return": [(1, 3.0)]})
        >>> [axes.get_title() for axes in figure.axes]
        ['loss', 'return']
    """
    empty = [name for name, points in metrics.items() if not len(points)]
    if empty or not metrics:
        raise ValueError(f"nothing to plot: metrics without points are {empty or 'all'}.")
    columns = min(3, len(metrics))
    figure, panels = make_panels(math.ceil(len(metrics) / columns), columns, (4.2, 2.8))
    for axes, (name, points) in zip(panels.flat, metrics.items(), strict=False):
        steps, values = np.asarray(points, dtype=float).T  # [T], [T]
        finite = np.isfinite(values)
        axes.plot(
            steps,
            np.where(finite, values, np.nan),
            color=_POINTS,
            linewidth=1.5,
            marker="o" if len(steps) < 30 else None,
            markersize=3,
        )
        shown = values[finite]
        if shown.size and shown.min() > 0 and shown.max() / shown.min() > 100:
            axes.set_yscale("log")
        lost = int((~finite).sum())
        axes.set_title(name + (f" ({lost} not finite)" if lost else ""), fontsize=10)
        axes.set_xlabel(step_name)
    for axes in panels.flat[len(metrics) :]:
        axes.remove()
    return figure


def plot_open_loop(
    true: torch.Tensor,
    predicted: torch.Tensor,
    names: Sequence[str] | None = None,
    *,
    max_features: int = 4,
) -> Figure:
    """Plots predicted against true trajectories of the worst, median and best episode.

    Shown are the state features that vary most. Episodes are ranked by their root mean squared
    error over all steps and features, each feature in units of its own standard deviation, so
    that large units do not decide; features that never vary are left out of it.

    Args:
        true (Tensor): true states ``[E, T, d]`` of steps 1 to T after the start.
        predicted (Tensor): the model's states ``[E, T, d]``, of its own making from the start on.
        names (sequence of str, optional): names of the d features.

    Keyword Args:
        max_features (int): how many features are shown.

    Returns:
        matplotlib.figure.Figure: three rows of panels, one column a feature.

    Raises:
        ValueError: if the shapes differ or are not ``[E, T, d]``, the number of names is not d,
            or the true states are not finite.

    Examples:
        >>> true = torch.arange(24.0).reshape(4, 3, 2)
        >>> figure = plot_open_loop(true, true + 0.1, names=["x", "y"])
        >>> len(figure.axes)
        6
    """
    if true.shape != predicted.shape or true.ndim != 3 or 0 in true.shape:
        raise ValueError(
            "true and predicted must have the same shape [E, T, d], "
            f"found {tuple(true.shape)} and {tuple(predicted.shape)}."
        )
    if names is None:
        names = [f"state {i}" for i in range(true.shape[-1])]
    if len(names) != true.shape[-1]:
        raise ValueError(f"names must hold {true.shape[-1]} feature names, found {len(names)}.")
    truth, model = to_numpy(true), to_numpy(predicted)
    if not np.isfinite(truth).all():
        raise ValueError("true states must be finite.")
    spread = truth.std(axis=(0, 1))  # [d]
    varies = spread > 1e-8 * max(1.0, float(np.abs(truth).max()))
    scaled = (model - truth)[..., varies] / spread[varies]
    error = np.sqrt(np.square(scaled).mean(axis=(1, 2))) if varies.any() else np.zeros(len(truth))
    # A rollout that has blown up is the worst, not an unknown.
    error = np.where(np.isnan(error), np.inf, error)  # [E]
    order = np.argsort(error, kind="stable")
    rows = {"worst": order[-1], "median": order[(len(order) - 1) // 2], "best": order[0]}
    features = np.argsort(-spread, kind="stable")[:max_features]
    figure, panels = make_panels(len(rows), len(features), (3.4, 2.3))
    steps = np.arange(1, truth.shape[1] + 1)
    for row, (rank, episode) in enumerate(rows.items()):
        for column, feature in enumerate(features):
            axes = panels[row, column]
            axes.plot(steps, truth[episode, :, feature], color=_TRUE, label="true")
            axes.plot(
                steps, model[episode, :, feature], color=_PREDICTED, ls="--", label="predicted"
            )
            axes.locator_params(axis="x", integer=True)
            if row == 0:
                axes.set_title(names[feature], fontsize=10)
            if row == len(rows) - 1:
                axes.set_xlabel("steps ahead")
        panels[row, 0].set_ylabel(f"{rank} episode\n(error {error[episode]:.2g} sd)")
    panels[0, 0].legend(fontsize=8)
    return figure


def plot_uncertainty_against_error(uncertainty: torch.Tensor, error: torch.Tensor) -> Figure:
    """Plots the model's uncertainty against its true error, both on logarithmic axes.

    The title has Spearman's rank correlation over all pairs: 1 if the uncertainty puts the
    errors into their true order, 0 if it knows nothing. The line is the median error in bins of
    equally many pairs. At most 5,000 evenly picked pairs are drawn as points, and pairs with a
    zero, which a logarithmic axis cannot show, only count.

    Args:
        uncertainty (Tensor): the uncertainties, any shape.
        error (Tensor): the true errors, same shape.

    Returns:
        matplotlib.figure.Figure: the figure.

    Raises:
        ValueError: if the shapes differ, there are fewer than two pairs, or a value is NaN or
            negative.

    Examples:
        >>> u = torch.linspace(0.1, 1.0, 50)
        >>> figure = plot_uncertainty_against_error(u, u**2)
        >>> figure.axes[0].get_title()
        'Spearman rank correlation 1.00 (50 pairs)'
    """
    if uncertainty.shape != error.shape or uncertainty.numel() < 2:
        raise ValueError(
            "uncertainty and error must have the same shape and two values or more, "
            f"found {tuple(uncertainty.shape)} and {tuple(error.shape)}."
        )
    x, y = to_numpy(uncertainty).ravel(), to_numpy(error).ravel()
    for name, values in (("uncertainty", x), ("error", y)):
        if not (values >= 0).all():  # also finds NaN
            raise ValueError(f"{name} must not be negative or NaN.")
    # also slow to import
    from scipy.stats import spearmanr

    rho = float(spearmanr(x, y).statistic)
    figure, panels = make_panels(1, 1, (5.6, 4.4))
    axes = panels[0, 0]
    shown = np.flatnonzero((x > 0) & (y > 0) & np.isfinite(x) & np.isfinite(y))
    if shown.size:
        _draw_points_and_medians(axes, x[shown], y[shown])
    axes.set_title(f"Spearman rank correlation {rho:.2f} ({len(x)} pairs)", fontsize=10)
    axes.set_xlabel("uncertainty")
    axes.set_ylabel("true error")
    return figure


def _draw_points_and_medians(axes: Axes, x: np.ndarray, y: np.ndarray) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    picked = np.linspace(0, len(x) - 1, min(len(x), _MAX_POINTS)).astype(int)
    axes.scatter(
        x[picked],
        y[picked],
        s=6,
        alpha=0.25,
        color=_POINTS,
        linewidths=0,
        rasterized=True,
        label="pairs",
    )
    bins = np.array_split(np.argsort(x, kind="stable"), min(_BINS, len(x)))
    axes.plot(
        [np.median(x[part]) for part in bins],
        [np.median(y[part]) for part in bins],
        color=_PREDICTED,
        marker="o",
        markersize=4,
        label="median",
    )
    axes.legend(fontsize=8)


def plot_histogram(data: torch.Tensor, *, name: str, bins: Any = 50) -> Figure:
    """Plots a histogram of all finite values.

    Args:
        data (Tensor): values, any shape.

    Keyword Args:
        name (str): what the values are, for the axis.
        bins (int or sequence): number or edges of the bins.

    Returns:
        matplotlib.figure.Figure: the figure.

    Examples:
        >>> plot_histogram(torch.randn(10), name="return").axes[0].get_xlabel()
        'return'
    """
    values = to_numpy(data).ravel()
    finite = values[np.isfinite(values)]
    figure, panels = make_panels(1, 1, (5.0, 3.4))
    axes = panels[0, 0]
    axes.hist(finite, bins=bins, color=_POINTS)
    axes.set_xlabel(name)
    axes.set_ylabel("count")
    lost = len(values) - len(finite)
    axes.set_title(f"{len(values)} values" + (f", {lost} not finite" if lost else ""), fontsize=10)
    return figure


def make_panels(
    rows: int, columns: int, size: tuple[float, float]
) -> tuple[Figure, np.ndarray[Any, Any]]:
    """Returns a figure and its panels ``[rows, columns]``, each of ``size`` inches."""
    from matplotlib.figure import Figure

    # Figure by itself, not pyplot: nothing global, nothing to close, any thread.
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained", dpi=120)
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def to_numpy(values: torch.Tensor) -> np.ndarray[Any, Any]:
    return values.detach().to("cpu", torch.float64).numpy()
