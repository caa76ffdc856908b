"""Batches of sequences of a dataset, for networks with memory."""

from __future__ import annotations

from typing import Any

import torch
from tensordict.utils import NestedKey
from torchrl.data import ImmutableDatasetWriter, SliceSampler, Storage, TensorDictReplayBuffer

from torchrl_logo.data.dataset import OfflineDataset
from torchrl_logo.data.episode_storage import EpisodeStorage

__all__ = ["SequenceSampler", "sequence_buffer"]


class SequenceSampler(SliceSampler):
    """TorchRL's ``SliceSampler`` of a dataset's episodes, with time as a dimension.

    Draws an episode, each as likely as another, and then one of its slices. A batch size counts
    sequences. Flags of ends stay the data's own: a slice's last step is no truncation, and needs
    none, since time has a dimension of its own.

    Besides rows ``[B, T]`` it gives ``"is_init"`` ``[B, T, 1]``, true at the first step of each
    sequence, which is the one place where an episode can begin in it. If episodes are padded,
    ``("collector", "mask")`` ``[B, T, 1]`` is false at the added steps, which repeat the
    episode's last one; TorchRL's losses leave them out.

    Args:
        episode_lengths (torch.Tensor): ``[E]``, of the storage's episodes, in their order.

    Keyword Args:
        slice_len (int): steps of a sequence, ``T``.
        pad (bool): whether shorter episodes are padded; otherwise they are never drawn.
            Defaults to ``False``.

    Examples:
        >>> sampler = SequenceSampler(torch.tensor([4, 6]), slice_len=3)
    """

    def __init__(self, episode_lengths: torch.Tensor, *, slice_len: int, pad: bool = False) -> None:
        ends = episode_lengths.new_zeros(int(episode_lengths.sum()), dtype=torch.bool)
        ends[episode_lengths.cumsum(0) - 1] = True
        super().__init__(
            slice_len=slice_len,
            ends=ends,
            cache_values=True,
            truncated_key=None,
            init_key=None,
            strict_length=not pad,
            pad_output=pad,
        )

    def sample(
        self, storage: Storage, batch_size: int
    ) -> tuple[torch.Tensor, dict[NestedKey, torch.Tensor]]:
        """Draws the rows ``[B, T]`` of ``batch_size`` sequences, and what marks their steps."""
        (rows,), info = super().sample(storage, batch_size * self.slice_len)
        rows = rows.view(batch_size, self.slice_len)
        is_init = torch.zeros(*rows.shape, 1, dtype=torch.bool, device=rows.device)
        is_init[:, 0] = True
        marks: dict[NestedKey, torch.Tensor] = {"is_init": is_init}
        if self.pad_output:
            # if no episode is short there is nothing to pad, and no mask
            mask = info.get(("collector", "mask"), torch.ones_like(rows, dtype=torch.bool))
            marks["collector", "mask"] = mask.view(*rows.shape, 1)
        return rows, marks


def sequence_buffer(
    dataset: OfflineDataset,
    *,
    slice_len: int,
    batch_size: int,
    short_episodes: str = "refuse",
    seed: int | None = None,
    **kwargs: Any,
) -> TensorDictReplayBuffer:
    """Makes a replay buffer that draws sequences of a dataset, none across episodes.

    Its batches ``[B, T]`` have the dataset's keys, ``"is_init"`` ``[B, T, 1]`` and ``"index"``,
    the rows; see :class:`SequenceSampler`. Losses of networks with memory
    (:func:`~torchrl_logo.modules.make_recurrent_categorical_actor` and its like) train on them.
    The transitions are not copied, and cannot be changed.

    Args:
        dataset (OfflineDataset): the episodes.

    Keyword Args:
        slice_len (int): steps of a sequence, ``T``.
        batch_size (int): sequences of a batch, ``B``.
        short_episodes (str): what is done about episodes of fewer than ``slice_len`` steps:
            ``"refuse"``, ``"drop"`` them, or ``"pad"`` them, with a mask
            ``("collector", "mask")`` ``[B, T, 1]`` that losses apply. Defaults to ``"refuse"``.
        seed (int, optional): the same seed gives the same batches. Defaults to the random state
            of the process.
        **kwargs: as :class:`~torchrl.data.TensorDictReplayBuffer` takes them (``prefetch``,
            ``transform``, ...).

    Raises:
        ValueError: if a size is not positive, for another ``short_episodes``, or if an episode is
            too short and that is refused, or all are and they are dropped.

    Examples:
        >>> from torchrl_logo.data import collect
        >>> from torchrl_logo.envs import make_env
        >>> dataset = collect(make_env("vmas/balance", num_envs=4), None, 400, seed=0)
        >>> buffer = sequence_buffer(dataset, slice_len=20, batch_size=8, seed=0)
        >>> batch = buffer.sample()
        >>> batch["agents", "observation"].shape, batch["is_init"].sum()
        (torch.Size([8, 20, 3, 16]), tensor(8))
    """
    if slice_len < 1 or batch_size < 1:
        raise ValueError(
            f"sequence_buffer needs a positive slice_len and batch_size, found {slice_len} and "
            f"{batch_size}."
        )
    if short_episodes not in ("refuse", "drop", "pad"):
        raise ValueError(
            "sequence_buffer: short_episodes must be 'refuse', 'drop' or 'pad', found "
            f"{short_episodes!r}."
        )
    lengths = dataset.episode_lengths
    short = int((lengths < slice_len).sum())
    if short and (
        short_episodes == "refuse" or (short_episodes == "drop" and short == len(lengths))
    ):
        raise ValueError(
            f"{short} of {len(lengths)} episodes have fewer than slice_len={slice_len} steps; the "
            f"shortest has {int(lengths.min())}, the longest {int(lengths.max())}. Choose a "
            "smaller slice_len, or another short_episodes: 'drop' or 'pad'."
        )
    storage = dataset._storage
    generator = None
    if seed is not None:
        generator = torch.Generator(device=dataset.device).manual_seed(seed)
    return TensorDictReplayBuffer(
        # a storage of its own, since a buffer gives its random state to its storage
        storage=EpisodeStorage(
            storage._storage, content_hash=storage.content_hash, rows=storage.rows
        ),
        sampler=SequenceSampler(lengths, slice_len=slice_len, pad=short_episodes == "pad"),
        writer=ImmutableDatasetWriter(),
        batch_size=batch_size,
        generator=generator,
        **kwargs,
    )
