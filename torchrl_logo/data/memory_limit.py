"""How much memory a file may ask for."""

from __future__ import annotations

import os
from pathlib import Path

from tensordict import NestedKey

from torchrl_logo.data.validation import DatasetError

__all__ = ["available_memory", "require_memory"]

_DEFAULT = 2**40  # where the system does not tell


def available_memory() -> int:
    """Bytes that the process can still take: of the machine, its container and its own limit."""
    limits = [_DEFAULT]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits += [int(s.split()[1]) * 1024 for s in lines if s.startswith("MemAvailable:")]
    except OSError:  # not Linux
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    try:
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limits.append(soft - pages * resource.getpagesize())
    except (ImportError, OSError):
        pass
    return max(min(limits), 0)


def require_memory(key: NestedKey, size: int) -> None:
    """Refuses data that do not fit into memory before any of it is asked for.

    Args:
        key (NestedKey): what the error names.
        size (int): bytes that would be held at once.

    Raises:
        DatasetError: if they are more than half of what is available (what is made of the data
            needs room, too).

    Examples:
        >>> require_memory("state", 10**15)
        Traceback (most recent call last):
        ...
        torchrl_logo.data.validation.DatasetError: Dataset key 'state': expected at most ... bytes \
at once, as memory allows, found 1,000,000,000,000,000.
    """
    if size < 2**20:  # asking the system takes longer than this is worth
        return
    most = available_memory() // 2
    if size > most:
        raise DatasetError(key, f"at most {most:,} bytes at once, as memory allows", f"{size:,}")
