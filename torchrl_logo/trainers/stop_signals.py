"""Ends a training on SIGINT and SIGTERM where its state is whole."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import ClassVar

__all__ = ["StopSignals", "TrainingInterrupted"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TrainingInterrupted(KeyboardInterrupt):
    """A signal has ended a training; with checkpoints, the same command goes on with it.

    Args:
        number (int): the signal.

    Attributes:
        exit_code: what a shell expects of a process that the signal ended.

    Examples:
        >>> error = TrainingInterrupted(15)
        >>> str(error), error.exit_code
        ('stopped by SIGTERM', 143)
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        self.exit_code = 128 + number
        super().__init__(f"stopped by {self.signal.name}")


class StopSignals:
    """Turns SIGINT and SIGTERM into :class:`TrainingInterrupted`, at once or where it fits.

    While :meth:`deferred`, a signal is only noted in :attr:`requested`; who defers looks there,
    writes what must be kept, and raises :meth:`interruption`. If that takes longer than
    ``grace`` seconds, or a second signal comes, the error is raised where the process is.

    Only the main thread receives signals: elsewhere nothing is installed.

    Args:
        grace (float): seconds that a deferred signal may wait. Defaults to ``8.0``.

    Attributes:
        requested: the signal that came, if any.

    Examples:
        >>> with StopSignals.installed() as signals, signals.deferred():
        ...     signals.requested is None
        True
    """

    _active: ClassVar[StopSignals | None] = None

    def __init__(self, grace: float = 8.0) -> None:
        self.grace = grace
        self.requested: signal.Signals | None = None
        self._deferrals = 0

    @classmethod
    @contextlib.contextmanager
    def installed(cls) -> Iterator[StopSignals]:
        """Handles signals within the block; an outer block's handling is shared."""
        if cls._active is not None:
            yield cls._active
            return
        signals = cls()
        if threading.current_thread() is not threading.main_thread():
            yield signals
            return
        earlier = {number: signal.signal(number, signals._handle) for number in _SIGNALS}
        cls._active = signals
        try:
            yield signals
        finally:
            signals._set_timer(0.0)
            cls._active = None
            for number, handler in earlier.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Notes signals within the block; one that nobody acted on is raised at its end."""
        self._deferrals += 1
        try:
            yield
        finally:
            self._deferrals -= 1
        if self.requested is not None and not self._deferrals:
            raise self.interruption()

    def interruption(self) -> TrainingInterrupted:
        """The error to raise for :attr:`requested`, whose time limit ends here."""
        if self.requested is None:
            raise RuntimeError("no signal has come.")
        self._set_timer(0.0)
        return TrainingInterrupted(self.requested)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested is None and self._deferrals:
            self.requested = signal.Signals(number)
            self._set_timer(self.grace)
            return
        raise TrainingInterrupted(number)

    def _expire(self, number: int, frame: FrameType | None) -> None:
        raise TrainingInterrupted(number if self.requested is None else self.requested)

    def _set_timer(self, seconds: float) -> None:
        if hasattr(signal, "setitimer"):  # not on Windows
            if seconds:
                signal.signal(signal.SIGALRM, self._expire)
            signal.setitimer(signal.ITIMER_REAL, seconds)
