"""The actions that the data take next, for losses that bootstrap on nothing else."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey, unravel_key

from torchrl_logo.data.dataset import OfflineDataset
from torchrl_logo.data.validation import DatasetError, find_episode_starts

__all__ = ["add_next_actions"]


def add_next_actions(
    data: TensorDictBase | OfflineDataset,
    *,
    action_key: NestedKey = ("agents", "action"),
    recorded_key: NestedKey = "action_recorded",
) -> TensorDictBase:
    """Puts the action of the following step beside each transition.

    The last step of an episode has no following one, so it keeps its own action there and is
    marked. After a termination nothing follows anyway; after a truncation, or where a recording
    was cut, a loss must leave the bootstrapped value out.

    Args:
        data (TensorDictBase or OfflineDataset): transitions ``[B]``, episodes contiguous and
            their steps one after the other. It is not changed.

    Keyword Args:
        action_key (NestedKey): the joint action. Defaults to ``("agents", "action")``.
        recorded_key (NestedKey): where it is marked, under ``"next"``, whether the data have the
            next action. Defaults to ``"action_recorded"``.

    Reads the action, ``"episode"`` and ``"step"`` ``[B]``. Writes ``("next", *action_key)``,
    shaped as the action, and ``("next", recorded_key)`` ``[B, 1]`` bool.

    Returns:
        A shallow copy of the transitions with the two new entries. A dataset that has them is
        made by ``OfflineDataset.from_transitions(add_next_actions(dataset), dataset.spec)``.

    Raises:
        DatasetError: for a missing key, more than one batch dimension, episodes that are not
            contiguous, or steps that do not follow each other.

    Examples:
        >>> from tensordict import TensorDict
        >>> data = TensorDict({"agents": {"action": torch.tensor([[4], [5], [6], [7]])},
        ...                    "episode": torch.tensor([0, 0, 0, 1]),
        ...                    "step": torch.tensor([0, 1, 2, 0]), "next": {}}, [4])
        >>> following = add_next_actions(data)["next"]
        >>> following["agents", "action"].squeeze(-1), following["action_recorded"].squeeze(-1)
        (tensor([5, 6, 6, 7]), tensor([ True,  True, False, False]))
    """
    if isinstance(data, OfflineDataset):
        data = data.data
    if data.ndim != 1:
        raise DatasetError("dataset", "one batch dimension [B]", str(list(data.batch_size)))
    for key in (action_key, "episode", "step"):
        if data.get(key, None) is None:
            raise DatasetError(key, "an entry", "no such key")
    action, episode, step = (data.get(key) for key in (action_key, "episode", "step"))
    starts = find_episode_starts(episode)
    if len(starts) != len(episode.unique()):
        raise DatasetError("episode", "contiguous episodes", "an episode in several places")
    follows = episode[1:] == episode[:-1]  # [B - 1]
    gaps = follows & (step[1:] != step[:-1] + 1)
    if gaps.any():
        row = int(gaps.nonzero()[0, 0]) + 1
        raise DatasetError("step", f"{int(step[row - 1]) + 1} in row {row}", f"{int(step[row])}")
    recorded = torch.cat([follows, follows.new_zeros(1)])  # [B]
    rows = torch.arange(len(data), device=recorded.device) + recorded
    result = data.copy()
    result.set(unravel_key(("next", action_key)), action[rows])
    result.set(unravel_key(("next", recorded_key)), recorded.unsqueeze(-1))
    return result
