"""The ``dataset-table`` directive: the datasets that ship as recipes, read off the recipes."""

from __future__ import annotations

from statistics import mean
from typing import ClassVar

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from torchrl_logo.data.behaviour_policies import behaviour_tasks, read_recipe


def describe(task: str) -> tuple[str, ...]:
    """One row: task, mean return of each quality, and how the expert was trained."""
    recipe = read_recipe(task)
    returns = recipe["returns"]
    qualities = [
        f"{mean(returns[name] for name in recipe['qualities'][quality]):.4g}"
        for quality in ("random", "medium-replay", "medium", "expert")
    ]
    frames = f"{recipe['frames']['expert'] / 1e6:.1f} M"
    return f"``{task}``", *qualities, frames, recipe.get("note", "")


class DatasetTable(SphinxDirective):
    """Renders the table as a ``list-table``."""

    head: ClassVar = (
        "task",
        "random",
        "medium-replay",
        "medium",
        "expert",
        "expert's frames",
        "note",
    )

    def run(self) -> list[nodes.Node]:
        """Builds the table's nodes."""
        lines = [".. list-table::", "   :header-rows: 1", ""]
        for row in (self.head, *map(describe, behaviour_tasks())):
            lines += [f"   {'* ' if i == 0 else '  '}- {cell}" for i, cell in enumerate(row)]
        container = nodes.container()
        self.state.nested_parse(StringList(lines, "dataset-table"), 0, container)
        return container.children


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the directive."""
    app.add_directive("dataset-table", DatasetTable)
    return {"parallel_read_safe": True}
