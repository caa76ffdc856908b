"""Imports of packages that only some users have."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["require"]


def require(module: str, extra: str) -> ModuleType:
    """Imports a module that one of the package's extras installs.

    Args:
        module (str): dotted name of the module.
        extra (str): the extra of ``torchrl-logo`` that brings it.

    Returns:
        The imported module.

    Raises:
        ImportError: if the module, or something it needs, is not installed; names the extra.
            An error inside an installed module is raised as it is.

    Examples:
        >>> require("json", extra="formats").dumps([1])
        '[1]'
        >>> require("no_such_simulator", extra="mamujoco")
        Traceback (most recent call last):
        ...
        ImportError: no_such_simulator is not installed. Run: pip install torchrl-logo[mamujoco]
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        needed_by = "" if missing == module else f", which {module} needs,"
        raise ImportError(
            f"{missing}{needed_by} is not installed. Run: pip install torchrl-logo[{extra}]",
            name=missing,
        ) from error
