"""Locks between processes that end: with the process that holds them, or by a time-out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from torchrl_logo.whole_files import explain_write_errors

__all__ = ["hold_lock"]


@contextlib.contextmanager
def hold_lock(path: str | Path, timeout: float, what: str) -> Iterator[None]:
    """Holds a lock file, for which other processes wait.

    The system lets go of the lock when its process ends, however that happens; the empty file
    stays and means nothing.

    Args:
        path (str or Path): the lock file.
        timeout (float): seconds to wait for another process.
        what (str): what the lock guards, for the errors.

    Raises:
        TimeoutError: if another process holds the lock for longer than ``timeout``.
        OSError: if the lock file cannot be made.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "lock")
        >>> with hold_lock(path, 0.0, "the example"), hold_lock(path, 0.0, "the example"):
        ...     pass
        Traceback (most recent call last):
        ...
        TimeoutError: Another process has been at work on the example for more than 0 s ...
    """
    # Not reentrant: the second one to ask waits also if it is of this process.
    lock = FileLock(str(path), timeout=timeout, is_singleton=False)
    try:
        with explain_write_errors(f"the lock of {what}", path):
            lock.acquire()
    except Timeout as error:
        raise TimeoutError(
            f"Another process has been at work on {what} for more than {timeout:g} s (it holds "
            f"{path}). Wait for it or end it, or allow more time."
        ) from error
    try:
        yield
    finally:
        lock.release()
