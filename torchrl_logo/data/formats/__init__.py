"""Readers of the data that users have, one file a format."""

from torchrl_logo.data.formats.arrays import from_arrays

__all__ = ["from_arrays"]
