"""The policy of learnt action values: each agent's best available action."""

from __future__ import annotations

import torch
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from tensordict.utils import NestedKey
from torch import nn

__all__ = ["make_greedy_policy"]


class _BestAvailable(nn.Module):
    def forward(self, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The best available actions ``[*, N]`` by values ``[*, N, A]``."""
        # Available values stay above unavailable ones, wherever training has driven them.
        value = value.clamp_min(torch.finfo(value.dtype).min)
        return value.masked_fill(~mask, -float("inf")).argmax(-1)


def make_greedy_policy(
    action_value_network: TensorDictModuleBase,
    *,
    action_value_key: NestedKey = ("agents", "action_value"),
    action_mask_key: NestedKey = ("agents", "action_mask"),
    action_key: NestedKey = ("agents", "action"),
) -> TensorDictSequential:
    """Makes the decentralised policy of a network of agents' action values.

    It shares the network's parameters: as the network learns, the policy follows. Reads what the
    network reads and ``("agents", "action_mask")`` ``[*, N, A]`` bool; writes what the network
    writes and ``("agents", "action")`` ``[*, N]`` int64. An unavailable action is never taken; an
    agent without any takes the first.

    Args:
        action_value_network (TensorDictModuleBase): writes ``("agents", "action_value")``
            ``[*, N, A]``, for instance from
            :func:`~torchrl_logo.modules.make_action_value_network`.

    Keyword Args:
        action_value_key (NestedKey): what the network writes.
        action_mask_key (NestedKey): the available actions.
        action_key (NestedKey): where actions are written.

    Examples:
        >>> from tensordict import TensorDict
        >>> values = TensorDictModule(
        ...     lambda x: x, in_keys=[("agents", "observation")],
        ...     out_keys=[("agents", "action_value")])
        >>> policy = make_greedy_policy(values)
        >>> data = TensorDict({"agents": {
        ...     "observation": torch.tensor([[1.0, 3.0, 2.0], [5.0, 4.0, 0.0]]),
        ...     "action_mask": torch.tensor([[True, False, True], [True, True, True]])}})
        >>> policy(data)["agents", "action"]
        tensor([2, 0])
    """
    choice = TensorDictModule(
        _BestAvailable(), in_keys=[action_value_key, action_mask_key], out_keys=[action_key]
    )
    return TensorDictSequential(action_value_network, choice)
