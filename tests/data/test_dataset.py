from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import ReplayBufferEnsemble, TensorDictReplayBuffer

from torchrl_logo.data import DatasetError, DatasetMetadata, OfflineDataset, from_arrays
from torchrl_logo.data.content_hash import hash_content


def _walk(lengths: list[int], seed: int = 0) -> dict[str, np.ndarray]:
    """Episodes whose state holds (episode, step), so that every row names itself."""
    rng = np.random.default_rng(seed)
    episode = np.repeat(np.arange(len(lengths)), lengths)
    step = np.concatenate([np.arange(n) for n in lengths])
    last = step == np.repeat(lengths, lengths) - 1
    state = np.stack([episode, step], -1).astype(np.float32)
    observation = np.repeat(state[:, None], 3, axis=1)
    ahead = np.asarray([0, 1], np.float32)
    return {
        "agents/observation": observation,
        "next/agents/observation": observation + ahead,
        "agents/action": rng.uniform(-1, 1, (len(step), 3, 1)).astype(np.float32),
        "state": state,
        "next/state": state + ahead,
        "next/reward": step[:, None].astype(np.float32),
        "next/done": last[:, None],
        "next/terminated": np.zeros_like(last[:, None]),
        "next/truncated": last[:, None],
        "episode": episode,
        "step": step,
    }


LENGTHS = [3, 9, 1, 6, 20, 2, 5, 5, 7, 12]


@pytest.fixture
def dataset() -> OfflineDataset:
    return from_arrays(_walk(LENGTHS), quality="medium")


def test_it_is_a_replay_buffer(dataset):
    assert isinstance(dataset, TensorDictReplayBuffer)
    assert len(dataset) == sum(LENGTHS)
    torch.manual_seed(0)
    sample = dataset.sample(64)
    assert sample.batch_size == torch.Size([64])
    # A sampled row is the row of the data that its index names.
    assert torch.equal(sample["state"], dataset.data["state"][sample["index"]])
    assert dataset.data.is_memmap()
    with pytest.raises(RuntimeError, match="batch_size"):
        dataset.sample()
    assert len(from_arrays(_walk(LENGTHS), batch_size=17).sample()) == 17


def test_it_cannot_be_written_to(dataset):
    for write in (dataset.add, dataset.extend):
        with pytest.raises(RuntimeError, match="writing|immutable"):
            write(dataset.data[:2])
    with pytest.raises(RuntimeError):
        dataset.empty()
    with pytest.raises(RuntimeError):
        dataset[0] = dataset.data[0]
    assert hash_content(dataset.data) == dataset.metadata.hash


def test_it_is_a_member_of_an_ensemble(dataset):
    train, held_out = dataset.split(0.5)
    both = ReplayBufferEnsemble(train, held_out, sample_from_all=True, batch_size=10)
    episodes = both.sample()["episode"]  # [2, 5]
    for part, drawn in ((train, episodes[0]), (held_out, episodes[1])):
        assert set(drawn.tolist()) <= set(part.data["episode"].tolist())


def test_episodes(dataset):
    assert dataset.episode_lengths.tolist() == LENGTHS
    assert dataset.episode_starts.tolist() == [0, *np.cumsum(LENGTHS)[:-1].tolist()]
    for index, rows in enumerate(dataset.episode_slices):
        assert dataset[rows]["episode"].tolist() == [index] * LENGTHS[index]
    assert dataset.returns.tolist() == [n * (n - 1) / 2 for n in LENGTHS]


def test_metadata_is_a_mapping_and_survives_json(dataset):
    metadata = dataset.metadata
    assert metadata["hash"] == metadata.hash
    assert metadata["transitions"] == 70 and metadata["episodes"] == 10
    assert metadata["quality"] == "medium"
    with pytest.raises(KeyError, match="quallity"):
        metadata["quallity"]
    content = json.loads(json.dumps(metadata.to_dict()))
    assert DatasetMetadata.from_dict(content) == metadata
    del content["hash"]
    with pytest.raises(ValueError, match="missing.*hash"):
        DatasetMetadata.from_dict(content)
    assert {"torch", "torchrl", "tensordict", "torchrl_logo"} <= set(
        metadata.provenance["versions"]
    )


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.8, 0.99])
def test_split_is_by_episode(dataset, fraction):
    train, held_out = dataset.split(fraction, seed=3)
    first, second = (set(d.data["episode"].tolist()) for d in (train, held_out))
    assert not first & second
    assert first | second == set(range(10))
    assert len(first) == min(max(round(10 * fraction), 1), 9)
    assert len(train) + len(held_out) == 70
    for part, episodes in ((train, first), (held_out, second)):
        # Whole episodes, in their order, and the part's own numbers.
        assert part.episode_lengths.tolist() == [LENGTHS[e] for e in sorted(episodes)]
        assert part.returns.tolist() == [
            LENGTHS[e] * (LENGTHS[e] - 1) / 2 for e in sorted(episodes)
        ]
        assert part.metadata.transitions == len(part)
        assert part.metadata.return_statistics["mean"] == pytest.approx(part.returns.mean())
        assert part.metadata.hash == hash_content(part.data)
        assert set(part.sample(200)["episode"].tolist()) == episodes


