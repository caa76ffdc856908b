"""Vaults, against what flashbax itself writes and reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from torchrl_logo.data import DatasetError, convert_dataset, from_arrays
from torchrl_logo.data.formats.episode_ends import plan_episodes
from torchrl_logo.data.formats.reader import find_reader
from torchrl_logo.data.formats.vault import write_vault

flashbax_vault = pytest.importorskip("flashbax.vault")
jnp = pytest.importorskip("jax.numpy")
TrajectoryBufferState = pytest.importorskip(
    "flashbax.buffers.trajectory_buffer"
).TrajectoryBufferState

T, N, A, D, S = 11, 2, 4, 3, 5
# In stream 0: steps 0-3 terminate, 4-8 are truncated, 9-10 are open. In stream 1: 0-10 terminate.
ENDS = {0: {3: "terminals", 8: "truncations"}, 1: {10: "terminals"}}


def make_experience(discrete: bool, streams: int = 2) -> dict:
    rng = np.random.default_rng(0)
    experience = {
        "observations": rng.normal(size=(streams, T, N, D)).astype(np.float32),
        "rewards": np.repeat(rng.normal(size=(streams, T, 1)), N, -1).astype(np.float32),
        "terminals": np.zeros((streams, T, N), np.float32),
        "truncations": np.zeros((streams, T, N), np.float32),
        "infos": {"state": rng.normal(size=(streams, T, S)).astype(np.float32)},
    }
    for stream in range(streams):
        for step, kind in ENDS[stream].items():
            experience[kind][stream, step] = 1.0
    if discrete:
        experience["actions"] = rng.integers(0, 3, size=(streams, T, N)).astype(np.int32)
        legals = np.ones((streams, T, N, A), np.float32)
        legals[:, ::2, :, 3] = 0.0
        experience["infos"]["legals"] = legals
    else:
        experience["actions"] = rng.uniform(-1, 1, (streams, T, N, 2)).astype(np.float32)
    return experience


def write_with_flashbax(experience: dict, folder: Path) -> Path:
    def to_jax(tree):
        return {k: to_jax(v) if isinstance(v, dict) else jnp.asarray(v) for k, v in tree.items()}

    streams, steps = experience["terminals"].shape[:2]
    state = TrajectoryBufferState(
        experience=to_jax(experience), current_index=jnp.array(steps), is_full=jnp.array(False)
    )
    vault = flashbax_vault.Vault(
        "map.vlt", state.experience, rel_dir=str(folder), vault_uid="Medium"
    )
    vault.write(state)
    return folder / "map.vlt"


@pytest.mark.parametrize("memory", [1, 2**29])
def test_every_row_of_a_discrete_vault(tmp_path: Path, memory: int) -> None:
    experience = make_experience(discrete=True)
    path = write_with_flashbax(experience, tmp_path)
    assert find_reader(path).format == find_reader(path / "Medium").format == "vault"
    dataset = convert_dataset(path, tmp_path / "own", memory=memory, progress_bar=False)
    # kept: 4 (terminated), 4 of 5 (truncated), 1 of 2 (open); 11 (terminated)
    assert dataset.episode_lengths.tolist() == [4, 4, 1, 11]
    assert dataset.metadata.provenance["ends_with_own_observations"] == 2
    assert dataset.metadata.provenance["rows_left_out"] == 2
    places = [(0, t) for t in (0, 1, 2, 3, 4, 5, 6, 7, 9)] + [(1, t) for t in range(11)]
    for row, (stream, step) in enumerate(places):
        got = dataset[row]
        terminated = ENDS[stream].get(step) == "terminals"
        following = step if terminated else step + 1
        infos = experience["infos"]
        pairs = [
            (got["agents", "observation"], experience["observations"][stream, step]),
            (got["next", "agents", "observation"], experience["observations"][stream, following]),
            (got["state"], infos["state"][stream, step]),
            (got["next", "state"], infos["state"][stream, following]),
            (got["agents", "action"], experience["actions"][stream, step]),
            (got["agents", "action_mask"], infos["legals"][stream, step] > 0),
            (got["next", "agents", "action_mask"], infos["legals"][stream, following] > 0),
            (got["next", "reward"], experience["rewards"][stream, step, :1]),
            (got["next", "terminated"], [terminated]),
            (got["next", "truncated"], [(stream, step) in [(0, 7), (0, 9)]]),
        ]
        for found, expected in pairs:
            np.testing.assert_array_equal(found.numpy(), expected)


def test_continuous_vault_and_dropped_ends(tmp_path: Path) -> None:
    experience = make_experience(discrete=False, streams=1)
    path = write_with_flashbax(experience, tmp_path)
    dataset = convert_dataset(path, tmp_path / "own", ends="drop", progress_bar=False)
    assert dataset.episode_lengths.tolist() == [3, 4, 1]
    assert not dataset.data["next", "terminated"].any()
    np.testing.assert_array_equal(
        dataset.data["agents", "action"][:3].numpy(), experience["actions"][0, :3]
    )


def test_choices(tmp_path: Path) -> None:
    experience = make_experience(discrete=False, streams=1)
    experience["rewards"][0, 5, 1] += 1.0
    experience["observations"][0, :, 1, 2] = -np.inf
    del experience["infos"]["state"]
    path = write_with_flashbax(experience, tmp_path)
    out = tmp_path / "own"
    with pytest.raises(DatasetError, match=r"infos.state.*state='concatenate'"):
        convert_dataset(path, out)
    with pytest.raises(DatasetError, match="infinite"):
        convert_dataset(path, out, state="concatenate", reward_rule="mean", progress_bar=False)
    options = {"state": "concatenate", "padding": float("-inf"), "progress_bar": False}
    with pytest.raises(DatasetError, match=r"reward_rule='mean'.*episode 1"):
        convert_dataset(path, out, **options)
    dataset = convert_dataset(path, out, reward_rule="sum", **options)
    assert dataset.spec.state_size == N * D and (dataset.data["state"][:, 5] == 0).all()
    expected = experience["rewards"][0, 5].sum()
    assert float(dataset.data["next", "reward"][5]) == pytest.approx(float(expected))


def test_flashbax_reads_what_is_written(discrete_arrays, tmp_path: Path) -> None:
    dataset = from_arrays(discrete_arrays)
    write_vault(dataset, tmp_path / "map.vlt" / "Good")
    vault = flashbax_vault.Vault("map.vlt", rel_dir=str(tmp_path), vault_uid="Good")
    found = vault.read().experience
    assert found["observations"].shape == (1, len(dataset), 2, 3)
    for name, key in {
        "observations": "agents/observation",
        "actions": "agents/action",
    }.items():
        np.testing.assert_array_equal(np.asarray(found[name])[0], discrete_arrays[key])
    np.testing.assert_array_equal(np.asarray(found["infos"]["state"])[0], discrete_arrays["state"])
    terminals = np.asarray(found["terminals"])[0]
    np.testing.assert_array_equal(terminals[:, :1], discrete_arrays["next/terminated"])
    again = convert_dataset(tmp_path / "map.vlt", tmp_path / "own", progress_bar=False)
    assert again.episode_lengths.tolist() == [4, 5, 5]  # the second is truncated
    with pytest.raises(FileExistsError):
        write_vault(dataset, tmp_path / "map.vlt" / "Good")


def test_several_vaults_and_none(tmp_path: Path) -> None:
    experience = make_experience(discrete=True, streams=1)
    path = write_with_flashbax(experience, tmp_path)
    (path / "Medium").rename(path / "Good")
    write_with_flashbax(experience, tmp_path)
    with pytest.raises(DatasetError, match="one vault.*'Good', 'Medium'"):
        convert_dataset(path, tmp_path / "own")
    (path / "Good" / "manifest.ocdbt").write_bytes(b"broken")
    with pytest.raises(DatasetError, match="a store in"):
        convert_dataset(path / "Good", tmp_path / "own")
    assert not (tmp_path / "own").exists()


def test_plan_of_rows_that_stop() -> None:
    terminated = np.array([True, False, False, False])
    plan = plan_episodes(terminated, np.array([False, True, False, False]), "keep")
    assert plan.first.tolist() == [0, 2] and plan.lengths.tolist() == [1, 1]
    row, following, last = plan.rows(0, 2)
    assert (row.tolist(), following.tolist(), last.tolist()) == ([0, 2], [0, 3], [True, True])
    assert plan.left_out == 2
    with pytest.raises(ValueError, match="keep"):
        plan_episodes(terminated, terminated, "guess")
