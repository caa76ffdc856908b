"""One update of an offline policy learner."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torchrl.trainers import Trainer
from torchrl.trainers.trainers import OptimizationStepper

from torchrl_logo.objectives.shared_batch import SharedBatch
from torchrl_logo.trainers.data_parallel import average_gradients
from torchrl_logo.trainers.number_watch import NumberWatch

__all__ = ["OfflineOptimizationStepper"]


class OfflineOptimizationStepper(OptimizationStepper):
    """Sums the losses, clips the gradient norm, and steps the optimiser and its schedule.

    Differs from TorchRL's default in that the gradient norm stays on the device: an update needs
    nothing from the host.

    Args:
        clip_norm (float): largest norm of the gradient of all parameters together.
        scheduler (LRScheduler, optional): stepped after each update.
        watch (NumberWatch, optional): is shown the losses and the gradient's norm. If it may skip
            updates, the optimiser must be a fused one, which skips them on the device.
        data_parallel (bool): whether batches are shares of one that the processes of the default
            process group have: losses draw as for the whole, and gradients are averaged. Defaults
            to ``False``.
    """

    def __init__(
        self,
        clip_norm: float,
        scheduler: LRScheduler | None = None,
        watch: NumberWatch | None = None,
        data_parallel: bool = False,
    ) -> None:
        if not clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, found {clip_norm}.")
        self.clip_norm = clip_norm
        self.scheduler = scheduler
        self.watch = watch
        self.data_parallel = data_parallel
        self._parameters: list[nn.Parameter] | None = None

    def step(self, trainer: Trainer, sub_batch: TensorDictBase) -> TensorDictBase:
        """Makes one update; returns the detached losses and the norm of the gradient."""
        optimizer = trainer.optimizer
        if optimizer is None:
            raise RuntimeError("OfflineOptimizationStepper needs the trainer's optimizer.")
        if self._parameters is None:
            self._parameters = [p for g in optimizer.param_groups for p in g["params"]]
        # Compiled losses draw in a way of their own, also in one process.
        whole = self.data_parallel and not hasattr(trainer.loss_module, "_orig_mod")
        with SharedBatch(sub_batch.batch_size) if whole else nullcontext():
            losses = trainer.compute_loss(sub_batch)
        total = torch.stack([v for k, v in losses.items() if k.startswith("loss_")]).sum()
        total.backward()
        if self.data_parallel:
            average_gradients(self._parameters)
        norm = nn.utils.clip_grad_norm_(self._parameters, self.clip_norm)
        figures = losses.detach().set("grad_norm", norm)
        if self.watch is not None:
            wrong = self.watch.observe(trainer._optim_count, figures)
            if self.watch.max_skipped:
                # A fused optimiser leaves its step out where this is one.
                optimizer.found_inf = wrong.float()
        optimizer.step()
        optimizer.zero_grad()
        if self.scheduler is not None:
            self.scheduler.step()
        return figures

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule is."""
        return {} if self.scheduler is None else self.scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores where the schedule was."""
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state_dict)
