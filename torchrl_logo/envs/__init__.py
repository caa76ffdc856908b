"""Real and imagined environments in the package's layout."""

from torchrl_logo.envs.imagined import ImaginedEnv
from torchrl_logo.envs.latent_imagined import LatentImaginedEnv
from torchrl_logo.envs.registry import available_tasks, make_env
from torchrl_logo.envs.state_groups import state_groups
from torchrl_logo.envs.termination import known_termination, tasks_with_known_termination
from torchrl_logo.envs.uncertainty_penalty import UncertaintyPenalty

__all__ = [
    "ImaginedEnv",
    "LatentImaginedEnv",
    "UncertaintyPenalty",
    "available_tasks",
    "known_termination",
    "make_env",
    "state_groups",
    "tasks_with_known_termination",
]
