"""What a training logs, by policy update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torchrl.record.loggers import Logger

__all__ = ["UpdateLog"]


class UpdateLog:
    """Figures by update, which go to a logger in one batch at a time.

    TorchRL's trainers log one key at a time, against frames. Here frames are imagined transitions
    for some methods and updates for others, so that runs could not be compared.

    Args:
        logger (Logger, optional): receives the figures.
        interval (int): updates between two points of a figure.

    Examples:
        >>> log = UpdateLog(None, interval=10)
        >>> log.add({"loss_actor": torch.tensor(0.5)})
        >>> log.is_due(5), log.is_due(10)
        (False, True)
        >>> log.flush(10)
        >>> log.history
        {'loss_actor': [(10, 0.5)]}
    """

    def __init__(self, logger: Logger | None, interval: int) -> None:
        self.logger = logger
        self.interval = interval
        self.history: dict[str, list[tuple[int, float]]] = {}
        self._pending: dict[str, Any] = {}
        self._flushed = 0

    def add(self, figures: Mapping[str, Any]) -> None:
        """Holds figures, of which the latest counts; tensors stay where they are."""
        self._pending.update(figures)

    def is_due(self, update: int) -> bool:
        """Whether the interval is over."""
        return update - self._flushed >= self.interval

    def flush(self, update: int) -> None:
        """Writes what is held back as the figures of an update."""
        self._flushed = update
        values = {key: float(value) for key, value in self._pending.items()}
        self._pending.clear()
        for key, value in values.items():
            self.history.setdefault(key, []).append((update, value))
        if self.logger is None or not values:
            return
        log_metrics = getattr(self.logger, "log_metrics", None)
        if log_metrics is not None:
            log_metrics(values, step=update)
        else:
            for key, value in values.items():
                self.logger.log_scalar(key, value, step=update)

    def state_dict(self) -> dict[str, Any]:
        """The history, and what is held back."""
        history = {
            name: (
                torch.tensor([update for update, _ in points]),
                torch.tensor([value for _, value in points], dtype=torch.float64),
            )
            for name, points in self.history.items()
        }
        pending = {name: float(value) for name, value in self._pending.items()}
        return {"history": history, "pending": pending, "flushed": self._flushed}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on from a state."""
        self.history = {
            name: list(zip(updates.tolist(), values.tolist(), strict=True))
            for name, (updates, values) in state_dict["history"].items()
        }
        self._pending = dict(state_dict["pending"])
        self._flushed = int(state_dict["flushed"])
