"""Checks a built wheel and source archive: what is in them, and what they say of themselves.

python release/check_archives.py dist
"""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

from packaging.metadata import Metadata

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "torchrl_logo"


def find_package_files(root: Path) -> set[str]:
    """Files that users need: code, behaviour policies with their recipes, the marker of types."""
    endings = {".py", ".pt", ".json", ".typed"}
    files = (path for path in (root / PACKAGE).rglob("*") if path.suffix in endings)
    return {path.relative_to(root).as_posix() for path in files if "__pycache__" not in path.parts}


def check_wheel(path: Path, root: Path) -> list[str]:
    """What is wrong with a wheel."""
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        metadata_file = next(name for name in names if name.endswith(".dist-info/METADATA"))
        faults = check_metadata(archive.read(metadata_file))
    inside = {name for name in names if name.startswith(f"{PACKAGE}/")}
    expected = find_package_files(root)
    faults += [f"{path.name}: {name} is missing" for name in sorted(expected - inside)]
    faults += [f"{path.name}: {name} does not belong there" for name in sorted(inside - expected)]
    others = {name for name in names - inside if ".dist-info/" not in name}
    faults += [f"{path.name}: {name} is outside the package" for name in sorted(others)]
    if not any(name.endswith("LICENSE") for name in names):
        faults.append(f"{path.name}: the licence is missing")
    return faults


def check_source(path: Path, root: Path) -> list[str]:
    """What is missing in a source archive: it can be tested, documented and built from."""
    with tarfile.open(path) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    expected = find_package_files(root) | {
        "pyproject.toml",
        "README.md",
        "CHANGELOG.md",
        "CITATION.cff",
        "CONTRIBUTING.md",
        "LICENSE",
        "Makefile",
        "constraints.txt",
        "docs/conf.py",
        "examples/demo.py",
        "tests/conftest.py",
    }
    return [f"{path.name}: {name} is missing" for name in sorted(expected - inside)]


def check_metadata(content: bytes) -> list[str]:
    """What an index would refuse, or show badly."""
    metadata = Metadata.from_email(content, validate=True)  # raises on invalid fields
    faults = []
    if metadata.description_content_type != "text/markdown" or not metadata.description:
        faults.append("METADATA: the description is not README.md")
    if not metadata.summary or not metadata.license_expression:
        faults.append("METADATA: the summary or the licence is missing")
    for requirement in metadata.requires_dist or []:
        if requirement.url:
            faults.append(f"METADATA: {requirement} depends on a link")
    return faults


def main(folder: Path) -> None:
    wheels, sources = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    if len(wheels) != 1 or len(sources) != 1:
        raise SystemExit(f"{folder}: expected one wheel and one source archive.")
    faults = check_wheel(wheels[0], ROOT) + check_source(sources[0], ROOT)
    if faults:
        raise SystemExit("\n".join(faults))
    print(f"{wheels[0].name} and {sources[0].name} are complete")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
