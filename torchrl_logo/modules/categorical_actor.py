"""Decentralised actors for discrete actions, of which only some may be available."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict.nn import (
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
)
from torch import nn

from torchrl_logo.argument_checks import require_type
from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.modules.decentralized_mlp import DecentralizedMLP
from torchrl_logo.modules.masked_categorical import MaskedCategorical
from torchrl_logo.modules.normalizer import Normalizer

__all__ = ["make_categorical_actor"]


def make_categorical_actor(
    spec: TaskSpec,
    *,
    hidden_sizes: Sequence[int] = (128, 128),
    share_params: bool = True,
    activation_class: type[nn.Module] = nn.ReLU,
    normalizer: Normalizer | None = None,
    device: torch.device | str | None = None,
) -> ProbabilisticTensorDictSequential:
    """Makes a stochastic actor for discrete actions that takes available ones only.

    Reads ``("agents", "observation")`` ``[*, N, d_o]`` and ``("agents", "action_mask")``
    ``[*, N, A]`` bool; writes ``("agents", "logits")`` ``[*, N, A]`` (before the mask),
    ``("agents", "action")`` ``[*, N]`` int64 and ``("agents", "action_log_prob")`` ``[*, N]``.
    Under deterministic exploration the action is the likeliest one. See
    :class:`~torchrl_logo.modules.masked_categorical.MaskedCategorical` for what the mask does.

    Args:
        spec (TaskSpec): sizes.

    Keyword Args:
        hidden_sizes (sequence of int): widths of the hidden layers.
        share_params (bool): whether all agents use one set of weights. Defaults to ``True``.
        activation_class (type): non-linearity between layers.
        normalizer (Normalizer, optional): standardises each agent's observation first.
        device (torch.device, optional): where the parameters are made.

    Raises:
        ValueError: if the task has continuous actions.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> spec = TaskSpec(n_agents=3, observation_size=4, state_size=6, action_size=5,
        ...                 discrete=True)
        >>> actor = make_categorical_actor(spec, hidden_sizes=(8,))
        >>> mask = torch.tensor([False, False, True, False, False]).expand(7, 3, 5)
        >>> data = TensorDict({"agents": {"observation": torch.zeros(7, 3, 4),
        ...                               "action_mask": mask}}, [7])
        >>> actor(data)["agents", "action"][0]
        tensor([2, 2, 2])
    """
    require_type(spec, TaskSpec, "spec", "dataset.spec or TaskSpec.from_env(env)")
    if not spec.discrete:
        raise ValueError(
            "make_categorical_actor needs discrete actions; the task's are continuous: see "
            "make_gaussian_actor."
        )
    layers: list[nn.Module] = [] if normalizer is None else [normalizer]
    layers.append(
        DecentralizedMLP(
            spec.observation_size,
            spec.action_size,
            spec.n_agents,
            share_params=share_params,
            num_cells=hidden_sizes,
            activation_class=activation_class,
            device=device,
        )
    )
    return ProbabilisticTensorDictSequential(
        TensorDictModule(
            nn.Sequential(*layers),
            in_keys=[("agents", "observation")],
            out_keys=[("agents", "logits")],
        ),
        ProbabilisticTensorDictModule(
            in_keys={"logits": ("agents", "logits"), "mask": ("agents", "action_mask")},
            out_keys=[("agents", "action")],
            distribution_class=MaskedCategorical,
            return_log_prob=True,
            log_prob_key=("agents", "action_log_prob"),
        ),
    )
