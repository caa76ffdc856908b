"""The documentation builds without a warning; its tutorials are run by ``make docs`` alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ("_build", "reference", "tutorials", "sg_execution_times.rst")


@pytest.mark.slow
def test_pages_build_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx_gallery", reason="needs the extra 'docs'")
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns(*GENERATED))
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copy(ROOT / "CHANGELOG.md", tmp_path)
    # pages are read and references resolved, but nothing is written
    options = ["-b", "dummy", "-D", "sphinx_gallery_conf.plot_gallery=0"]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", *options, "docs", "out"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    pages = {path.name for path in (tmp_path / "docs" / "reference" / "symbols").iterdir()}
    assert "torchrl_logo.modules.LOGOWorldModel.rst" in pages
