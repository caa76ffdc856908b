"""What a loss needs of a batch and of networks, by names, shapes and types alone."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch.distributions import Distribution

from torchrl_logo.argument_checks import MissingKeyError

__all__ = [
    "match_batch_size",
    "require_distribution",
    "require_keys",
    "require_shape",
    "require_written",
]


def match_batch_size(
    tensordict: TensorDictBase, action_key: NestedKey, action_ndim: int
) -> TensorDictBase:
    """Gives a batch without batch dimensions those that its actions have in front.

    Batches that are put together from plain tensors do not know which dimensions are theirs.

    Args:
        tensordict (TensorDictBase): the batch; it is not changed.
        action_key (NestedKey): where the actions are.
        action_ndim (int): dimensions of one joint action.

    Returns:
        ``tensordict`` itself if it has batch dimensions or needs none, or a shallow copy.

    Examples:
        >>> from tensordict import TensorDict
        >>> batch = TensorDict({("agents", "action"): torch.zeros(4, 2, 1)}, [])
        >>> match_batch_size(batch, ("agents", "action"), 2).batch_size
        torch.Size([4])
    """
    shape = tensordict.get(action_key).shape
    batch_size = shape[: max(len(shape) - action_ndim, 0)]
    if tensordict.batch_dims or not batch_size:
        return tensordict
    tensordict = tensordict.copy()
    tensordict.batch_size = batch_size
    return tensordict


def require_keys(tensordict: TensorDictBase, keys: Iterable[NestedKey], reader: str) -> None:
    """Refuses a batch in which entries are missing, or that is empty.

    Args:
        tensordict (TensorDictBase): the batch.
        keys (iterable of NestedKey): what must be there.
        reader (str): who reads it, for the message.

    Raises:
        KeyError: names all missing keys and those that were found.
        ValueError: if there is no transition in it.

    Examples:
        >>> from tensordict import TensorDict
        >>> batch = TensorDict({"state": torch.zeros(2, 3)}, [2])
        >>> require_keys(batch, ["state", ("next", "reward")], "MACQLLoss")
        Traceback (most recent call last):
        ...
        torchrl_logo.argument_checks.MissingKeyError: MACQLLoss reads [('next', 'reward')], which \
are missing; found ['state']. Entries of other names are named by set_keys().
    """
    missing = [key for key in keys if tensordict.get(key, None) is None]
    if missing:
        found = sorted(map(str, tensordict.keys(True, True)))
        raise MissingKeyError(
            f"{reader} reads {missing}, which are missing; found {found}. Entries of other names "
            "are named by set_keys()."
        )
    if 0 in tensordict.batch_size:
        raise ValueError(
            f"{reader} needs at least one transition, found a batch of size "
            f"{tuple(tensordict.batch_size)}: draw batch_size=1 or more."
        )


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


def require_distribution(
    dist: Distribution, shape: Iterable[int], key: NestedKey, reader: str
) -> Distribution:
    """Refuses a policy over joint actions of another shape than the batch's.

    Args:
        dist (Distribution): what an actor makes of the batch's observations.
        shape (iterable of int): the joint actions' shape, with batch dimensions.
        key (NestedKey): the actions' name, for the message.
        reader (str): who needs it, for the message.

    Returns:
        ``dist`` itself.

    Raises:
        ValueError: names the key, the expected and the found shape.

    Examples:
        >>> from torch.distributions import Categorical
        >>> policy = Categorical(logits=torch.zeros(5, 3, 4))  # three agents with four actions
        >>> require_distribution(policy, [5, 2], ("agents", "action"), "BCLoss")
        Traceback (most recent call last):
        ...
        ValueError: BCLoss expected an actor's distribution over ('agents', 'action') of shape \
(5, 2), found one over (5, 3).
    """
    expected, found = tuple(shape), (*dist.batch_shape, *dist.event_shape)
    if found != expected:
        raise ValueError(
            f"{reader} expected an actor's distribution over {key!r} of shape {expected}, found "
            f"one over {found}."
        )
    return dist


def require_written(
    value: torch.Tensor | None,
    key: NestedKey,
    network: TensorDictModuleBase,
    role: str,
    reader: str,
) -> torch.Tensor:
    """Refuses a network that did not write what is read from it.

    Args:
        value (torch.Tensor, optional): what was found under the key.
        key (NestedKey): where the network should have written.
        network (TensorDictModuleBase): that was called.
        role (str): what the network is to the reader, for the message.
        reader (str): who reads the entry, for the message.

    Returns:
        ``value`` itself.

    Raises:
        MissingKeyError: names the key and what the network writes.

    Examples:
        >>> from tensordict.nn import TensorDictModule
        >>> critic = TensorDictModule(torch.nn.Identity(), in_keys=["state"], out_keys=["value"])
        >>> require_written(None, "state_value", critic, "the critic", "MACQLLoss")
        Traceback (most recent call last):
        ...
        torchrl_logo.argument_checks.MissingKeyError: MACQLLoss expected the critic to write \
'state_value'; it writes ['value'].
    """
    if value is None:
        raise MissingKeyError(
            f"{reader} expected {role} to write {key!r}; it writes {list(network.out_keys)}."
        )
    return value
