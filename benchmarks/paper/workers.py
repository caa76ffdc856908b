"""Runs cells with any number of processes, which share the work through files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout

from benchmarks.paper.cells import RunOptions, run_cell
from benchmarks.paper.grid import Cell
from benchmarks.paper.rows import Row, append_row, latest_rows, read_rows
from benchmarks.paper.settings import digest_settings, find_settings

__all__ = ["Run", "find_open_cells", "run_cells", "work"]

Run = Callable[[Cell, RunOptions, dict[str, Any]], Row]
# A cell and its settings, or none for those that the search chose.
Job = tuple[Cell, dict[str, Any] | None]


def run_cells(
    jobs: Sequence[Job],
    rows: Path,
    options: RunOptions,
    *,
    processes: int = 1,
    minutes: float | None = None,
    retry: bool = False,
) -> None:
    """Runs what is not done yet; each row is written as soon as there is one.

    Any number of such calls may work on one table at once, also on several machines that share
    its folder: a cell is claimed by a lock, which the system releases if a process dies.

    Args:
        jobs (sequence of tuple): cells in their order, with settings.
        rows (Path): the table.
        options (RunOptions): how cells are run.

    Keyword Args:
        processes (int): of one thread each.
        minutes (float, optional): after these, no cell is begun.
        retry (bool): whether cells that failed before are run again.
    """
    deadline = None if minutes is None else time.time() + 60 * minutes
    context = multiprocessing.get_context("spawn")
    arguments = (list(jobs), rows, options, deadline, retry)
    started = [context.Process(target=work, args=arguments) for _ in range(processes)]
    with _ending_together(started):
        for process in started:
            process.start()
        for process in started:
            process.join()
    if any(process.exitcode for process in started):
        raise SystemExit(1)


@contextlib.contextmanager
def _ending_together(processes: Sequence[BaseProcess]) -> Iterator[None]:
    """Ends processes with this one, also when it is asked to by SIGTERM: none goes on alone."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
        for process in processes:
            if process.is_alive():
                process.terminate()


def work(
    jobs: Sequence[Job],
    rows: Path,
    options: RunOptions,
    deadline: float | None = None,
    retry: bool = False,
    run: Run = run_cell,
) -> None:
    """Runs one cell after the other, as one process of :func:`run_cells`."""
    import torch
    from torchrl import logger

    torch.set_num_threads(1)
    logger.setLevel("WARNING")
    (options.folder / "claims").mkdir(parents=True, exist_ok=True)
    failed: set[Any] = set()
    while deadline is None or time.time() <= deadline:
        for job in find_open_cells(jobs, rows, retry=retry):
            if job[0].key not in failed and (row := _claim_and_run(job, rows, options, retry, run)):
                break
        else:
            return  # nothing is left that nobody is at work on
        if "error" in row:
            failed.add(job[0].key)
        _print_row(job[0], row)


def _claim_and_run(job: Job, rows: Path, options: RunOptions, retry: bool, run: Run) -> Row | None:
    """Runs a cell and writes its row, unless another process has claimed or done it."""
    name = hashlib.sha256(json.dumps([str(rows.resolve()), *job[0].key]).encode()).hexdigest()[:24]
    try:
        with FileLock(options.folder / "claims" / f"{name}.lock").acquire(timeout=0):
            # Somebody may have done it between the look and the claim.
            if not find_open_cells([job], rows, retry=retry):
                return None
            row = _run_or_report(job, options, run)
            append_row(rows, row)
            return row
    except Timeout:
        return None


def find_open_cells(jobs: Sequence[Job], rows: Path, *, retry: bool = False) -> list[Job]:
    """The jobs without a row of their settings; failed ones count as done unless ``retry``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = latest_rows(read_rows(rows))
    return [
        job
        for job in jobs
        if (row := done.get(job[0].key)) is None
        or (retry and "error" in row)
        or row.get("settings_digest") != digest_settings(_settings_of(job, row))
    ]


def _settings_of(job: Job, row: Row) -> dict[str, Any]:
    cell, settings = job
    if settings is not None:
        return settings
    return find_settings(cell.method, discrete=bool(row["discrete"]))[0]


def _run_or_report(job: Job, options: RunOptions, run: Run) -> Row:
    """A row of results, or of what went wrong: a method that diverges is a result, too."""
    from benchmarks.paper.datasets import is_discrete

    cell, settings = job
    discrete = is_discrete(cell.dataset)
    chosen = find_settings(cell.method, discrete=discrete)[0] if settings is None else settings
    try:
        return run(cell, options, settings)  # type: ignore[arg-type]
    except (ImportError, OSError):
        # A simulator that is not installed, a full disk or a lost store says nothing of a method.
        raise
    except Exception as error:
        traceback.print_exc()
        return {
            "dataset": cell.dataset,
            "method": cell.method,
            "variant": cell.variant,
            "seed": cell.seed,
            "steps": cell.budget.steps,
            "world_model_steps": cell.budget.world_model_steps,
            "discrete": discrete,
            "settings": chosen,
            "settings_digest": digest_settings(chosen),
            "error": f"{type(error).__name__}: {error}"[:500],
        }


def _print_row(cell: Cell, row: Row) -> None:
    if "error" in row:
        print(f"{cell}: {row['error']}", file=sys.stderr, flush=True)
        return
    score = row["return"] if row["normalized"] is None else row["normalized"]
    seconds = row["seconds"] + row["world_model_seconds"] + row["evaluation_seconds"]
    print(f"{cell}: {score:.1f} (of its own {seconds:.0f} s)", flush=True)
