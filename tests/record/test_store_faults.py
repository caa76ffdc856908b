"""A sqlite store on a disk that is full or read-only, and one that another process holds."""

from __future__ import annotations

import errno
import multiprocessing
from pathlib import Path

import pytest
from mlflow import MlflowClient

from torchrl_logo.file_locks import hold_lock
from torchrl_logo.record import MLflowRun

context = multiprocessing.get_context("fork")


def test_a_full_disk_is_an_error_and_what_was_logged_is_written_when_there_is_room(
    small_disk,
) -> None:
    run = MLflowRun("tests", runs_dir=small_disk.path, flush_interval=1e9)
    run.log_scalar("loss", 1.0, step=0)
    run.flush()
    small_disk.resize(sum(f.stat().st_size for f in small_disk.path.rglob("*") if f.is_file()))
    for step in range(1, 3000):
        run._hold({"loss": float(step)}, step)
    with pytest.raises(OSError, match="Cannot write the MLflow run.*disk.*mlflow.db") as caught:
        run.flush()
    assert caught.value.errno in (errno.ENOSPC, errno.EIO)
    small_disk.resize(64 * 2**20)
    run.finish()
    client = MlflowClient(f"sqlite:///{small_disk.path}/mlflow.db")
    points = client.get_metric_history(run.run_id, "loss")
    assert sorted(point.step for point in points) == list(range(3000))


def test_a_read_only_folder_is_an_error(small_disk) -> None:
    small_disk.make_read_only()
    with pytest.raises(OSError, match="Cannot write .*read-only"):
        MLflowRun("tests", runs_dir=small_disk.path / "runs")


def test_nobody_waits_forever_for_a_store(tmp_path) -> None:
    with hold_lock(tmp_path / "mlflow.db.lock", 0.0, "the test"):
        with pytest.raises(TimeoutError, match="at work on the MLflow store"):
            MLflowRun("tests", runs_dir=tmp_path, lock_timeout=0.2)


def _log(folder: Path, index: int, start, results) -> None:
    start.wait()
    with MLflowRun("tests", runs_dir=folder, flush_interval=0.0) as run:
        for step in range(20):
            run.log_scalar("loss", float(index), step=step)
        results.put((index, run.run_id))


def test_processes_share_a_new_runs_folder(tmp_path) -> None:
    start, results = context.Event(), context.Queue()
    processes = [
        context.Process(target=_log, args=(tmp_path / "runs", index, start, results))
        for index in range(3)
    ]
    for process in processes:
        process.start()
    start.set()
    found = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    for index, run_id in found:
        points = client.get_metric_history(run_id, "loss")
        assert sorted((p.step, p.value) for p in points) == [(s, index) for s in range(20)]
        assert client.get_run(run_id).info.status == "FINISHED"
