"""Actors and utilities with memory, for tasks that are partially observable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict.nn import (
    NormalParamExtractor,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
)
from tensordict.utils import NestedKey
from torch import nn

from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.modules.decentralized_gru import DecentralizedGRU
from torchrl_logo.modules.decentralized_mlp import DecentralizedMLP
from torchrl_logo.modules.gaussian_actor import require_finite_bounds
from torchrl_logo.modules.masked_categorical import MaskedCategorical
from torchrl_logo.modules.normalizer import Normalizer
from torchrl_logo.modules.recurrent_network import RecurrentNetwork
from torchrl_logo.modules.squashed_normal import SquashedNormalModule

__all__ = [
    "make_recurrent_action_value_network",
    "make_recurrent_categorical_actor",
    "make_recurrent_gaussian_actor",
]


def _make_recurrent_network(
    spec: TaskSpec,
    out_size: int,
    out_keys: Sequence[NestedKey],
    *,
    hidden_sizes: Sequence[int],
    recurrent_size: int,
    share_params: bool,
    activation_class: type[nn.Module],
    normalizer: Normalizer | None,
    device: torch.device | str | None,
    last: Sequence[nn.Module] = (),
) -> RecurrentNetwork:
    shared: dict[str, Any] = {
        "share_params": share_params,
        "activation_class": activation_class,
        "device": device,
    }
    encoder: list[nn.Module] = [] if normalizer is None else [normalizer]
    encoding_size = spec.observation_size
    if hidden_sizes:
        *widths, encoding_size = hidden_sizes
        encoder += [
            DecentralizedMLP(
                spec.observation_size, encoding_size, spec.n_agents, num_cells=widths, **shared
            ),
            activation_class(),
        ]
    return RecurrentNetwork(
        nn.Sequential(*encoder),
        DecentralizedGRU(
            encoding_size, recurrent_size, spec.n_agents, share_params=share_params, device=device
        ),
        nn.Sequential(
            DecentralizedMLP(recurrent_size, out_size, spec.n_agents, num_cells=(), **shared), *last
        ),
        out_keys=out_keys,
    )


def make_recurrent_categorical_actor(
    spec: TaskSpec,
    *,
    hidden_sizes: Sequence[int] = (64,),
    recurrent_size: int = 64,
    share_params: bool = True,
    activation_class: type[nn.Module] = nn.ReLU,
    normalizer: Normalizer | None = None,
    device: torch.device | str | None = None,
) -> ProbabilisticTensorDictSequential:
    """Makes a stochastic actor for discrete actions that remembers earlier observations.

    :func:`~torchrl_logo.modules.make_categorical_actor` with memory: reads and writes the same,
    and besides ``"is_init"`` ``[*, 1]`` bool and the agents' states, see
    :class:`RecurrentNetwork`.

    Args:
        spec (TaskSpec): sizes.

    Keyword Args:
        hidden_sizes (sequence of int): widths of the layers before the memory.
        recurrent_size (int): features of each agent's state. Defaults to ``64``.
        share_params (bool): whether all agents use one set of weights. Defaults to ``True``.
        activation_class (type): non-linearity between layers.
        normalizer (Normalizer, optional): standardises each agent's observation first.
        device (torch.device, optional): where the parameters are made.

    Raises:
        ValueError: if the task has continuous actions.

    Examples:
        >>> from torchrl.envs import InitTracker, TransformedEnv
        >>> from torchrl.modules.utils import get_primers_from_module
        >>> from torchrl_logo.envs import make_env
        >>> env = TransformedEnv(make_env("vmas/balance", num_envs=2), InitTracker())
        >>> spec = TaskSpec(n_agents=3, observation_size=16, state_size=42, action_size=9,
        ...                 discrete=True)
        >>> actor = make_recurrent_categorical_actor(spec)
        >>> env = env.append_transform(get_primers_from_module(actor))
        >>> env.reset()["agents", "recurrent_state"].shape
        torch.Size([2, 3, 64])
    """
    if not spec.discrete:
        raise ValueError(
            "make_recurrent_categorical_actor needs discrete actions; the task's are continuous: "
            "see make_recurrent_gaussian_actor."
        )
    network = _make_recurrent_network(
        spec,
        spec.action_size,
        [("agents", "logits")],
        hidden_sizes=hidden_sizes,
        recurrent_size=recurrent_size,
        share_params=share_params,
        activation_class=activation_class,
        normalizer=normalizer,
        device=device,
    )
    return ProbabilisticTensorDictSequential(
        network,
        ProbabilisticTensorDictModule(
            in_keys={"logits": ("agents", "logits"), "mask": ("agents", "action_mask")},
            out_keys=[("agents", "action")],
            distribution_class=MaskedCategorical,
            return_log_prob=True,
            log_prob_key=("agents", "action_log_prob"),
        ),
    )


def make_recurrent_gaussian_actor(
    spec: TaskSpec,
    *,
    hidden_sizes: Sequence[int] = (64,),
    recurrent_size: int = 64,
    share_params: bool = True,
    activation_class: type[nn.Module] = nn.ReLU,
    normalizer: Normalizer | None = None,
    device: torch.device | str | None = None,
) -> ProbabilisticTensorDictSequential:
    """Makes a stochastic actor for continuous actions that remembers earlier observations.

    :func:`~torchrl_logo.modules.make_gaussian_actor` with memory: reads and writes the same, and
    besides ``"is_init"`` ``[*, 1]`` bool and the agents' states, see :class:`RecurrentNetwork`.

    Args:
        spec (TaskSpec): sizes and action bounds.

    Keyword Args:
        hidden_sizes (sequence of int): widths of the layers before the memory.
        recurrent_size (int): features of each agent's state. Defaults to ``64``.
        share_params (bool): whether all agents use one set of weights. Defaults to ``True``.
        activation_class (type): non-linearity between layers.
        normalizer (Normalizer, optional): standardises each agent's observation first.
        device (torch.device, optional): where the parameters are made.

    Raises:
        ValueError: if the task has discrete or unbounded actions.

    Examples:
        >>> from tensordict import TensorDict
        >>> spec = TaskSpec(n_agents=3, observation_size=4, state_size=6, action_size=2,
        ...                 action_low=(-1.0, -1.0), action_high=(1.0, 1.0))
        >>> actor = make_recurrent_gaussian_actor(spec, recurrent_size=8)
        >>> data = TensorDict({"agents": {"observation": torch.zeros(5, 3, 4),
        ...                               "recurrent_state": torch.zeros(5, 3, 8)},
        ...                    "is_init": torch.ones(5, 1, dtype=torch.bool)}, [5])
        >>> actor(data)["agents", "action"].shape
        torch.Size([5, 3, 2])
    """
    require_finite_bounds(spec, "make_recurrent_gaussian_actor")
    network = _make_recurrent_network(
        spec,
        2 * spec.action_size,
        [("agents", "loc"), ("agents", "scale")],
        hidden_sizes=hidden_sizes,
        recurrent_size=recurrent_size,
        share_params=share_params,
        activation_class=activation_class,
        normalizer=normalizer,
        device=device,
        last=[NormalParamExtractor(scale_lb=1e-2)],
    )
    return ProbabilisticTensorDictSequential(
        network,
        SquashedNormalModule(
            torch.tensor(spec.action_low, device=device),
            torch.tensor(spec.action_high, device=device),
            in_keys=[("agents", "loc"), ("agents", "scale")],
            out_keys=[("agents", "action")],
            log_prob_key=("agents", "action_log_prob"),
        ),
    )


def make_recurrent_action_value_network(
    spec: TaskSpec,
    *,
    hidden_sizes: Sequence[int] = (64,),
    recurrent_size: int = 64,
    share_params: bool = True,
    activation_class: type[nn.Module] = nn.ReLU,
    normalizer: Normalizer | None = None,
    device: torch.device | str | None = None,
) -> RecurrentNetwork:
    """Makes a network that values an agent's discrete actions from all that it has seen.

    :func:`~torchrl_logo.modules.make_action_value_network` with memory, the agents' networks of
    QMIX (Rashid et al. 2018, section 4): reads and writes the same, and besides ``"is_init"``
    ``[*, 1]`` bool and the agents' states, see :class:`RecurrentNetwork`.

    Args:
        spec (TaskSpec): the task's sizes.

    Keyword Args:
        hidden_sizes (sequence of int): widths of the layers before the memory.
        recurrent_size (int): features of each agent's state. Defaults to ``64``.
        share_params (bool): whether all agents use one set of weights. Defaults to ``True``.
        activation_class (type): non-linearity between layers.
        normalizer (Normalizer, optional): standardises each agent's observation first.
        device (torch.device, optional): where the parameters are made.

    Raises:
        ValueError: if the task's actions are continuous.

    Examples:
        >>> from tensordict import TensorDict
        >>> spec = TaskSpec(n_agents=3, observation_size=4, state_size=6, action_size=5,
        ...                 discrete=True)
        >>> network = make_recurrent_action_value_network(spec, recurrent_size=8)
        >>> data = TensorDict({"agents": {"observation": torch.zeros(7, 3, 4),
        ...                               "recurrent_state": torch.zeros(7, 3, 8)},
        ...                    "is_init": torch.ones(7, 1, dtype=torch.bool)}, [7])
        >>> network(data)["agents", "action_value"].shape
        torch.Size([7, 3, 5])
    """
    if not spec.discrete:
        raise ValueError(
            "make_recurrent_action_value_network needs discrete actions; the task's are "
            "continuous: see make_agent_critic."
        )
    return _make_recurrent_network(
        spec,
        spec.action_size,
        [("agents", "action_value")],
        hidden_sizes=hidden_sizes,
        recurrent_size=recurrent_size,
        share_params=share_params,
        activation_class=activation_class,
        normalizer=normalizer,
        device=device,
    )
