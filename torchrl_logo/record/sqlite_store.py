"""MLflow's stores in a sqlite file: whole from the start, and with errors that name the disk."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from torchrl_logo.file_locks import hold_lock
from torchrl_logo.whole_files import explain_write_errors

__all__ = ["explain_store_errors", "find_sqlite_file", "hold_sqlite_store", "make_sqlite_store"]

# What MLflow says of a disk that refuses, and the system's number of it.
_SIGNS = (
    ("disk is full", errno.ENOSPC),
    ("readonly database", errno.EROFS),
    ("unable to open database file", errno.EROFS),
    ("disk I/O error", errno.EIO),
)


def find_sqlite_file(tracking_uri: str) -> Path | None:
    """Returns the database file of a sqlite store, or None for another kind of store.

    Examples:
        >>> find_sqlite_file("sqlite:///runs/mlflow.db")
        PosixPath('runs/mlflow.db')
        >>> find_sqlite_file("http://127.0.0.1:5000") is None
        True
    """
    prefix = "sqlite:///"
    return Path(tracking_uri[len(prefix) :]) if tracking_uri.startswith(prefix) else None


@contextlib.contextmanager
def hold_sqlite_store(path: Path, timeout: float) -> Iterator[None]:
    """Keeps other processes from a store, which is made if it is missing.

    The first client of a sqlite store makes its tables, which two processes must not do at the
    same time.

    Args:
        path (Path): the database file.
        timeout (float): seconds to wait for another process.

    Raises:
        TimeoutError: if another process holds the store for longer.
        OSError: if it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with hold_lock(f"{path}.lock", timeout, f"the MLflow store {path}"):
        make_sqlite_store(path)
        yield


def make_sqlite_store(path: Path) -> None:
    """Makes a new store's tables aside, so that one that is cut off here is no store yet."""
    if path.exists():
        return
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine

    unfinished = path.with_name(f".{path.name}.unfinished")
    for file in (unfinished, unfinished.with_name(f"{unfinished.name}-journal")):
        file.unlink(missing_ok=True)
    engine = create_sqlalchemy_engine(f"sqlite:///{unfinished}")
    _initialize_tables(engine)
    engine.dispose()
    unfinished.replace(path)


@contextlib.contextmanager
def explain_store_errors(tracking_uri: str) -> Iterator[None]:
    """Names the disk where MLflow or sqlite say that it is full or read-only.

    Args:
        tracking_uri (str): the store.

    Raises:
        OSError: in the place of MLflow's error.

    Examples:
        >>> with explain_store_errors("sqlite:///runs/mlflow.db"):
        ...     raise RuntimeError("(sqlite3.OperationalError) database or disk is full")
        Traceback (most recent call last):
        ...
        OSError: [Errno 28] Cannot write the MLflow run: disk is full: 'runs/mlflow.db'
    """
    path = find_sqlite_file(tracking_uri) or Path(tracking_uri)
    with explain_write_errors("the MLflow run", path):
        try:
            yield
        except Exception as error:
            for sign, number in _SIGNS:
                if sign in str(error) and not isinstance(error, OSError):
                    why = f"Cannot write the MLflow run: {sign}"
                    raise OSError(number, why, str(path)) from error
            raise
