"""Refuses a release whose files tell different versions.

python release/check_versions.py
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Where each file says the version; the changelog's first heading is that of the newest one.
PATTERNS = {
    "pyproject.toml": r'^version = "(.+)"$',
    "CITATION.cff": r"^version: (.+)$",
    "CHANGELOG.md": r"^## \[(.+?)\]",
}


def read_versions(root: Path) -> dict[str, str]:
    """The version by the file that says it."""
    versions = {}
    for name, pattern in PATTERNS.items():
        found = re.search(pattern, (root / name).read_text(), re.MULTILINE)
        if found is None:
            raise SystemExit(f"{name}: expected a line like {pattern}, found none.")
        versions[name] = found[1]
    return versions


def check_versions(root: Path) -> str:
    """The version that all files agree on.

    Raises:
        SystemExit: if they do not; says what each has.
    """
    versions = read_versions(root)
    version = versions["pyproject.toml"]
    others = {name: found for name, found in versions.items() if found != version}
    if others:
        raise SystemExit(
            f"pyproject.toml has the version {version}, but {others}. Change them (in CHANGELOG.md "
            f"'## [Unreleased]' becomes '## [{version}] - <date>') and start again."
        )
    return version


if __name__ == "__main__":
    print(f"version {check_versions(ROOT)}")
    sys.exit()
