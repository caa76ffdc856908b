"""The settings of each method: what the search chose, over the method's own defaults."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

__all__ = ["BASE", "CHOSEN", "digest_settings", "find_settings", "merge_settings"]

# Written by ``python -m benchmarks.paper tune``, read by the grid.
CHOSEN = Path(__file__).with_name("chosen.json")

# What a method has before any search. OMAR's own default of ten draws for its penalty would take
# three times as long as the two that the other conservative methods have.
BASE: dict[str, dict[str, Any]] = {"omar": {"loss_kwargs": {"num_samples": 2}}}

# Planning has no search of its own: LOGO-MPC acts with LOGO's policy, of LOGO's settings.
_SEARCHED_AS = {"logo-mpc": "logo"}


def find_settings(
    method: str, *, discrete: bool, path: Path = CHOSEN
) -> tuple[dict[str, Any], bool]:
    """Settings of a method, and whether a search has chosen them.

    Args:
        method (str): one of :data:`benchmarks.paper.grid.METHODS`.

    Keyword Args:
        discrete (bool): whether the task's actions are discrete.
        path (Path): the choices.
    """
    chosen = json.loads(path.read_text()) if path.exists() else {}
    found = chosen.get("discrete" if discrete else "continuous", {})
    method = _SEARCHED_AS.get(method, method)
    if method not in found:
        return copy.deepcopy(BASE.get(method, {})), False
    return found[method]["settings"], True


def merge_settings(*settings: dict[str, Any]) -> dict[str, Any]:
    """Later settings over earlier ones; dictionaries within them are merged.

    Examples:
        >>> merge_settings({"lr": 1, "loss_kwargs": {"a": 1}}, {"loss_kwargs": {"b": 2}})
        {'lr': 1, 'loss_kwargs': {'a': 1, 'b': 2}}
    """
    merged: dict[str, Any] = {}
    for part in settings:
        for name, value in copy.deepcopy(part).items():
            if isinstance(value, dict) and isinstance(merged.get(name), dict):
                merged[name] = merge_settings(merged[name], value)
            else:
                merged[name] = value
    return merged


def digest_settings(settings: dict[str, Any]) -> str:
    """Eight hexadecimal digits of settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
