"""Linear mixers: the team's value as a weighted sum of the agents' values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.modules import MLP

from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.modules.normalizer import Normalizer

__all__ = ["LinearMixer", "make_linear_mixer"]


class LinearMixer(nn.Module):
    r"""A weighted sum of the agents' values, whose weights come from the state.

    .. math:: V_{tot}(s) = \sum_i w_i(s) V_i + b(s), \quad w_i(s) \ge 0

    The weights do not depend on the values: mixing values of actions and of states with the same
    weights and the same offset makes :math:`Q_{tot} - V_{tot} = \sum_i w_i (Q_i - V_i)`. They are
    absolute values of an MLP's outputs, as QMIX's.

    Source: OMIGA (Wang et al. 2023, arXiv 2307.11620), its decomposition of values.

    Args:
        state_size (int): features of the global state, ``d_s``.

    Keyword Args:
        n_agents (int): number of agents, ``N``.
        hidden_sizes (sequence of int): widths of the hidden layers. Defaults to ``(64,)``.
        activation_class (type): non-linearity between layers.
        normalizer (Normalizer, optional): standardises the state first.
        device (torch.device, optional): where the parameters are made.

    Examples:
        >>> mixer = LinearMixer(4, n_agents=3)
        >>> values, state = torch.zeros(5, 3, 1), torch.zeros(5, 4)
        >>> total, weights = mixer(values, state)
        >>> total.shape, weights.shape
        (torch.Size([5, 1]), torch.Size([5, 3, 1]))
    """

    def __init__(
        self,
        state_size: int,
        *,
        n_agents: int,
        hidden_sizes: Sequence[int] = (64,),
        activation_class: type[nn.Module] = nn.ReLU,
        normalizer: Normalizer | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.n_agents = n_agents
        self.normalizer = nn.Identity() if normalizer is None else normalizer
        self.network = MLP(
            in_features=state_size,
            out_features=n_agents + 1,
            num_cells=list(hidden_sizes),
            activation_class=activation_class,
            device=device,
        )

    def forward(
        self, local_value: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The team's values ``[*, 1]`` of agents' values ``[*, N, 1]`` in states ``[*, d_s]``.

        Returns:
            The team's values, and the weights ``[*, N, 1]``, which are not negative.
        """
        out = self.network(self.normalizer(state))  # [*, N + 1]
        weight = out[..., : self.n_agents].abs().unsqueeze(-1)
        return (weight * local_value).sum(-2) + out[..., self.n_agents :], weight


def make_linear_mixer(
    spec: TaskSpec,
    *,
    hidden_sizes: Sequence[int] = (64,),
    activation_class: type[nn.Module] = nn.ReLU,
    normalizer: Normalizer | None = None,
    device: torch.device | str | None = None,
) -> TensorDictModule:
    """Makes a linear mixer in the package's layout; see :class:`LinearMixer`.

    Reads ``("agents", "state_action_value")`` ``[*, N, 1]`` and ``"state"`` ``[*, d_s]``; writes
    ``"state_action_value"`` ``[*, 1]`` and ``("agents", "mixing_weight")`` ``[*, N, 1]``.

    Args:
        spec (TaskSpec): the task's sizes.

    Keyword Args:
        hidden_sizes (sequence of int): widths of the hidden layers. Defaults to ``(64,)``.
        activation_class (type): non-linearity between layers.
        normalizer (Normalizer, optional): standardises the state first.
        device (torch.device, optional): where the parameters are made.

    Examples:
        >>> from tensordict import TensorDict
        >>> spec = TaskSpec(n_agents=3, observation_size=4, state_size=6, action_size=5,
        ...                 discrete=True)
        >>> data = TensorDict({("agents", "state_action_value"): torch.ones(7, 3, 1),
        ...                    "state": torch.zeros(7, 6)}, [7])
        >>> make_linear_mixer(spec)(data)["state_action_value"].shape
        torch.Size([7, 1])
    """
    return TensorDictModule(
        LinearMixer(
            spec.state_size,
            n_agents=spec.n_agents,
            hidden_sizes=hidden_sizes,
            activation_class=activation_class,
            normalizer=normalizer,
            device=device,
        ),
        in_keys=[("agents", "state_action_value"), "state"],
        out_keys=["state_action_value", ("agents", "mixing_weight")],
    )
