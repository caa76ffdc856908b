"""Importing the package is light and gives access to every subpackage."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import torchrl_logo


def test_import_brings_in_nothing_heavy() -> None:
    code = (
        "import sys, torchrl_logo, torchrl_logo.optional_dependencies;"
        "print(sorted({'torch', 'vmas', 'mlflow', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


#: What extras install, and what only figures, simulations and runs need.
LATE = (
    "h5py minari tensorstore mujoco gymnasium gymnasium_robotics pettingzoo mpe2 jax jaxmarl ray "
    "vmas gym mlflow matplotlib av scipy hydra omegaconf pandas sklearn"
)
AFTER_TORCHRL = f"""
import importlib, sys, time
parts = ("data", "envs", "modules", "objectives", "record", "trainers", "collectors")
for part in parts:
    importlib.import_module("torchrl." + part)
known = set(sys.modules)
start = time.perf_counter()
import torchrl_logo
print(time.perf_counter() - start)
for part in dir(torchrl_logo):
    getattr(torchrl_logo, part)
print(sorted(set({LATE.split()}) & (set(sys.modules) - known)))
print(len([name for name in sys.modules if name.startswith("torchrl_logo.")]))
"""


def test_subpackages_import_no_extra_and_nothing_slow() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", AFTER_TORCHRL],
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, late, modules = done.stdout.strip().splitlines()[-3:]
    assert float(seconds) <= 0.3  # it takes a hundredth of that: benchmarks/imports.py
    assert late == "[]"
    assert int(modules) > 100  # all of the package was there


def test_the_package_says_that_it_has_types() -> None:
    assert (Path(torchrl_logo.__file__).parent / "py.typed").is_file()


def test_version_is_the_installed_one() -> None:
    assert torchrl_logo.__version__ == version("torchrl-logo")


def test_every_folder_of_the_package_is_an_attribute() -> None:
    root = Path(torchrl_logo.__file__).parent
    folders = [path.parent.name for path in root.glob("*/__init__.py")]
    assert "record" in folders
    for name in folders:
        assert getattr(torchrl_logo, name).__name__ == f"torchrl_logo.{name}"


def test_editors_know_every_folder() -> None:
    root = Path(torchrl_logo.__file__).parent
    source = (root / "__init__.py").read_text()
    for path in root.glob("*/__init__.py"):
        name = path.parent.name
        assert f"    from torchrl_logo import {name} as {name}\n" in source


def test_unknown_attribute_raises() -> None:
    with pytest.raises(AttributeError, match="no_such_stage"):
        _ = torchrl_logo.no_such_stage
