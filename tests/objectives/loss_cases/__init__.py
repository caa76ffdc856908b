"""How each loss is made for the contract tests: one file a loss, with a table ``CASES``."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable

from torchrl.objectives import LossModule

from torchrl_logo.data import TaskSpec

CONTINUOUS = TaskSpec(
    n_agents=2,
    observation_size=3,
    state_size=4,
    action_size=2,
    action_low=(-1.0, -1.0),
    action_high=(1.0, 2.0),
)
DISCRETE = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=5, discrete=True)


@dataclasses.dataclass(frozen=True)
class Case:
    """How a loss is made.

    Attributes:
        make: ``(device, keys, **kwargs)``, where ``keys`` are names that networks use.
        spec: the task.
        is_policy: whether it trains a policy; such losses are functional and take plain tensors,
            and the losses of world models have tests of their own for devices and compilation.
        targets: name of the network that has target parameters, if there is one.
        target_output: output of the loss that comes from them alone.
        compiles_alone: whether no other case's graph contains this one's.
    """

    make: Callable[..., LossModule]
    spec: TaskSpec = CONTINUOUS
    is_policy: bool = True
    targets: str | None = None
    target_output: str = "target_value"
    compiles_alone: bool = True


#: Cases of a loss by their names.
Cases = dict[type[LossModule], dict[str, Case]]


def find_cases() -> Cases:
    """Gathers the tables of all files in this folder."""
    found: Cases = {}
    for file in pkgutil.iter_modules(__path__, f"{__name__}."):
        found |= importlib.import_module(file.name).CASES
    return found
