"""What an MLflow server has not got yet, in a file that outlives the process."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from torchrl_logo.file_locks import hold_lock
from torchrl_logo.whole_files import explain_write_errors, write_all, write_file

__all__ = ["Spool"]


class Spool:
    """Entries of one run in the order in which they were logged: JSON lines, and files beside.

    An entry is on the disk when :meth:`append` returns. The first line describes the run.

    Args:
        folder (Path): of all spools; made when the first entry is written.
        key (str): the run's own.
        header (dict): what is needed to find or make the run.

    Examples:
        >>> import tempfile
        >>> spool = Spool(Path(tempfile.mkdtemp()), "a1", {"exp_name": "docs"})
        >>> spool.append("tags", {"method": "bc"})
        >>> Spool.read(spool.path)
        ({'exp_name': 'docs'}, [('tags', {'method': 'bc'})])
        >>> spool.drop(1)
        >>> spool.entries, spool.path.exists()
        ([], False)
    """

    def __init__(self, folder: Path, key: str, header: dict[str, Any]) -> None:
        self.path = folder / f"{key}.jsonl"
        self.files = folder / f"{key}.files"
        self.header = header
        self.entries: list[tuple[str, Any]] = []
        self._lock = contextlib.ExitStack()
        if self.path.is_file():
            self._own()
            self.header, self.entries = self.read(self.path)

    @staticmethod
    def read(path: Path) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
        """The header and the entries of a spool's file.

        Raises:
            ValueError: if it is damaged in any other way than by a process that ended while it
                wrote the last line: that line is left out, since it was never acknowledged.
        """
        lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last end of a line is cut
        try:
            header, *entries = [json.loads(line) for line in lines]
            return dict(header), [(str(kind), content) for kind, content in entries]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: expected metrics that were kept, found {error}.") from error

    def append(self, kind: str, content: Any) -> None:
        """Adds an entry.

        Raises:
            OSError: if the disk is full or read-only.
        """
        line = json.dumps([kind, content]) + "\n"
        with explain_write_errors("what MLflow has not got yet", self.path):
            if not self.path.exists():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._own()
                line = json.dumps(self.header) + "\n" + line
            with self.path.open("ab", buffering=0) as file:
                size = file.tell()
                try:
                    write_all(file.fileno(), line.encode())
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(size)  # no half a line, to which the next would be added
                    raise
        self.entries.append((kind, content))

    def keep_file(self, path: Path) -> str:
        """Copies a file or folder beside the entries; returns where it is."""
        target = self.files / uuid.uuid4().hex / path.name
        with explain_write_errors("what MLflow has not got yet", target):
            target.parent.mkdir(parents=True)
            if path.is_dir():
                shutil.copytree(path, target)
            else:
                shutil.copy2(path, target)
        return str(target)

    def drop(self, count: int) -> None:
        """Removes the first entries, which have been delivered."""
        self.entries = self.entries[count:]
        if not self.entries:
            self.path.unlink(missing_ok=True)
            shutil.rmtree(self.files, ignore_errors=True)
            return
        lines = [json.dumps(line) for line in (self.header, *self.entries)]
        write_file("what MLflow has not got yet", self.path, ("\n".join(lines) + "\n").encode())

    def close(self) -> None:
        """Lets another process have the spool."""
        self._lock.close()

    def _own(self) -> None:
        self._lock.close()
        lock = self.path.with_suffix(".lock")
        self._lock.enter_context(hold_lock(lock, 0.0, f"the run of {self.path}"))
