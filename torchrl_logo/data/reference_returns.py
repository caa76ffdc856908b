"""The returns of a task's random and expert policies, by which scores are normalised."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import torch

from torchrl_logo.data.behaviour_policies import behaviour_tasks, read_recipe

__all__ = ["ReferenceReturns", "reference_returns"]

T = TypeVar("T", float, torch.Tensor)


@dataclasses.dataclass(frozen=True)
class ReferenceReturns:
    """Mean episode returns of the uniformly random and of the expert policy.

    Attributes:
        random: return that becomes the score 0.
        expert: return that becomes the score 100.

    Raises:
        ValueError: if the two are equal, since no score can be normalised by them.

    Examples:
        >>> reference = ReferenceReturns(random=-10.0, expert=30.0)
        >>> reference.normalize(10.0)
        50.0
        >>> reference.normalize(torch.tensor([-10.0, 30.0]))
        tensor([  0., 100.])
    """

    random: float
    expert: float

    def __post_init__(self) -> None:
        if self.random == self.expert:
            raise ValueError(
                "ReferenceReturns.expert must differ from ReferenceReturns.random, "
                f"found {self.expert} for both."
            )

    def normalize(self, returns: T) -> T:
        """Normalised score, ``100 * (R - R_random) / (R_expert - R_random)``.

        Args:
            returns (float or torch.Tensor): raw returns, of any shape.
        """
        return 100.0 * (returns - self.random) / (self.expert - self.random)


def reference_returns(task: str) -> ReferenceReturns | None:
    """The reference returns of a task, measured when its behaviour policies were trained.

    Args:
        task (str): as :func:`torchrl_logo.envs.make_env` takes it.

    Returns:
        ``None`` if the package ships no behaviour policies for the task.

    Examples:
        >>> reference_returns("my/own_task") is None
        True
    """
    if task not in behaviour_tasks():
        return None
    returns = read_recipe(task)["returns"]
    return ReferenceReturns(random=float(returns["random"]), expert=float(returns["expert"]))
