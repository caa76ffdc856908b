"""Nothing in the package reads pickles, or evaluates what files say."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import torchrl_logo

PACKAGE = Path(torchrl_logo.__file__).parent
FORBIDDEN_MODULES = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml",
}  # fmt: skip
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
# Imports by a name that is not written there: of the package's own files and of what users type.
IMPORTS_BY_NAME = {
    "__init__.py",
    "optional_dependencies.py",
    "data/formats/reader.py",
    "envs/pettingzoo.py",
    "envs/registry.py",
}


def keyword(call: ast.Call, name: str) -> object:
    for given in call.keywords:
        if given.arg == name and isinstance(given.value, ast.Constant):
            return given.value.value
    return None


def find_code_from_files(source: str, file: str = "") -> list[str]:
    """What in a source could run code from a file that it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            for name in [module or ""] + [alias.name for alias in node.names]:
                if name.split(".")[0] in FORBIDDEN_MODULES:
                    found.append(f"import of {name}")
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in FORBIDDEN_CALLS:
            found.append(name)
        if name == "torch.load" and keyword(node, "weights_only") is not True:
            found.append("torch.load without weights_only=True")
        if name.endswith((".load_memmap", ".load_memmap_")):
            found.append(f"{name}, which falls back on pickle")
        if name in ("np.load", "numpy.load", "np.fromregex", "np.genfromtxt"):
            found.append(f"{name} (formats/npy_files.py reads arrays)")
        if keyword(node, "allow_pickle") is True:
            found.append("allow_pickle=True")
        if name in ("h5py.File", "File") and file != "data/formats/hdf5_files.py":
            mode = node.args[1] if len(node.args) > 1 else None
            if not (isinstance(mode, ast.Constant) and mode.value == "w"):
                found.append("h5py.File (formats/hdf5_files.py reads arrays)")
        if name.endswith(("import_module", "literal_eval")) and file not in IMPORTS_BY_NAME:
            if not (node.args and isinstance(node.args[0], ast.Constant)):
                found.append(f"{name} of a name that is not written there")
        if name in ("getattr", "setattr") and file.startswith("data/formats/"):
            found.append(f"{name} in a reader")
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_no_file_of_the_package_can(path: Path) -> None:
    name = path.relative_to(PACKAGE).as_posix()
    assert not find_code_from_files(path.read_text(), name)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from yaml import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.save(path, x, allow_pickle=True)",
        "h5py.File(path)",
        "h5py.File(path, 'r')",
        "TensorDict.load_memmap(path)",
        "importlib.import_module(meta['class'])",
        "eval(meta['shape'])",
    ],
)
def test_the_search_finds(source: str) -> None:
    assert find_code_from_files(source)
