"""Centralised critics: the value of a joint action in a global state."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.modules import MLP

from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.modules.decentralized_mlp import DecentralizedMLP
from torchrl_logo.modules.normalizer import Normalizer
from torchrl_logo.modules.stacked_layers import (
    Weights,
    call_layers,
    have_stackable_layers,
    standardize,
    unstack,
)

__all__ = ["CRITIC_KINDS", "CentralizedCritic", "make_centralized_critic"]

#: What a centralised critic is made of: see :func:`make_centralized_critic`.
CRITIC_KINDS = ("additive", "joint", "state")


class CentralizedCritic(nn.Module):
    r"""An MLP on the global state, the agents' observations if asked for, and the joint action.

    With ``local_values`` a network of single agents is added, whose values are summed over the
    team:

    .. math::

        Q(s, o, a) = f(s, o_1, \dots, o_N, a_1, \dots, a_N) + \sum_i q(o_i, a_i)

    so that what an agent's own action brings it is learnt from each of the ``N`` agents at once,
    as in value decomposition (VDN, Sunehag et al. 2018), while ``f`` keeps what depends on several
    of them. This is this package's addition: the paper's critic reads the state. Simulators'
    states hold the same facts, but where rewards depend on who is near whom, observations say it
    in a form that is far easier to fit (docs/results.md has the figures).

    Args:
        state_size (int): features of the global state, ``d_s``.

    Keyword Args:
        n_agents (int): number of agents, ``N``.
        action_size (int): components of an agent's action, ``d_a``.
        observation_size (int, optional): features of an agent's observation, ``d_o``. Defaults to
            none: observations are not read.
        local_values (bool): whether values of single agents are added. Defaults to ``False``.
        share_params (bool): whether these agents use one set of weights. Defaults to ``True``.
        hidden_sizes (sequence of int): widths of the hidden layers.
        activation_class (type): non-linearity between layers.
        normalizer (Normalizer, optional): standardises the state first.
        observation_normalizer (Normalizer, optional): standardises each agent's observation first.
        device (torch.device, optional): where the parameters are made.

    Raises:
        ValueError: if local values are asked for without observations.

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
        observation_size: int | None = None,
        local_values: bool = False,
        share_params: bool = True,
        hidden_sizes: Sequence[int] = (128, 128),
        activation_class: type[nn.Module] = nn.ReLU,
        normalizer: Normalizer | None = None,
        observation_normalizer: Normalizer | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if local_values and observation_size is None:
            raise ValueError(
                "local_values=True needs observation_size: the values of single agents are those "
                "of their observations."
            )
        self.normalizer = nn.Identity() if normalizer is None else normalizer
        self.observation_normalizer = (
            nn.Identity() if observation_normalizer is None else observation_normalizer
        )
        local_size = (observation_size or 0) + action_size
        self.network = MLP(
            in_features=state_size + n_agents * local_size,
            out_features=1,
            num_cells=list(hidden_sizes),
            activation_class=activation_class,
            device=device,
        )
        self.local_network: DecentralizedMLP | None = None
        if local_values:
            self.local_network = DecentralizedMLP(
                local_size,
                1,
                n_agents,
                share_params=share_params,
                num_cells=hidden_sizes,
                activation_class=activation_class,
                device=device,
            )
        self.can_value_stacked = have_stackable_layers(self.network) and (
            share_params or not local_values
        )

    def forward(self, state: torch.Tensor, *local: torch.Tensor) -> torch.Tensor:
        """Values ``[*, 1]`` of joint actions.

        Args:
            state (torch.Tensor): ``[*, d_s]``.
            *local (torch.Tensor): observations ``[*, N, d_o]``, if the critic reads them, and
                the joint action ``[*, N, d_a]``.
        """
        *observation, action = local
        read = [*(self.observation_normalizer(value) for value in observation), action]
        joint = torch.cat([self.normalizer(state), *(value.flatten(-2) for value in read)], -1)
        value = self.network(joint)
        if self.local_network is None:
            return value
        return value + self.local_network(*read).sum(-2)  # [*, N, 1] -> [*, 1]

    def value_stacked(
        self, params: TensorDictBase, state: torch.Tensor, *local: torch.Tensor
    ) -> torch.Tensor:
        """Values ``[nets, *draws, *, 1]`` of several joint actions in each state.

        Only where ``can_value_stacked``: not if single agents have weights of their own, or
        activations have parameters.

        Args:
            params (TensorDictBase): ``[nets]``, parameters and buffers of critics like this one.
            state (torch.Tensor): ``[*, d_s]``.
            *local (torch.Tensor): observations ``[*, N, d_o]``, if the critic reads them, and
                joint actions ``[*draws, *, N, d_a]``.
        """
        *observation, action = local
        shape = action.shape[:-2]
        n_agents, size = action.shape[-2:]
        state = state.reshape(-1, state.shape[-1])  # [R, d_s]
        observation = [value.reshape(len(state), n_agents, -1) for value in observation]
        action = action.reshape(-1, len(state), n_agents, size)  # [M, R, N, d_a]
        values = [self._value_alone(w, state, observation, action) for w in unstack(params)]
        return torch.stack(values).view(-1, *shape, 1)

    def _value_alone(
        self,
        weights: Weights,
        state: torch.Tensor,
        observation: list[torch.Tensor],
        action: torch.Tensor,
    ) -> torch.Tensor:
        """Values ``[M, R, 1]`` of one critic of the stack."""
        state = standardize(self.normalizer, weights, "normalizer.", state)
        observation = [
            standardize(self.observation_normalizer, weights, "observation_normalizer.", value)
            for value in observation
        ]
        repeated = torch.cat([state, *(value.flatten(1) for value in observation)], -1)
        value = call_layers(self.network, weights, "network.", repeated, action.flatten(2))
        if self.local_network is None:
            return value
        alone = self.local_network.call_unstacked(
            weights, "local_network.", observation[0].flatten(0, 1), action.flatten(1, 2)
        )  # [M, R * N, 1]
        return value + alone.view(*action.shape[:3], 1).sum(-2)


