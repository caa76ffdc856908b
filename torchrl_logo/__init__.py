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
from typing import TYPE_CHECKING

# For editors and type checkers, which do not run __getattr__.
if TYPE_CHECKING:
    from torchrl_logo import data as data
    from torchrl_logo import envs as envs
    from torchrl_logo import evaluation as evaluation
    from torchrl_logo import modules as modules
    from torchrl_logo import objectives as objectives
    from torchrl_logo import planning as planning
    from torchrl_logo import record as record
    from torchrl_logo import trainers as trainers

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
