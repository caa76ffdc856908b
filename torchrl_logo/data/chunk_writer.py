"""Writes a dataset's rows, chunk by chunk, beside the work that makes them."""

from __future__ import annotations

import contextlib
import json
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from tensordict import NestedKey, TensorDictBase

from torchrl_logo.data.mapped_files import file_of, write_rows
from torchrl_logo.whole_files import flush_files, write_file

__all__ = ["PROGRESS_FILE", "ChunkWriter", "read_progress", "record_progress"]

#: The file of a folder that says how far writing came.
PROGRESS_FILE = "progress.json"


class ChunkWriter:
    r"""Writes rows into the files of ``folder / "data"`` and records how many episodes are there.

    A chunk is written while the next one is made, and flushed to the disk while later ones are
    written. Progress is recorded of what is on the disk: after a power cut, no less is there. On
    leaving, all that was given is written; by an exception, it is flushed and recorded, too.

    Args:
        folder (Path): has files of the final size in ``data``.
        keys (list of NestedKey): the keys of each chunk.

    Keyword Args:
        flush_bytes (int): bytes after which a flush begins, if the last one has ended.

    Examples:
        >>> import tempfile, torch
        >>> from tensordict import TensorDict
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = TensorDict({"a": torch.zeros(3)}, [3]).memmap(str(folder / "data"))
        >>> with ChunkWriter(folder, ["a"], flush_bytes=1) as writer:
        ...     writer.write(TensorDict({"a": torch.ones(2)}, [2]), row=1, episodes=1)
        >>> read_progress(folder), (folder / "data" / "a.memmap").read_bytes()[:8]
        (1, b'\x00\x00\x00\x00\x00\x00\x80?')
    """

    def __init__(self, folder: Path, keys: list[NestedKey], *, flush_bytes: int) -> None:
        self._folder, self._keys, self._flush_bytes = folder, keys, flush_bytes
        self._unflushed = 0
        self._episodes: int | None = None  # that were written
        self._writing: Future[None] | None = None
        self._flushing: Future[None] | None = None

    def __enter__(self) -> ChunkWriter:
        self._writer, self._flusher = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        return self

    def write(self, chunk: TensorDictBase, row: int, episodes: int) -> None:
        """Writes rows from ``row`` on, with which so many episodes are there.

        Returns once the chunk before is written, so that at most two are in memory.

        Raises:
            OSError: if an earlier chunk could not be written or flushed.
        """
        if self._writing is not None:
            self._writing.result()
        self._writing = self._writer.submit(self._write, chunk, row, episodes)

    def _write(self, chunk: TensorDictBase, row: int, episodes: int) -> None:
        for key in self._keys:
            value = chunk.get(key)
            write_rows(file_of(self._folder / "data", key), row, value)
            self._unflushed += value.numel() * value.element_size()
        self._episodes = episodes
        if self._unflushed < self._flush_bytes:
            return
        if self._flushing is not None:
            if not self._flushing.done():
                return
            self._flushing.result()
        self._unflushed = 0
        self._flushing = self._flusher.submit(self._flush, episodes)

    def _flush(self, episodes: int) -> None:
        flush_files([file_of(self._folder / "data", key) for key in self._keys])
        record_progress(self._folder, episodes)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._wait()
                return
            # What goes wrong on the way out of an exception does not take its place.
            with contextlib.suppress(OSError):
                self._wait()
            if self._episodes is not None:
                with contextlib.suppress(OSError):
                    self._flush(self._episodes)
        finally:
            self._writer.shutdown()
            self._flusher.shutdown()

    def _wait(self) -> None:
        for future in (self._writing, self._flushing):
            if future is not None:
                future.result()


def record_progress(folder: Path, episodes: int) -> None:
    """Records that so many episodes are on the disk.

    Args:
        folder (Path): of the dataset.
        episodes (int): how many there are.
    """
    content = json.dumps({"episodes": episodes}).encode()
    write_file("the progress of the conversion", folder / PROGRESS_FILE, content)


def read_progress(folder: Path) -> int:
    """How many episodes an earlier call wrote; 0 without one."""
    path = folder / PROGRESS_FILE
    return int(json.loads(path.read_text())["episodes"]) if path.exists() else 0
