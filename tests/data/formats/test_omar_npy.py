"""OMAR's layout, against files that NumPy writes by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from torchrl_logo.data import DatasetError, convert_dataset
from torchrl_logo.data.formats.reader import find_reader

ROWS, SIZES, A, S = 10, (3, 2), 2, 4
LENGTHS = (4, 6)


def write(folder: Path, states: bool = True, ends: tuple[int, ...] = (3, 9)) -> dict:
    rng = np.random.default_rng(0)
    made: dict[str, np.ndarray] = {}
    reward = rng.normal(size=ROWS)
    for agent, size in enumerate(SIZES):
        frames = [rng.normal(size=(length + 1, size)) for length in LENGTHS]
        made[f"obs_{agent}"] = np.concatenate([f[:-1] for f in frames])
        made[f"next_obs_{agent}"] = np.concatenate([f[1:] for f in frames])
        made[f"acs_{agent}"] = rng.uniform(-1, 1, (ROWS, A))
        made[f"rews_{agent}"] = reward
        made[f"dones_{agent}"] = np.isin(np.arange(ROWS), ends).astype(float)
        if states:
            rows = np.random.default_rng(1).normal(size=(ROWS + 2, S))
            made[f"states_{agent}"] = np.concatenate([rows[:4], rows[5:11]])
            made[f"next_states_{agent}"] = np.concatenate([rows[1:5], rows[6:]])
    folder.mkdir(exist_ok=True)
    for name, value in made.items():
        np.save(folder / f"{name}.npy", value)
    return made


@pytest.mark.parametrize("memory", [1, 2**29])
def test_every_row(tmp_path: Path, memory: int) -> None:
    made = write(tmp_path / "seed_0_data")
    assert find_reader(tmp_path / "seed_0_data").format == "omar-npy"
    dataset = convert_dataset(
        tmp_path / "seed_0_data", tmp_path / "own", time_limit=6, memory=memory, progress_bar=False
    )
    assert dataset.episode_lengths.tolist() == list(LENGTHS)
    assert dataset.spec.observation_sizes == SIZES
    for row in range(ROWS):
        got = dataset[row]
        for prefix, data in (("", got), ("next_", got["next"])):
            np.testing.assert_array_equal(
                data["state"], made[f"{prefix}states_0"][row].astype(np.float32)
            )
            for agent, size in enumerate(SIZES):
                np.testing.assert_array_equal(
                    data["agents", "observation"][agent, :size],
                    made[f"{prefix}obs_{agent}"][row].astype(np.float32),
                )
        for agent in range(2):
            expected = made[f"acs_{agent}"][row].astype(np.float32)
            np.testing.assert_array_equal(got["agents", "action"][agent], expected)
        assert float(got["next", "reward"]) == np.float32(made["rews_0"][row])
        assert bool(got["next", "terminated"]) == (row == 3)
        assert bool(got["next", "truncated"]) == (row == 9)  # the sixth step: the limit
    assert (dataset.data["agents", "observation"][:, 1, 2] == 0).all()


def test_particles_mark_no_end(tmp_path: Path) -> None:
    made = write(tmp_path / "seed_0_data", states=False, ends=())
    # an end that is not marked has no continuity: cut where the true episodes are
    with pytest.raises(DatasetError, match=r"states_0.npy.*state='concatenate'"):
        convert_dataset(tmp_path / "seed_0_data", tmp_path / "own")
    with pytest.raises(DatasetError, match="time_limit"):
        convert_dataset(tmp_path / "seed_0_data", tmp_path / "own", state="concatenate")
    with pytest.raises(DatasetError, match="'next/state'.*episode 0"):
        convert_dataset(
            tmp_path / "seed_0_data",
            tmp_path / "own",
            state="concatenate",
            time_limit=5,
            progress_bar=False,
        )
    dataset = convert_dataset(
        tmp_path / "seed_0_data",
        tmp_path / "own",
        state="concatenate",
        time_limit=2,
        progress_bar=False,
    )
    assert dataset.episode_lengths.tolist() == [2] * 5
    assert dataset.data["next", "truncated"].sum() == 5
    expected = np.concatenate([made["obs_0"][0], made["obs_1"][0]]).astype(np.float32)
    np.testing.assert_array_equal(dataset[0]["state"], expected)


def test_bad_folders(tmp_path: Path) -> None:
    folder = tmp_path / "seed_0_data"
    made = write(folder)
    np.save(folder / "rews_1.npy", made["rews_1"] + 1)
    with pytest.raises(DatasetError, match=r"rews_\*.npy.*reward_rule"):
        convert_dataset(folder, tmp_path / "own", progress_bar=False)
    np.save(folder / "rews_1.npy", made["rews_1"][:-1])
    with pytest.raises(DatasetError, match="rews_1.npy.*10 rows.*9"):
        convert_dataset(folder, tmp_path / "own")
    np.save(folder / "rews_1.npy", np.array([{}] * ROWS, dtype=object))
    with pytest.raises(DatasetError, match="rews_1.npy.*pickle"):
        convert_dataset(folder, tmp_path / "own")
    (folder / "rews_1.npy").unlink()
    with pytest.raises(DatasetError, match="rews_1.npy.*a file in"):
        convert_dataset(folder, tmp_path / "own")
    assert not (tmp_path / "own").exists()
