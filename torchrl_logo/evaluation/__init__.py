"""Returns of final policies, and the statistics to compare methods by."""

from torchrl_logo.evaluation.rollout import Evaluation, evaluate
from torchrl_logo.evaluation.statistics import (
    Estimate,
    Summary,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
    summarize,
)

__all__ = [
    "Estimate",
    "Evaluation",
    "Summary",
    "evaluate",
    "interquartile_mean",
    "performance_profile",
    "probability_of_improvement",
    "summarize",
]
