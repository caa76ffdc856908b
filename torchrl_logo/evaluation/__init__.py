"""Returns of final policies, statistics to compare methods by, and errors of world models."""

from torchrl_logo.evaluation.latent_world_model import evaluate_latent_world_model
from torchrl_logo.evaluation.risk_coverage import RiskCoverage, risk_coverage
from torchrl_logo.evaluation.rollout import Evaluation, evaluate
from torchrl_logo.evaluation.statistics import (
    Estimate,
    Summary,
    bootstrap_interval,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
    summarize,
)
from torchrl_logo.evaluation.world_model import (
    evaluate_world_model,
    imagine_open_loop,
    measure_uncertainty,
    trace_open_loop,
)

__all__ = [
    "Estimate",
    "Evaluation",
    "RiskCoverage",
    "Summary",
    "bootstrap_interval",
    "evaluate",
    "evaluate_latent_world_model",
    "evaluate_world_model",
    "imagine_open_loop",
    "measure_uncertainty",
    "interquartile_mean",
    "performance_profile",
    "probability_of_improvement",
    "risk_coverage",
    "summarize",
    "trace_open_loop",
]
