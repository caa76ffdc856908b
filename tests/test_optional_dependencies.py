"""A missing extra names itself; nothing else is disguised as a missing extra."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from torchrl_logo.optional_dependencies import require


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [n for n in sys.modules if n.startswith("fake_simulator")]:
        del sys.modules[name]


def test_returns_the_submodule_itself(modules: Path) -> None:
    (modules / "fake_simulator").mkdir()
    (modules / "fake_simulator" / "__init__.py").touch()
    (modules / "fake_simulator" / "tasks.py").write_text("NAME = 'ant'")
    assert require("fake_simulator.tasks", extra="mamujoco").NAME == "ant"


def test_missing_module_names_the_extra() -> None:
    with pytest.raises(ImportError, match=r"pip install torchrl-logo\[mamujoco\]") as raised:
        require("fake_simulator_nowhere.tasks", extra="mamujoco")
    assert raised.value.name == "fake_simulator_nowhere"


def test_missing_dependency_of_a_module_is_the_one_named(modules: Path) -> None:
    (modules / "fake_simulator_b.py").write_text("import fake_physics_nowhere")
    with pytest.raises(ImportError, match="^fake_physics_nowhere, which fake_simulator_b needs,"):
        require("fake_simulator_b", extra="smax")


def test_an_error_inside_an_installed_module_is_not_hidden(modules: Path) -> None:
    (modules / "fake_simulator_c.py").write_text("raise RuntimeError('no display')")
    with pytest.raises(RuntimeError, match="no display"):
        require("fake_simulator_c", extra="mpe")
