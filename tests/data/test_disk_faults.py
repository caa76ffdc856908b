"""Disks that are full, read-only or limited while datasets and models are written."""

from __future__ import annotations

import errno
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from torchrl_logo.data import OfflineDataset, convert_dataset, from_arrays, load_dataset
from torchrl_logo.data.uncertainty_sampler import UncertaintySampler
from torchrl_logo.modules import JointWorldModel

Arrays = dict[str, np.ndarray]
NAME, FRAMES = "vmas/balance-random", 200
NO_ROOM = 48 * 2**10  # bytes: a few files, but not the dataset
KINDS = ["generation", "saving", "conversion"]


def left_behind(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir() if not f.name.endswith(".lock"))


def enlarge(arrays: Arrays, times: int = 60) -> Arrays:
    """More episodes of the same kind: more than fit on the disk."""
    made = {k: np.concatenate([v] * times) for k, v in arrays.items()}
    step = np.repeat(np.arange(times), len(arrays["episode"])) * 3
    return {**made, "episode": made["episode"] - made["episode"].min() + step}


def write(kind: str, arrays: Arrays, folder: Path, disk: Path) -> OfflineDataset:
    if kind == "generation":
        return load_dataset(NAME, root=disk, frames=FRAMES)
    if kind == "saving":
        return from_arrays(enlarge(arrays), root=disk / "own")
    if not (folder / "recorded.npz").exists():
        np.savez(folder / "recorded.npz", **enlarge(arrays))
    return convert_dataset(folder / "recorded.npz", disk / "own", memory=2**12, progress_bar=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("foreseen", [True, False])
def test_a_full_disk_is_an_error_and_leaves_no_dataset(
    kind, foreseen, arrays, tmp_path, small_disk, monkeypatch
) -> None:
    small_disk.resize(NO_ROOM)
    if not foreseen:  # as when another process fills the disk in the meantime
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"Cannot write .*dataset.*(disk is full|bytes)") as caught:
        write(kind, arrays, tmp_path, small_disk.path)
    assert caught.value.errno == errno.ENOSPC
    assert not [f for f in left_behind(small_disk.path) if not f.endswith(".unfinished")]
    small_disk.resize(16 * 2**20)
    made = write(kind, arrays, tmp_path, small_disk.path)
    whole = write(kind, arrays, tmp_path, tmp_path / "elsewhere")
    assert made.metadata.hash == whole.metadata.hash
    assert len(left_behind(small_disk.path)) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_read_only_folder_is_an_error(kind, arrays, tmp_path, small_disk) -> None:
    small_disk.make_read_only()
    with pytest.raises(OSError, match=r"Cannot write .*dataset.*read-only") as caught:
        write(kind, arrays, tmp_path, small_disk.path)
    assert caught.value.errno == errno.EROFS


def test_a_read_only_dataset_can_be_used(arrays, small_disk) -> None:
    made = load_dataset(NAME, root=small_disk.path, frames=FRAMES)
    small_disk.make_read_only()
    again = load_dataset(NAME, root=small_disk.path, frames=FRAMES)
    assert again.metadata == made.metadata and len(again.sample(8)) == 8


@pytest.mark.parametrize("mode", ["full", "read-only"])
def test_an_earlier_world_model_survives(mode, arrays, small_disk) -> None:
    torch.manual_seed(0)
    dataset = from_arrays(arrays)
    file = small_disk.path / "model.pt"
    earlier = JointWorldModel.from_dataset(dataset, hidden_size=8)
    earlier.save(file)
    small_disk.resize(64 * 2**10) if mode == "full" else small_disk.make_read_only()
    with pytest.raises(OSError, match="Cannot write the world model"):
        JointWorldModel.from_dataset(dataset, hidden_size=256).save(file)
    assert left_behind(small_disk.path) == ["model.pt"]
    loaded = JointWorldModel.load(file)
    assert all(map(torch.equal, loaded.state_dict().values(), earlier.state_dict().values()))


def test_a_sampler_on_a_full_disk(small_disk) -> None:
    sampler = UncertaintySampler(100_000, C=1.0)
    small_disk.resize(NO_ROOM)
    with pytest.raises(OSError, match="Cannot write the sampler"):
        sampler.dumps(small_disk.path / "sampler")


def test_a_limit_on_the_size_of_files(arrays, tmp_path) -> None:
    """Needs no right to mount: the system refuses to let one file grow."""
    np.savez(tmp_path / "recorded.npz", **enlarge(arrays))
    script = f"""
import resource
from torchrl_logo.data import convert_dataset
resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, {resource.RLIM_INFINITY}))
try:
    convert_dataset({str(tmp_path / "recorded.npz")!r}, {str(tmp_path / "own")!r})
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "Cannot write the converted dataset: the file is larger than" in done.stdout, done.stderr
    assert not (tmp_path / "own").exists()
