"""Flags and whole numbers of files that keep them as other numbers."""

from __future__ import annotations

import numpy as np

from torchrl_logo.data.validation import DatasetError

__all__ = ["to_flags", "to_integers"]


def to_flags(key: str, value: np.ndarray) -> np.ndarray:
    """Bools of numbers that are 0 or 1.

    Args:
        key (str): how the error names them.
        value (np.ndarray): of any shape.

    Raises:
        DatasetError: if there is another number: whether half a flag is set, nobody knows.

    Examples:
        >>> to_flags("done", np.array([0.0, 1.0]))
        array([False,  True])
    """
    wrong = ~((value == 0) | (value == 1))  # NaN is wrong, too
    if wrong.any():
        raise DatasetError(key, "flags of 0 and 1", f"{value[wrong][0]}")
    return value.astype(bool)


def to_integers(key: str, value: np.ndarray) -> np.ndarray:
    """int64 of whole numbers.

    Args:
        key (str): how the error names them.
        value (np.ndarray): of any shape.

    Raises:
        DatasetError: if one is no whole number, or beyond int64.

    Examples:
        >>> to_integers("action", np.array([2.0, 0.0]))
        array([2, 0])
    """
    if value.dtype.kind in "iub":
        wrong = value > np.iinfo(np.int64).max
    else:
        wrong = ~((np.rint(value) == value) & (np.abs(value) < 2.0**53))
    if wrong.any():
        raise DatasetError(key, "whole numbers", f"{value[wrong][0]}")
    return value.astype(np.int64)
