"""Arrays in HDF5 files, which are not let out of their file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_logo.data.memory_limit import require_memory
from torchrl_logo.data.validation import DatasetError
from torchrl_logo.optional_dependencies import require

__all__ = ["HDF5Array", "HDF5Group", "open_hdf5"]

_LARGEST_CHUNK = 2**30


class HDF5Group:
    """A group of an HDF5 file; gives groups and arrays that lie in this file.

    HDF5 can link to objects of other files, and keep the numbers of an array in others, by any
    path. Neither is followed.

    Args:
        group: h5py's group.
        path (str): how errors name it.
    """

    def __init__(self, group: Any, path: str) -> None:
        self._group = group
        self.path = path
        self.keys = _guard(path, lambda: sorted(group))

    def __contains__(self, key: str) -> bool:
        return key in self.keys

    def group(self, key: str) -> HDF5Group:
        """A group in this one.

        Raises:
            DatasetError: if it is missing, or something else.
        """
        found = self._get(key)
        if not isinstance(found, require("h5py", "formats").Group):
            raise DatasetError(f"{self.path}/{key}", "a group", "an array")
        return HDF5Group(found, f"{self.path}/{key}")

    def holds_group(self, key: str) -> bool:
        """Whether a key is a group and no array."""
        return isinstance(self._get(key), require("h5py", "formats").Group)

    def array(self, key: str, ndim: int | None = None) -> HDF5Array:
        """An array of numbers or flags in this group.

        Args:
            key (str): its name.
            ndim (int, optional): how many dimensions it must have.

        Raises:
            DatasetError: if it is missing, or something else.
        """
        name = f"{self.path}/{key}"
        found = self._get(key)
        if not isinstance(found, require("h5py", "formats").Dataset):
            raise DatasetError(name, "an array", "a group")
        array = _guard(name, lambda: HDF5Array(found, name))
        if ndim is not None and array.ndim != ndim:
            raise DatasetError(name, f"{ndim} dimensions", f"shape {list(array.shape)}")
        return array

    def _get(self, key: str) -> Any:
        name = f"{self.path}/{key}"
        if key not in self.keys:
            raise DatasetError(name, "an entry", f"{self.keys[:50]}")
        link = _guard(name, lambda: self._group.get(key, getlink=True))
        if not isinstance(link, require("h5py", "formats").HardLink):
            raise DatasetError(name, "an entry of this file", "a link")
        return _guard(name, lambda: self._group[key])

    def close(self) -> None:
        """Closes the file."""
        self._group.file.close()


class HDF5Array:
    """An array of numbers or flags, of which parts are read.

    Args:
        dataset: h5py's dataset.
        name (str): how errors name it.

    Raises:
        DatasetError: if it is anything else, or its numbers lie in other files.
    """

    def __init__(self, dataset: Any, name: str) -> None:
        self._dataset, self.name = dataset, name
        if dataset.external or dataset.is_virtual:
            raise DatasetError(name, "numbers in this file", "numbers in other files")
        self.shape: tuple[int, ...] = dataset.shape or ()
        self.dtype: np.dtype = dataset.dtype
        self.ndim = len(self.shape)
        if self.dtype.kind not in "biuf" or self.dtype.shape:
            raise DatasetError(name, "an array of numbers or flags", str(self.dtype))
        if not self.ndim:
            raise DatasetError(name, "an array with rows", "a single number or none")
        chunk = math.prod(dataset.chunks or ()) * self.dtype.itemsize
        if chunk > _LARGEST_CHUNK:
            # Whoever reads one number of a compressed chunk holds all of it.
            raise DatasetError(name, f"chunks of at most {_LARGEST_CHUNK:,} bytes", f"{chunk:,}")

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, *parts: slice) -> np.ndarray:
        """The numbers in slices of the first dimensions; all without one.

        Raises:
            DatasetError: if they do not fit into memory or are damaged.
        """
        counts = [len(range(*part.indices(n))) for part, n in zip(parts, self.shape, strict=False)]
        size = math.prod([*counts, *self.shape[len(parts) :]]) * self.dtype.itemsize
        require_memory(self.name, size)
        value = _guard(self.name, lambda: self._dataset[parts if parts else ...])
        return value.astype(value.dtype.newbyteorder("="), copy=False)


def open_hdf5(path: Path) -> HDF5Group:
    """Opens an HDF5 file.

    Raises:
        DatasetError: if it is none, or damaged.
    """
    h5py = require("h5py", "formats")
    if not path.is_file():
        raise DatasetError(str(path), "an HDF5 file", "none")
    return HDF5Group(_guard(str(path), lambda: h5py.File(path, "r")), str(path))


def _guard(name: str, read: Any) -> Any:
    """Calls h5py, to whose errors a damaged file can lead at any place."""
    try:
        return read()
    except DatasetError:
        raise
    except Exception as error:
        found = f"{type(error).__name__}: {error}".split("\n")[0]
        raise DatasetError(name, "a whole HDF5 file", found) from error
