from __future__ import annotations

import sys
from types import ModuleType

import pytest

from torchrl_logo.data.metadata import record_versions


@pytest.mark.parametrize("used", [False, True])
def test_mujoco_counts_where_it_simulates_and_not_where_torchrl_imports_it(
    monkeypatch: pytest.MonkeyPatch, used: bool
) -> None:
    monkeypatch.setitem(sys.modules, "mujoco", ModuleType("mujoco"))
    if used:
        name = "gymnasium_robotics"
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    else:
        monkeypatch.delitem(sys.modules, "gymnasium_robotics", raising=False)
    assert ("mujoco" in record_versions()) is used
