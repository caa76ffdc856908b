"""Trains one cell's policy."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from tensordict.nn import TensorDictModuleBase
from torchrl.record.loggers import Logger

from benchmarks.paper.grid import Cell
from benchmarks.paper.planner import PLANNING, make_planner
from benchmarks.paper.settings import merge_settings
from benchmarks.paper.variants import VARIANTS, Variant
from benchmarks.paper.world_models import find_kind, share_world_model
from torchrl_logo.data import OfflineDataset
from torchrl_logo.trainers import OfflineTrainer, train_mamba
from torchrl_logo.trainers.held_out import find_held_out
from torchrl_logo.trainers.methods import METHODS
from torchrl_logo.trainers.uncertainty_threshold import find_uncertainty_threshold

__all__ = ["Trained", "train_cell"]

# Updates of a policy for each of MAMBA's imaginations: its epochs times its minibatches.
_UPDATES_PER_IMAGINATION = 4 * 4
# The sampler's C over its temperature where neither is given, as the trainer has it.
_DEFAULT_LOG_ODDS = 3.0


@dataclasses.dataclass
class Trained:
    """What a training leaves.

    Attributes:
        policy: acts on observations (LOGO-MPC: and on the state).
        hyperparameters: all settings, those of defaults among them.
        seconds: of the policy's training.
        world_model_seconds: of the world model's training, also where it was done for another
            method before: what the method costs by itself is the sum of both.
        world_model_metrics: measures of the model on held-out episodes.
    """

    policy: TensorDictModuleBase
    hyperparameters: dict[str, Any]
    seconds: float
    world_model_seconds: float = 0.0
    world_model_metrics: dict[str, float] = dataclasses.field(default_factory=dict)


def train_cell(
    cell: Cell,
    dataset: OfflineDataset,
    settings: dict[str, Any],
    *,
    folder: Path,
    logger: Logger | None = None,
) -> Trained:
    """Trains the policy of a cell.

    Args:
        cell (Cell): what to train.
        dataset (OfflineDataset): its dataset.
        settings (dict): of the method, without the variant's.

    Keyword Args:
        folder (Path): where world models, and the policies that LOGO-MPC plans with, are kept.
        logger (Logger, optional): gets the figures of the training.

    Raises:
        ValueError: if the method has no such variant, or no form for the dataset's actions.
    """
    variant = Variant()
    if cell.variant and not cell.variant.startswith("setting-"):
        known = VARIANTS.get(cell.method, {})
        if cell.variant not in known:
            raise ValueError(
                f"{cell.method!r} has no variant {cell.variant!r}; there are {sorted(known)}."
            )
        variant = known[cell.variant]
    if cell.method == "mamba":
        return _train_mamba(cell, dataset, settings, logger)
    return _train_offline(cell, dataset, merge_settings(settings, variant.settings), variant,
                          folder, logger)  # fmt: skip


def _train_offline(
    cell: Cell,
    dataset: OfflineDataset,
    settings: dict[str, Any],
    variant: Variant,
    folder: Path,
    logger: Logger | None,
) -> Trained:
    plans = cell.method == "logo-mpc"
    method = "logo" if plans else cell.method
    found = METHODS[method]
    model, model_seconds, metrics = None, 0.0, {}
    kind = variant.world_model or (found.world_model and find_kind(found.world_model))
    if variant.without_model:
        # the same policy learning, with the same settings, on the data alone
        method, kind = "macql", None
        own = found.discrete_loss_kwargs if dataset.spec.discrete else found.loss_kwargs
        settings = merge_settings(
            {"lr": found.lr, "tau": found.tau, "loss_kwargs": own}, _drop_imagination(settings)
        )
    if kind is not None:
        model, model_seconds, metrics = share_world_model(
            kind,
            dataset,
            variant,
            steps=cell.budget.world_model_steps,
            seed=cell.seed,
            folder=folder / "world_models",
        )
        settings = merge_settings(settings, _scale_sampler(variant, model, dataset, settings, cell))
        settings["world_model_steps"] = cell.budget.world_model_steps
    steps = cell.budget.steps
    path = _policy_path(cell, dataset, settings, metrics, folder)
    with contextlib.nullcontext() if path is None else FileLock(f"{path}.lock"):
        start = time.monotonic()
        trainer = OfflineTrainer(
            method,
            dataset,
            steps=steps,
            seed=cell.seed,
            logger=logger,
            world_model=model,
            progress_bar=False,
            eval_interval=0,
            **settings,
        )
        loss = trainer.loss_module
        record = None if path is None else path.with_suffix(".json")
        if path is not None and record is not None and record.exists():
            loss.load_state_dict(torch.load(path, weights_only=True))
            seconds = json.loads(record.read_text())["seconds"]
        else:
            trainer.train()
            seconds = time.monotonic() - start
            if path is not None and record is not None:
                torch.save(loss.state_dict(), path)
                record.write_text(json.dumps({"seconds": seconds}))
    policy, hyperparameters = trainer.policy, dict(trainer.hyperparameters)
    if plans:
        assert model is not None
        policy = make_planner(
            loss,
            policy,
            model,
            dataset,
            gamma=hyperparameters["gamma"],
            reward_scale=hyperparameters["reward_scale"],
        )
        hyperparameters["planning"] = PLANNING
    return Trained(policy, hyperparameters, seconds, model_seconds, metrics)


def _drop_imagination(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without those that only matter to imagination."""
    imagination = ("horizon", "real_fraction", "uncertainty_weights", "reward_penalty",
                   "imagined_envs", "imagine_interval", "imagined_capacity",
                   "uncertainty_quantile", "temperature", "uncertainty_threshold")  # fmt: skip
    return {name: value for name, value in settings.items() if name not in imagination}


def _scale_sampler(
    variant: Variant, model: Any, dataset: OfflineDataset, settings: dict[str, Any], cell: Cell
) -> dict[str, float]:
    """The sampler's threshold and temperature of a variant that scales them."""
    if variant.threshold_scale is None and variant.log_odds is None:
        return {}
    horizon = settings.get("horizon", METHODS["logo"].horizon)
    measured = find_uncertainty_threshold(
        model, find_held_out(dataset, cell.seed), horizon=horizon, seed=cell.seed
    )
    threshold = measured * (variant.threshold_scale or 1.0)
    # C alone changes where certainty ends, and not how much it counts for.
    temperature = measured / (variant.log_odds or _DEFAULT_LOG_ODDS)
    return {"uncertainty_threshold": threshold, "temperature": temperature}


def _policy_path(
    cell: Cell,
    dataset: OfflineDataset,
    settings: dict[str, Any],
    metrics: dict[str, float],
    folder: Path,
) -> Path | None:
    """Where LOGO's policy is kept for LOGO-MPC; none for other cells.

    The world model's measures tell it from one that was trained by other code.
    """
    if cell.method not in ("logo", "logo-mpc") or cell.variant:
        return None
    what = [dataset.metadata.hash, cell.seed, dataclasses.astuple(cell.budget), settings, metrics]
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / "policies" / f"logo-{digest}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _train_mamba(
    cell: Cell, dataset: OfflineDataset, settings: dict[str, Any], logger: Logger | None
) -> Trained:
    iterations = math.ceil(cell.budget.steps / _UPDATES_PER_IMAGINATION)
    arguments = {
        "iterations": iterations,
        "world_model_steps": cell.budget.world_model_steps,
        **settings,
    }
    start = time.monotonic()
    result = train_mamba(dataset, seed=cell.seed, logger=logger, progress_bar=False, **arguments)
    return Trained(result.policy, arguments, time.monotonic() - start)
