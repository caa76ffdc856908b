"""Reads JSON objects from files that anybody may have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torchrl_logo.data.validation import DatasetError

__all__ = ["read_json"]

# Descriptions are small; a file of gigabytes is none, and parsing takes many times its size.
_LARGEST = 64 * 2**20


def read_json(path: str | Path) -> dict[str, Any]:
    """Reads the object that a JSON file holds.

    Args:
        path (str or Path): a regular file of at most 64 MiB.

    Raises:
        DatasetError: if there is no such file or it holds no JSON object; names the file.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "a.json")
        >>> _ = path.write_text('{"rows": 3}')
        >>> read_json(path)
        {'rows': 3}
    """
    path = Path(path)
    if not path.is_file():
        raise DatasetError(str(path), "a file", "none")
    if path.stat().st_size > _LARGEST:
        found = f"{path.stat().st_size} bytes"
        raise DatasetError(str(path), f"at most {_LARGEST} bytes of JSON", found)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        found = f"{type(error).__name__}: {error}"
        raise DatasetError(str(path), "a JSON object", found) from error
    if not isinstance(content, dict):
        raise DatasetError(str(path), "a JSON object", type(content).__name__)
    return content
