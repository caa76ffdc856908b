"""How notebooks show what prints as a summary."""

from __future__ import annotations

import html
from collections.abc import Mapping

__all__ = ["make_html_table"]


def make_html_table(title: str, rows: Mapping[str, object]) -> str:
    """A table of two columns, as notebooks show it.

    Args:
        title (str): above the table.
        rows (mapping): what stands left and right in each row; all text is escaped.

    Examples:
        >>> make_html_table("A <b>", {"agents": 3})
        '<table><caption>A &lt;b&gt;</caption><tr><th>agents</th><td>3</td></tr></table>'
    """
    lines = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table><caption>{html.escape(title)}</caption>{lines}</table>"
