"""Minari datasets, against what Minari itself writes and reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from torchrl_logo.data import DatasetError, convert_dataset, from_arrays
from torchrl_logo.data.formats.minari import write_minari
from torchrl_logo.data.formats.reader import find_reader

minari = pytest.importorskip("minari")
spaces = pytest.importorskip("gymnasium.spaces")
EpisodeBuffer = minari.data_collector.EpisodeBuffer

# Minari asks for an author, a description and so on.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")
LENGTHS = (3, 5)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def write_by_agent(state: bool = True, discrete: bool = False) -> tuple[Path, list[dict]]:
    """Agents of different observations, by their names."""
    rng = np.random.default_rng(0)
    sizes = {"left": 2, "right": 3}
    boxes = {name: spaces.Box(-np.inf, np.inf, (size,)) for name, size in sizes.items()}
    if state:
        boxes["state"] = spaces.Box(-np.inf, np.inf, (4,))
    actions = {n: spaces.Discrete(3) if discrete else spaces.Box(-2, 2, (1,)) for n in sizes}
    episodes = []
    for index, length in enumerate(LENGTHS):
        ends = np.arange(length) == length - 1
        made = {n: rng.normal(size=(length + 1, *b.shape)).astype("f4") for n, b in boxes.items()}
        taken = {
            n: rng.integers(0, 3, length) if discrete else rng.uniform(-2, 2, (length, 1))
            for n in sizes
        }
        episodes.append(
            {
                "observations": made,
                "actions": {n: a if discrete else a.astype("f4") for n, a in taken.items()},
                "rewards": rng.normal(size=length).astype("f4"),
                "terminations": ends & (index == 0),
                "truncations": ends & (index == 1),
            }
        )
    made = minari.create_dataset_from_buffers(
        "team/test-v0",
        [EpisodeBuffer(id=i, **e) for i, e in enumerate(episodes)],
        observation_space=spaces.Dict(boxes),
        action_space=spaces.Dict(actions),
        data_format="hdf5",
    )
    return Path(made.storage.data_path).parent, episodes


def test_every_row_by_agent(root: Path, tmp_path: Path) -> None:
    path, episodes = write_by_agent()
    assert find_reader(path).format == "minari"
    dataset = convert_dataset(path, tmp_path / "own", memory=1, progress_bar=False)
    spec = dataset.spec
    assert (spec.observation_sizes, spec.action_low, spec.action_high) == ((2, 3), (-2.0,), (2.0,))
    row = 0
    for episode, length in zip(episodes, LENGTHS, strict=True):
        for step in range(length):
            got = dataset[row]
            made = episode["observations"]
            for shift, data in ((0, got), (1, got["next"])):
                left, right = data["agents", "observation"].numpy()
                np.testing.assert_array_equal(left[:2], made["left"][step + shift])
                assert left[2] == 0
                np.testing.assert_array_equal(right, made["right"][step + shift])
                np.testing.assert_array_equal(data["state"], made["state"][step + shift])
            for agent, name in enumerate(("left", "right")):
                assert got["agents", "action"][agent] == episode["actions"][name][step]
            assert float(got["next", "reward"]) == episode["rewards"][step]
            assert bool(got["next", "terminated"]) == bool(episode["terminations"][step])
            assert bool(got["next", "truncated"]) == bool(episode["truncations"][step])
            row += 1
    assert row == len(dataset)


def test_discrete_by_agent_and_no_state(root: Path, tmp_path: Path) -> None:
    path, episodes = write_by_agent(state=False, discrete=True)
    with pytest.raises(DatasetError, match=r"observations/state.*state='concatenate'"):
        convert_dataset(path, tmp_path / "own")
    dataset = convert_dataset(path, tmp_path / "own", state="concatenate", progress_bar=False)
    assert dataset.spec.action_size == 3 and dataset.data["agents", "action_mask"].all()
    expected = np.concatenate([episodes[0]["observations"][n][0] for n in ("left", "right")])
    np.testing.assert_array_equal(dataset[0]["state"], expected)


@pytest.mark.parametrize("kind", ["arrays", "discrete_arrays"])
def test_minari_reads_what_is_written(kind: str, root: Path, tmp_path: Path, request) -> None:
    arrays = request.getfixturevalue(kind)
    _, episode = np.unique(arrays["episode"], return_inverse=True)
    original = from_arrays({**arrays, "episode": episode.astype(np.int64)})
    path = write_minari(original, "vmas/own-v0")
    loaded = minari.load_dataset("vmas/own-v0")
    assert loaded.total_episodes == 3 and loaded.total_steps == len(original)
    second = loaded[1]
    np.testing.assert_array_equal(second.observations["state"][:-1], arrays["state"][4:10])
    np.testing.assert_array_equal(second.actions, arrays["agents/action"][4:10])
    np.testing.assert_array_equal(second.rewards, arrays["next/reward"][4:10, 0])
    again = convert_dataset(path, tmp_path / "own", progress_bar=False)
    assert again.metadata.hash == original.metadata.hash
    other = write_minari(original, "vmas/own-v0", root=tmp_path / "elsewhere")
    assert other.is_relative_to(tmp_path / "elsewhere")


@pytest.mark.parametrize("bounds", [(1.0, -1.0), (float("nan"), 1.0)])
def test_bounds_that_hold_no_action_are_named(
    bounds: tuple[float, float], root: Path, tmp_path: Path
) -> None:
    path, _ = write_by_agent()
    file = next(path.rglob("metadata.json"))
    metadata = json.loads(file.read_text())
    low, high = bounds
    space = {"type": "Box", "low": [low], "high": [high], "shape": [1], "dtype": "float32"}
    file.write_text(json.dumps({**metadata, "action_space": json.dumps(space)}))
    with pytest.raises(DatasetError, match=r"metadata.json/action_space.*a lower bound of"):
        convert_dataset(path, tmp_path / "own", progress_bar=False)


def test_single_agent_data(root: Path, tmp_path: Path) -> None:
    buffer = EpisodeBuffer(
        id=0,
        observations=np.zeros((3, 2), "f4"),
        actions=np.zeros((2, 1), "f4"),
        rewards=np.zeros(2),
        terminations=np.array([False, True]),
        truncations=np.zeros(2, bool),
    )
    made = minari.create_dataset_from_buffers(
        "one/agent-v0",
        [buffer],
        observation_space=spaces.Box(-1, 1, (2,)),
        action_space=spaces.Box(-1, 1, (1,)),
        data_format="hdf5",
    )
    with pytest.raises(DatasetError, match="dictionary with the agents"):
        convert_dataset(Path(made.storage.data_path), tmp_path / "own")
