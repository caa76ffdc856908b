"""Training of world models on offline data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import nn
from torchrl.record.loggers import Logger
from torchrl.trainers import Trainer
from torchrl.trainers.trainers import OptimizationStepper

from torchrl_logo.argument_checks import (
    require_logger,
    require_positive,
    require_positive_integers,
    require_seed,
    require_type,
)
from torchrl_logo.data.dataset import OfflineDataset
from torchrl_logo.data.episode_storage import EpisodeStorage
from torchrl_logo.evaluation.world_model import evaluate_world_model, find_windows
from torchrl_logo.modules.world_model import FITTED_ROWS, WorldModel
from torchrl_logo.objectives.world_model import WorldModelLoss, make_world_model_loss
from torchrl_logo.trainers.data_parallel import (
    average_gradients,
    require_even_shares,
    take_share,
)
from torchrl_logo.trainers.held_out import TRAIN_FRACTION
from torchrl_logo.trainers.number_watch import NumberWatch
from torchrl_logo.trainers.resumable import BlockwiseTrainer, make_checkpointing

__all__ = ["WorldModelTrainer", "WorldModelTrainingResult"]

_WARM_UP = 100
_FINAL_SHARE = 0.01


@dataclasses.dataclass(frozen=True)
class WorldModelTrainingResult:
    """What came of a world model's training.

    Attributes:
        metrics: the final measures on the held-out episodes, of the weights that were kept, as
            :func:`~torchrl_logo.evaluation.evaluate_world_model` names them, and
            ``held_out_loss``.
        history: the measures after each evaluation, with ``"update"``.
        best_update: number of updates after which the weights that were kept were reached.
        updates: number of updates made.
        stopped_early: whether patience ran out before all updates were made.
    """

    metrics: dict[str, float]
    history: list[dict[str, float]]
    best_update: int
    updates: int
    stopped_early: bool


class WorldModelTrainer(BlockwiseTrainer):
    """Trains a world model by supervised learning; a :class:`torchrl.trainers.Trainer`.

    Whole episodes are held out. The model's normalisers are fitted on the other episodes; batches
    of their transitions are drawn uniformly, on the device, from a copy of the data in memory, or
    from the dataset's files where it has no room there (``in_memory=False``). After every
    ``evaluation_interval`` updates the held-out loss is computed; when it has not improved for
    ``patience`` evaluations training stops. In the end the weights with the lowest held-out loss
    are restored. (Per-term losses are monitored with their coefficients.)

    Args:
        world_model (WorldModel): trained in place.
        dataset (OfflineDataset): the task's data.

    Keyword Args:
        steps (int): number of updates, at most.
        batch_size (int): transitions an update. Defaults to ``256``.
        seed (int): seed of the split and of the batches. The process' global generators are
            neither read nor set. Defaults to ``0``.
        loss (WorldModelLoss, optional): defaults to the model's own loss.
        learning_rate (float): Adam's, after a short warm-up; decays to a hundredth along a
            cosine. Defaults to ``2e-3``.
        clip_norm (float): largest norm of the gradient. Defaults to ``10.0``.
        unroll (int): steps of the windows, above 1, that are trained on after a warm-up of single
            transitions, as :class:`~torchrl_logo.objectives.world_model.WorldModelLoss` says; an
            update still reads ``batch_size`` transitions, in fewer windows. The weights that are
            restored are then chosen by the held-out loss along windows. Defaults to ``1``, no
            windows.
        unroll_warm_up (float): share of the updates before that, rounded up to whole
            ``evaluation_interval``. Defaults to ``0.5``.
        train_fraction (float): share of the episodes to train on. Defaults to ``0.9``.
        evaluation_interval (int): updates between evaluations. Defaults to ``250``.
        patience (int, optional): evaluations without improvement after which training stops;
            ``None`` never stops. Defaults to ``10``.
        horizon (int): steps of the open loop that is measured, at most the longest held-out
            episode's. Defaults to ``15``.
        logger (Logger, optional): receives ``world_model/...`` scalars after each evaluation, the
            step being the number of transitions drawn.
        progress_bar (bool): whether to show one. Defaults to ``True``.
        device (torch.device, optional): where to train. Defaults to the model's device.
        checkpoint_dir (str or Path, optional): where checkpoints are kept. If it holds one,
            training goes on from the newest that is whole, and ends as if it had not been cut off.
        checkpoint_interval (int): evaluations between two checkpoints. Defaults to ``1``.
        data_parallel (bool): whether a batch is shared out among the processes of the default
            process group, which must all be given the same model, dataset and seed: each then has
            the weights that one process would have, up to rounding. Without checkpoints. Defaults
            to ``False``.
        in_memory (bool): whether the training transitions are copied to the device's memory first.
            If not, each batch is read from the dataset's files; the held-out episodes are in
            memory all the same. The draws are the same. Defaults to ``True``.
        **kwargs: as :class:`torchrl.trainers.Trainer` takes them.

    Raises:
        ValueError: if the dataset belongs to another task than the model, or an argument is out
            of range.
        RuntimeError: from :meth:`train`, if the loss becomes infinite or NaN.
    """

    def __init__(
        self,
        world_model: WorldModel,
        dataset: OfflineDataset,
        *,
        steps: int,
        batch_size: int = 256,
        seed: int = 0,
        loss: WorldModelLoss | None = None,
        learning_rate: float = 2e-3,
        clip_norm: float = 10.0,
        unroll: int = 1,
        unroll_warm_up: float = 0.5,
        train_fraction: float = TRAIN_FRACTION,
        evaluation_interval: int = 250,
        patience: int | None = 10,
        horizon: int = 15,
        logger: Logger | None = None,
        progress_bar: bool = True,
        device: torch.device | str | None = None,
        checkpoint_dir: str | Path | None = None,
        checkpoint_interval: int = 1,
        data_parallel: bool = False,
        in_memory: bool = True,
        **kwargs: Any,
    ) -> None:
        how = "LOGOWorldModel.from_dataset(dataset)"
        require_type(world_model, WorldModel, "world_model", how)
        require_type(dataset, OfflineDataset, "dataset", "load_dataset(name_or_path)")
        require_logger(logger)
        require_seed(seed)
        require_positive_integers(
            steps=steps,
            batch_size=batch_size,
            evaluation_interval=evaluation_interval,
            patience=patience,
            horizon=horizon,
            unroll=unroll,
            checkpoint_interval=checkpoint_interval,
        )
        require_positive(learning_rate=learning_rate, clip_norm=clip_norm)
        if unroll > batch_size:
            raise ValueError(f"unroll {unroll} is longer than a batch of {batch_size} transitions.")
        self._data_parallel = data_parallel
        require_even_shares(data_parallel, batch_size // unroll, checkpoint_dir)
        # Training changes to windows between evaluations, never within a block.
        self._warm_up_updates = evaluation_interval * math.ceil(
            unroll_warm_up * steps / evaluation_interval
        )
        if unroll > 1 and not 0 <= self._warm_up_updates < steps:
            raise ValueError(
                f"A warm-up of {self._warm_up_updates} updates, whole intervals of "
                f"{evaluation_interval}, leaves none of {steps} to unroll."
            )
        world_model.spec.require_match(dataset.spec, "The dataset")
        train, held_out = dataset.split(train_fraction, seed=seed)
        device = torch.device(device or world_model.observation_mask.device)
        world_model.to(device)
        self.world_model = world_model
        self.held_out = held_out
        # Tasks whose episodes are shorter than the horizon are followed to their end.
        self.horizon = min(horizon, int(held_out.episode_lengths.max()))
        self.patience = patience
        loss = (make_world_model_loss(world_model) if loss is None else loss).to(device)
        if loss.world_model is not world_model:
            raise ValueError("loss must train the world_model that is given.")
        keys = [*loss.in_keys]
        if loss.unroll != 1:
            raise ValueError(
                f"The trainer decides when to unroll: pass it unroll={loss.unroll}, and a loss "
                "without."
            )
        self.unroll = unroll
        self._train_starts, self._held_out_starts = (
            find_windows(part.storage.get_column("episode"), unroll).to(device)
            for part in (train, held_out)
        )
        if not len(self._train_starts) or not len(self._held_out_starts):
            raise ValueError(f"unroll {unroll} is longer than the dataset's episodes.")
        self._train_rows = train.select_rows(keys, in_memory=in_memory, device=device)
        self._held_out_rows = held_out.select_rows(keys, in_memory=True, device=device)
        self._device = device
        self._draws = _Draws(
            len(self._train_rows),
            batch_size=batch_size,
            updates=steps,
            block=evaluation_interval,
            seed=seed,
            device=device,
        )
        optimizer = torch.optim.Adam(
            [p for p in loss.parameters() if p.requires_grad],
            lr=learning_rate,
            fused=device.type in ("cpu", "cuda"),
        )
        watch = NumberWatch()
        if checkpoint_dir is not None:
            kwargs |= make_checkpointing(checkpoint_dir, selection=_Selection(self))
            kwargs["save_trainer_interval"] = (
                checkpoint_interval * evaluation_interval * batch_size - 1
            )
        super().__init__(
            collector=self._draws,
            total_frames=steps * batch_size,
            frame_skip=1,
            optim_steps_per_batch=evaluation_interval,
            loss_module=loss,
            optimizer=optimizer,
            optimization_stepper=_ScheduledStepper(
                optimizer, steps, clip_norm, watch, data_parallel
            ),
            logger=logger,
            progress_bar=progress_bar,
            log_interval=0,
            auto_log_optim_steps=False,
            **kwargs,
        )
        # TorchRL keeps these on the class, where a later trainer would find them.
        self.collected_frames = 0
        self._optim_count = 0
        self._updates_per_batch = batch_size
        self._history: list[dict[str, float]] = []
        self._best_loss = math.inf
        self._best_update = 0
        self._best_weights: dict[str, torch.Tensor] | None = None
        self._evaluations_since_best = 0
        self._position = 0
        self.register_op("batch_process", self._start_block)
        self.register_op("process_optim_batch", self._draw_batch)
        self.register_op("post_optim_complete_log", self._log_training)
        self.register_op("post_steps", self._evaluate)
        self.prepare_resume(
            {
                "world_model": type(world_model).__name__,
                "steps": steps,
                "batch_size": batch_size,
                "seed": seed,
                "dataset": dataset.metadata.hash,
                "learning_rate": learning_rate,
                "clip_norm": clip_norm,
                "unroll": unroll,
                "train_fraction": train_fraction,
                "evaluation_interval": evaluation_interval,
                "patience": patience,
            },
            watch,
        )

    def train(self) -> WorldModelTrainingResult:
        """Fits the normalisers, trains, and restores the best weights.

        Raises:
            NonFiniteError: if a loss, a gradient or a weight becomes infinite or NaN; names it and
                the update.
            RuntimeError: if the held-out loss does.
            TrainingInterrupted: after a SIGINT or SIGTERM; with ``checkpoint_dir``, a checkpoint
                of this moment is written first.
        """
        if not self._optim_count:  # it also sets where a head's training begins
            self.world_model.fit_normalizers(self._train_rows.read_evenly(FITTED_ROWS))
        self.world_model.train()
        try:
            super().train()
        finally:
            if self._best_weights is not None:
                self.world_model.load_state_dict(self._best_weights)
            self.world_model.eval()
            if self.progress_bar and hasattr(self, "_pbar"):
                self._pbar.close()
        metrics = evaluate_world_model(self.world_model, self.held_out, horizon=self.horizon)
        metrics["held_out_loss"] = self._best_loss
        if self.logger is not None:
            for name, value in metrics.items():
                self.logger.log_scalar(
                    f"world_model/final/{name}", value, step=self.collected_frames
                )
        return WorldModelTrainingResult(
            metrics=metrics,
            history=self._history,
            best_update=self._best_update,
            updates=self._optim_count,
            stopped_early=self._optim_count < self._draws.updates,
        )

    def _start_block(self, batch: TensorDictBase) -> TensorDictBase:
        self._draws.unfinished = batch
        return self._prepare_block(batch, self._optim_count)

    def _restore_block(self) -> TensorDictBase:
        batch = self._draws.unfinished
        assert batch is not None
        self._prepare_block(batch, self._optim_count - self.progress.done)
        self._position = self.progress.done * self._updates_per_batch
        self.world_model.train()
        return batch

    def _prepare_block(self, batch: TensorDictBase, made: int) -> TensorDictBase:
        """Decides how a block that begins after ``made`` updates is trained on."""
        self._position = 0
        if self.unroll > 1 and made >= self._warm_up_updates:
            self.loss_module.unroll = self.unroll
            if self._best_update <= self._warm_up_updates:
                # The losses of windows and of single transitions do not compare.
                self._best_loss, self._evaluations_since_best = math.inf, 0
        # The last block may be shorter than the others.
        self.optim_steps_per_batch = batch.numel() // self._updates_per_batch
        return batch

    def _draw_batch(self, batch: TensorDictBase) -> TensorDictBase:
        size = self._updates_per_batch
        rows = batch.get("row")[self._position : self._position + size]
        self._position += size
        if self.loss_module.unroll == 1:
            return self._read(self._train_rows, self._share(rows))
        # Rows are drawn uniformly; scaled down they are uniform draws of windows.
        chosen = rows[: size // self.unroll] * len(self._train_starts) // len(self._train_rows)
        starts = self._train_starts[self._share(chosen)]
        return self._read(self._train_rows, self._find_rows(starts))

    def _read(self, storage: EpisodeStorage, rows: torch.Tensor) -> TensorDictBase:
        return storage.get(rows.to(storage.device)).to(self._device)

    def _share(self, rows: torch.Tensor) -> torch.Tensor:
        """This process' part of the rows."""
        return take_share(rows) if self._data_parallel else rows

    def _find_rows(self, starts: torch.Tensor) -> torch.Tensor:
        """The rows of windows that begin at ``starts``: ``[W, unroll]``."""
        return starts.unsqueeze(-1) + torch.arange(self.unroll, device=starts.device)

    def _log_training(
        self, optim_steps: int, average_losses: TensorDictBase | None
    ) -> dict[str, Any]:
        if average_losses is None:
            return {}
        return {f"world_model/train/{k}": v.item() for k, v in average_losses.items()}

    @torch.no_grad()
    def _evaluate(self) -> None:
        self.world_model.eval()
        losses = self._measure_held_out_loss()
        total = sum(losses.values())
        if not math.isfinite(total):
            raise RuntimeError(
                f"The held-out loss is {total} after {self._optim_count} updates: training of the "
                f"world model has diverged (terms: {losses}). Lower learning_rate or clip_norm, "
                "and check the data for extreme values."
            )
        metrics = evaluate_world_model(
            self.world_model, self.held_out, horizon=self.horizon, windows=256
        )
        metrics["held_out_loss"] = total
        self.world_model.train()
        self._history.append({"update": float(self._optim_count), **losses, **metrics})
        if total < self._best_loss:
            self._best_loss, self._best_update = total, self._optim_count
            self._best_weights = {
                k: v.detach().clone() for k, v in self.world_model.state_dict().items()
            }
            self._evaluations_since_best = 0
        else:
            self._evaluations_since_best += 1
        last = f"open_loop/state_error/{self.horizon}"
        for name, value in {**losses, **metrics}.items():
            shown = name in ("one_step/state_error", last)
            self._log(log_pbar=shown, **{f"world_model/{name}": value})
        if self.patience is not None and self._evaluations_since_best >= self.patience:
            self._stop_training = True
            self._stop_reason = f"held-out loss has not improved for {self.patience} evaluations"

    def _measure_held_out_loss(self) -> dict[str, float]:
        unrolled = self.loss_module.unroll > 1
        rows = (
            self._find_rows(self._held_out_starts)
            if unrolled
            else torch.arange(len(self._held_out_rows), device=self._held_out_starts.device)
        )
        sums: dict[str, torch.Tensor] = {}
        for block in rows.split(8192 // self.unroll if unrolled else 8192):
            for name, value in self.loss_module(self._read(self._held_out_rows, block)).items():
                sums[name] = sums.get(name, 0.0) + value * (len(block) / len(rows))
        return {f"held_out/{name}": value.item() for name, value in sums.items()}


class _ScheduledStepper(OptimizationStepper):
    """One update: gradient, clipping, warm-up and cosine decay, without the host."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        updates: int,
        clip_norm: float,
        watch: NumberWatch,
        data_parallel: bool,
    ) -> None:
        self.updates = updates
        self.data_parallel = data_parallel
        self.clip_norm = clip_norm
        self.watch = watch
        # Made before a checkpoint is loaded: making it sets the optimiser's learning rate.
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._scale)

    def _scale(self, update: int) -> float:
        decay = 0.5 * (1.0 + math.cos(math.pi * min(update / self.updates, 1.0)))
        warm_up = min(1.0, (update + 1) / min(_WARM_UP, self.updates))
        return warm_up * (_FINAL_SHARE + (1.0 - _FINAL_SHARE) * decay)

    def step(self, trainer: Trainer, sub_batch: TensorDictBase) -> TensorDictBase:
        """Makes one update; returns the detached losses."""
        optimizer = trainer.optimizer
        if optimizer is None:
            raise RuntimeError("The world model's trainer has no optimizer.")
        losses = trainer.compute_loss(sub_batch)
        torch.stack(list(losses.values())).sum().backward()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if self.data_parallel:
            average_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        figures = losses.detach().set("grad_norm", norm.detach())
        self.watch.observe(trainer._optim_count, figures)
        optimizer.step()
        optimizer.zero_grad()
        self.scheduler.step()
        return figures

    def state_dict(self) -> dict[str, Any]:
        # The schedule itself is a function of the class; only its position is state.
        state = self.scheduler.state_dict()
        return {k: state[k] for k in ("last_epoch", "_step_count", "_last_lr", "base_lrs")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scheduler.load_state_dict({**state_dict, "lr_lambdas": [None]})


class _Draws:
    """What a trainer iterates over in place of a collector: rows to train on, block by block.

    Yields a TensorDict ``[updates * batch_size]`` with ``"row"``, drawn uniformly.
    """

    init_random_frames = 0

    def __init__(
        self,
        rows: int,
        *,
        batch_size: int,
        updates: int,
        block: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.updates = updates
        self.block = block
        self.device = device
        self.drawn = 0
        self.unfinished: TensorDictBase | None = None  # the block that is trained on
        self._generator = torch.Generator(device=device).manual_seed(seed)

    def __iter__(self) -> Iterator[TensorDict]:
        while self.drawn < self.updates:
            updates = min(self.block, self.updates - self.drawn)
            self.drawn += updates
            size = updates * self.batch_size
            row = torch.randint(self.rows, (size,), generator=self._generator, device=self.device)
            yield TensorDict({"row": row}, batch_size=[size], device=self.device)

    def set_seed(self, seed: int, static_seed: bool = False) -> int:
        self._generator.manual_seed(seed)
        return seed

    def shutdown(self) -> None:
        """Holds nothing that must be released."""

    def update_policy_weights_(self, *args: Any, **kwargs: Any) -> None:
        """There is no policy."""

    def state_dict(self) -> dict[str, Any]:
        rows = {} if self.unfinished is None else {"rows": self.unfinished.get("row")}
        return {"drawn": self.drawn, "generator": self._generator.get_state(), **rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.drawn = int(state_dict["drawn"])
        self._generator.set_state(state_dict["generator"].cpu())
        if "rows" in state_dict:
            row = state_dict["rows"].to(self.device)
            self.unfinished = TensorDict({"row": row}, batch_size=row.shape, device=self.device)


class _Selection:
    """What a trainer has measured on held-out episodes, and the weights it chose by that."""

    def __init__(self, trainer: WorldModelTrainer) -> None:
        self.trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        trainer = self.trainer
        return {
            "history": trainer._history,
            "best_loss": trainer._best_loss,
            "best_update": trainer._best_update,
            "best_weights": trainer._best_weights,
            "evaluations_since_best": trainer._evaluations_since_best,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        trainer = self.trainer
        trainer._history = state_dict["history"]
        trainer._best_loss = float(state_dict["best_loss"])
        trainer._best_update = int(state_dict["best_update"])
        trainer._best_weights = state_dict["best_weights"]
        trainer._evaluations_since_best = int(state_dict["evaluations_since_best"])
