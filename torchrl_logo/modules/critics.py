"""Centralised critics: the value of a joint action in a global state."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.modules import MLP

from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.modules.normalizer import Normalizer

__all__ = ["CentralizedCritic", "make_centralized_critic"]


class CentralizedCritic(nn.Module):
    """An MLP on the global state and the joint action.

    Args:
        state_size (int): features of the global state, ``d_s``.
        n_agents (int): number of agents, ``N``.
        action_size (int): components of an agent's action, ``d_a``.

    Keyword Args:
        hidden_sizes (sequence of int): widths of the hidden layers.
        activation_class (type): non-linearity between layers.
        normalizer (Normalizer, optional): standardises the state first.
        device (torch.device, optional): where the parameters are made.

    Examples:
        >>> critic = CentralizedCritic(4, n_agents=2, action_size=1, hidden_sizes=(8,))
        >>> critic(torch.zeros(5, 4), torch.zeros(5, 2, 1)).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        state_size: int,
        *,
        n_agents: int,
        action_size: int,
        hidden_sizes: Sequence[int] = (128, 128),
        activation_class: type[nn.Module] = nn.ReLU,
        normalizer: Normalizer | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.normalizer = nn.Identity() if normalizer is None else normalizer
        self.network = MLP(
            in_features=state_size + n_agents * action_size,
            out_features=1,
            num_cells=list(hidden_sizes),
            activation_class=activation_class,
            device=device,
        )

    def forward(self, state: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Values ``[*, 1]`` of joint actions ``[*, N, d_a]`` in states ``[*, d_s]``."""
        return self.network(torch.cat([self.normalizer(state), action.flatten(-2)], -1))


def make_centralized_critic(
    spec: TaskSpec,
    *,
    hidden_sizes: Sequence[int] = (128, 128),
    activation_class: type[nn.Module] = nn.ReLU,
    normalizer: Normalizer | None = None,
    device: torch.device | str | None = None,
) -> TensorDictModule:
    """Makes a critic for continuous joint actions.

    Reads ``"state"`` ``[*, d_s]`` and ``("agents", "action")`` ``[*, N, d_a]``; writes
    ``"state_action_value"`` ``[*, 1]``.

    Args:
        spec (TaskSpec): the task's sizes.

    Keyword Args:
        hidden_sizes (sequence of int): widths of the hidden layers.
        activation_class (type): non-linearity between layers.
        normalizer (Normalizer, optional): standardises the state first.
        device (torch.device, optional): where the parameters are made.

    Raises:
        ValueError: if the task's actions are discrete.

    Examples:
        >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=1,
        ...                 action_low=(-1.0,), action_high=(1.0,))
        >>> make_centralized_critic(spec).out_keys
        ['state_action_value']
    """
    if spec.discrete:
        raise ValueError(
            "make_centralized_critic needs continuous actions; the task's are discrete: see "
            "make_action_value_network and make_mixer."
        )
    return TensorDictModule(
        CentralizedCritic(
            spec.state_size,
            n_agents=spec.n_agents,
            action_size=spec.action_size,
            hidden_sizes=hidden_sizes,
            activation_class=activation_class,
            normalizer=normalizer,
            device=device,
        ),
        in_keys=["state", ("agents", "action")],
        out_keys=["state_action_value"],
    )
