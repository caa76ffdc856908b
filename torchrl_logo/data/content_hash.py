"""The sha256 of a dataset's transitions, from wherever they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase

from torchrl_logo.data.mapped_files import file_of, map_tensordict

__all__ = ["hash_columns", "hash_content", "hash_files"]

_BLOCK = 65_536  # rows
_READ = 2**20  # bytes: what is hashed is then still in the processor's cache


def hash_content(data: TensorDictBase, rows: torch.Tensor | None = None) -> str:
    """The sha256 of all leaves, in the order of their keys: name, dtype, shape and bytes.

    It does not depend on where the data lie or on the order in which keys were set.

    Args:
        data (TensorDictBase): transitions ``[B]``.
        rows (torch.Tensor, optional): ``[n]``, the rows that count. Defaults to all.

    Examples:
        >>> from tensordict import TensorDict
        >>> data = TensorDict({"a": torch.zeros(3), "b": torch.ones(3)}, [3])
        >>> hash_content(data) == hash_content(data.select("b", "a").clone())
        True
        >>> hash_content(data) == hash_content(data, torch.tensor([0, 1]))
        False
    """
    length = len(data) if rows is None else len(rows)

    def read(key: NestedKey) -> Iterator[Any]:
        leaf = data.get(key)
        for start in range(0, length, _BLOCK):
            block = slice(start, start + _BLOCK)
            value = leaf[block] if rows is None else leaf[rows[block]]
            yield value.contiguous().cpu().numpy().data

    return _finish(hash_columns(_describe_leaves(data), length, read))


def hash_files(folder: Path) -> str:
    """:func:`hash_content` of the tensors in a folder, whose files are read and not mapped.

    Args:
        folder (Path): as :func:`~torchrl_logo.data.mapped_files.map_tensordict` takes it.
    """
    data = map_tensordict(folder)

    def read(key: NestedKey) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(_READ))
        with file_of(folder, key).open("rb", buffering=0) as file:
            while size := file.readinto(buffer):
                yield buffer[:size]

    return _finish(hash_columns(_describe_leaves(data), len(data), read))


def hash_columns(
    leaves: dict[NestedKey, tuple[torch.dtype, tuple[int, ...]]],
    length: int,
    read: Callable[[NestedKey], Iterable[Any]],
) -> Iterator[str | None]:
    """:func:`hash_content`, a block at a time, of leaves that are read one after the other.

    Args:
        leaves (dict): dtype and shape, without the rows, of each leaf by its key.
        length (int): rows.
        read (callable): gives a leaf's numbers or their bytes, in blocks of any size.

    Yields:
        ``None`` after each block, and the hash in the end.
    """
    names = {key if isinstance(key, str) else "/".join(key): key for key in leaves}
    digest = hashlib.sha256()
    for name in sorted(names):
        dtype, shape = leaves[names[name]]
        digest.update(f"{name}|{dtype}|{[length, *shape]}|".encode())
        for block in read(names[name]):
            digest.update(block)
            yield None
    yield digest.hexdigest()


def _describe_leaves(data: TensorDictBase) -> dict[NestedKey, tuple[torch.dtype, tuple[int, ...]]]:
    leaves = data.items(True, True)
    return {key: (leaf.dtype, tuple(leaf.shape[1:])) for key, leaf in leaves}


def _finish(steps: Iterator[str | None]) -> str:
    """Goes through all steps."""
    found = None
    for found in steps:  # noqa: B007 (the last one counts)
        pass
    return str(found)
