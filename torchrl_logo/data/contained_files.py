"""Folders from strangers: their links and devices are not followed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from torchrl_logo.data.validation import DatasetError

__all__ = ["require_contained"]


def require_contained(path: Path) -> None:
    """Refuses a folder with anything that is not a file or folder of its own.

    A link could make data of any file of the reader's, and a pipe would be waited for forever.
    The folder itself may be reached by a link: that is its reader's choice.

    Args:
        path (Path): a folder, or a file, which is let through if it is an ordinary one.

    Raises:
        DatasetError: names the first entry that leads out of the folder or is no file.

    Examples:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "state.npy").symlink_to("/etc/hostname")
        >>> require_contained(folder)
        Traceback (most recent call last):
        ...
        torchrl_logo.data.validation.DatasetError: Dataset key '...state.npy': expected a file in \
its folder, found a link to /etc/hostname.
    """
    if not path.is_dir():
        _require_ordinary(path)
        return
    inside = path.resolve()
    for folder, folders, files in os.walk(path):
        for name in folders + files:
            entry = Path(folder, name)
            _require_ordinary(entry)
            if entry.is_symlink():
                target = entry.resolve()
                if not target.is_relative_to(inside):
                    found = f"a link to {target}"
                    raise DatasetError(str(entry), "a file in its folder", found)


def _require_ordinary(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except (OSError, RuntimeError) as error:  # a link to nothing, or in a circle
        raise DatasetError(str(path), "a file or folder", str(error)) from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise DatasetError(str(path), "a file or folder", "a device, pipe or socket")
