"""The trainer hook that draws the batches of an update."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.data import ReplayBuffer
from torchrl.trainers import Trainer
from torchrl.trainers.trainers import TrainerHookBase

from torchrl_logo.trainers.data_parallel import take_share

__all__ = ["BatchSampling"]


class BatchSampling(TrainerHookBase):
    """Draws a batch from a buffer and scales its rewards.

    Rewards are divided by their spread over the dataset, so that one penalty weight serves tasks
    whose rewards differ by orders of magnitude. Only what the loss sees is scaled: buffers hold
    the task's own rewards.

    Args:
        buffer (ReplayBuffer): dataset, or mixed buffer of real and imagined transitions.

    Keyword Args:
        batch_size (int): transitions of a batch.
        reward_scale (float): what rewards are multiplied by. Defaults to ``1.0``.
        device (torch.device or str, optional): where batches are placed.
        data_parallel (bool): whether each process keeps its share of the rows only, of a batch
            that all have drawn alike. Defaults to ``False``.
    """

    def __init__(
        self,
        buffer: ReplayBuffer,
        *,
        batch_size: int,
        reward_scale: float = 1.0,
        device: torch.device | str | None = None,
        data_parallel: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, found {batch_size}.")
        if not reward_scale > 0:
            raise ValueError(f"reward_scale must be positive, found {reward_scale}.")
        self.buffer = buffer
        self.batch_size = batch_size
        self.reward_scale = reward_scale
        self.device = device
        self.data_parallel = data_parallel

    def __call__(self, batch: TensorDictBase | None = None) -> TensorDictBase:
        """Draws a batch ``[batch_size]``; ``batch``, the collector's, is not used."""
        sample = self.buffer.sample(self.batch_size)
        if self.data_parallel:
            sample = take_share(sample)
        if self.device is not None:
            sample = sample.to(self.device)
        # a copy of the structure, not of the tensors: a buffer may hand out its own TensorDict
        sample = sample.copy()
        reward = sample.get(("next", "reward"))
        return sample.set(("next", "reward"), reward * self.reward_scale)

    def state_dict(self) -> dict[str, Any]:
        """The scale, which a resumed run must share."""
        return {"reward_scale": self.reward_scale}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the scale."""
        self.reward_scale = float(state_dict["reward_scale"])

    def register(self, trainer: Trainer, name: str = "batch_sampling") -> None:
        """Registers the hook where the trainer asks for a batch."""
        trainer.register_op("process_optim_batch", self)
        trainer.register_module(name, self)
