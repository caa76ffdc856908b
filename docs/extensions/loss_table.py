"""The ``loss-table`` directive: what each policy loss can do, read off the classes."""

from __future__ import annotations

import dataclasses
import inspect
from typing import ClassVar

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from torchrl.objectives import LossModule

from torchrl_logo import objectives


def find_policy_losses() -> list[type[LossModule]]:
    """The public losses that train a policy, by name."""
    members = (getattr(objectives, name) for name in sorted(objectives.__all__))
    return [
        member
        for member in members
        if inspect.isclass(member)
        and issubclass(member, LossModule)
        and hasattr(member, "discrete")
        and "WorldModel" not in member.__name__
    ]


def describe(loss: type[LossModule]) -> tuple[str, ...]:
    """One row: name, what it can do, and keys that can be renamed."""
    names = [field.name for field in dataclasses.fields(loss._AcceptedKeys)]
    # a loss that takes no mask of its own reads it through its actor
    masks = "own key" if "action_mask" in names else ("by its actor" if loss.discrete else "")
    renamed = ", ".join(f"``{name}``" for name in names)
    kinds = ("yes" if loss.continuous else "", "yes" if loss.discrete else "")
    memory = "yes" if loss.recurrent else ""
    # the contract tests compile every loss, without graph breaks
    compiled = "full graph"
    name = f":class:`~torchrl_logo.objectives.{loss.__name__}`"
    return name, *kinds, masks, memory, compiled, renamed


class LossTable(SphinxDirective):
    """Renders the table as a ``list-table``."""

    head: ClassVar = (
        "loss",
        "continuous",
        "discrete",
        "action masks",
        "networks with memory",
        "compiled",
        "keys",
    )

    def run(self) -> list[nodes.Node]:
        """Builds the table's nodes."""
        lines = [".. list-table::", "   :header-rows: 1", "   :widths: 18 8 8 12 10 9 35", ""]
        for row in (self.head, *map(describe, find_policy_losses())):
            lines += [f"   {'* ' if i == 0 else '  '}- {cell}" for i, cell in enumerate(row)]
        container = nodes.container()
        self.state.nested_parse(StringList(lines, "loss-table"), 0, container)
        return container.children


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the directive."""
    app.add_directive("loss-table", LossTable)
    return {"parallel_read_safe": True}
