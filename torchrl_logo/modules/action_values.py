"""Utility networks: what each agent's discrete actions are worth to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict.nn import TensorDictModule
from torch import nn

from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.modules.decentralized_mlp import DecentralizedMLP
from torchrl_logo.modules.normalizer import Normalizer

__all__ = ["make_action_value_network"]


def make_action_value_network(
    spec: TaskSpec,
    *,
    hidden_sizes: Sequence[int] = (128, 128),
    share_params: bool = True,
    activation_class: type[nn.Module] = nn.ReLU,
    normalizer: Normalizer | None = None,
    device: torch.device | str | None = None,
) -> TensorDictModule:
    """Makes a network that values each of an agent's discrete actions from its own observation.

    Reads ``("agents", "observation")`` ``[*, N, d_o]``; writes ``("agents", "action_value")``
    ``[*, N, A]``, for unavailable actions as well: masks are the business of those who choose.

    Args:
        spec (TaskSpec): the task's sizes.

    Keyword Args:
        hidden_sizes (sequence of int): widths of the hidden layers.
        share_params (bool): whether all agents use one set of weights. Defaults to ``True``.
        activation_class (type): non-linearity between layers.
        normalizer (Normalizer, optional): standardises each agent's observation first.
        device (torch.device, optional): where the parameters are made.

    Raises:
        ValueError: if the task's actions are continuous.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> spec = TaskSpec(n_agents=3, observation_size=4, state_size=6, action_size=5,
        ...                 discrete=True)
        >>> network = make_action_value_network(spec, hidden_sizes=(8,))
        >>> data = TensorDict({("agents", "observation"): torch.zeros(7, 3, 4)}, [7])
        >>> network(data)["agents", "action_value"].shape
        torch.Size([7, 3, 5])
    """
    if not spec.discrete:
        raise ValueError(
            "make_action_value_network needs discrete actions; the task's are continuous: see "
            "make_agent_critic."
        )
    network: nn.Module = DecentralizedMLP(
        spec.observation_size,
        spec.action_size,
        spec.n_agents,
        share_params=share_params,
        num_cells=hidden_sizes,
        activation_class=activation_class,
        device=device,
    )
    if normalizer is not None:
        network = nn.Sequential(normalizer, network)
    return TensorDictModule(
        network,
        in_keys=[("agents", "observation")],
        out_keys=[("agents", "action_value")],
    )
