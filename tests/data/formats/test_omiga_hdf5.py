"""OMIGA's HDF5 layout, against a file that h5py writes by hand."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from torchrl_logo.data import DatasetError, convert_dataset
from torchrl_logo.data.formats.reader import find_reader

R, N, D, A, S = 9, 2, 4, 3, 5
ENDS = (3, 8)  # rows


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    arrays = {
        "s": rng.normal(size=(R, S)),
        "o": rng.normal(size=(R, N, D)).astype(np.float32),
        "a": rng.uniform(-1, 1, (R, N, A)).astype(np.float32),
        "r": np.repeat(rng.normal(size=(R, 1)).astype(np.float32), N, 1)[..., None],
        "d": np.zeros((R, N, 1), np.float32),
    }
    arrays["d"][list(ENDS)] = 1.0
    path = tmp_path / "Hopper-v2-3x1-medium.hdf5"
    with h5py.File(path, "w") as file:
        for key, value in arrays.items():
            file[key] = value
    return path, arrays


def test_every_row(written, tmp_path: Path) -> None:
    path, arrays = written
    assert find_reader(path).format == "omiga-hdf5"
    dataset = convert_dataset(path, tmp_path / "own", memory=1, progress_bar=False)
    assert dataset.episode_lengths.tolist() == [3, 4]
    assert dataset.metadata.provenance["rows_left_out"] == 2
    for row, source in enumerate([0, 1, 2, 4, 5, 6, 7]):
        got = dataset[row]
        for found, expected in [
            (got["state"], arrays["s"][source].astype(np.float32)),
            (got["next", "state"], arrays["s"][source + 1].astype(np.float32)),
            (got["agents", "observation"], arrays["o"][source]),
            (got["next", "agents", "observation"], arrays["o"][source + 1]),
            (got["agents", "action"], arrays["a"][source]),
            (got["next", "reward"], arrays["r"][source, 0]),
            (got["next", "truncated"], [source in (2, 7)]),
            (got["next", "terminated"], [False]),
        ]:
            np.testing.assert_array_equal(found.numpy(), expected)


def test_ends_that_are_kept(written, tmp_path: Path) -> None:
    path, arrays = written
    dataset = convert_dataset(path, tmp_path / "own", ends="keep", time_limit=5, progress_bar=False)
    # the first ends after 4 steps, terminated; the second after 5, the limit
    assert dataset.episode_lengths.tolist() == [4, 4]
    assert dataset.data["next", "terminated"].squeeze(-1).nonzero().flatten().tolist() == [3]
    np.testing.assert_array_equal(dataset[3]["next", "state"], dataset[3]["state"])
    assert float(dataset[3]["next", "reward"]) == arrays["r"][3, 0, 0]


def test_states_of_agents(written, tmp_path: Path) -> None:
    path, arrays = written
    with h5py.File(path, "r+") as file:
        del file["s"]
        file["s"] = np.repeat(arrays["s"][:, None], N, 1)
    dataset = convert_dataset(path, tmp_path / "own", progress_bar=False)
    assert dataset.spec.state_size == S
    with h5py.File(path, "r+") as file:
        file["s"][5, 1] = 7.0
    with pytest.raises(DatasetError, match="'s'.*concatenate.*episode 1"):
        convert_dataset(path, tmp_path / "other", progress_bar=False)
    dataset = convert_dataset(path, tmp_path / "other", state="concatenate", progress_bar=False)
    np.testing.assert_array_equal(dataset[0]["state"], arrays["o"][0].ravel())


def test_bad_files(written, tmp_path: Path) -> None:
    path, _ = written
    with h5py.File(path, "r+") as file:
        file["r"][2, 0] = 100.0
    with pytest.raises(DatasetError, match=r"reward_rule.*row 2 \(episode 0 of"):
        convert_dataset(path, tmp_path / "own", progress_bar=False)
    with h5py.File(path, "r+") as file:
        del file["a"]
        file["a"] = np.zeros((R - 1, N, A))
    with pytest.raises(DatasetError, match="'a'.*9 rows.*8"):
        convert_dataset(path, tmp_path / "own")
