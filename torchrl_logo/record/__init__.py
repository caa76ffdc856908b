"""Following runs: MLflow, figures and videos."""

from torchrl_logo.record.horizon_plot import plot_error_by_horizon
from torchrl_logo.record.imagined_video import render_imagined_beside_true, render_states
from torchrl_logo.record.mlflow_logger import MLflowRun, deliver_spools
from torchrl_logo.record.plots import (
    plot_histogram,
    plot_learning_curves,
    plot_open_loop,
    plot_uncertainty_against_error,
)
from torchrl_logo.record.uncertainty_plots import plot_reliability, plot_risk_coverage
from torchrl_logo.record.video import render_episode, render_frame, write_video
from torchrl_logo.record.world_model_figures import log_world_model_figures

__all__ = [
    "MLflowRun",
    "deliver_spools",
    "log_world_model_figures",
    "plot_error_by_horizon",
    "plot_histogram",
    "plot_learning_curves",
    "plot_open_loop",
    "plot_reliability",
    "plot_risk_coverage",
    "plot_uncertainty_against_error",
    "render_episode",
    "render_frame",
    "render_imagined_beside_true",
    "render_states",
    "write_video",
]
