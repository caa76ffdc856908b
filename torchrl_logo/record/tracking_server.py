"""Whether an MLflow server answers, without waiting long for it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

__all__ = ["answers", "be_impatient", "is_server", "was_lost"]

_TRANSIENT = {"TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED"}
# By itself MLflow tries a request for several minutes, for which training would stand still.
_IMPATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
}


def is_server(tracking_uri: str) -> bool:
    """Whether a store is a server, which can be away, and not a database on this machine.

    Examples:
        >>> is_server("http://127.0.0.1:5000"), is_server("sqlite:///runs/mlflow.db")
        (True, False)
    """
    return tracking_uri.startswith(("http://", "https://"))


def answers(tracking_uri: str, timeout: float = 2.0) -> bool:
    """Whether a server answers at all, be it that it asks for a password.

    Args:
        tracking_uri (str): its address.
        timeout (float): seconds to wait for it.

    Examples:
        >>> answers("http://127.0.0.1:1")
        False
    """
    import requests

    try:
        response = requests.get(f"{tracking_uri.rstrip('/')}/health", timeout=timeout)
    except requests.exceptions.RequestException:
        return False
    return response.status_code < 500


def was_lost(error: BaseException) -> bool:
    """Whether a call failed because the server is away, and not because of what was asked."""
    import requests
    from mlflow.exceptions import MlflowException

    if isinstance(error, requests.exceptions.RequestException | ConnectionError):
        return True
    if not isinstance(error, MlflowException):
        return False
    away = "failed with exception" in str(error) or "timeout exception" in str(error)
    return away or error.error_code in _TRANSIENT


@contextlib.contextmanager
def be_impatient() -> Iterator[None]:
    """Lets MLflow's requests fail within seconds, where the user has not set how long to try."""
    chosen = {name: value for name, value in _IMPATIENCE.items() if name not in os.environ}
    os.environ.update(chosen)
    try:
        yield
    finally:
        for name in chosen:
            os.environ.pop(name, None)
