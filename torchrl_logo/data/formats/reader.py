"""What a reader of a foreign format gives: whole episodes, a few at a time."""

from __future__ import annotations

import abc
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from torchrl_logo.data.contained_files import require_contained
from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.data.validation import DatasetError

__all__ = ["EpisodeReader", "find_reader", "find_readers", "join_episodes"]


class EpisodeReader(abc.ABC):
    """Reads recorded episodes from files, without holding all of them in memory.

    A format is one file in this folder with a subclass, which is found by itself. Opening reads
    the sizes only; :meth:`read` is called with ranges of episodes that fit into memory.

    Args:
        path (Path): file or folder.

    Raises:
        DatasetError: if links lead out of the folder (see
            :func:`~torchrl_logo.data.contained_files.require_contained`).

    Attributes:
        format: name of the format.
        reads_columns: whether :meth:`read_column` reads one key alone.
        path: file or folder that is read.
        spec: sizes of the task, as the files tell them.
        lengths: transitions of each episode, ``[E]`` int64.
        provenance: facts for the metadata: what was chosen, derived or left out.
    """

    format: ClassVar[str]
    reads_columns: ClassVar[bool] = False
    spec: TaskSpec
    lengths: np.ndarray

    def __init__(self, path: Path) -> None:
        require_contained(path)
        self.path = path
        self.provenance: dict[str, Any] = {}

    @classmethod
    @abc.abstractmethod
    def recognizes(cls, path: Path) -> bool:
        """Whether a file or folder looks like this format; reads as little as possible."""

    @abc.abstractmethod
    def read(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Reads episodes ``start`` to ``stop`` (exclusive), one after the other.

        Returns:
            The layout's arrays by keys such as ``"agents/observation"`` and ``"next/reward"`` in
            the layout's dtypes (see :func:`~torchrl_logo.data.validation.layout_shapes`) and
            ``lengths[start:stop].sum()`` rows each. ``"episode"`` and ``"step"`` follow from
            ``lengths`` and are not among them.

        Raises:
            DatasetError: names the key, what was expected and what was found.
        """

    def read_column(self, key: str) -> Iterator[np.ndarray | memoryview]:
        """Reads one key of all episodes, as :meth:`read` gives it, in blocks.

        A format that can do so has its content hashed, key by key, beside the conversion. Another
        thread may be in :meth:`read` meanwhile.

        Yields:
            Blocks of any size; each holds until the next one is asked for.

        Raises:
            DatasetError: as :meth:`read` does.
        """
        raise NotImplementedError(f"Files of the format {self.format} are read by episodes alone.")

    def verify(self) -> Iterator[None]:
        """Compares the files with checksums that are in them, a block at a time.

        Does nothing by default. What :meth:`read_column` compared may be left out. Another thread
        may be in :meth:`read` meanwhile.

        Raises:
            DatasetError: if they are damaged.
        """
        return iter(())

    def close(self) -> None:  # noqa: B027 (most readers keep nothing open)
        """Closes what is open. Does nothing by default."""


def join_episodes(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Puts the arrays of episodes one after the other.

    Args:
        parts (list of dict): of the same keys, ``[T, ...]`` each.

    Raises:
        DatasetError: if episodes differ in anything but their lengths, or keys in these.

    Examples:
        >>> join_episodes([{"a": np.zeros((2, 1))}, {"a": np.zeros((3, 1))}])["a"].shape
        (5, 1)
    """
    first = {key: value.shape[1:] for key, value in parts[0].items()}
    for part in parts:
        rows = len(next(iter(part.values())))
        for key, value in part.items():
            if value.shape[1:] != first[key]:
                expected = f"shape [T, {', '.join(map(str, first[key]))}] in all episodes"
                raise DatasetError(key, expected, f"{list(value.shape)}")
            if len(value) != rows:
                raise DatasetError(key, f"{rows} rows, as the episode has", f"{len(value)}")
    return {key: np.concatenate([part[key] for part in parts]) for key in first}


def find_readers() -> dict[str, type[EpisodeReader]]:
    """The readers of this folder by the names of their formats."""
    package = __name__.rpartition(".")[0]
    folder = importlib.import_module(package).__path__
    found: dict[str, type[EpisodeReader]] = {}
    for file in pkgutil.iter_modules(folder, f"{package}."):
        for member in vars(importlib.import_module(file.name)).values():
            if (
                inspect.isclass(member)
                and issubclass(member, EpisodeReader)
                and member.__module__ == file.name
                and not inspect.isabstract(member)
            ):
                found[member.format] = member
    return dict(sorted(found.items()))


def find_reader(path: Path, format: str | None = None) -> type[EpisodeReader]:
    """The reader of a format, or the one that recognises a path.

    Args:
        path (Path): an existing file or folder.
        format (str, optional): name of the format. By default the files tell it.

    Raises:
        FileNotFoundError: if the path does not exist.
        ValueError: if there is no such format.
        DatasetError: if no reader recognises the path, or more than one does, or it holds
            pickles, which run code when they are read.
    """
    if not path.exists():
        raise FileNotFoundError(f"There is no file or folder {path}. Is the path complete?")
    readers = find_readers()
    if format is not None:
        if format not in readers:
            raise ValueError(f"No format {format!r}; there are: {', '.join(readers)}.")
        return readers[format]
    found = [reader for reader in readers.values() if reader.recognizes(path)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(reader.format for reader in found)
        raise DatasetError(str(path), "one format (say which: format=...)", f"{names}")
    if _is_pickle(path):
        raise DatasetError(
            str(path),
            "arrays: reading a pickle runs whatever code is in it. In an isolated place, load it "
            "and save its arrays with numpy.savez (keys of torchrl_logo.data.from_arrays)",
            "pickled files",
        )
    raise DatasetError(
        str(path),
        f"one of the formats {', '.join(readers)}",
        "none that a reader recognises",
        "Arrays of any origin become a dataset by torchrl_logo.data.from_arrays.",
    )


def _is_pickle(path: Path) -> bool:
    endings = {".pkl", ".pickle", ".p", ".joblib"}
    files = [path] if path.is_file() else [f for f in sorted(path.rglob("*"))[:1000] if f.is_file()]
    return any(f.suffix in endings for f in files)
