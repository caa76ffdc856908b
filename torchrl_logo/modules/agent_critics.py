"""Critics of single agents: the values of an agent's own observation and action."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn

from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.modules.decentralized_mlp import DecentralizedMLP
from torchrl_logo.modules.normalizer import Normalizer
from torchrl_logo.modules.stacked_layers import standardize, unstack

__all__ = ["AgentCritic", "make_agent_critic", "make_agent_value"]


class AgentCritic(nn.Module):
    """An MLP on each agent's observation, and on its action if the critic values actions.

    Args:
        input_size (int): features of an agent's observation and action together.

    Keyword Args:
        n_agents (int): number of agents, ``N``.
        hidden_sizes (sequence of int): widths of the hidden layers.
        share_params (bool): whether all agents use one set of weights. Defaults to ``True``.
        activation_class (type): non-linearity between layers.
        normalizer (Normalizer, optional): standardises each agent's observation first.
        device (torch.device, optional): where the parameters are made.

    Examples:
        >>> critic = AgentCritic(4 + 1, n_agents=2, hidden_sizes=(8,))
        >>> critic(torch.zeros(5, 2, 4), torch.zeros(5, 2, 1)).shape
        torch.Size([5, 2, 1])
    """

    def __init__(
        self,
        input_size: int,
        *,
        n_agents: int,
        hidden_sizes: Sequence[int] = (128, 128),
        share_params: bool = True,
        activation_class: type[nn.Module] = nn.ReLU,
        normalizer: Normalizer | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.normalizer = nn.Identity() if normalizer is None else normalizer
        self.network = DecentralizedMLP(
            input_size,
            1,
            n_agents,
            share_params=share_params,
            num_cells=hidden_sizes,
            activation_class=activation_class,
            device=device,
        )
        self.can_value_stacked = self.network.can_be_unstacked

    def forward(self, observation: torch.Tensor, *action: torch.Tensor) -> torch.Tensor:
        """Values ``[*, N, 1]`` of observations ``[*, N, d_o]`` and actions ``[*, N, d_a]``."""
        return self.network(self.normalizer(observation), *action)

    def value_stacked(
        self, params: TensorDictBase, observation: torch.Tensor, action: torch.Tensor
    ) -> torch.Tensor:
        """Values ``[nets, *draws, *, N, 1]`` of several actions at each observation.

        Only where ``can_value_stacked``: not if agents have weights of their own, or activations
        have parameters.

        Args:
            params (TensorDictBase): ``[nets]``, parameters and buffers of critics like this one.
            observation (torch.Tensor): ``[*, N, d_o]``.
            action (torch.Tensor): ``[*draws, *, N, d_a]``.
        """
        shape = action.shape[:-1]
        rows = observation.reshape(-1, observation.shape[-1])  # [R, d_o], R over agents too
        varied = action.reshape(-1, len(rows), action.shape[-1])  # [M, R, d_a]
        values = [
            self.network.call_unstacked(
                weights,
                "network.",
                standardize(self.normalizer, weights, "normalizer.", rows),
                varied,
            )
            for weights in unstack(params)
        ]
        return torch.stack(values).view(-1, *shape, 1)


def make_agent_critic(
    spec: TaskSpec,
    *,
    hidden_sizes: Sequence[int] = (128, 128),
    share_params: bool = True,
    activation_class: type[nn.Module] = nn.ReLU,
    normalizer: Normalizer | None = None,
    device: torch.device | str | None = None,
) -> TensorDictModule:
    """Makes critics of each agent's own continuous action.

    Reads ``("agents", "observation")`` ``[*, N, d_o]`` and ``("agents", "action")``
    ``[*, N, d_a]``; writes ``("agents", "state_action_value")`` ``[*, N, 1]``. For discrete
    actions see :func:`~torchrl_logo.modules.make_action_value_network`.

    Args:
        spec (TaskSpec): the task's sizes.

    Keyword Args:
        hidden_sizes (sequence of int): widths of the hidden layers.
        share_params (bool): whether all agents use one set of weights. Defaults to ``True``.
        activation_class (type): non-linearity between layers.
        normalizer (Normalizer, optional): standardises each agent's observation first.
        device (torch.device, optional): where the parameters are made.

    Raises:
        ValueError: if the task's actions are discrete.

    Examples:
        >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=1,
        ...                 action_low=(-1.0,), action_high=(1.0,))
        >>> make_agent_critic(spec).out_keys
        [('agents', 'state_action_value')]
    """
    if spec.discrete:
        raise ValueError(
            "make_agent_critic needs continuous actions; the task's are discrete: see "
            "make_action_value_network."
        )
    return TensorDictModule(
        AgentCritic(
            spec.observation_size + spec.action_size,
            n_agents=spec.n_agents,
            hidden_sizes=hidden_sizes,
            share_params=share_params,
            activation_class=activation_class,
            normalizer=normalizer,
            device=device,
        ),
        in_keys=[("agents", "observation"), ("agents", "action")],
        out_keys=[("agents", "state_action_value")],
    )


def make_agent_value(
    spec: TaskSpec,
    *,
    hidden_sizes: Sequence[int] = (128, 128),
    share_params: bool = True,
    activation_class: type[nn.Module] = nn.ReLU,
    normalizer: Normalizer | None = None,
    device: torch.device | str | None = None,
) -> TensorDictModule:
    """Makes values of each agent's own observation.

    Reads ``("agents", "observation")`` ``[*, N, d_o]``; writes ``("agents", "state_value")``
    ``[*, N, 1]``.

    Args:
        spec (TaskSpec): the task's sizes; actions may be discrete or continuous.

    Keyword Args:
        hidden_sizes (sequence of int): widths of the hidden layers.
        share_params (bool): whether all agents use one set of weights. Defaults to ``True``.
        activation_class (type): non-linearity between layers.
        normalizer (Normalizer, optional): standardises each agent's observation first.
        device (torch.device, optional): where the parameters are made.

    Examples:
        >>> from tensordict import TensorDict
        >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=5,
        ...                 discrete=True)
        >>> data = TensorDict({("agents", "observation"): torch.zeros(7, 2, 3)}, [7])
        >>> make_agent_value(spec)(data)["agents", "state_value"].shape
        torch.Size([7, 2, 1])
    """
    return TensorDictModule(
        AgentCritic(
            spec.observation_size,
            n_agents=spec.n_agents,
            hidden_sizes=hidden_sizes,
            share_params=share_params,
            activation_class=activation_class,
            normalizer=normalizer,
            device=device,
        ),
        in_keys=[("agents", "observation")],
        out_keys=[("agents", "state_value")],
    )
