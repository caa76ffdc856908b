"""Figures of the results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.paper.scores import Block
from torchrl_logo.evaluation import Estimate, performance_profile

__all__ = ["draw_estimates", "draw_profiles", "save_figure"]


def draw_estimates(
    estimates: Mapping[str, Estimate], *, label: str, reference: float | None = None
) -> Figure:
    """Values with their intervals, a line each, the highest on top.

    Args:
        estimates (mapping): by name.

    Keyword Args:
        label (str): of the axis.
        reference (float, optional): where a thin line is drawn.
    """
    names = sorted(estimates, key=lambda name: estimates[name].value)
    figure = Figure(figsize=(6.4, 0.6 + 0.28 * len(names)), layout="constrained")
    axes = figure.subplots()
    if reference is not None:
        axes.axvline(reference, color="0.7", linewidth=1)
    for height, name in enumerate(names):
        found = estimates[name]
        color = "C1" if name.startswith("logo") else "C0"
        axes.plot([found.low, found.high], [height, height], color=color, linewidth=5, alpha=0.4)
        axes.plot(found.value, height, "o", color=color)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel(label)
    return figure


def draw_profiles(block: Block) -> Figure:
    """Share of runs above each score, with pointwise intervals."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    values = np.concatenate([scores.ravel() for scores in block.scores.values()])
    thresholds = np.linspace(min(0.0, values.min()), max(100.0, values.max()), 101)
    for index, (name, scores) in enumerate(block.scores.items()):
        profile = performance_profile(scores, thresholds)
        style = {"color": f"C{index % 10}", "linestyle": "-" if index < 10 else "--"}
        axes.plot(thresholds, [p.value for p in profile], label=name, **style)
        axes.fill_between(
            thresholds,
            [p.low for p in profile],
            [p.high for p in profile],
            color=style["color"],
            alpha=0.1,
            linewidth=0,
        )
    axes.set_xlabel("normalised score")
    axes.set_ylabel("share of runs above it")
    axes.legend(fontsize="small", ncols=2)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, the same bytes for the same figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
