"""What all tests share: one thread, and no GPU tests where there is no GPU."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


class SmallDisk:
    """A file system of its own, of a size and a mode that tests choose."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self._mount("-t", "tmpfs", "tmpfs", str(path))

    def resize(self, size: int) -> None:
        self._mount("-o", f"remount,rw,size={size}", str(self.path))

    def make_read_only(self) -> None:
        self._mount("-o", "remount,ro", str(self.path))

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)

    @staticmethod
    def _mount(*arguments: str) -> None:
        try:
            subprocess.run(["mount", *arguments], check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"mounting a file system is not permitted here: {error}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    disk = SmallDisk(tmp_path / "disk")
    yield disk
    disk.close()
