"""TorchRL trainers that can be killed: started again, they end as if they had not been."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import ReplayBuffer
from torchrl.trainers import Trainer

from torchrl_logo.file_locks import hold_lock
from torchrl_logo.trainers.durable_checkpoint import DurableCheckpoint, DurableRotation
from torchrl_logo.trainers.number_watch import NumberWatch
from torchrl_logo.trainers.stop_signals import StopSignals

__all__ = ["BlockwiseTrainer", "BufferDraws", "ResumableTraining", "make_checkpointing"]

_LOCK_TIMEOUT = 30.0


def make_checkpointing(
    checkpoint_dir: str | Path | None, **components: Any
) -> dict[str, DurableCheckpoint | DurableRotation | None]:
    """The ``checkpoint`` and ``checkpoint_rotation`` of a trainer.

    Args:
        checkpoint_dir (str or Path, optional): where checkpoints are kept; none without it.
        **components: what is stored beside the trainer's own parts.

    Examples:
        >>> make_checkpointing(None)
        {'checkpoint': None, 'checkpoint_rotation': None}
    """
    if checkpoint_dir is None:
        return {"checkpoint": None, "checkpoint_rotation": None}
    return {
        "checkpoint": DurableCheckpoint(**components),
        "checkpoint_rotation": DurableRotation(checkpoint_dir),
    }


class BufferDraws:
    """The state of a buffer whose rows never change: that of its random generator.

    Args:
        buffer (ReplayBuffer): the buffer; without a generator of its own, the process' is used.
    """

    def __init__(self, buffer: ReplayBuffer) -> None:
        self.buffer = buffer

    def state_dict(self) -> dict[str, Any]:
        """The generator's state."""
        generator = self.buffer._rng
        return {} if generator is None else {"generator": generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the generator."""
        if "generator" in state_dict:
            self.buffer._rng.set_state(state_dict["generator"].cpu())


class _Progress:
    """Where a trainer is in its block of updates, and whether it stopped early."""

    def __init__(self) -> None:
        self.done = 0
        self.average: TensorDictBase | None = None
        self.stopped = False

    def add(self, losses: TensorDictBase) -> None:
        if self.average is None:
            self.average = losses.clone()
        else:
            share = self.done / (self.done + 1)
            for key, item in losses.items():
                self.average.set(key, self.average.get(key) * share + item / (self.done + 1))
        self.done += 1

    def finish(self) -> TensorDictBase | None:
        average, self.average, self.done = self.average, None, 0
        return average

    def state_dict(self) -> dict[str, Any]:
        average = {} if self.average is None else dict(self.average.items())
        return {"done": self.done, "average": average, "stopped": self.stopped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.done = int(state_dict["done"])
        average = state_dict["average"]
        self.average = TensorDict(average) if average else None
        self.stopped = bool(state_dict["stopped"])


class ResumableTraining:
    """What makes a :class:`torchrl.trainers.Trainer` resumable; comes before it among the bases.

    A trainer calls :meth:`prepare_resume` at the end of its ``__init__``. A SIGINT or SIGTERM
    during :meth:`train` is acted on between two batches, after a checkpoint.
    """

    progress: _Progress
    watch: NumberWatch
    settings: dict[str, Any]

    def prepare_resume(self, settings: Mapping[str, Any], watch: NumberWatch | None = None) -> None:
        """Registers what else is state, and goes to the newest whole checkpoint, if there is one.

        Args:
            settings (mapping): what a continued training must share with the one before.
            watch (NumberWatch, optional): asked before each checkpoint.

        Raises:
            ValueError: if the checkpoint was made with other settings; names them.
            CheckpointError: if there are checkpoints and all are damaged.
        """
        assert isinstance(self, Trainer)
        self.progress = _Progress()
        self.watch = NumberWatch() if watch is None else watch
        self.settings = json.loads(json.dumps(dict(settings), default=str))  # as they come back
        self._pbar_str: dict[str, Any] = {}
        # TorchRL's class keeps one dictionary for all trainers of a process.
        self._last_log: dict[str, Any] = {}
        self.register_module("progress", self.progress)
        self.register_module("watch", self.watch)
        self._signals: StopSignals | None = None
        rotation = self.checkpoint_rotation
        path = rotation.find_whole() if isinstance(rotation, DurableRotation) else None
        if path is None:
            return
        checkpoint = self._sync_checkpoint_components()
        earlier = checkpoint.manifest(path)["metadata"].get("settings", {})
        changed = {k: (earlier.get(k), v) for k, v in self.settings.items() if earlier.get(k) != v}
        if changed:
            told = ", ".join(f"{k} was {was!r} and is {now!r}" for k, (was, now) in changed.items())
            raise ValueError(
                f"The checkpoint {path} belongs to another training: {told}. Choose another folder."
            )
        checkpoint.load(path)
        self._stop_training = self.progress.stopped

    @property
    def finished(self) -> bool:
        """Whether all updates were made, or training has stopped early."""
        assert isinstance(self, Trainer)
        return self._stop_training or self.collected_frames >= self.total_frames

    def train(self) -> Any:
        """Trains to the end, unless a checkpoint of the end was loaded.

        Raises:
            TrainingInterrupted: after a SIGINT or SIGTERM, with a checkpoint of this moment.
            TimeoutError: if another process trains in the same folder.
        """
        assert isinstance(self, Trainer)
        with StopSignals.installed() as signals, signals.deferred():
            self._signals = signals
            rotation = self.checkpoint_rotation
            if not isinstance(rotation, DurableRotation):
                self._train_on()
                return
            rotation.directory.mkdir(parents=True, exist_ok=True)
            lock = rotation.directory / ".lock"
            with hold_lock(lock, _LOCK_TIMEOUT, f"the training in {rotation.directory}"):
                rotation.remove_unfinished()
                self._train_on()

    def _train_on(self) -> None:
        if not self.finished:
            super().train()  # type: ignore[misc]

    def save_trainer(self, force_save: bool = False) -> None:
        """Saves if it is due or forced, and ends training here if a signal asks for it."""
        asked = self._signals is not None and self._signals.requested is not None
        super().save_trainer(force_save=force_save or asked)  # type: ignore[misc]
        if asked:
            assert self._signals is not None
            raise self._signals.interruption()

    def _stop_if_asked(self) -> None:
        if self._signals is not None and self._signals.requested is not None:
            self.save_trainer()

    def _save_trainer(self) -> None:
        assert isinstance(self, Trainer)
        self.watch.check(self._named_parameters())
        if not isinstance(self.checkpoint_rotation, DurableRotation):
            super()._save_trainer()  # type: ignore[misc]
            return
        self.progress.stopped = self._stop_training
        # What was logged before a checkpoint is not logged again after it.
        flush = getattr(self.logger, "flush", None)
        if flush is not None:
            flush()
        metadata = {**self._checkpoint_manifest_metadata(), "settings": self.settings}
        self.checkpoint_rotation.save(
            self._sync_checkpoint_components(), step=self._optim_count, metadata=metadata
        )

    def _named_parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        assert isinstance(self, Trainer)
        return list(self.loss_module.named_parameters())


class BlockwiseTrainer(ResumableTraining, Trainer):
    """A trainer that can stop, and go on, after any update of a block.

    It needs an ``optimization_stepper`` and makes one pass over ``optim_steps_per_batch``
    batches. Hooks run where :class:`torchrl.trainers.Trainer` runs them, but for those of epochs.
    """

    def optim_steps(self, batch: TensorDictBase) -> None:
        """Makes what is left of the updates of one block."""
        assert self.optimization_stepper is not None
        self._pre_optim_hook()
        while self.progress.done < self.optim_steps_per_batch:
            self._optim_count += 1
            sub_batch = self._process_optim_batch_hook(batch)
            losses = self.optimization_stepper.step(self, sub_batch)
            self._post_optim_hook()
            self._post_optim_log(sub_batch)
            self.progress.add(losses)
            self._stop_if_asked()
        average = self.progress.finish()
        self.watch.check()
        self._post_optim_complete_log_hook(self._optim_count, average)

    def _restore_block(self) -> TensorDictBase:
        """The batch of a block that was cut off; sets ``optim_steps_per_batch``."""
        raise NotImplementedError

    def _train_on(self) -> None:
        if self.progress.done:
            batch = self._restore_block()
            self.optim_steps(batch)
            self._post_steps_hook()
            self._post_steps_log_hook(batch)
            self.save_trainer(force_save=self.finished)
        super()._train_on()