def test_split_depends_on_the_seed_alone(dataset):
    torch.manual_seed(0)
    train, _ = dataset.split(0.5, seed=1)
    torch.manual_seed(1)
    again, _ = from_arrays(_walk(LENGTHS)).split(0.5, seed=1)
    other, _ = dataset.split(0.5, seed=2)
    assert train.metadata.hash == again.metadata.hash != other.metadata.hash


def test_split_copies_nothing_and_can_be_split_again(dataset):
    train, _ = dataset.split(0.7)
    inner, outer = train.split(0.5)
    assert inner.storage._storage["state"].data_ptr() == dataset.data["state"].data_ptr()
    episodes = [set(d.data["episode"].tolist()) for d in (inner, outer, train)]
    assert episodes[0] | episodes[1] == episodes[2]
    assert [s["part"] for s in inner.metadata.provenance["splits"]] == ["train", "train"]


def test_bad_splits_are_refused(dataset):
    for fraction in (0, 1, 1.5, -0.1):
        with pytest.raises(ValueError, match="between 0 and 1"):
            dataset.split(fraction)
    with pytest.raises(ValueError, match="at least 2 episodes, found 1"):
        from_arrays(_walk([5])).split(0.5)


@pytest.mark.parametrize("length", [1, 4, 12])
def test_sequences_are_uniform_windows_within_an_episode(dataset, length):
    train, _ = dataset.split(0.8)
    for part in (dataset, train):
        torch.manual_seed(0)
        windows = part.sample_sequences(20_000, length)
        assert windows.batch_size == torch.Size([20_000, length])
        state = windows["state"]  # [S, L, (episode, step)]
        assert (state[..., 0] == state[:, :1, 0]).all()
        assert (state[:, 1:, 1] - state[:, :-1, 1] == 1).all()
        found, counts = windows[:, 0]["state"].unique(dim=0, return_counts=True)
        expected = {
            (float(e), float(s))
            for e in set(part.data["episode"].tolist())
            for s in range(LENGTHS[e] - length + 1)
        }
        assert {tuple(row) for row in found.tolist()} == expected
        # Uniform: chi-square against equal counts, at 5 standard deviations.
        mean = 20_000 / len(expected)
        chi2 = ((counts - mean) ** 2 / mean).sum()
        freedom = len(expected) - 1
        assert chi2 < freedom + 5 * (2 * freedom) ** 0.5 + 1


def test_sequences_that_no_episode_has(dataset):
    with pytest.raises(ValueError, match="21 steps asked for; the longest has 20"):
        dataset.sample_sequences(4, 21)
    with pytest.raises(ValueError, match="positive"):
        dataset.sample_sequences(0, 3)


def test_saved_and_loaded(dataset, tmp_path):
    dataset.save(tmp_path / "a" / "b")
    loaded = OfflineDataset.load(tmp_path / "a" / "b", verify=True, batch_size=5)
    assert loaded.metadata == dataset.metadata
    assert (loaded.data == dataset.data).all()
    assert len(loaded.sample()) == 5
    # A split is saved as its own episodes, under the hash it had before.
    train, _ = loaded.split(0.5)
    train.save(tmp_path / "train")
    again = OfflineDataset.load(tmp_path / "train", verify=True)
    assert len(again) == len(train) and again.metadata == train.metadata
    # Nothing else is left behind.
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "train"]


