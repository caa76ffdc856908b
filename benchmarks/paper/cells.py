"""Runs one cell of the grid and describes it as a row."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.paper.datasets import open_dataset
from benchmarks.paper.grid import Cell
from benchmarks.paper.rows import Row
from benchmarks.paper.settings import digest_settings, find_settings
from benchmarks.paper.tracking import track_cell
from benchmarks.paper.training import train_cell
from torchrl_logo.data.metadata import describe_values, record_versions
from torchrl_logo.data.reference_returns import ReferenceReturns, reference_returns
from torchrl_logo.evaluation import Evaluation, evaluate

__all__ = ["RunOptions", "run_cell"]

# Seeds of evaluations, far from those of trainings.
_EVALUATION_SEED = 10_000


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How cells are run.

    Attributes:
        episodes: of the final evaluation.
        folder: where world models, LOGO's policies, claims and the MLflow store are kept.
        track: whether runs are recorded in MLflow.
    """

    episodes: int = 64
    folder: Path = Path("runs/paper")
    track: bool = True


def run_cell(cell: Cell, options: RunOptions, settings: dict[str, Any] | None = None) -> Row:
    """Trains a cell's policy and evaluates the one that the last update left.

    All methods of a seed meet the same start states.

    Args:
        cell (Cell): what to run.
        options (RunOptions): how.
        settings (dict, optional): of the method. Defaults to what the search chose for it.
    """
    dataset = open_dataset(cell.dataset)
    spec = dataset.spec
    assert spec.task is not None
    tuned = False
    if settings is None:
        settings, tuned = find_settings(cell.method, discrete=spec.discrete)
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(track_cell(cell, options.folder)) if options.track else None
        if run is not None:
            run.log_dataset(cell.dataset, dataset.metadata.hash, source=spec.task)
        trained = train_cell(cell, dataset, settings, folder=options.folder, logger=run)
        start = time.monotonic()
        reference = reference_returns(spec.task) or dataset.metadata.reference_returns
        found = evaluate(
            trained.policy,
            spec.task,
            episodes=options.episodes,
            seed=_EVALUATION_SEED + cell.seed,
            reference=reference,
        )
        evaluation_seconds = time.monotonic() - start
        if run is not None:
            run.log_hparams({"steps": cell.budget.steps, **trained.hyperparameters})
            final = {"final/return": found.mean}
            if found.normalized is not None:
                final["final/normalized"] = found.normalized
            run.log_metrics(final, step=cell.budget.steps)
    return {
        "dataset": cell.dataset,
        "method": cell.method,
        "variant": cell.variant,
        "seed": cell.seed,
        **dataclasses.asdict(cell.budget),
        "task": spec.task,
        "quality": dataset.metadata.quality,
        "discrete": spec.discrete,
        "dataset_hash": dataset.metadata.hash,
        "transitions": len(dataset),
        "dataset_return": round(float(dataset.returns.mean()), 4),
        **_describe_evaluation(found, reference),
        "settings": settings,
        "settings_digest": digest_settings(settings),
        "tuned": tuned,
        "hyperparameters": trained.hyperparameters,
        "world_model": {k: round(v, 5) for k, v in trained.world_model_metrics.items()},
        "seconds": round(trained.seconds, 1),
        "world_model_seconds": round(trained.world_model_seconds, 1),
        "evaluation_seconds": round(evaluation_seconds, 1),
        "threads": torch.get_num_threads(),
        "versions": record_versions(),
        "commit": _find_commit(),
    }


def _describe_evaluation(found: Evaluation, reference: ReferenceReturns | None) -> Row:
    low, high = found.interval
    scores = found.normalized_interval
    return {
        "return": round(found.mean, 5),
        "interval": [round(low, 5), round(high, 5)],
        "returns": {k: round(v, 4) for k, v in describe_values(found.returns).items()},
        "normalized": None if found.normalized is None else round(found.normalized, 4),
        "normalized_interval": None if scores is None else [round(end, 4) for end in scores],
        "reference": None if reference is None else dataclasses.asdict(reference),
        "win_rate": found.win_rate,
        "length": round(float(found.lengths.float().mean()), 2),
        "episodes": len(found.returns),
    }


def _find_commit() -> str | None:
    """The commit of the code, with a plus if files that it knows were changed."""
    here = Path(__file__).parent

    def ask(*command: str) -> str:
        return subprocess.run(
            ["git", *command], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = ask("status", "--porcelain", "--untracked-files=no", "--", "../../torchrl_logo",
                      "*.py")  # fmt: skip
        return ask("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
