"""Converts datasets of other formats, a few episodes at a time, into the package's own."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import NestedKey, TensorDict
from tqdm import tqdm

from torchrl_logo.argument_checks import require_arguments
from torchrl_logo.data.chunk_writer import (
    PROGRESS_FILE,
    ChunkWriter,
    read_progress,
    record_progress,
)
from torchrl_logo.data.content_hash import hash_columns
from torchrl_logo.data.dataset import OfflineDataset, write_metadata
from torchrl_logo.data.formats.reader import EpisodeReader, find_reader
from torchrl_logo.data.metadata import record_versions
from torchrl_logo.data.reference_returns import ReferenceReturns, reference_returns
from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.data.validation import (
    DatasetError,
    count_row_bytes,
    layout_shapes,
    validate_layout,
)
from torchrl_logo.file_locks import hold_lock
from torchrl_logo.whole_files import (
    explain_write_errors,
    publish_folder,
    require_room,
)

__all__ = ["convert_dataset", "fingerprint_source"]

_DEFAULT_MEMORY = 512 * 2**20
# What a chunk needs beside its own bytes: the reader's arrays before they are in the layout, and
# the flags of the checks.
_OVERHEAD = 4
# Bytes that are read, checked and written at once: while they are in a processor's cache, later
# passes over them cost little.
_CHUNK = 16 * 2**20
_HASHED = 65_536  # rows


def convert_dataset(
    path: str | Path,
    root: str | Path,
    *,
    format: str | None = None,
    task: str | TaskSpec | None = None,
    quality: str | None = None,
    reference: ReferenceReturns | None = None,
    memory: int = _DEFAULT_MEMORY,
    lock_timeout: float = 3600.0,
    progress_bar: bool = True,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
    **options: Any,
) -> OfflineDataset:
    """Converts a dataset of another format into a folder of the package's own.

    Episodes are read, checked and written in chunks that fit into ``memory``. The folder appears
    when all of it is there. A conversion that was interrupted goes on where it stopped when it is
    called again with the same arguments and unchanged files; one that failed on its data leaves
    nothing behind.

    Args:
        path (str or Path): file or folder of a format that
            :func:`~torchrl_logo.data.formats.reader.find_readers` knows.
        root (str or Path): folder to write, which must not exist.

    Keyword Args:
        format (str, optional): name of the format. By default the files tell it.
        task (str or TaskSpec, optional): the task that the data must fit, by its name
            (:func:`torchrl_logo.envs.make_env`) or its sizes. By default sizes come from the
            files.
        quality (str, optional): how good the behaviour was.
        reference (ReferenceReturns, optional): returns that scores are normalised by. By default
            the task's own, where they are known.
        memory (int): bytes that a chunk may take. Defaults to 512 MiB.
        lock_timeout (float): seconds to wait for another process that converts to the same
            folder. Defaults to an hour.
        progress_bar (bool): whether a bar with a time left is shown. Defaults to ``True``.
        batch_size (int, optional): transitions in a sample of the dataset that is returned.
        device (torch.device or str): where that dataset lies. Defaults to ``"cpu"``.
        **options: choices that the format's reader takes, such as ``reward_rule`` or ``state``.

    Returns:
        The converted dataset, opened.

    Raises:
        FileNotFoundError: if ``path`` does not exist.
        FileExistsError: if ``root`` exists.
        DatasetError: if the format is not recognised, or data break the layout; names file,
            episode and key.
        ValueError: if the data do not fit the task.
        TypeError: if the reader knows no such option.
        TimeoutError: if another process converts to the same folder for longer than
            ``lock_timeout``.
        OSError: if the disk is full or read-only, mostly before anything is written.

    Examples:
        >>> import tempfile
        >>> rows, folder = 6, Path(tempfile.mkdtemp())
        >>> moved = np.arange(rows + 1, dtype=np.float32)
        >>> end = (np.arange(rows) % 3 == 2)[:, None]
        >>> np.savez(folder / "recorded.npz", **{
        ...     "agents/observation": np.zeros((rows, 2, 1), np.float32),
        ...     "next/agents/observation": np.zeros((rows, 2, 1), np.float32),
        ...     "agents/action": np.zeros((rows, 2, 1), np.float32),
        ...     "state": moved[:-1, None], "next/state": moved[1:, None],
        ...     "next/reward": np.ones((rows, 1), np.float32),
        ...     "next/done": end, "next/terminated": end, "next/truncated": np.zeros_like(end)})
        >>> dataset = convert_dataset(folder / "recorded.npz", folder / "own", progress_bar=False)
        >>> dataset.metadata.episodes, dataset.returns
        (2, tensor([3., 3.]))
    """
    path, root = Path(path), Path(root)
    if memory < 1:
        raise ValueError(f"memory must be a positive number of bytes, found {memory}.")
    if root.exists():
        raise FileExistsError(f"Cannot convert to {root}: it exists already.")
    kind = find_reader(path, format)
    require_arguments(options, kind, f"The reader of the format {kind.format!r}")
    try:
        reader = kind(path, **options)
    except MemoryError as error:
        raise _too_large(path, error) from error
    try:
        spec = _find_spec(task, reader)
        if reference is None and spec.task is not None:
            reference = reference_returns(spec.task)
        chosen = {"format": reader.format, **options}
        source = fingerprint_source(path, chosen)
        with explain_write_errors("the converted dataset", root):
            root.parent.mkdir(parents=True, exist_ok=True)
        lock = root.parent / f".{root.name}.lock"
        with (
            hold_lock(lock, lock_timeout, f"the dataset {root}"),
            explain_write_errors("the converted dataset", root),
        ):
            if root.exists():
                raise FileExistsError(f"Cannot convert to {root}: it exists already.")
            unfinished = root.parent / f".{root.name}.{source[:8]}.unfinished"
            try:
                content_hash = _write_and_hash(unfinished, reader, spec, memory, progress_bar)
                write_metadata(
                    unfinished,
                    spec,
                    content_hash=content_hash,
                    quality=quality,
                    reference_returns=reference,
                    provenance={
                        "source": "conversion",
                        "format": reader.format,
                        "file": path.name,
                        "fingerprint": source,
                        "options": {key: _plain(value) for key, value in options.items()},
                        "versions": record_versions(),
                        **reader.provenance,
                    },
                )
                if fingerprint_source(path, chosen) != source:
                    raise DatasetError(str(path), "files that stay as they are", "changed ones")
                (unfinished / PROGRESS_FILE).unlink()
                publish_folder(unfinished, root)
            except DatasetError:
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
            except MemoryError as error:
                shutil.rmtree(unfinished, ignore_errors=True)
                raise _too_large(path, error) from error
    finally:
        reader.close()
    # What was just written need not be read once more.
    return OfflineDataset.load(root, verify=False, batch_size=batch_size, device=device)


def _too_large(path: Path, error: MemoryError) -> DatasetError:
    """What a damaged size, or an episode that is larger than memory, ends in."""
    return DatasetError(str(path), "episodes that fit into memory", str(error) or "larger ones")


def fingerprint_source(path: Path, options: dict[str, Any]) -> str:
    """A sha256 that changes with the files (names, sizes, times of change) and the options."""
    files = [path] if path.is_file() else [f for f in sorted(path.rglob("*")) if f.is_file()]
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        name = file.relative_to(path.parent).as_posix()
        digest.update(f"{name}|{status.st_size}|{status.st_mtime_ns}|".encode())
    plain = {key: _plain(value) for key, value in options.items()}
    digest.update(json.dumps(plain, sort_keys=True).encode())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def _find_spec(task: str | TaskSpec | None, reader: EpisodeReader) -> TaskSpec:
    if task is None:
        return reader.spec
    if isinstance(task, str):
        # Not at the top of the file: environments import this package.
        from torchrl_logo.envs import make_env

        env = make_env(task)
        task = TaskSpec.from_env(env)
        env.close()
    task.require_match(reader.spec, f"The data of {reader.path}")
    return task


def _write_and_hash(
    folder: Path, reader: EpisodeReader, spec: TaskSpec, memory: int, progress_bar: bool
) -> str | None:
    """Writes all episodes; returns the hash of their content where it could be had meanwhile.

    The hash goes through one key after the other, rows are written with all of their keys: it is
    that of the reader's columns, which are read once more.
    """
    stopped = threading.Event()

    def go_through(steps: Iterator[str | None]) -> str | None:
        last = None
        for step in steps:
            last = step
            if stopped.is_set():
                break
        return last

    def hash_and_verify() -> str | None:
        found = go_through(_hash_columns(reader, spec)) if reader.reads_columns else None
        if not stopped.is_set():
            go_through(reader.verify())
        return found

    # It mostly computes without Python's lock, as reading, checking and writing do.
    with ThreadPoolExecutor(1) as beside:
        hashed = beside.submit(hash_and_verify)
        try:
            _write_transitions(folder, reader, spec, memory, progress_bar)
            return hashed.result()
        except BaseException as error:
            stopped.set()
            if isinstance(error, DatasetError):
                hashed.exception()  # waits
                for _ in reader.verify():  # damaged files explain whatever else is found
                    pass
            raise


def _hash_columns(reader: EpisodeReader, spec: TaskSpec) -> Iterator[str | None]:
    lengths = np.asarray(reader.lengths, dtype=np.int64)
    starts = np.concatenate([[0], lengths.cumsum()])
    leaves = {key: (dtype, shape) for key, (shape, dtype, _) in layout_shapes(spec).items()}

    def read(key: NestedKey) -> Iterator[np.ndarray | memoryview]:
        if key not in ("episode", "step"):
            yield from reader.read_column(key if isinstance(key, str) else "/".join(key))
            return
        for start in range(0, int(starts[-1]), _HASHED):
            row = np.arange(start, min(start + _HASHED, int(starts[-1])))
            episode = starts.searchsorted(row, side="right") - 1
            yield episode if key == "episode" else row - starts[episode]

    return hash_columns(leaves, int(starts[-1]), read)


def _write_transitions(
    folder: Path, reader: EpisodeReader, spec: TaskSpec, memory: int, progress_bar: bool
) -> None:
    """Writes all episodes into ``folder / "data"``, from where an earlier call stopped."""
    lengths = np.asarray(reader.lengths, dtype=np.int64)
    if not len(lengths) or (lengths < 1).any():
        found = "no episode" if not len(lengths) else f"episode {int((lengths < 1).argmax())} of 0"
        raise DatasetError(str(reader.path), "episodes of at least one transition", found)
    starts = np.concatenate([[0], lengths.cumsum()])  # [E + 1]
    shapes = layout_shapes(spec)
    row_bytes = count_row_bytes(spec)
    episodes = read_progress(folder)
    # An earlier call's files have holes where nothing was written yet.
    missing = int(starts[-1] - starts[episodes]) * row_bytes
    require_room("the converted dataset", folder, missing)
    if not episodes:
        shutil.rmtree(folder, ignore_errors=True)
        data = TensorDict({}, batch_size=[int(starts[-1])]).memmap_(str(folder / "data"))
        for key, (shape, dtype, _) in shapes.items():
            data.make_memmap(key, torch.Size([int(starts[-1]), *shape]), dtype=dtype)
        record_progress(folder, 0)
    rows_at_once = max(1, min(memory // _OVERHEAD, _CHUNK) // row_bytes)
    with tqdm(
        total=int(starts[-1]),
        initial=int(starts[episodes]),
        unit="transitions",
        unit_scale=True,
        desc=f"{reader.format} {reader.path.name}",
        disable=not progress_bar,
    ) as bar:
        with ChunkWriter(folder, list(shapes), flush_bytes=memory // _OVERHEAD) as writer:
            for start, stop in _chunks(starts, episodes, rows_at_once):
                chunk = _read_chunk(reader, start, stop, lengths, spec)
                writer.write(chunk, int(starts[start]), stop)
                bar.update(len(chunk))


def _chunks(starts: np.ndarray, first: int, rows: int) -> Iterator[tuple[int, int]]:
    """Ranges of whole episodes of at most ``rows`` transitions (or one longer episode)."""
    last = len(starts) - 1
    while first < last:
        stop = int(np.searchsorted(starts, starts[first] + rows, side="right")) - 1
        stop = min(max(stop, first + 1), last)
        yield first, stop
        first = stop


def _read_chunk(
    reader: EpisodeReader, start: int, stop: int, lengths: np.ndarray, spec: TaskSpec
) -> TensorDict:
    """Reads and checks episodes; an error names the file and the first episode at fault."""
    try:
        chunk = _to_tensordict(reader.read(start, stop), start, lengths[start:stop])
        validate_layout(chunk, spec)
        _require_end(chunk)
        return chunk
    except DatasetError as error:
        if stop - start > 1:
            for episode in range(start, stop):
                _read_chunk(reader, episode, episode + 1, lengths, spec)
            where = f"episodes {start} to {stop - 1}"
        else:
            where = f"episode {start}"
        found = f"{error.found} ({where} of {reader.path})"
        raise DatasetError(error.key, error.expected, found) from error


def _to_tensordict(arrays: dict[str, np.ndarray], start: int, lengths: np.ndarray) -> TensorDict:
    rows = int(lengths.sum())
    ends = lengths.cumsum()
    steps = np.arange(rows) - (ends - lengths).repeat(lengths)
    episodes = np.arange(start, start + len(lengths)).repeat(lengths)
    arrays = {**arrays, "episode": episodes, "step": steps}
    for name, value in arrays.items():
        if len(value) != rows:
            raise DatasetError(name, f"{rows} rows", f"{len(value)}")
    return TensorDict(
        {
            tuple(name.split("/")): torch.from_numpy(np.require(value, requirements=["C", "W"]))
            for name, value in arrays.items()
        },
        batch_size=[rows],
    )


def _require_end(chunk: TensorDict) -> None:
    if not chunk["next", "done"][-1].all():
        raise DatasetError("next/done", "an end in the last row of each episode", "none")
