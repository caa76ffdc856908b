"""Following runs: MLflow, figures and videos."""

from torchrl_logo.record.mlflow_logger import MLflowRun, deliver_spools
from torchrl_logo.record.plots import (
    plot_histogram,
    plot_learning_curves,
    plot_open_loop,
    plot_uncertainty_against_error,
)
from torchrl_logo.record.video import render_episode, render_frame, write_video

__all__ = [
    "MLflowRun",
    "deliver_spools",
    "plot_histogram",
    "plot_learning_curves",
    "plot_open_loop",
    "plot_uncertainty_against_error",
    "render_episode",
    "render_frame",
    "write_video",
]
