"""Arrays in an ``.npz`` file or a folder of ``.npy`` files, in the package's layout."""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from torchrl_logo.data.formats.arrays import (
    LAYOUT_KEYS,
    cast_to_layout,
    check_array_keys,
    find_spec,
)
from torchrl_logo.data.formats.reader import EpisodeReader
from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.data.validation import DatasetError, find_episode_starts

__all__ = ["ArrayFilesReader"]

_LOCAL_HEADER = 30  # bytes of a zip member's header before its name


class ArrayFilesReader(EpisodeReader):
    """Reads ``.npz`` files and folders of ``.npy`` files.

    Keys are those of :func:`~torchrl_logo.data.from_arrays`: ``"agents/observation"`` is the
    array of that name in the ``.npz`` file, or the file ``agents/observation.npy`` in the folder.
    Rows are read from the files as they are needed; an array that is compressed in an ``.npz``
    file is held in memory as a whole.

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
        self.arrays = _open_npz(path) if path.is_file() else _open_folder(path)
        check_array_keys(self.arrays)
        rows = len(self.arrays["agents/observation"])
        for key, array in self.arrays.items():
            if len(array) != rows:
                raise DatasetError(
                    key, f"{rows} rows, as 'agents/observation' has", f"{len(array)}"
                )
        self.n_actions = None if "agents/action_mask" in self.arrays else n_actions
        first = self._read_rows(0, min(rows, 1))
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
        tensors = self._read_rows(int(self.starts[start]), int(self.starts[stop]))
        return {k: v.numpy() for k, v in tensors.items() if k not in ("episode", "step")}

    def _read_rows(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        found = {k: torch.from_numpy(a.read(start, stop)) for k, a in self.arrays.items()}
        if self.cast:
            found = {key: cast_to_layout(key, value) for key, value in found.items()}
        if self.n_actions is not None:
            mask = torch.ones(*found["agents/action"].shape, self.n_actions, dtype=torch.bool)
            found |= {"agents/action_mask": mask, "next/agents/action_mask": mask}
        return found

    def _find_lengths(self) -> np.ndarray:
        if "episode" in self.arrays:
            episode = torch.from_numpy(self.arrays["episode"].read(0, len(self.arrays["episode"])))
            starts = find_episode_starts(episode.flatten()).numpy()
            return np.diff(starts, append=len(episode))
        done = self.arrays["next/done"]
        ends = done.read(0, len(done)).reshape(len(done), -1).any(-1).nonzero()[0] + 1
        if not len(ends) or ends[-1] != len(done):
            found = "none" if not len(ends) else f"the last one in row {ends[-1] - 1}"
            raise DatasetError("next/done", f"an end in the last row, {len(done) - 1}", found)
        return np.diff(ends, prepend=0)


@dataclasses.dataclass(frozen=True)
class _StoredArray:
    """An array that lies in a file as it is, from some byte on."""

    path: Path
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop``; they are read and not mapped, so that memory is bounded."""
        width = int(np.prod(self.shape[1:]))
        rows = np.fromfile(
            self.path,
            self.dtype,
            count=(stop - start) * width,
            offset=self.offset + start * width * self.dtype.itemsize,
        )
        if len(rows) != (stop - start) * width:
            raise DatasetError(str(self.path), f"{self.shape[0]} rows", "a file that ends earlier")
        return rows.reshape(stop - start, *self.shape[1:])


@dataclasses.dataclass(frozen=True)
class _HeldArray:
    """An array that had to be read as a whole."""

    value: np.ndarray

    def __len__(self) -> int:
        return len(self.value)

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.ascontiguousarray(self.value[start:stop])


def _open_folder(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise DatasetError(str(folder), "an .npz file or a folder of .npy files", "neither")
    arrays = {}
    for key in LAYOUT_KEYS:
        path = folder / f"{key}.npy"
        if path.is_file():
            with path.open("rb") as file:
                arrays[key] = _open_array(file, path, 0)
    return arrays


def _open_npz(path: Path) -> dict[str, Any]:
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            for member in archive.infolist():
                key = member.filename.removesuffix(".npy")
                if member.compress_type == zipfile.ZIP_STORED:
                    # The local header repeats the name and has extra fields of its own length.
                    file.seek(member.header_offset + _LOCAL_HEADER - 4)
                    name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
                    start = member.header_offset + _LOCAL_HEADER + name + extra
                    file.seek(start)
                    arrays[key] = _open_array(file, path, start)
                else:
                    with archive.open(member) as content:
                        arrays[key] = _open_array(content, path, None)
    except (zipfile.BadZipFile, EOFError, OSError, zlib.error) as error:
        raise DatasetError(str(path), "a whole .npz file", str(error)) from error
    return arrays


def _open_array(file: IO[bytes], path: Path, start: int | None) -> Any:
    """Reads an array's header; and the array too, where it does not lie in the file as it is."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except ValueError as error:
        raise DatasetError(str(path), "arrays in NumPy's format", str(error)) from error
    if dtype.hasobject:
        raise DatasetError(
            str(path), "arrays of numbers or flags", "Python objects, which only a pickle can hold"
        )
    if not shape:
        raise DatasetError(str(path), "arrays with rows", "a single number")
    if start is not None and not fortran:
        return _StoredArray(path, file.tell(), dtype, shape)
    count = int(np.prod(shape))
    content = file.read(count * dtype.itemsize)
    if len(content) != count * dtype.itemsize:
        raise DatasetError(str(path), f"{count} numbers", f"{len(content) // dtype.itemsize}")
    value = np.frombuffer(bytearray(content), dtype)
    return _HeldArray(value.reshape(shape, order="F" if fortran else "C"))
