"""The table of results: a JSON object a line, written by any number of processes."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from filelock import FileLock

__all__ = ["Row", "append_row", "latest_rows", "read_rows", "row_key"]

Row = dict[str, Any]

_KEY = ("dataset", "method", "variant", "seed", "steps", "world_model_steps")


def row_key(row: Row) -> tuple[Any, ...]:
    """As :attr:`benchmarks.paper.grid.Cell.key`."""
    return tuple(row[name] for name in _KEY)


def read_rows(path: Path) -> list[Row]:
    """Reads all rows; a last line that was cut off is left out, with a warning.

    Raises:
        ValueError: if another line is no JSON object.
    """
    if not path.exists():
        return []
    text = path.read_text()
    lines = text.split("\n")
    if lines[-1]:
        warnings.warn(
            f"{path.name}: the last line was cut off; its run counts as not done.", stacklevel=2
        )
    rows = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: expected a JSON object: {error}.") from error
        missing = [name for name in _KEY if name not in row]
        if missing:
            raise ValueError(f"{path}, line {number}: the row lacks {missing}.")
        rows.append(row)
    return rows


def append_row(path: Path, row: Row) -> None:
    """Appends a row, one process at a time; a line that was cut off is removed first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        with path.open("ab+") as file:
            file.seek(0)
            content = file.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                file.truncate(whole)
            file.seek(0, 2)
            file.write(json.dumps(row).encode() + b"\n")
            file.flush()


def latest_rows(rows: list[Row]) -> dict[tuple[Any, ...], Row]:
    """The newest row of each key: a run that was repeated, for instance with newer settings."""
    return {row_key(row): row for row in rows}
