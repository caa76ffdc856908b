"""Memory-mapped TensorDicts, as TorchRL writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyMemmapStorage, TensorDictReplayBuffer
from torchrl.data.datasets import load_dataset as load_with_torchrl

from torchrl_logo.data import DatasetError, convert_dataset, from_arrays, load_dataset
from torchrl_logo.data.formats.reader import find_reader


def to_tensordict(arrays: dict[str, np.ndarray]) -> TensorDict:
    entries = {tuple(key.split("/")): torch.from_numpy(value) for key, value in arrays.items()}
    return TensorDict(entries, batch_size=[15])


def renumber(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    _, episode = np.unique(arrays["episode"], return_inverse=True)
    return {**arrays, "episode": episode.astype(np.int64)}


@pytest.mark.parametrize("told_by", ["episode", "traj_ids", "done"])
def test_flat(arrays, tmp_path: Path, told_by: str) -> None:
    expected = from_arrays(renumber(arrays)).metadata.hash
    data = to_tensordict(arrays)
    data["extra"] = torch.zeros(15)
    if told_by != "episode":
        episode = data.pop("episode")
        data.pop("step")
        if told_by == "traj_ids":
            data["collector", "traj_ids"] = episode
    data.memmap(str(tmp_path / "recorded"))
    assert find_reader(tmp_path / "recorded").format == "memmap"
    made = convert_dataset(tmp_path / "recorded", tmp_path / "own", memory=1, progress_bar=False)
    assert made.metadata.hash == expected
    assert "extra" in made.metadata.provenance["left_out"]


def test_storage_of_a_replay_buffer(arrays, tmp_path: Path) -> None:
    buffer = TensorDictReplayBuffer(storage=LazyMemmapStorage(15, scratch_dir=tmp_path / "rb"))
    buffer.extend(to_tensordict(arrays))
    made = convert_dataset(tmp_path / "rb", tmp_path / "own", progress_bar=False)
    assert made.metadata.hash == from_arrays(renumber(arrays)).metadata.hash


def test_rollouts_side_by_side(arrays, tmp_path: Path) -> None:
    data = to_tensordict(arrays)[:4].exclude("episode", "step")
    torch.stack([data, data]).contiguous().memmap(str(tmp_path / "recorded"))
    made = convert_dataset(tmp_path / "recorded", tmp_path / "own", progress_bar=False)
    assert made.episode_lengths.tolist() == [4, 4]


def test_missing_key(arrays, tmp_path: Path) -> None:
    to_tensordict(arrays).exclude("state").memmap(str(tmp_path / "recorded"))
    with pytest.raises(DatasetError, match="'state'.*no such key"):
        convert_dataset(tmp_path / "recorded", tmp_path / "own")


def test_torchrl_loads_by_prefix(arrays, tmp_path: Path) -> None:
    made = from_arrays(arrays, root=tmp_path / "own")
    found = load_with_torchrl(f"torchrl_logo:{tmp_path / 'own'}")
    assert found.metadata.hash == load_dataset(tmp_path / "own").metadata.hash == made.metadata.hash