def test_an_interrupted_save_leaves_nothing(dataset, tmp_path, monkeypatch):
    def fail(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(KeyboardInterrupt):
        dataset.save(tmp_path / "data")
    assert not list(tmp_path.iterdir())


def test_saving_over_something_is_refused(dataset, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="mine"):
        dataset.save(tmp_path / "mine")


def test_opening_changes_no_file(dataset, tmp_path):
    dataset.save(tmp_path / "d")
    files = [f for f in (tmp_path / "d").rglob("*") if f.is_file()]
    for place in (*files, *{f.parent for f in files}):
        place.chmod(0o555 if place.is_dir() else 0o444)
    before = {f: (f.stat().st_mtime_ns, f.stat().st_ino, f.read_bytes()) for f in files}
    opened = OfflineDataset.load(tmp_path / "d")
    train, _ = opened.split(0.5)
    train.sample(8)
    # what somebody writes into a tensor stays in memory
    opened.data["state"][0] = 7.0
    assert {f: (f.stat().st_mtime_ns, f.stat().st_ino, f.read_bytes()) for f in files} == before
    assert OfflineDataset.load(tmp_path / "d", verify=True).metadata.hash == dataset.metadata.hash
    for place in {f.parent for f in files}:
        place.chmod(0o755)


def test_hostile_descriptions_are_refused(dataset, tmp_path):
    dataset.save(tmp_path / "d")
    meta = tmp_path / "d" / "data" / "meta.json"
    good = json.loads(meta.read_text())

    def change(**entries):
        meta.write_text(json.dumps({**good, **entries}))
        with pytest.raises(DatasetError) as caught:
            OfflineDataset.load(tmp_path / "d")
        return str(caught.value)

    state = good["state"]
    rows = len(dataset)
    assert f"{rows * 2 * 4 + 4} bytes" not in change(state={**state, "shape": [rows, 10**15]})
    assert "a shape" in change(state={**state, "shape": [-1, 2]})
    assert "a shape" in change(state={**state, "dtype": "object"})
    assert "a TensorDict" in change(agents={"type": "NonTensorData"})
    assert "names of keys" in change(**{"../../outside": state})
    assert "no file" in change(ghost=state)
    meta.write_text("{" * 10_000)
    with pytest.raises(DatasetError, match="a JSON object"):
        OfflineDataset.load(tmp_path / "d")
    meta.write_text(json.dumps(good))
    file = tmp_path / "d" / "data" / "state.memmap"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(DatasetError, match="state.memmap.*bytes"):
        OfflineDataset.load(tmp_path / "d")


def test_damaged_data_are_found(dataset, tmp_path):
    dataset.save(tmp_path / "d")
    with pytest.raises(FileNotFoundError, match="metadata.json"):
        OfflineDataset.load(tmp_path)
    file = tmp_path / "d" / "data" / "state.memmap"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    OfflineDataset.load(tmp_path / "d", verify=False)
    with pytest.raises(DatasetError, match="expected content with hash"):
        OfflineDataset.load(tmp_path / "d")
    metadata = json.loads((tmp_path / "d" / "metadata.json").read_text())
    metadata["spec"]["n_agents"] = 4
    metadata["spec"]["observation_sizes"] = [2] * 4
    (tmp_path / "d" / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(DatasetError, match="expected content with checksum"):
        OfflineDataset.load(tmp_path / "d")
    # The format before this one had no checksum.
    metadata["format"] = 1
    del metadata["checksum"]
    (tmp_path / "d" / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(DatasetError, match=r"agents/observation.*\[4, 2\].*\[3, 2\]"):
        OfflineDataset.load(tmp_path / "d")


def test_hash_sees_content_alone():
    data = TensorDict({"a": torch.arange(6.0), ("b", "c"): torch.zeros(6, 2)}, [6])
    same = TensorDict({("b", "c"): torch.zeros(6, 2), "a": torch.arange(6.0)}, [6])
    assert hash_content(data) == hash_content(same)
    rows = torch.tensor([1, 3])
    assert hash_content(data, rows) == hash_content(data[rows])
    changes = {
        "value": lambda d: d["a"].__setitem__(5, 7.0),
        "dtype": lambda d: d.set("a", d["a"].double()),
        "shape": lambda d: d.set(("b", "c"), torch.zeros(6, 1, 2)),
        "name": lambda d: d.rename_key_("a", "z"),
    }
    for name, change in changes.items():
        other = data.clone()
        change(other)
        assert hash_content(other) != hash_content(data), name


def test_checkpoints_hold_the_hash_and_not_the_data(dataset, tmp_path):
    state = dataset.state_dict()
    assert len(pickle.dumps(state)) < 10_000
    dataset.load_state_dict(state)
    dataset.dumps(tmp_path / "checkpoint")
    dataset.loads(tmp_path / "checkpoint")
    other = from_arrays(_walk(LENGTHS, seed=1))
    with pytest.raises(ValueError, match="other data"):
        other.load_state_dict(state)
    with pytest.raises(ValueError, match="other data"):
        other.loads(tmp_path / "checkpoint")


def test_summary_names_what_matters(dataset):
    text = repr(dataset)
    for part in ("medium", "70 transitions in 10 episodes", "3 agents", dataset.metadata.hash):
        assert part in text


def test_notebooks_show_a_table(dataset):
    table = dataset._repr_html_()
    assert table.startswith("<table>") and table.endswith("</table>")
    for part in ("<td>medium</td>", "70 transitions in 10 episodes", dataset.metadata.hash):
        assert part in table


def test_the_device_is_that_of_the_samples():
    dataset = from_arrays(_walk(LENGTHS), device="meta")
    assert dataset.sample(4)["agents", "action"].device.type == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_samples_on_a_gpu(dataset):
    on_gpu = from_arrays(_walk(LENGTHS), device="cuda")
    assert torch.equal(on_gpu.data["state"].cpu(), dataset.data["state"])
    train, _ = on_gpu.split(0.5)
    for part in (on_gpu, train):
        assert part.sample(4)["state"].device.type == "cuda"
        windows = part.sample_sequences(64, 3)["state"]
        assert (windows[:, 1:, 1] - windows[:, :-1, 1] == 1).all()
    assert train.metadata.hash == dataset.split(0.5)[0].metadata.hash
