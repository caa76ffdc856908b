"""Brings what a run logs to its MLflow store, also when the store's server is away for a while."""

from __future__ import annotations

import math
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torchrl_logo.record.spool import Spool
from torchrl_logo.record.sqlite_store import explain_store_errors
from torchrl_logo.record.stored_run import StoredRun
from torchrl_logo.record.tracking_server import answers, be_impatient, was_lost

__all__ = ["Delivery", "is_offline_id"]

_OFFLINE_PREFIX = "offline-"


def is_offline_id(run_id: str) -> bool:
    """Whether an id is one that a run has until its server knows it.

    Examples:
        >>> is_offline_id("offline-seed0"), is_offline_id("a9a1c0ffee")
        (True, False)
    """
    return run_id.startswith(_OFFLINE_PREFIX)


class Delivery:
    """Writes entries to a store in the order in which they come.

    What a server does not take is kept on the disk and delivered when it is back; a store that is
    no server has no spool, and raises.

    Args:
        stored (StoredRun): the run in its store.
        spool (Spool, optional): where entries are kept, if the store is a server.
        interval (float): seconds after which a server that was lost is asked again, at least.
    """

    def __init__(self, stored: StoredRun, spool: Spool | None, interval: float) -> None:
        self.stored = stored
        self.spool = spool
        self.interval = interval
        self._offline = False
        self._last_try = -math.inf
        self._pause = interval
        # name -> steps of the metrics that an earlier process kept
        self._kept: dict[str, set[int]] = {}
        for kind, content in [] if spool is None else spool.entries:
            if kind == "metrics":
                for name, _, _, step in content:
                    self._kept.setdefault(name, set()).add(step)

    @property
    def waiting(self) -> list[tuple[str, Any]]:
        """The entries that the store has not got yet."""
        return [] if self.spool is None else self.spool.entries

    @property
    def has_run(self) -> bool:
        """Whether the run is in the store, and not only on this machine's disk."""
        return not is_offline_id(self.stored.run_id)

    def has_metric(self, name: str, step: int) -> bool:
        """Whether a continued run has a metric at a step, in the store or among what was kept."""
        return step in self.stored.steps.get(name, ()) or step in self._kept.get(name, ())

    def reach_server(self, when_unreachable: str) -> None:
        """Starts the run on a server, or makes do without if that is wanted.

        Args:
            when_unreachable (str): ``"raise"`` or ``"offline"``.

        Raises:
            ConnectionError: if the server does not answer and ``when_unreachable`` is
                ``"raise"``.
        """
        assert self.spool is not None
        uri = self.stored.tracking_uri
        try:
            if not answers(uri):
                raise ConnectionError(f"The MLflow server {uri} does not answer.")
            with be_impatient():
                self.stored.start()
        except Exception as error:
            if not was_lost(error):
                raise
            if when_unreachable == "raise":
                self.spool.close()
                raise ConnectionError(
                    f"The MLflow server {uri} does not answer. Start it, or go on without it: "
                    "MLflowRun(when_unreachable='offline')."
                ) from error
            self._go_offline()
            name = f"{_OFFLINE_PREFIX}{self.spool.path.stem}"
            self.stored.run = SimpleNamespace(  # type: ignore[assignment]
                info=SimpleNamespace(run_id=name, experiment_id="")
            )

    def send(self, kind: str, content: Any) -> None:
        """Writes an entry to the store, or keeps it if the store is a server that is away."""
        if self.spool is None:
            with explain_store_errors(self.stored.tracking_uri):
                self.stored.write(kind, content)
            return
        if self.spool.entries or self._offline:  # in order
            self._keep(kind, content)
            self.deliver()
            return
        try:
            with be_impatient():
                self.stored.write(kind, content)
        except Exception as error:
            if not was_lost(error):
                raise
            self._keep(kind, content)
            self._go_offline()

    def _keep(self, kind: str, content: Any) -> None:
        assert self.spool is not None
        if kind == "artifact":
            content = {**content, "path": self.spool.keep_file(Path(content["path"]))}
        self.spool.append(kind, content)

    def deliver(self) -> None:
        """Sends what was kept, if the server is back; it is asked only now and then."""
        assert self.spool is not None
        waited = time.monotonic() - self._last_try
        if waited < self._pause:
            return
        began = time.monotonic()
        reached = answers(self.stored.tracking_uri)
        self._last_try = time.monotonic()
        # A server that lets others wait is asked less often: at most a tenth of the time is lost.
        self._pause = max(self.interval, 10 * (self._last_try - began))
        if not reached:
            self._offline = True
            return
        sent = 0
        try:
            with be_impatient():
                if not self.has_run:
                    self.stored.start()
                for kind, content in self.spool.entries:
                    self.stored.write(kind, content)
                    sent += 1
        except Exception as error:
            if not was_lost(error):
                raise
            self._go_offline()
        else:
            self._offline = False
        finally:
            if sent:
                self.spool.drop(sent)

    def _go_offline(self) -> None:
        assert self.spool is not None
        if not self._offline:
            warnings.warn(
                f"The MLflow server {self.stored.tracking_uri} does not answer. What is logged is "
                f"kept in {self.spool.path} and delivered when it is back.",
                RuntimeWarning,
                stacklevel=4,
            )
        self._offline = True
        self._last_try = time.monotonic()

    def end(self, content: Any) -> None:
        """Sends the last entry, for which a server that was lost is asked once more."""
        self._last_try = -math.inf
        self.send("end", content)
        if self.spool is None:
            return
        if self.spool.entries:
            warnings.warn(
                f"The MLflow server {self.stored.tracking_uri} is still away. When it is back, "
                f"deliver_spools({str(self.spool.path.parent)!r}) gives it this run.",
                RuntimeWarning,
                stacklevel=3,
            )
        self.spool.close()
