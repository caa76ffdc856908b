"""Notices numbers that go wrong in training, without waiting for the device at each update."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import nn

__all__ = ["NonFiniteError", "NumberWatch"]

_NAMED = 3
_VALUES = ("pred_value", "target_value")


class NonFiniteError(RuntimeError):
    """A loss, a gradient or a weight has become infinite or NaN."""


class NumberWatch:
    """Keeps, on the device, at which update each figure was first infinite or NaN.

    :meth:`observe` is called at every update and needs nothing from the host; :meth:`check`, at
    the end of a block of updates and before each checkpoint, reads what was found.

    Keyword Args:
        max_skipped (int): updates with a loss or gradient that is not finite which may be left
            out before training stops. Defaults to ``0``: it stops at the first.
        value_limit (float, optional): the size of ``"pred_value"`` and ``"target_value"`` above
            which a warning says that values diverge. Defaults to none.

    Attributes:
        skipped: updates left out so far.

    Examples:
        >>> from tensordict import TensorDict
        >>> watch = NumberWatch()
        >>> for update, value in enumerate([0.5, float("nan"), float("nan")], start=1):
        ...     _ = watch.observe(update, TensorDict({"loss_actor": torch.tensor(value)}))
        >>> watch.check()
        Traceback (most recent call last):
        ...
        torchrl_logo.trainers.number_watch.NonFiniteError: Not finite: loss_actor, first at ...
    """

    def __init__(self, *, max_skipped: int = 0, value_limit: float | None = None) -> None:
        if max_skipped < 0:
            raise ValueError(f"max_skipped must not be negative, found {max_skipped}.")
        if value_limit is not None and not value_limit > 0:
            raise ValueError(f"value_limit must be positive, found {value_limit}.")
        self.max_skipped = max_skipped
        self.value_limit = value_limit
        self.skipped = 0
        self._names: Sequence[str] = ()
        self._first: torch.Tensor | None = None  # [K], 0 where a figure was finite
        self._wrong: torch.Tensor | None = None  # [], updates with a figure that was not
        self._peak: torch.Tensor | None = None  # [K], largest size
        self._warned = False

    def observe(self, update: int, figures: TensorDictBase) -> torch.Tensor:
        """Looks at one update's figures, or their means, on their device.

        Args:
            update (int): number of the update.
            figures (TensorDictBase): losses, the gradient's norm and other figures.

        Returns:
            bool ``[]``: whether a loss (``"loss_..."``) or ``"grad_norm"`` is not finite.
        """
        named = sorted(figures.items())
        values = torch.stack([value.detach().float().mean() for _, value in named])  # [K]
        if self._first is None or len(values) != len(self._names):
            self._names = [str(name) for name, _ in named]
            self._first = torch.zeros(len(named), dtype=torch.int64, device=values.device)
            self._wrong = torch.zeros((), dtype=torch.int64, device=values.device)
            self._peak = torch.zeros_like(values)
            steers = [name.startswith("loss_") or name == "grad_norm" for name in self._names]
            self._steers = torch.tensor(steers, device=values.device)
        assert self._wrong is not None and self._peak is not None
        bad = ~values.isfinite()
        self._first = torch.where(bad & (self._first == 0), update, self._first)
        if self.value_limit is not None:
            # NaN compares as false: it is reported as not finite
            self._peak = torch.where(values.abs() > self._peak, values.abs(), self._peak)
        stop = (bad & self._steers).any()
        self._wrong = self._wrong + stop
        return stop

    def check(self, parameters: Iterable[tuple[str, nn.Parameter]] = ()) -> None:
        """Reads what was found since the last call: one transfer from the device, or two.

        Args:
            parameters (iterable of (str, Parameter)): weights that must be finite.

        Raises:
            NonFiniteError: names the figures with the update at which each was first not finite,
                and the weights.
        """
        if self._first is not None:
            assert self._wrong is not None and self._peak is not None
            read = torch.cat([self._first, self._wrong.reshape(1)]).tolist()
            first, wrong = read[:-1], read[-1]
            self._first, self._wrong = self._first * 0, self._wrong * 0
            found = sorted((u, name) for u, name in zip(first, self._names, strict=True) if u)
            if found:
                self._report(found, wrong, parameters)
            self._name_diverging()
        weights = _find_nonfinite(parameters)
        if weights:
            raise NonFiniteError(f"Not finite: weights of {_show(weights)}.")

    def _report(
        self, found: list[tuple[int, str]], wrong: int, parameters: Iterable[tuple[str, Any]]
    ) -> None:
        text = ", ".join(f"{name}, first at update {update}" for update, name in found)
        if self.max_skipped and wrong:
            self.skipped += wrong
            if self.skipped <= self.max_skipped:
                text = f"{self.skipped} updates skipped so far (at most {self.max_skipped}): {text}"
                warnings.warn(f"Not finite, and {text}.", RuntimeWarning, stacklevel=4)
                return
            text = f"{text}; {self.skipped} updates skipped, more than {self.max_skipped}"
        weights = _find_nonfinite(parameters)
        if weights:
            text = f"{text}; weights of {_show(weights)}"
        raise NonFiniteError(
            f"Not finite: {text}. Training has diverged; its last checkpoint, if there is one, is "
            "from before. Lower the learning rate, and check the data for extreme values."
        )

    def _name_diverging(self) -> None:
        if self.value_limit is None or self._warned or self._peak is None:
            return
        for name, peak in zip(self._names, self._peak.tolist(), strict=True):
            if name in _VALUES and peak > self.value_limit:
                self._warned = True
                warnings.warn(
                    f"Values diverge: {name!r} has reached {peak:.3g}, and no return can be larger "
                    f"than {self.value_limit / 10:.3g}. Lower lr or tau, or weigh the "
                    "conservative penalty more.",
                    RuntimeWarning,
                    stacklevel=4,
                )

    def state_dict(self) -> dict[str, Any]:
        """The count of skipped updates."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the count of skipped updates."""
        self.skipped = int(state_dict["skipped"])


def _find_nonfinite(parameters: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
    named = [(name, value) for name, value in parameters if value.is_floating_point()]
    if not named:
        return []
    finite = torch.stack([value.detach().isfinite().all() for _, value in named])
    return [name for (name, _), fine in zip(named, finite.tolist(), strict=True) if not fine]


def _show(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"
