"""The checks of a release find what is wrong with one."""

from __future__ import annotations

import io
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

RELEASE = Path(__file__).resolve().parents[2] / "release"
METADATA = """Metadata-Version: 2.4
Name: torchrl-logo
Version: 0.1.0
Summary: A package.
License-Expression: MIT
Requires-Dist: torch>=2.9
Description-Content-Type: text/markdown

# torchrl-logo
"""


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(RELEASE)
    import check_archives

    yield check_archives
    del sys.modules["check_archives"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A package of two files, and one that is made by running it."""
    package = tmp_path / "source" / "torchrl_logo"
    (package / "__pycache__").mkdir(parents=True)
    for name in ("__init__.py", "py.typed", "__pycache__/__init__.py"):
        (package / name).touch()
    return package.parent


def write_wheel(folder: Path, *, leave_out: str = "", add: str = "", old: str = "", new: str = ""):
    names = ["torchrl_logo/__init__.py", "torchrl_logo/py.typed", "x.dist-info/licenses/LICENSE"]
    path = folder / "x.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in [name for name in names if name != leave_out] + [add] * bool(add):
            archive.writestr(name, "")
        archive.writestr("x.dist-info/METADATA", METADATA.replace(old, new))
    return path


def test_whole_wheel_passes(checks: ModuleType, source: Path, tmp_path: Path) -> None:
    assert checks.check_wheel(write_wheel(tmp_path), source) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"leave_out": "torchrl_logo/py.typed"}, "torchrl_logo/py.typed is missing"),
        ({"leave_out": "x.dist-info/licenses/LICENSE"}, "the licence is missing"),
        ({"add": "torchrl_logo/notes.txt"}, "notes.txt does not belong there"),
        ({"add": "tests/test_it.py"}, "tests/test_it.py is outside the package"),
        ({"old": "text/markdown", "new": "text/plain"}, "description is not README.md"),
        ({"old": "Summary: A package.\n"}, "the summary or the licence is missing"),
        ({"old": "torch>=2.9", "new": "torch @ file:///torch.whl"}, "depends on a link"),
    ],
)
def test_faults_of_a_wheel_are_named(
    change: dict[str, str], fault: str, checks: ModuleType, source: Path, tmp_path: Path
) -> None:
    faults = checks.check_wheel(write_wheel(tmp_path, **change), source)
    assert len(faults) == 1 and fault in faults[0]


def test_source_archive_must_hold_what_it_is_built_from(
    checks: ModuleType, source: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("x-0.1.0/torchrl_logo/__init__.py")
        archive.addfile(info, io.BytesIO())
    faults = checks.check_source(path, source)
    assert "x.tar.gz: torchrl_logo/py.typed is missing" in faults
    assert "x.tar.gz: Makefile is missing" in faults
    assert not any("__init__" in fault for fault in faults)


def test_versions_must_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(RELEASE)
    import check_versions

    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    (tmp_path / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 1.2.3\n")
    changelog = tmp_path / "CHANGELOG.md"
    changelog.write_text("# Changelog\n\n## [1.2.3] - 2026-01-01\n\n## [1.2.2]\n")
    assert check_versions.check_versions(tmp_path) == "1.2.3"
    changelog.write_text("# Changelog\n\n## [Unreleased]\n\n## [1.2.3]\n")
    with pytest.raises(SystemExit, match="'CHANGELOG.md': 'Unreleased'.*1.2.3. - <date>"):
        check_versions.check_versions(tmp_path)
    changelog.write_text("# Changelog\n")
    with pytest.raises(SystemExit, match="CHANGELOG.md: expected a line"):
        check_versions.check_versions(tmp_path)


def test_this_project_s_version_is_cited() -> None:
    sys.path.insert(0, str(RELEASE))
    try:
        import check_versions
    finally:
        sys.path.remove(str(RELEASE))
    versions = check_versions.read_versions(RELEASE.parent)
    assert versions["CITATION.cff"] == versions["pyproject.toml"]


def test_an_environment_for_development_can_build_without_a_network() -> None:
    import tomllib

    project = tomllib.loads((RELEASE.parent / "pyproject.toml").read_text())
    needed = set(project["build-system"]["requires"])
    assert needed <= set(project["project"]["optional-dependencies"]["dev"])
