"""What a row of the tables of wrong uses is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class WrongUse:
    """A mistake, and what its error must tell.

    Attributes:
        name: of the mistake.
        use: makes it, with an empty folder at hand.
        error: class of the exception.
        given: what the message says was given.
        expected: what it says is expected.
        next_step: what it says is to be done. Where a value is out of its range this is the range.
    """

    name: str
    use: Callable[[Path], Any]
    error: type[Exception]
    given: str
    expected: str
    next_step: str
