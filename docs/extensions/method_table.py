"""The ``method-table`` directive: what the offline trainer's methods are made of."""

from __future__ import annotations

from typing import Any, ClassVar

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from torchrl_logo.trainers.methods import METHODS, Method


def describe(name: str, method: Method) -> tuple[str, ...]:
    """One row: name, action kinds, world model, and the settings that it starts from."""
    continuous = method.make_loss is not None
    discrete = method.make_discrete_loss is not None
    kinds = [k for k, has in (("continuous", continuous), ("discrete", discrete)) if has]
    if method.recurrent:
        kinds.append("with memory (discrete)")
    model = "none"
    if method.world_model is not None:
        drawn = "drawn by uncertainty" if method.weighted else "drawn uniformly"
        model = f"``{method.world_model.__name__}``, {method.horizon} steps, {drawn}"
        if method.reward_penalty:
            model += f", {method.reward_penalty:g} off the reward per unit of uncertainty"
    settings = f"lr {method.lr:g}, tau {method.tau:g}"
    if method.loss_kwargs:
        settings += "; " + _list(method.loss_kwargs)
    if discrete and method.discrete_loss_kwargs:
        settings += "; discrete: " + _list(method.discrete_loss_kwargs)
    return f"``{name}``", ", ".join(kinds), model, settings


def _list(kwargs: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in kwargs.items())


class MethodTable(SphinxDirective):
    """Renders the table as a ``list-table``."""

    head: ClassVar = ("method", "actions", "world model", "settings")

    def run(self) -> list[nodes.Node]:
        """Builds the table's nodes."""
        lines = [".. list-table::", "   :header-rows: 1", "   :widths: 10 20 35 35", ""]
        rows = [describe(name, method) for name, method in METHODS.items()]
        for row in (self.head, *rows):
            lines += [f"   {'* ' if i == 0 else '  '}- {cell}" for i, cell in enumerate(row)]
        container = nodes.container()
        self.state.nested_parse(StringList(lines, "method-table"), 0, container)
        return container.children


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the directive."""
    app.add_directive("method-table", MethodTable)
    return {"parallel_read_safe": True}
