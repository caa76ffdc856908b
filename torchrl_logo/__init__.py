"""Offline cooperative multi-agent RL with the local-to-global (LOGO) world model, for TorchRL.

Importing the package itself is cheap; its subpackages are imported when they are first used.

Examples:
    >>> import torchrl_logo
    >>> "record" in dir(torchrl_logo)
    True
"""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

__all__ = ["__version__"]

try:
    __version__ = version("torchrl-logo")
except PackageNotFoundError:  # the source tree on the path, without an installation
    __version__ = "0.0.0+source"

_SUBPACKAGES = frozenset(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)


def __getattr__(name: str) -> ModuleType:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBPACKAGES})
