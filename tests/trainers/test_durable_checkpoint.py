"""Checkpoints are whole, or absent, or noticed to be damaged."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchrl.checkpoint import CheckpointError

from torchrl_logo.data import OfflineDataset, collect
from torchrl_logo.envs import make_env
from torchrl_logo.trainers import OfflineTrainer
from torchrl_logo.trainers.durable_checkpoint import DurableCheckpoint, DurableRotation

SMALL: dict[str, Any] = {
    "progress_bar": False,
    "eval_interval": 0,
    "hidden_sizes": (8,),
    "batch_size": 16,
    "log_interval": 10,
    "checkpoint_interval": 10,
}


@pytest.fixture(scope="module")
def dataset() -> OfflineDataset:
    return collect(make_env("vmas/balance", num_envs=4, seed=0), None, 400, seed=0)


def save_two(folder: Path) -> DurableRotation:
    rotation = DurableRotation(folder)
    for step in (1, 2):
        layer = nn.Linear(2, 1)
        nn.init.constant_(layer.weight, step)
        rotation.save(DurableCheckpoint(layer=layer), step=step)
    return rotation


def largest_file(path: Path) -> Path:
    return max(path.rglob("*.memmap"), key=lambda file: file.stat().st_size)


def flip(path: Path) -> None:
    file = largest_file(path)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(path: Path) -> None:
    file = largest_file(path)
    file.write_bytes(file.read_bytes()[:-1])


def lose(path: Path) -> None:
    largest_file(path).unlink()


def forget(path: Path) -> None:
    (path / "checksums.json").unlink()


def garble(path: Path) -> None:
    (path / "manifest.json").write_text("{")


def link(path: Path) -> None:
    file = largest_file(path)
    file.rename(path.parent / "elsewhere")
    file.symlink_to(path.parent / "elsewhere")


@pytest.mark.parametrize("damage", [flip, cut, lose, forget, garble, link])
def test_a_damaged_newest_one_falls_back_to_the_one_before(tmp_path: Path, damage: Any) -> None:
    rotation = save_two(tmp_path)
    newest = rotation.find_whole()
    assert newest is not None
    damage(newest)
    layer = nn.Linear(2, 1)
    with pytest.warns(RuntimeWarning, match=re.escape(newest.name)):
        rotation.load_latest(DurableCheckpoint(layer=layer))
    assert (layer.weight == 1).all()
    # it is kept, where nothing takes it for a checkpoint
    assert (tmp_path / f"{newest.name}.damaged").is_dir() and not newest.exists()


def test_all_damaged_is_an_error(tmp_path: Path) -> None:
    rotation = save_two(tmp_path)
    for path in rotation.checkpoints():
        flip(path)
    with pytest.warns(RuntimeWarning), pytest.raises(CheckpointError, match="Every checkpoint"):
        rotation.find_whole()


def test_two_are_kept_and_what_a_dead_process_left_is_removed(tmp_path: Path) -> None:
    rotation = save_two(tmp_path)
    (tmp_path / ".checkpoint-000000000003.stage-0").mkdir()
    rotation.save(DurableCheckpoint(), step=3)
    rotation.remove_unfinished()
    assert sorted(path.name[-1] for path in tmp_path.iterdir()) == ["2", "3"]


def test_random_states_are_restored(tmp_path: Path) -> None:
    path = DurableCheckpoint().save(tmp_path / "checkpoint")
    expected = torch.rand(3)
    DurableCheckpoint().load(path)
    assert torch.equal(torch.rand(3), expected)


def test_a_training_goes_on_from_the_one_before(dataset: OfflineDataset, tmp_path: Path) -> None:
    whole = OfflineTrainer("macql", dataset, steps=30, **SMALL)
    whole.train()
    first = OfflineTrainer("macql", dataset, steps=30, checkpoint_dir=tmp_path, **SMALL)
    first.train()
    newest = DurableRotation(tmp_path).find_whole()
    assert newest is not None
    flip(newest)
    with pytest.warns(RuntimeWarning, match="damaged"):
        again = OfflineTrainer("macql", dataset, steps=30, checkpoint_dir=tmp_path, **SMALL)
    assert again._optim_count == 20
    result = again.train()
    for a, b in zip(whole.loss_module.parameters(), again.loss_module.parameters(), strict=True):
        assert torch.equal(a, b)
    assert result.history == whole.log.history


def test_another_training_is_refused(dataset: OfflineDataset, tmp_path: Path) -> None:
    OfflineTrainer("bc", dataset, steps=10, checkpoint_dir=tmp_path, **SMALL).train()
    with pytest.raises(ValueError, match="seed was 0 and is 1"):
        OfflineTrainer("bc", dataset, steps=10, seed=1, checkpoint_dir=tmp_path, **SMALL)


def test_a_full_disk_leaves_the_one_before(small_disk: Any) -> None:
    small_disk.resize(2_000_000)
    folder = small_disk.path / "checkpoints"
    rotation = DurableRotation(folder)
    rotation.save(DurableCheckpoint(layer=nn.Linear(2, 1)), step=1)
    with pytest.raises(OSError, match=r"checkpoint.*disk is full"):
        rotation.save(DurableCheckpoint(layer=nn.Linear(1000, 1000)), step=2)
    whole = rotation.find_whole()
    assert whole is not None and whole.name.endswith("1")
    assert [path.name for path in folder.iterdir()] == [whole.name]
