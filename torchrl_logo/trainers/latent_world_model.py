"""Training of a recurrent latent world model, and the latents of a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torchrl.record.loggers import Logger

from torchrl_logo.data.dataset import OfflineDataset
from torchrl_logo.data.sequences import sequence_buffer
from torchrl_logo.modules.recurrent_latent_world_model import RecurrentLatentWorldModel
from torchrl_logo.objectives.recurrent_latent_world_model import RecurrentLatentWorldModelLoss
from torchrl_logo.trainers.buffer_training import train_from_buffer

__all__ = ["infer_latents", "train_latent_world_model"]


def train_latent_world_model(
    world_model: RecurrentLatentWorldModel,
    dataset: OfflineDataset,
    *,
    steps: int,
    slice_len: int = 12,
    batch_size: int = 32,
    lr: float = 1e-3,
    clip_norm: float = 10.0,
    loss_kwargs: dict[str, Any] | None = None,
    seed: int = 0,
    logger: Logger | None = None,
    progress_bar: bool = True,
    checkpoint_dir: str | Path | None = None,
) -> dict[str, float]:
    """Trains on sequences of a dataset; the learning rate falls to zero along a cosine.

    Args:
        world_model (RecurrentLatentWorldModel): the model, its normalisers fitted.
        dataset (OfflineDataset): the episodes; shorter ones than a sequence are padded.

    Keyword Args:
        steps (int): updates.
        slice_len (int): steps of a sequence. Defaults to ``12``.
        batch_size (int): sequences of a batch. Defaults to ``32``.
        lr (float): Adam's learning rate at the start. Defaults to ``1e-3``.
        clip_norm (float): largest norm of the gradient. Defaults to ``10.0``.
        loss_kwargs (dict, optional): arguments of
            :class:`~torchrl_logo.objectives.RecurrentLatentWorldModelLoss`.
        seed (int): of the batches. Defaults to ``0``.
        logger (Logger, optional): gets the losses.
        progress_bar (bool): whether a progress bar is shown.
        checkpoint_dir (str or Path, optional): see
            :func:`~torchrl_logo.trainers.train_from_buffer`.

    Returns:
        The losses of the last update and the norm of its gradient, by name.

    Raises:
        ValueError: if the dataset belongs to another task than the model.
    """
    world_model.spec.require_match(dataset.spec, "The dataset to train on")
    buffer = sequence_buffer(
        dataset, slice_len=slice_len, batch_size=batch_size, short_episodes="pad", seed=seed
    )
    return train_from_buffer(
        RecurrentLatentWorldModelLoss(world_model, **(loss_kwargs or {})),
        buffer,
        steps=steps,
        lr=lr,
        clip_norm=clip_norm,
        device=world_model.observation_mask.device,
        logger=logger,
        progress_bar=progress_bar,
        checkpoint_dir=checkpoint_dir,
        settings={
            "dataset": dataset.metadata.hash,
            "seed": seed,
            "slice_len": slice_len,
            "batch_size": batch_size,
        },
    )


@torch.no_grad()
def infer_latents(
    world_model: RecurrentLatentWorldModel,
    dataset: OfflineDataset,
    *,
    rows: int,
    slice_len: int = 12,
    seed: int = 0,
) -> TensorDict:
    """The latents of agents along sequences of a dataset, given all that they had observed.

    Args:
        world_model (RecurrentLatentWorldModel): a trained model.
        dataset (OfflineDataset): the episodes.

    Keyword Args:
        rows (int): steps that are wanted.
        slice_len (int): steps of the sequences that are filtered. Defaults to ``12``.
        seed (int): of the sequences. Defaults to ``0``.

    Returns:
        A TensorDict ``[rows]`` with ``("agents", "latent")`` ``[rows, N, L]``, the recorded
        ``("agents", "action")`` and, for discrete actions, ``("agents", "action_mask")``.

    Raises:
        ValueError: if the dataset belongs to another task than the model, or ``rows`` is not
            positive.
    """
    world_model.spec.require_match(dataset.spec, "The dataset to filter")
    if rows < 1:
        raise ValueError(f"rows must be at least 1, found {rows}.")
    device = world_model.observation_mask.device
    keys = [("agents", "observation"), ("agents", "action"), ("next", "agents", "observation")]
    if world_model.spec.discrete:
        keys.append(("agents", "action_mask"))
    buffer = sequence_buffer(
        dataset, slice_len=slice_len, batch_size=256, short_episodes="pad", seed=seed
    )
    parts: list[TensorDict] = []
    found = 0
    while found < rows:
        sample = buffer.sample()
        batch = sample.select(*keys).to(device)
        sequence = world_model.unroll(
            world_model.standardise(batch.get(("agents", "observation"))),
            world_model.encode_action(batch.get(("agents", "action"))),
            world_model.standardise(batch.get(("next", "agents", "observation"))),
        )
        part = TensorDict({"agents": {"latent": sequence.latent}}, batch.batch_size, device=device)
        for key in keys:
            if key[0] != "next" and key[-1] != "observation":
                part.set(key, batch.get(key))
        there = sample.get(("collector", "mask")).squeeze(-1).to(device)
        parts.append(part[there])
        found += parts[-1].shape[0]
    return torch.cat(parts)[:rows]
