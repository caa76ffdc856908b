"""Writes files and folders so that they appear complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = [
    "explain_write_errors",
    "flush_files",
    "publish_folder",
    "require_room",
    "write_all",
    "write_file",
]

_HINTS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than this process or file system may write",
    errno.ENOMEM: "it does not fit into the memory that this process may use",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "there is no permission to write there",
    errno.EPERM: "there is no permission to write there",
}


@contextlib.contextmanager
def explain_write_errors(what: str, path: str | Path) -> Iterator[None]:
    """Says what could not be written, where and why, in the error of a disk that refuses.

    Args:
        what (str): what is written, such as ``"the dataset"``.
        path (str or Path): where.

    Raises:
        OSError: of the same number (and thus class) as the one raised inside.

    Examples:
        >>> with explain_write_errors("the dataset", "out"):
        ...     raise OSError(errno.ENOSPC, "No space left on device")
        Traceback (most recent call last):
        ...
        OSError: [Errno 28] Cannot write the dataset: the disk is full: 'out'
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError):
            number, reason = error.errno, str(error.strerror)
        else:
            # PyTorch raises these as it makes memory-mapped files.
            number, reason = _read_number(str(error)), ""
        if number not in _HINTS or reason.startswith("Cannot write"):
            raise
        text = f"Cannot write {what}: {_HINTS[number]}"
        raise OSError(number, text, str(path)) from error


def _read_number(message: str) -> int | None:
    """The system's number of the error in PyTorch's "unable to ... file <...> ...: ... (28)"."""
    found = re.search(r"unable to .* file <.*>.*: .* \((\d+)\)", message, re.DOTALL)
    return None if found is None else int(found[1])


def require_room(what: str, path: str | Path, size: int) -> None:
    """Refuses, before any work is done, to write where there is no room or no permission.

    Args:
        what (str): what is to be written.
        path (str or Path): a file or folder that is to be made.
        size (int): bytes that it takes.

    Raises:
        OSError: if the disk has less room, or the folder cannot be written to.

    Examples:
        >>> require_room("the dataset", "/tmp/new", 10**18)
        Traceback (most recent call last):
        ...
        OSError: [Errno 28] Cannot write the dataset: it needs ... bytes, the disk has ...
    """
    folder = Path(path).absolute().parent
    while not folder.exists():
        folder = folder.parent
    with explain_write_errors(what, path):
        if not os.access(folder, os.W_OK | os.X_OK):
            read_only = hasattr(os, "statvfs") and os.statvfs(folder).f_flag & os.ST_RDONLY
            raise OSError(errno.EROFS if read_only else errno.EACCES, "not writable", str(folder))
        free = shutil.disk_usage(folder).free
    if size > free:
        text = f"Cannot write {what}: it needs {size:,} bytes, the disk has {free:,} left"
        raise OSError(errno.ENOSPC, text, str(path))


def write_all(descriptor: int, content: bytes | memoryview) -> None:
    """Writes all bytes, which one call of the system need not: on a full disk it writes some."""
    left = memoryview(content).cast("B")
    while left:
        left = left[os.write(descriptor, left) :]


def write_file(what: str, path: str | Path, content: bytes) -> None:
    """Writes a file aside, flushes it to the disk and puts it in its place.

    Whatever happens in between, ``path`` is the old file or the new one.

    Args:
        what (str): how errors name the file.
        path (str or Path): the file; an earlier one is replaced.
        content (bytes): what it holds.

    Raises:
        OSError: if it cannot be written; says why.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "file")
        >>> write_file("the file", path, b"content")
        >>> path.read_bytes()
        b'content'
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.unfinished")
    try:
        with explain_write_errors(what, path):
            with unfinished.open("wb", buffering=0) as handle:
                write_all(handle.fileno(), content)
                os.fsync(handle.fileno())
            unfinished.replace(path)
            _flush(path.parent)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def publish_folder(unfinished: Path, path: Path) -> None:
    """Flushes all that is in a folder to the disk, then gives it its name.

    Args:
        unfinished (Path): the folder, on the same file system as ``path``.
        path (Path): its place, where nothing but an empty folder may be.
    """
    flush_files(sorted(unfinished.rglob("*")))
    _flush(unfinished)
    unfinished.rename(path)
    _flush(path.parent)


def flush_files(paths: Iterable[Path]) -> None:
    """Waits until files, and the lists of folders' files, are on the disk.

    Args:
        paths (iterable of Path): files and folders.
    """
    for path in paths:
        _flush(path)


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
