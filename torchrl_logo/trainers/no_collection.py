"""The collector of training that needs no new data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tensordict import TensorDict

__all__ = ["NoCollection"]


class NoCollection:
    """Stands where a TorchRL trainer expects a collector, and collects nothing.

    A :class:`torchrl.trainers.Trainer` iterates over a collector and counts the frames of its
    batches. Offline training without a model has no frames: each batch here is an empty
    TensorDict whose size is the number of updates until the next, so that the trainer's frames
    are updates and its progress bar and intervals count them.

    Args:
        updates_per_batch (int): updates between two batches.

    Examples:
        >>> batch = next(iter(NoCollection(10)))
        >>> batch.numel(), list(batch.keys())
        (10, [])
    """

    init_random_frames = 0

    def __init__(self, updates_per_batch: int) -> None:
        if updates_per_batch < 1:
            raise ValueError(f"updates_per_batch must be at least 1, found {updates_per_batch}.")
        self.updates_per_batch = updates_per_batch

    def __iter__(self) -> Iterator[TensorDict]:
        while True:
            yield TensorDict({}, batch_size=[self.updates_per_batch])

    def set_seed(self, seed: int, static_seed: bool = False) -> int:
        """Nothing is drawn here; returns the seed."""
        return seed

    def update_policy_weights_(self, *args: Any, **kwargs: Any) -> None:
        """Nothing acts here."""

    def shutdown(self, *args: Any, **kwargs: Any) -> None:
        """Nothing runs here."""

    def state_dict(self) -> dict[str, Any]:
        """Empty: there is no state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""
