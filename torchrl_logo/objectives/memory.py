"""Refuses networks with memory where a loss would run them from the wrong state."""

from __future__ import annotations

from tensordict.nn import TensorDictModuleBase
from torch import nn

from torchrl_logo.modules.recurrent_network import find_recurrent_states

__all__ = ["refuse_memory"]


def refuse_memory(reader: str, *networks: nn.Module | list[nn.Module] | None) -> None:
    """Raises if a network carries a state from step to step.

    At the next step such a network must go on from where the current step left it. Losses that
    see to that say so (``recurrent = True``); the others would start it anew without a word.

    Args:
        reader (str): how the error names the loss.
        *networks (nn.Module or list of them): what is looked at.

    Raises:
        ValueError: names the states.

    Examples:
        >>> refuse_memory("MyLoss", nn.Linear(2, 2), None)
    """
    for network in networks:
        for member in network if isinstance(network, list) else [network]:
            if isinstance(member, TensorDictModuleBase) and (
                states := find_recurrent_states(member)
            ):
                raise ValueError(
                    f"{reader} expected networks without memory, found one with the states "
                    f"{states}. BCLoss, DiscreteMACQLLoss and DiscreteCFCQLLoss train networks "
                    "with memory on sequences."
                )
