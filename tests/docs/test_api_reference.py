"""Every public symbol is described; the documentation's build fails on what these tests find."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

EXTENSION = Path(__file__).resolve().parents[2] / "docs" / "extensions" / "api_reference.py"


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    pytest.importorskip("sphinx", reason="needs the extra 'docs'")
    spec = importlib.util.spec_from_file_location("api_reference", EXTENSION)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find_all_faults(reference: ModuleType) -> Iterator[str]:
    for package in reference.find_stages():
        for name in package.__all__:
            yield from reference.find_faults(package.__name__, name, arguments=True)
        for module_name, names in reference.find_inner_symbols(package).items():
            for name in names:
                yield from reference.find_faults(module_name, name, arguments=False)


def test_every_public_symbol_is_described(reference: ModuleType) -> None:
    assert len(reference.find_stages()) >= 8
    assert list(find_all_faults(reference)) == []


def test_what_is_not_described_is_found(
    reference: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_described.py").write_text(
        "class Described:\n"
        '    """Has `first`."""\n'
        "    def __init__(self, first, second): pass\n"
        "    def method(self): pass\n"
        "class Child(Described):\n"
        '    """Takes first and second, as its parent does."""\n'
        "def silent(): pass\n"
        "NUMBER = 1\n"
        "#: Two.\n"
        "OTHER = 2\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def find(name: str) -> list[str]:
        return list(reference.find_faults("half_described", name, arguments=True))

    assert find("Described") == [
        "half_described.Described does not describe its argument 'second'",
        "half_described.Described.method has no docstring",
    ]
    assert find("Child") == find("OTHER") == []
    assert find("silent") == ["half_described.silent has no docstring"]
    assert find("NUMBER") == ["half_described.NUMBER has no '#:' comment"]


def test_pages_of_symbols_that_are_gone_are_removed(reference: ModuleType, tmp_path: Path) -> None:
    symbols = tmp_path / "reference" / "symbols"
    symbols.mkdir(parents=True)
    for name in ("torchrl_logo.data.collect.rst", "torchrl_logo.data.gone.rst"):
        (symbols / name).touch()
    config = SimpleNamespace()
    reference.write_reference(SimpleNamespace(srcdir=tmp_path), config)
    assert [path.name for path in symbols.iterdir()] == ["torchrl_logo.data.collect.rst"]
    assert "reference/data.rst" in config.autosummary_generate
    assert "   collect\n" in (tmp_path / "reference" / "data.rst").read_text()
