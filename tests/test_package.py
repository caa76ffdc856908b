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


def test_version_is_the_installed_one() -> None:
    assert torchrl_logo.__version__ == version("torchrl-logo")


def test_every_folder_of_the_package_is_an_attribute() -> None:
    root = Path(torchrl_logo.__file__).parent
    folders = [path.parent.name for path in root.glob("*/__init__.py")]
    assert "record" in folders
    for name in folders:
        assert getattr(torchrl_logo, name).__name__ == f"torchrl_logo.{name}"


def test_unknown_attribute_raises() -> None:
    with pytest.raises(AttributeError, match="no_such_stage"):
        _ = torchrl_logo.no_such_stage
