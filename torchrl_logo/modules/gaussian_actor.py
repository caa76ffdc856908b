"""Decentralised actors: one network for all agents, each agent acting on its own observation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from tensordict.nn import (
    NormalParamExtractor,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
)
from torch import nn

from torchrl_logo.argument_checks import require_type
from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.modules.decentralized_mlp import DecentralizedMLP
from torchrl_logo.modules.normalizer import Normalizer
from torchrl_logo.modules.squashed_normal import SquashedNormalModule

__all__ = ["make_gaussian_actor"]


def make_gaussian_actor(
    spec: TaskSpec,
    *,
    hidden_sizes: Sequence[int] = (128, 128),
    share_params: bool = True,
    activation_class: type[nn.Module] = nn.ReLU,
    normalizer: Normalizer | None = None,
    device: torch.device | str | None = None,
) -> ProbabilisticTensorDictSequential:
    """Makes a stochastic actor for continuous actions, squashed into the action bounds.

    Reads ``("agents", "observation")`` ``[*, N, d_o]``; writes ``("agents", "loc")``,
    ``("agents", "scale")``, ``("agents", "action")`` ``[*, N, d_a]`` and
    ``("agents", "action_log_prob")`` ``[*, N]``. Under deterministic exploration the action is
    the squashed location.

    Args:
        spec (TaskSpec): sizes and action bounds.

    Keyword Args:
        hidden_sizes (sequence of int): widths of the hidden layers.
        share_params (bool): whether all agents use one set of weights. Defaults to ``True``.
        activation_class (type): non-linearity between layers.
        normalizer (Normalizer, optional): standardises each agent's observation first.
        device (torch.device, optional): where the parameters are made.

    Raises:
        ValueError: if the task has discrete or unbounded actions.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> spec = TaskSpec(n_agents=3, observation_size=4, state_size=6, action_size=2,
        ...                 action_low=(-1.0, -1.0), action_high=(1.0, 1.0))
        >>> actor = make_gaussian_actor(spec, hidden_sizes=(8,))
        >>> data = TensorDict({("agents", "observation"): torch.zeros(5, 3, 4)}, [5])
        >>> actor(data)["agents", "action"].shape
        torch.Size([5, 3, 2])
    """
    require_finite_bounds(spec, "make_gaussian_actor")
    layers: list[nn.Module] = [] if normalizer is None else [normalizer]
    layers += [
        DecentralizedMLP(
            spec.observation_size,
            2 * spec.action_size,
            spec.n_agents,
            share_params=share_params,
            num_cells=hidden_sizes,
            activation_class=activation_class,
            device=device,
        ),
        NormalParamExtractor(scale_lb=1e-2),
    ]
    return ProbabilisticTensorDictSequential(
        TensorDictModule(
            nn.Sequential(*layers),
            in_keys=[("agents", "observation")],
            out_keys=[("agents", "loc"), ("agents", "scale")],
        ),
        SquashedNormalModule(
            torch.tensor(spec.action_low, device=device),
            torch.tensor(spec.action_high, device=device),
            in_keys=[("agents", "loc"), ("agents", "scale")],
            out_keys=[("agents", "action")],
            log_prob_key=("agents", "action_log_prob"),
        ),
    )


def require_finite_bounds(spec: TaskSpec, reader: str) -> None:
    """Refuses a task whose actions have no finite bounds to squash them into.

    Args:
        spec (TaskSpec): the task.
        reader (str): who needs the bounds, for the message.

    Raises:
        ValueError: if the task has discrete or unbounded actions.

    Examples:
        >>> spec = TaskSpec(n_agents=1, observation_size=1, state_size=1, action_size=3,
        ...                 discrete=True)
        >>> require_finite_bounds(spec, "make_gaussian_actor")
        Traceback (most recent call last):
        ...
        ValueError: make_gaussian_actor needs continuous actions; the task's are discrete: see \
make_categorical_actor.
    """
    require_type(spec, TaskSpec, "spec", "dataset.spec or TaskSpec.from_env(env)")
    if spec.discrete:
        raise ValueError(
            f"{reader} needs continuous actions; the task's are discrete: see "
            "make_categorical_actor."
        )
    if not all(map(math.isfinite, (*spec.action_low, *spec.action_high))):
        raise ValueError(
            f"{reader} needs finite action bounds, found low={spec.action_low}, "
            f"high={spec.action_high}."
        )
