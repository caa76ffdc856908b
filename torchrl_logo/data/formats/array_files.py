"""Arrays in an ``.npz`` file or a folder of ``.npy`` files, in the package's layout."""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from torchrl_logo.data.formats.arrays import (
    LAYOUT_KEYS,
    MASKS,
    cast_to_layout,
    check_array_keys,
    find_spec,
)
from torchrl_logo.data.formats.npy_files import StoredArray, open_array, open_npy
from torchrl_logo.data.formats.reader import EpisodeReader
from torchrl_logo.data.memory_limit import require_memory
from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.data.validation import DatasetError, find_episode_starts

__all__ = ["ArrayFilesReader"]

_LOCAL_HEADER = 30  # bytes of a zip member's header before its name
_READ = 2**20


class ArrayFilesReader(EpisodeReader):
    """Reads ``.npz`` files and folders of ``.npy`` files.

    Keys are those of :func:`~torchrl_logo.data.from_arrays`: ``"agents/observation"`` is the
    array of that name in the ``.npz`` file, or the file ``agents/observation.npy`` in the folder.
    Rows are read from the files as they are needed; an array that is compressed in an ``.npz``
    file is held in memory as a whole. The checksums of ``.npz`` files are compared.

    Args:
        path (Path): the ``.npz`` file, or the folder.

    Keyword Args:
        cast (bool): as :func:`~torchrl_logo.data.from_arrays` takes it. Defaults to ``False``.
        n_actions (int, optional): for discrete actions without masks, how many there are.
        action_bounds (tuple of float): of continuous actions. Defaults to ``(-1, 1)``.

    Raises:
        DatasetError: if a key is missing or unknown, or a file cannot be read.
    """

    format = "arrays"
    reads_columns = True

    def __init__(
        self,
        path: Path,
        *,
        cast: bool = False,
        n_actions: int | None = None,
        action_bounds: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        super().__init__(path)
        self.cast = cast
        self._verified: set[str] = set()
        self.arrays = _open_npz(path) if path.is_file() else _open_folder(path)
        check_array_keys(self.arrays)
        rows = len(self.arrays["agents/observation"])
        for key, array in self.arrays.items():
            if len(array) != rows:
                raise DatasetError(
                    key, f"{rows} rows, as 'agents/observation' has", f"{len(array)}"
                )
        self.n_actions = None if "agents/action_mask" in self.arrays else n_actions
        first = {k: torch.from_numpy(v) for k, v in self._read_rows(0, min(rows, 1)).items()}
        self.spec: TaskSpec = find_spec(None, first, action_bounds)
        self.lengths = self._find_lengths()
        self.starts = np.concatenate([[0], self.lengths.cumsum()])
        self.provenance = {"cast": cast}

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """An ``.npz`` file, or a folder with ``agents/observation.npy``."""
        if path.is_file():
            return path.suffix == ".npz"
        return (path / "agents" / "observation.npy").is_file()

    def read(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Reads the rows of these episodes."""
        found = self._read_rows(int(self.starts[start]), int(self.starts[stop]))
        return {k: v for k, v in found.items() if k not in ("episode", "step")}

    def read_column(self, key: str) -> Iterator[np.ndarray | memoryview]:
        """Reads one key of all episodes."""
        array = self.arrays.get(key)
        if isinstance(array, StoredArray) and not self.cast:
            yield from array.read_bytes(key)
            self._verified.add(key)
            return
        rows = int(self.starts[-1])
        at_once = max(1, _READ // len(self._read_rows_of(key, 0, 1).tobytes()))
        for start in range(0, rows, at_once):
            yield self._read_rows_of(key, start, min(start + at_once, rows))

    def verify(self) -> Iterator[None]:
        """Compares the checksums of what an ``.npz`` file stores without compression.

        What is compressed, or was read by :meth:`read_column`, was compared then.
        """
        for key, array in self.arrays.items():
            if isinstance(array, StoredArray) and array.checksums and key not in self._verified:
                for _ in array.read_bytes(key):
                    yield

    def _read_rows(self, start: int, stop: int) -> dict[str, np.ndarray]:
        keys = [*self.arrays, *(MASKS if self.n_actions is not None else ())]
        return {key: self._read_rows_of(key, start, stop) for key in keys}

    def _read_rows_of(self, key: str, start: int, stop: int) -> np.ndarray:
        if key in MASKS and self.n_actions is not None:
            agents = self.arrays["agents/action"].shape[1:]
            return np.ones((stop - start, *agents, self.n_actions), bool)
        value = self.arrays[key].read(start, stop)
        try:
            tensor = torch.from_numpy(value)
        except TypeError as error:
            raise DatasetError(key, "numbers that PyTorch knows", str(value.dtype)) from error
        return cast_to_layout(key, tensor).numpy() if self.cast else value

    def _find_lengths(self) -> np.ndarray:
        if "episode" in self.arrays:
            episode = torch.from_numpy(self.arrays["episode"].read(0, len(self.arrays["episode"])))
            if episode.ndim != 1 or episode.is_floating_point():
                found = f"{episode.dtype} {list(episode.shape)}"
                raise DatasetError("episode", "integers [B]", found)
            starts = find_episode_starts(episode).numpy()
            return np.diff(starts, append=len(episode))
        done = self.arrays["next/done"]
        if done.shape[1:] not in ((), (1,)):
            raise DatasetError("next/done", "flags [B, 1]", f"shape {list(done.shape)}")
        ends = done.read(0, len(done)).reshape(len(done), -1).any(-1).nonzero()[0] + 1
        if not len(ends) or ends[-1] != len(done):
            found = "none" if not len(ends) else f"the last one in row {ends[-1] - 1}"
            raise DatasetError("next/done", f"an end in the last row, {len(done) - 1}", found)
        return np.diff(ends, prepend=0)


def _open_folder(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise DatasetError(str(folder), "an .npz file or a folder of .npy files", "neither")
    arrays = {}
    for key in LAYOUT_KEYS:
        path = folder / f"{key}.npy"
        if path.is_file():
            arrays[key] = open_npy(path)
    return arrays


def _open_npz(path: Path) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            for member in archive.infolist():
                key = member.filename.removesuffix(".npy")
                if key in arrays:
                    raise DatasetError(str(path), "one array of each name", f"two of {key!r}")
                if key not in LAYOUT_KEYS:
                    check_array_keys([key])
                where = path / member.filename
                if member.compress_type == zipfile.ZIP_STORED:
                    file.seek(_find_content(file, member, where))
                    opened = open_array(
                        file, path, member.file_size, in_file=True, checksum=member.CRC
                    )
                else:
                    require_memory(str(where), member.file_size)
                    with archive.open(member) as content:
                        opened = open_array(content, where, member.file_size, in_file=False)
                arrays[key] = opened
    # zipfile raises the others for methods it does not know and for passwords.
    except (
        zipfile.BadZipFile,
        EOFError,
        OSError,
        zlib.error,
        NotImplementedError,
        RuntimeError,
        struct.error,
        UnicodeDecodeError,
        lzma.LZMAError,
    ) as error:
        raise DatasetError(str(path), "a whole .npz file", f"{error}") from error
    return arrays


def _find_content(file: IO[bytes], member: zipfile.ZipInfo, where: Path) -> int:
    """The byte of the archive at which a stored member's content begins."""
    # The local header repeats the name and has extra fields of its own length.
    file.seek(member.header_offset + _LOCAL_HEADER - 4)
    name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    if member.compress_size != member.file_size or member.flag_bits & 0x1:
        raise DatasetError(str(where), "stored content", "content of another size, or a password")
    return member.header_offset + _LOCAL_HEADER + name + extra
