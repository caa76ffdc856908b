"""Writes the API reference: a page a stage, and a page for every public symbol.

A symbol is public if its module's ``__all__`` has it. Symbols that the stage's package exports are
what users import; the others, which extensions are made of, come after them. One that has no
description, or does not describe all of its arguments, is a warning, which ends the build.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections import _tuplegetter  # type: ignore[attr-defined]
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging
from sphinx.util.inspect import stringify_signature

import torchrl_logo

__all__ = ["find_faults", "find_inner_symbols", "find_stages", "setup"]

logger = logging.getLogger(__name__)


def find_stages() -> list[ModuleType]:
    """The package's folders, one a stage."""
    folders = [m.name for m in pkgutil.iter_modules(torchrl_logo.__path__) if m.ispkg]
    return [importlib.import_module(f"torchrl_logo.{name}") for name in folders]


def find_inner_symbols(package: ModuleType) -> dict[str, list[str]]:
    """What a package's modules make public and the package does not export, by module."""
    exported = {id(getattr(package, name)) for name in package.__all__}
    found: dict[str, list[str]] = {}
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        module = importlib.import_module(info.name)
        if info.ispkg:
            continue  # exports what its modules have
        names = [name for name in module.__all__ if id(getattr(module, name)) not in exported]
        if names:
            found[info.name] = names
    return found


def find_faults(module_name: str, name: str, *, arguments: bool) -> Iterator[str]:
    """What is not described: the symbol itself, its public methods and, if asked, its arguments."""
    module = importlib.import_module(module_name)
    member = getattr(module, name)
    if not (inspect.isclass(member) or inspect.isfunction(member)):
        comments = ModuleAnalyzer.for_module(module_name).find_attr_docs()
        if ("", name) not in comments:
            yield f"{module_name}.{name} has no '#:' comment"
        return
    if not member.__doc__:
        yield f"{module_name}.{name} has no docstring"
        return
    for argument in _find_arguments(member) if arguments else ():
        if not re.search(rf"\b{argument}\b", member.__doc__):
            yield f"{module_name}.{name} does not describe its argument {argument!r}"
    for method in vars(member) if inspect.isclass(member) else ():
        if not method.startswith("_") and callable(getattr(member, method)):
            # inspect.getdoc() takes that of a method that is overridden
            if not inspect.getdoc(getattr(member, method)):
                yield f"{module_name}.{name}.{method} has no docstring"


def _find_arguments(member: Any) -> list[str]:
    own = member.__init__ if inspect.isclass(member) else member
    if inspect.isclass(member) and "__init__" not in vars(member):
        return []
    try:
        parameters = inspect.signature(own).parameters.values()
    except (TypeError, ValueError):
        return []
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [p.name for p in parameters if p.name != "self" and p.kind not in variable]


def _list_exports(package: ModuleType) -> str:
    """A stage's page, with a line and an own page for each symbol."""
    title = package.__name__
    lines = [title, "=" * len(title), "", f".. automodule:: {title}", ""]
    lines += [f".. currentmodule:: {title}", "", ".. autosummary::"]
    lines += ["   :toctree: symbols", "   :nosignatures:", ""]
    lines += [f"   {name}" for name in sorted(package.__all__, key=str.lower)]
    return "\n".join([*lines, ""])


def _list_parts(package: ModuleType, inner: dict[str, list[str]]) -> str:
    """A page of a stage's inner symbols, module by module."""
    title = f"Inside {package.__name__}"
    lines = [title, "=" * len(title), ""]
    lines += [f"What :mod:`{package.__name__}` is made of, for those who extend it.", ""]
    for module_name, names in inner.items():
        short = module_name.removeprefix(f"{package.__name__}.")
        lines += [short, "-" * len(short), "", f".. automodule:: {module_name}"]
        lines += [f"   :members: {', '.join(names)}", "   :show-inheritance:", ""]
    return "\n".join(lines)


def _list_stages(stages: list[str], insides: list[str]) -> str:
    """The first page: a line for each stage."""
    title = "API reference"
    lines = [title, "=" * len(title), "", "One folder a stage; what users import comes first.", ""]
    lines += [".. list-table::", "   :widths: 35 65", ""]
    for stage in stages:
        what = inspect.getdoc(importlib.import_module(f"torchrl_logo.{stage}")) or ""
        lines += [f"   * - :doc:`torchrl_logo.{stage} <{stage}>`"]
        lines += [f"     - {what.splitlines()[0]}"]
    lines += ["", "What these are made of, for those who extend them:"]
    lines += [
        ", ".join(f":doc:`{page.removesuffix('_inside')} <{page}>`" for page in insides) + "."
    ]
    lines += ["", ".. toctree::", "   :maxdepth: 1", "   :hidden:", ""]
    lines += [f"   {page}" for page in (*stages, *insides)]
    return "\n".join([*lines, ""])


def write_reference(app: Sphinx, config: Config) -> None:
    """Writes the pages before Sphinx looks for sources, and warns of what is not described."""
    folder = Path(app.srcdir) / "reference"
    folder.mkdir(exist_ok=True)
    stages, insides, symbols = [], [], set()
    for package in find_stages():
        stage, inner = package.__name__.rpartition(".")[2], find_inner_symbols(package)
        _write_if_changed(folder / f"{stage}.rst", _list_exports(package))
        stages.append(stage)
        symbols |= {f"{package.__name__}.{name}.rst" for name in package.__all__}
        if inner:
            _write_if_changed(folder / f"{stage}_inside.rst", _list_parts(package, inner))
            insides.append(f"{stage}_inside")
        for module_name, names in {package.__name__: package.__all__, **inner}.items():
            exported = module_name == package.__name__
            for name in names:
                for fault in find_faults(module_name, name, arguments=exported):
                    logger.warning(fault, type="api_reference")
    _write_if_changed(folder / "index.rst", _list_stages(stages, insides))
    for page in (folder / "symbols").glob("*.rst"):
        if page.name not in symbols:
            page.unlink()  # of an earlier build: the symbol is no more
    # by name, since an earlier build's list of sources does not have new pages
    config.autosummary_generate = [f"reference/{stage}.rst" for stage in stages]


def _is_field(app: Sphinx, kind: str, name: str, member: Any, skip: bool, options: Any) -> Any:
    """Leaves out the fields of named tuples, which their class describes."""
    return True if isinstance(member, _tuplegetter) else None


def _write_if_changed(path: Path, content: str) -> None:
    if not path.exists() or path.read_text() != content:
        path.write_text(content)


def _show_arguments(
    app: Sphinx, kind: str, name: str, member: Any, options: Any, arguments: str, returns: str
) -> tuple[str, str] | None:
    """Shows the arguments of losses, which TorchRL's metaclass hides."""
    if kind != "class" or arguments != "(*args, **kwargs)":
        return None
    own = inspect.signature(member.__init__)
    own = own.replace(parameters=list(own.parameters.values())[1:])
    return stringify_signature(own, unqualified_typehints=True, show_return_annotation=False), ""


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the writing of the pages."""
    app.setup_extension("sphinx.ext.autosummary")
    app.connect("config-inited", write_reference)
    app.connect("autodoc-skip-member", _is_field)
    app.connect("autodoc-process-signature", _show_arguments)
    return {"parallel_read_safe": True}
