"""A TorchRL trainer of any loss on batches of a buffer, with nothing collected."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import TensorDictReplayBuffer
from torchrl.objectives import LossModule
from torchrl.record.loggers import Logger
from torchrl.trainers import ReplayBufferTrainer, Trainer

from torchrl_logo.trainers.no_collection import NoCollection
from torchrl_logo.trainers.number_watch import NumberWatch
from torchrl_logo.trainers.optimization import OfflineOptimizationStepper
from torchrl_logo.trainers.resumable import BlockwiseTrainer, BufferDraws, make_checkpointing

__all__ = ["train_from_buffer"]

_LOG_INTERVAL = 100


class _RecordingStepper(OfflineOptimizationStepper):
    """Keeps the losses of the last update, where they are."""

    last: TensorDictBase

    def step(self, trainer: Trainer, sub_batch: TensorDictBase) -> TensorDictBase:
        self.last = super().step(trainer, sub_batch)
        return self.last

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "last": dict(self.last.items())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = dict(state_dict)
        self.last = TensorDict(state.pop("last"))
        super().load_state_dict(state)


class _BufferTrainer(BlockwiseTrainer):
    """A trainer whose batches all come from its buffer."""

    def _restore_block(self) -> TensorDictBase:
        return TensorDict()


def train_from_buffer(
    loss: LossModule,
    buffer: TensorDictReplayBuffer,
    *,
    steps: int,
    lr: float,
    clip_norm: float = 10.0,
    device: torch.device | str = "cpu",
    logger: Logger | None = None,
    progress_bar: bool = True,
    checkpoint_dir: str | Path | None = None,
    checkpoint_interval: int = 1000,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Trains a loss's parameters with Adam, whose learning rate falls to zero along a cosine.

    Args:
        loss (LossModule): the sum of its ``loss_*`` entries is made small.
        buffer (TensorDictReplayBuffer): gives the batches; it has a batch size.

    Keyword Args:
        steps (int): updates.
        lr (float): learning rate at the start.
        clip_norm (float): largest norm of the gradient. Defaults to ``10.0``.
        device (torch.device or str): where batches are placed.
        logger (Logger, optional): gets the losses.
        progress_bar (bool): whether a progress bar is shown.
        checkpoint_dir (str or Path, optional): where checkpoints are kept. If it holds one,
            training goes on from the newest that is whole, and ends as if it had not been cut off;
            the buffer must hold the same rows again.
        checkpoint_interval (int): updates between two checkpoints. Defaults to ``1000``.
        settings (mapping, optional): what a continued training must share, beside ``steps``,
            ``lr`` and ``clip_norm``.

    Returns:
        The losses of the last update and the norm of its gradient, by name.

    Raises:
        ValueError: if ``steps`` is not positive.
        NonFiniteError: if a loss, a gradient or a weight becomes infinite or NaN; names it and
            the update.
        TrainingInterrupted: after a SIGINT or SIGTERM, with a checkpoint of this moment.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, found {steps}.")
    optimizer = torch.optim.Adam(loss.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    # blocks of which a whole number makes up all steps
    block = math.gcd(steps, _LOG_INTERVAL)
    watch = NumberWatch()
    stepper = _RecordingStepper(clip_norm, scheduler, watch)
    trainer = _BufferTrainer(
        collector=NoCollection(block),
        total_frames=steps,
        frame_skip=1,
        optim_steps_per_batch=block,
        loss_module=loss,
        optimizer=optimizer,
        optimization_stepper=stepper,
        logger=logger,
        progress_bar=progress_bar,
        log_interval=_LOG_INTERVAL,
        save_trainer_interval=max(1, checkpoint_interval - 1),
        **make_checkpointing(checkpoint_dir, replay_buffer=BufferDraws(buffer)),
    )
    trainer.register_op(
        "process_optim_batch", ReplayBufferTrainer(buffer, device=torch.device(device)).sample
    )
    trainer.prepare_resume(
        {
            "loss": type(loss).__name__,
            "steps": steps,
            "lr": lr,
            "clip_norm": clip_norm,
            **(settings or {}),
        },
        watch,
    )
    trainer.train()
    return {name: float(value) for name, value in stepper.last.items()}
