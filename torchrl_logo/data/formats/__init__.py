"""Formats of the data that users have, one file a format: readers, and writers for other tools."""

from torchrl_logo.data.formats.arrays import from_arrays
from torchrl_logo.data.formats.minari import write_minari
from torchrl_logo.data.formats.pymarl_hdf5 import write_pymarl_hdf5
from torchrl_logo.data.formats.vault import write_vault

__all__ = ["from_arrays", "write_minari", "write_pymarl_hdf5", "write_vault"]
