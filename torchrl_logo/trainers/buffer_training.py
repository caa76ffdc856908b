"""A TorchRL trainer of any loss on batches of a buffer, with nothing collected."""

from __future__ import annotations

import math

import torch
from tensordict import TensorDictBase
from torchrl.data import TensorDictReplayBuffer
from torchrl.objectives import LossModule
from torchrl.record.loggers import Logger
from torchrl.trainers import ReplayBufferTrainer, Trainer

from torchrl_logo.trainers.no_collection import NoCollection
from torchrl_logo.trainers.optimization import OfflineOptimizationStepper

__all__ = ["train_from_buffer"]

_LOG_INTERVAL = 100


class _RecordingStepper(OfflineOptimizationStepper):
    """Keeps the losses of the last update, where they are."""

    last: TensorDictBase

    def step(self, trainer: Trainer, sub_batch: TensorDictBase) -> TensorDictBase:
        self.last = super().step(trainer, sub_batch)
        return self.last


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

    Returns:
        The losses of the last update and the norm of its gradient, by name.

    Raises:
        ValueError: if ``steps`` is not positive.
        RuntimeError: if a loss is not finite at the end.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, found {steps}.")
    optimizer = torch.optim.Adam(loss.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    # blocks of which a whole number makes up all steps
    block = math.gcd(steps, _LOG_INTERVAL)
    stepper = _RecordingStepper(clip_norm, scheduler)
    trainer = Trainer(
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
    )
    trainer._last_log = {}  # the class keeps one dictionary for all trainers of a process
    trainer.register_op(
        "process_optim_batch", ReplayBufferTrainer(buffer, device=torch.device(device)).sample
    )
    trainer.train()
    result = {name: float(value) for name, value in stepper.last.items()}
    if not all(map(math.isfinite, result.values())):
        raise RuntimeError(f"Training of {type(loss).__name__} has diverged: {result}.")
    return result
