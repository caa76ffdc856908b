"""Arrays in NumPy's file format, read by rows, without pickle."""

from __future__ import annotations

import dataclasses
import math
import tokenize
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from torchrl_logo.data.memory_limit import require_memory
from torchrl_logo.data.validation import DatasetError

__all__ = ["HeldArray", "StoredArray", "open_array", "open_npy"]

_READ = 2**20  # bytes: what uses them then finds them in the processor's cache

_READ_HEADER = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array that lies in a file as it is, from some byte on.

    Attributes:
        path: the file.
        offset: its first byte.
        dtype: of its numbers.
        shape: of the array.
        checksums: CRC-32 of what comes before it in its member of a zip file, and of the member.
    """

    path: Path
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]
    checksums: tuple[int, int] | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop``; they are read and not mapped, so that memory is bounded."""
        width = math.prod(self.shape[1:])
        require_memory(str(self.path), (stop - start) * width * self.dtype.itemsize)
        rows = np.fromfile(
            self.path,
            self.dtype,
            count=(stop - start) * width,
            offset=self.offset + start * width * self.dtype.itemsize,
        )
        if len(rows) != (stop - start) * width:
            raise DatasetError(str(self.path), f"{self.shape[0]} rows", "a file that ends earlier")
        return rows.reshape(stop - start, *self.shape[1:])

    def read_bytes(self, name: str) -> Iterator[memoryview]:
        """All bytes, in blocks that lie in the same memory one after the other.

        Args:
            name (str): how errors name the array.

        Raises:
            DatasetError: if the file ends earlier, or the checksum is another in the end.
        """
        buffer = memoryview(bytearray(_READ))
        left = math.prod(self.shape) * self.dtype.itemsize
        checksum = None if self.checksums is None else self.checksums[0]
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            while left:
                size = file.readinto(buffer[: min(left, _READ)])
                if not size:
                    found = f"{self.path}, which ends earlier"
                    raise DatasetError(name, f"{self.shape[0]} rows", found)
                if checksum is not None:
                    checksum = zlib.crc32(buffer[:size], checksum)
                left -= size
                yield buffer[:size]
        if self.checksums is not None and checksum != self.checksums[1]:
            found = f"another in {self.path}"
            raise DatasetError(name, "the CRC-32 that the file says", found)


@dataclasses.dataclass(frozen=True)
class HeldArray:
    """An array that had to be read as a whole.

    Attributes:
        value: the array.
    """

    value: np.ndarray

    def __len__(self) -> int:
        return len(self.value)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self.value.shape

    @property
    def dtype(self) -> np.dtype:
        """Of its numbers."""
        return self.value.dtype

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop``."""
        return np.ascontiguousarray(self.value[start:stop])


def open_npy(path: Path) -> StoredArray | HeldArray:
    """Opens a ``.npy`` file; reads its header, and its numbers only if columns come first.

    Args:
        path (Path): the file.

    Raises:
        DatasetError: if it holds no whole array of numbers or flags.
    """
    with path.open("rb") as file:
        return open_array(file, path, path.stat().st_size, in_file=True)


def open_array(
    file: IO[bytes], path: Path, size: int, *, in_file: bool, checksum: int | None = None
) -> StoredArray | HeldArray:
    """Reads an array's header; and the array too, where it does not lie in the file as it is.

    Args:
        file (file): at the array's first byte.
        path (Path): where the array lies, and how errors name it.
        size (int): bytes that the array takes with its header.

    Keyword Args:
        in_file (bool): whether ``file`` is ``path`` itself, and not what decompresses it.
        checksum (int, optional): CRC-32 of these bytes, which is then compared as they are read.

    Raises:
        DatasetError: if it is no array of numbers or flags, or of another size than it says.
    """
    first = file.tell()
    try:
        version = np.lib.format.read_magic(file)
        if version not in _READ_HEADER:
            raise ValueError(f"version {version} of the format")
        shape, fortran, dtype = _READ_HEADER[version](file)
    # NumPy evaluates the header as a Python literal, which can go wrong in many ways.
    except (
        ValueError,
        TypeError,
        SyntaxError,
        RecursionError,
        MemoryError,
        tokenize.TokenError,
    ) as error:
        found = f"{type(error).__name__}: {error}".split("\n")[0]
        raise DatasetError(str(path), "arrays in NumPy's format", found) from error
    if dtype.hasobject:
        raise DatasetError(
            str(path), "arrays of numbers or flags", "Python objects, which only a pickle can hold"
        )
    if dtype.kind not in "biuf" or not dtype.isnative or dtype.shape:
        expected = "arrays of numbers or flags in this machine's byte order"
        raise DatasetError(str(path), expected, str(dtype))
    if not shape:
        raise DatasetError(str(path), "arrays with rows", "a single number")
    if min(shape) < 0:
        raise DatasetError(str(path), "a shape", str(list(shape)))
    needed = math.prod(shape) * dtype.itemsize
    found_bytes = size - (file.tell() - first)
    if needed != found_bytes:
        expected = f"{needed:,} bytes for shape {list(shape)} of {dtype}"
        raise DatasetError(str(path), expected, f"{found_bytes:,}")
    checksums = None
    if checksum is not None:
        start = file.tell()
        file.seek(first)
        checksums = (zlib.crc32(file.read(start - first)), checksum)
    if in_file and not fortran:
        return StoredArray(path, file.tell(), dtype, shape, checksums)
    require_memory(str(path), needed)
    content = file.read(needed)
    if len(content) != needed:
        raise DatasetError(str(path), f"{needed:,} bytes", f"{len(content):,}")
    if checksums is not None and zlib.crc32(content, checksums[0]) != checksums[1]:
        raise DatasetError(str(path), "the CRC-32 that the file says", "another")
    value = np.frombuffer(bytearray(content), dtype)
    return HeldArray(value.reshape(shape, order="F" if fortran else "C"))
