"""PyMARL's HDF5 layout, against a file that h5py writes by hand."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from torchrl_logo.data import DatasetError, convert_dataset, from_arrays, load_dataset
from torchrl_logo.data.formats.pymarl_hdf5 import write_pymarl_hdf5
from torchrl_logo.data.formats.reader import find_reader

E, L, N, A, D, S = 3, 6, 2, 4, 3, 5
LENGTHS = (4, 6, 2)  # terminated, at the time limit, terminated


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    arrays = {
        "state": rng.normal(size=(E, L + 1, S)).astype(np.float32),
        "obs": rng.normal(size=(E, L + 1, N, D)).astype(np.float32),
        "actions": np.zeros((E, L + 1, N, 1), np.int64),
        "avail_actions": np.ones((E, L + 1, N, A), np.int32),
        "probs": rng.random((E, L + 1, N, A)).astype(np.float32),
        "reward": rng.normal(size=(E, L + 1, 1)).astype(np.float32),
        "terminated": np.zeros((E, L + 1, 1), np.uint8),
        "filled": np.zeros((E, L + 1, 1), np.int64),
    }
    for episode, length in enumerate(LENGTHS):
        arrays["filled"][episode, : length + 1] = 1
        for key in ("state", "obs", "reward"):  # what pads is not zero everywhere
            arrays[key][episode, length + 1 :] = 99.0
        for step in range(length):
            arrays["avail_actions"][episode, step, 0, 3] = 0
            arrays["actions"][episode, step] = rng.integers(0, 3, size=(N, 1))
    arrays["terminated"][0, 3] = arrays["terminated"][2, 1] = 1
    path = tmp_path / "5m_vs_6m_medium.h5"
    with h5py.File(path, "w") as file:
        for key, value in arrays.items():
            file[key] = value
    return path, arrays


@pytest.mark.parametrize("memory", [1, 2**29])
def test_every_row(written, tmp_path: Path, memory: int) -> None:
    path, arrays = written
    assert find_reader(path).format == "pymarl-hdf5"
    dataset = convert_dataset(path, tmp_path / "own", memory=memory, progress_bar=False)
    assert dataset.episode_lengths.tolist() == list(LENGTHS)
    assert (dataset.spec.n_agents, dataset.spec.action_size, dataset.spec.max_steps) == (N, A, L)
    row = 0
    for episode, length in enumerate(LENGTHS):
        for step in range(length):
            got = dataset[row]
            last = step == length - 1
            for key, name in {"state": "state", "obs": ("agents", "observation")}.items():
                following = ("next", name) if isinstance(name, str) else ("next", *name)
                np.testing.assert_array_equal(got[name], arrays[key][episode, step])
                np.testing.assert_array_equal(got[following], arrays[key][episode, step + 1])
            np.testing.assert_array_equal(
                got["agents", "action"], arrays["actions"][episode, step, :, 0]
            )
            np.testing.assert_array_equal(
                got["next", "agents", "action_mask"], arrays["avail_actions"][episode, step + 1] > 0
            )
            assert float(got["next", "reward"]) == float(arrays["reward"][episode, step, 0])
            assert bool(got["next", "terminated"]) == (last and episode != 1)
            assert bool(got["next", "truncated"]) == (last and episode == 1)
            row += 1
    assert row == len(dataset)


def test_unfilled_last_observation_is_counted(written, tmp_path: Path) -> None:
    path, _ = written
    with h5py.File(path, "r+") as file:
        file["filled"][0, 4] = 0
    dataset = load_dataset(path, root=tmp_path, progress_bar=False)
    assert dataset.metadata.provenance["last_observations_not_filled"] == 1
    assert dataset.episode_lengths.tolist() == list(LENGTHS)


def test_written_file_reads_back(discrete_arrays, tmp_path: Path) -> None:
    _, episode = np.unique(discrete_arrays["episode"], return_inverse=True)
    original = from_arrays({**discrete_arrays, "episode": episode.astype(np.int64)})
    write_pymarl_hdf5(original, tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5") as file:  # the layout, read by hand
        assert file["filled"][:].sum((1, 2)).tolist() == [5, 7, 6]
        assert file["actions"].shape == (3, 7, 2, 1) and file["avail_actions"].dtype == np.int32
        chosen = file["actions_onehot"][0, :4].argmax(-1)
        np.testing.assert_array_equal(chosen, discrete_arrays["agents/action"][:4])
    again = convert_dataset(tmp_path / "out.h5", tmp_path / "own", progress_bar=False)
    assert again.metadata.hash == original.metadata.hash
    with pytest.raises(FileExistsError):
        write_pymarl_hdf5(original, tmp_path / "out.h5")


def test_continuous_actions_have_no_place(arrays, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="continuous"):
        write_pymarl_hdf5(from_arrays(arrays), tmp_path / "out.h5")


def change(path: Path, key: str, index, value) -> None:
    with h5py.File(path, "r+") as file:
        file[key][index] = value


def test_bad_files(written, tmp_path: Path) -> None:
    path, _ = written
    change(path, "filled", (1, 2), 0)
    with pytest.raises(DatasetError, match="'filled'.*a gap in episode 1"):
        convert_dataset(path, tmp_path / "own")
    change(path, "filled", (1, 2), 1)
    change(path, "terminated", (1, 1), 1)
    with pytest.raises(DatasetError, match="episode 1 terminates at step 1 of 7 filled"):
        convert_dataset(path, tmp_path / "own")
    change(path, "terminated", (1, 1), 0)
    change(path, "actions", (2, 1, 0, 0), 3)
    with pytest.raises(DatasetError, match=r"action 3 of agent 0.*masked \(episode 2 of .*\.h5\)"):
        convert_dataset(path, tmp_path / "own")
    with h5py.File(path, "r+") as file:
        del file["state"]
    with pytest.raises(DatasetError, match="'state'.*5m_vs_6m_medium.h5.*'obs'"):
        convert_dataset(path, tmp_path / "own")
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DatasetError, match="whole HDF5 file"):
        convert_dataset(path, tmp_path / "own", format="pymarl-hdf5")
    assert not (tmp_path / "own").exists()