def make_centralized_critic(
    spec: TaskSpec,
    *,
    kind: str = "joint",
    hidden_sizes: Sequence[int] = (128, 128),
    share_params: bool = True,
    activation_class: type[nn.Module] = nn.ReLU,
    normalizer: Normalizer | None = None,
    observation_normalizer: Normalizer | None = None,
    device: torch.device | str | None = None,
) -> TensorDictModule:
    """Makes a critic for continuous joint actions.

    Reads ``"state"`` ``[*, d_s]``, unless its kind is ``"state"`` also
    ``("agents", "observation")`` ``[*, N, d_o]``, and ``("agents", "action")`` ``[*, N, d_a]``;
    writes ``"state_action_value"`` ``[*, 1]``.

    Args:
        spec (TaskSpec): the task's sizes.

    Keyword Args:
        kind (str): ``"state"``, an MLP on the state and the joint action; ``"joint"``, one that
            reads the agents' observations too; ``"additive"``, that and the sum of single agents'
            values (:class:`CentralizedCritic`), at two to three times the cost of an update for
            three agents. Defaults to ``"joint"``.
        hidden_sizes (sequence of int): widths of the hidden layers.
        share_params (bool): whether single agents' values share their weights. Defaults to
            ``True``.
        activation_class (type): non-linearity between layers.
        normalizer (Normalizer, optional): standardises the state first.
        observation_normalizer (Normalizer, optional): standardises each agent's observation first.
        device (torch.device, optional): where the parameters are made.

    Raises:
        ValueError: if the task's actions are discrete, or there is no such kind.

    Examples:
        >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=1,
        ...                 action_low=(-1.0,), action_high=(1.0,))
        >>> make_centralized_critic(spec).in_keys
        ['state', ('agents', 'observation'), ('agents', 'action')]
        >>> make_centralized_critic(spec, kind="state").in_keys
        ['state', ('agents', 'action')]
    """
    if spec.discrete:
        raise ValueError(
            "make_centralized_critic needs continuous actions; the task's are discrete: see "
            "make_action_value_network and make_mixer."
        )
    if kind not in CRITIC_KINDS:
        raise ValueError(f"kind must be one of {list(CRITIC_KINDS)}, found {kind!r}.")
    observes = kind != "state"
    return TensorDictModule(
        CentralizedCritic(
            spec.state_size,
            n_agents=spec.n_agents,
            action_size=spec.action_size,
            observation_size=spec.observation_size if observes else None,
            local_values=kind == "additive",
            share_params=share_params,
            hidden_sizes=hidden_sizes,
            activation_class=activation_class,
            normalizer=normalizer,
            observation_normalizer=observation_normalizer if observes else None,
            device=device,
        ),
        in_keys=["state", *([("agents", "observation")] if observes else []), ("agents", "action")],
        out_keys=["state_action_value"],
    )
