"""Planning in a world model, at decision time."""

from torchrl_logo.planning.candidates import CategoricalCandidates, GaussianCandidates
from torchrl_logo.planning.horizon_value import HorizonValue
from torchrl_logo.planning.logo_mpc import LOGOMPC, Plan

__all__ = [
    "CategoricalCandidates",
    "GaussianCandidates",
    "HorizonValue",
    "LOGOMPC",
    "Plan",
]
