"""The trainer hook that stores what a world model imagined."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torchrl.data import ReplayBuffer
from torchrl.trainers import Trainer
from torchrl.trainers.trainers import TrainerHookBase

__all__ = ["ImaginedTransitions", "ImaginationError"]


class ImaginationError(RuntimeError):
    """A world model imagined too many transitions that are not finite."""


class ImaginedTransitions(TrainerHookBase):
    """Appends imagined transitions, with their uncertainty, to a replay buffer.

    Registered at ``batch_process``, it takes the collector's batch ``[rollouts, horizon]``, moves
    ``("next", "uncertainty")`` (of the prediction that the transition holds) to the root, and
    extends the buffer with the flat transitions. A transition with a number that is not finite
    never reaches the buffer: it is dropped and counted. Nothing was imagined on top of it, since
    :class:`~torchrl_logo.envs.ImaginedEnv` ends the rollout there. So is one after which an agent
    would have no available action though the task goes on, whose value no loss could bootstrap.

    Args:
        buffer (RealAndImaginedBuffer or TensorDictReplayBuffer): where transitions go; of a mixed
            buffer, the imagined part.
        keys (list of NestedKey): what is stored beside the uncertainty.

    Keyword Args:
        max_nonfinite_share (float): training stops with an :class:`ImaginationError` when more
            than this share of a batch is not finite. Defaults to ``0.05``.
        uncertainty_key (NestedKey): where the environment writes it. Defaults to
            ``"uncertainty"``.

    Attributes:
        nonfinite (int): transitions dropped so far for numbers that are not finite.
        stuck (int): transitions dropped so far for want of an available action.
        imagined (int): transitions seen so far.
    """

    def __init__(
        self,
        buffer: ReplayBuffer,
        keys: list[NestedKey],
        *,
        max_nonfinite_share: float = 0.05,
        uncertainty_key: NestedKey = "uncertainty",
    ) -> None:
        if not 0.0 <= max_nonfinite_share <= 1.0:
            raise ValueError(
                f"max_nonfinite_share must be within [0, 1], found {max_nonfinite_share}."
            )
        self.buffer = buffer
        self.keys = list(keys)
        self.max_nonfinite_share = max_nonfinite_share
        self.uncertainty_key = uncertainty_key
        self.nonfinite = 0
        self.stuck = 0
        self.imagined = 0
        self._last: dict[str, float] = {}

    def __call__(self, batch: TensorDictBase) -> TensorDictBase:
        """Stores a batch of rollouts; returns it unchanged."""
        flat = batch.reshape(-1)
        uncertainty = flat.get(("next", self.uncertainty_key))
        transitions = flat.select(*self.keys, strict=True).clone(False)
        transitions.set(self.uncertainty_key, uncertainty)
        finite = torch.ones(transitions.shape, dtype=torch.bool, device=transitions.device)
        for value in transitions.values(True, True):
            if value.is_floating_point():
                finite &= value.isfinite().flatten(1).all(-1)
        usable = finite & self._find_playable(transitions)
        # The one host sync of an imagination: the numbers of rows that may be stored.
        n_finite, n_usable = torch.stack([finite.sum(), usable.sum()]).tolist()
        dropped = finite.numel() - n_finite
        self.stuck += n_finite - n_usable
        self.nonfinite += dropped
        self.imagined += finite.numel()
        if dropped > self.max_nonfinite_share * finite.numel():
            bad = [
                str(key)
                for key, value in transitions.items(True, True)
                if value.is_floating_point() and not bool(value.isfinite().all())
            ]
            raise ImaginationError(
                f"{dropped} of {finite.numel()} imagined transitions are not finite (allowed "
                f"share {self.max_nonfinite_share:.1%}), in {', '.join(bad)}. The world model has "
                "diverged: train it longer, shorten the horizon, or lower its learning rate."
            )
        if not n_usable:
            return batch
        if n_usable < finite.numel():
            transitions = transitions[usable]
        self.buffer.extend(transitions)
        kept = transitions.get(self.uncertainty_key)
        self._last = {
            "imagination/reward": float(transitions.get(("next", "reward")).mean()),
            "imagination/terminated": float(transitions.get(("next", "terminated")).float().mean()),
            "imagination/uncertainty": float(kept.mean()),
            "imagination/nonfinite": float(self.nonfinite),
            "imagination/stuck": float(self.stuck),
            "imagination/seen": float(self.imagined),
        }
        return batch

    def _find_playable(self, transitions: TensorDictBase) -> torch.Tensor:
        """Rows ``[B]`` after which each agent has an available action, or the task is over."""
        playable = transitions.get(("next", "terminated")).squeeze(-1)
        mask = transitions.get(("next", "agents", "action_mask"), None)  # [B, N, A]
        return torch.ones_like(playable) if mask is None else playable | mask.any(-1).all(-1)

    def log(self, batch: TensorDictBase) -> dict[str, float]:
        """Figures of the latest imagination, for the trainer's ``pre_steps_log``."""
        return dict(self._last)

    def state_dict(self) -> dict[str, Any]:
        """Counters; the buffer is a component of the checkpoint by itself."""
        return {"nonfinite": self.nonfinite, "stuck": self.stuck, "imagined": self.imagined}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the counters."""
        self.nonfinite = int(state_dict["nonfinite"])
        self.stuck = int(state_dict["stuck"])
        self.imagined = int(state_dict["imagined"])

    def register(self, trainer: Trainer, name: str = "imagined_transitions") -> None:
        """Registers storing, logging and the counters with a trainer."""
        trainer.register_op("batch_process", self)
        trainer.register_op("pre_steps_log", self.log)
        trainer.register_module(name, self)
