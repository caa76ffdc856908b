"""MLflow runs of the grid: one parent for each method on a dataset, a nested run for each seed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from benchmarks.paper.grid import Cell
from torchrl_logo.record import MLflowRun

__all__ = ["track_cell"]

_EXPERIMENT = "paper"


@contextlib.contextmanager
def track_cell(cell: Cell, folder: Path) -> Iterator[MLflowRun]:
    """A run of a cell's seed, nested in the run of all its seeds, which is made if missing.

    Args:
        cell (Cell): what is run.
        folder (Path): of the store, unless ``MLFLOW_TRACKING_URI`` names another one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parent = _find_parent(cell, folder)
    tags = {"dataset": cell.dataset, "method": cell.method, "variant": cell.variant}
    with MLflowRun(
        _EXPERIMENT,
        run_name=f"{cell.dataset} {cell.name} seed {cell.seed}",
        parent_run_id=parent,
        runs_dir=folder,
        tags=tags,
    ) as run:
        yield run


def _find_parent(cell: Cell, folder: Path) -> str:
    """The id of the run that holds a cell's seeds; the ids are kept beside the store."""
    record = folder / "parents.json"
    key = json.dumps([cell.dataset, cell.name, cell.budget.steps, cell.budget.world_model_steps])
    with FileLock(f"{record}.lock"):
        parents = json.loads(record.read_text()) if record.exists() else {}
        if key not in parents:
            run = MLflowRun(
                _EXPERIMENT,
                run_name=f"{cell.dataset} {cell.name}",
                runs_dir=folder,
                tags={"dataset": cell.dataset, "method": cell.method, "variant": cell.variant},
            )
            parents[key] = run.run_id
            run.finish()
            unfinished = record.with_suffix(".part")
            unfinished.write_text(json.dumps(parents))
            unfinished.replace(record)
    return parents[key]
