"""Processes that make the same dataset at the same time."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest

from torchrl_logo.data import OfflineDataset, convert_dataset, load_dataset
from torchrl_logo.file_locks import hold_lock

NAME, FRAMES = "vmas/balance-random", 200
context = multiprocessing.get_context("fork")


def _hold(path: Path, held) -> None:
    with hold_lock(path, 0.0, "the test"):
        held.set()
        time.sleep(600)


@pytest.fixture
def start_holder():
    """Starts a process that holds a lock until it is killed."""
    processes = []

    def start(path: Path) -> multiprocessing.Process:
        held = context.Event()
        process = context.Process(target=_hold, args=(path, held))
        process.start()
        processes.append(process)
        assert held.wait(30)
        return process

    yield start
    for process in processes:
        process.kill()
        process.join()


def lock_of(kind: str, root: Path) -> Path:
    """The lock's file, found by making the dataset once elsewhere."""
    if kind == "conversion":
        return root / ".own.lock"
    elsewhere = root.parent / "elsewhere"
    load_dataset(NAME, root=elsewhere, frames=FRAMES)
    return root / next(elsewhere.glob(".*.lock")).name


def make(kind: str, root: Path, lock_timeout: float) -> OfflineDataset:
    if kind == "generation":
        return load_dataset(NAME, root=root, frames=FRAMES, lock_timeout=lock_timeout)
    return convert_dataset(
        root.parent / "recorded.npz", root / "own", lock_timeout=lock_timeout, progress_bar=False
    )


@pytest.mark.parametrize("kind", ["generation", "conversion"])
def test_nobody_waits_forever_and_a_dead_process_holds_nothing(
    kind, arrays, tmp_path, start_holder
) -> None:
    np.savez(tmp_path / "recorded.npz", **arrays)
    root = tmp_path / "root"
    root.mkdir()
    lock = lock_of(kind, root)
    holder = start_holder(lock)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=f"at work on the dataset .*{lock.name}"):
        make(kind, root, 0.2)
    assert time.monotonic() - began < 10
    assert [f.name for f in root.iterdir()] == [lock.name]
    holder.kill()
    holder.join()
    assert len(make(kind, root, 10.0)) > 0


def _convert(source: Path, root: Path, start, results) -> None:
    start.wait()
    try:
        dataset = convert_dataset(source, root, memory=1, progress_bar=False)
        results.put(dataset.metadata.hash)
    except FileExistsError:
        results.put("exists")


def test_conversions_to_one_place(arrays, tmp_path) -> None:
    np.savez(tmp_path / "recorded.npz", **arrays)
    start, results = context.Event(), context.Queue()
    arguments = (tmp_path / "recorded.npz", tmp_path / "own", start, results)
    processes = [context.Process(target=_convert, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    start.set()
    found = sorted(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
    whole = OfflineDataset.load(tmp_path / "own").metadata.hash
    assert found == sorted([whole, "exists", "exists"])
    assert not list(tmp_path.glob("*.unfinished")) and not list(tmp_path.glob(".*.unfinished"))
