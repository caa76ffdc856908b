"""The episodes that a world model is not trained on, found again by whoever comes after."""

from __future__ import annotations

from torchrl_logo.data.dataset import OfflineDataset

__all__ = ["TRAIN_FRACTION", "find_held_out"]

#: Share of the episodes that :class:`~torchrl_logo.trainers.WorldModelTrainer` trains on.
TRAIN_FRACTION = 0.9
_FEW_EPISODES = 10


def find_held_out(dataset: OfflineDataset, seed: int) -> OfflineDataset:
    """The part of a dataset that a world model trained with ``seed`` has not seen.

    Args:
        dataset (OfflineDataset): the whole of the data.
        seed (int): of the model's training.

    Returns:
        A tenth of the episodes; all of them where there are fewer than ten.

    Examples:
        >>> from torchrl_logo.data import load_dataset
        >>> dataset = load_dataset("vmas/balance-random", frames=20_000)
        >>> held_out = find_held_out(dataset, seed=0)
        >>> round(held_out.metadata.episodes / dataset.metadata.episodes, 1)
        0.1
    """
    if dataset.metadata.episodes < _FEW_EPISODES:
        return dataset
    return dataset.split(TRAIN_FRACTION, seed=seed)[1]
