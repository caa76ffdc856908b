"""What a loss needs in a batch, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey

__all__ = ["require_keys", "require_shape"]


def require_keys(tensordict: TensorDictBase, keys: Iterable[NestedKey], reader: str) -> None:
    """Refuses a batch in which entries are missing.

    Args:
        tensordict (TensorDictBase): the batch.
        keys (iterable of NestedKey): what must be there.
        reader (str): who reads it, for the message.

    Raises:
        KeyError: names all missing keys and those that were found.

    Examples:
        >>> from tensordict import TensorDict
        >>> batch = TensorDict({"state": torch.zeros(2, 3)}, [2])
        >>> require_keys(batch, ["state", ("next", "reward")], "MACQLLoss")
        Traceback (most recent call last):
        ...
        KeyError: "MACQLLoss reads [('next', 'reward')], which are missing; found ['state']."
    """
    missing = [key for key in keys if tensordict.get(key, None) is None]
    if missing:
        found = sorted(map(str, tensordict.keys(True, True)))
        raise KeyError(f"{reader} reads {missing}, which are missing; found {found}.")


def require_shape(
    value: torch.Tensor, shape: Iterable[int], key: NestedKey, reader: str
) -> torch.Tensor:
    """Refuses an entry of another shape; sizes are compared, not values, so nothing is awaited.

    Args:
        value (torch.Tensor): the entry.
        shape (iterable of int): the shape that it must have.
        key (NestedKey): its name, for the message.
        reader (str): who reads it, for the message.

    Returns:
        ``value`` itself.

    Raises:
        ValueError: names the key, the expected and the found shape.

    Examples:
        >>> require_shape(torch.zeros(2), [2, 1], ("next", "reward"), "MACQLLoss")
        Traceback (most recent call last):
        ...
        ValueError: MACQLLoss expected ('next', 'reward') of shape (2, 1), found (2,).
    """
    expected = tuple(shape)
    if tuple(value.shape) != expected:
        raise ValueError(
            f"{reader} expected {key!r} of shape {expected}, found {tuple(value.shape)}."
        )
    return value
