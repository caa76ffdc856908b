"""The directives ``loss-table`` and ``loss-keys``: what policy losses can do, off the classes."""

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


def list_keys(loss: type[LossModule]) -> list[str]:
    """Names of the keys that ``set_keys`` renames."""
    return [field.name for field in dataclasses.fields(loss._AcceptedKeys)]


def describe(loss: type[LossModule]) -> tuple[str, ...]:
    """One row: name, and what it can do."""
    # a loss that takes no mask of its own reads it through its actor
    masks = "own key" if "action_mask" in list_keys(loss) else ""
    masks = masks or ("by its actor" if loss.discrete else "")
    kinds = ("yes" if loss.continuous else "", "yes" if loss.discrete else "")
    memory = "yes" if loss.recurrent else ""
    # the contract tests compile every loss, without graph breaks
    return _link(loss), *kinds, masks, memory, "full graph"


def describe_keys(loss: type[LossModule], shared: set[str]) -> tuple[str, ...]:
    """One row: name, and the keys that not all losses have."""
    return _link(loss), ", ".join(f"``{key}``" for key in list_keys(loss) if key not in shared)


def _link(loss: type[LossModule]) -> str:
    return f":class:`~torchrl_logo.objectives.{loss.__name__}`"


def _make_table(rows: list[tuple[str, ...]], widths: str) -> list[str]:
    lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {widths}", ""]
    for row in rows:
        lines += [f"   {'* ' if i == 0 else '  '}- {cell}" for i, cell in enumerate(row)]
    return lines


class LossTable(SphinxDirective):
    """Renders what each loss can do."""

    head: ClassVar = (
        "loss",
        "continuous",
        "discrete",
        "action masks",
        "networks with memory",
        "compiled",
    )

    def run(self) -> list[nodes.Node]:
        """Builds the table's nodes."""
        rows = [self.head, *map(describe, find_policy_losses())]
        return _parse(self, _make_table(rows, "26 14 12 16 18 14"))


class LossKeys(SphinxDirective):
    """Renders the keys that each loss reads beside those that all of them read."""

    def run(self) -> list[nodes.Node]:
        """Builds a line and the table's nodes."""
        losses = find_policy_losses()
        shared = set.intersection(*(set(list_keys(loss)) for loss in losses))
        named = ", ".join(f"``{key}``" for key in list_keys(losses[0]) if key in shared)
        rows = [("loss", "keys"), *(describe_keys(loss, shared) for loss in losses)]
        return _parse(self, [f"All have {named}.", "", *_make_table(rows, "26 74")])


def _parse(directive: SphinxDirective, lines: list[str]) -> list[nodes.Node]:
    container = nodes.container()
    directive.state.nested_parse(StringList(lines, directive.name), 0, container)
    return container.children


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the directives."""
    app.add_directive("loss-table", LossTable)
    app.add_directive("loss-keys", LossKeys)
    return {"parallel_read_safe": True}
