"""Sequences of a dataset: which are drawn, and what marks them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from torchrl_logo.data import OfflineDataset, from_arrays, sequence_buffer

LENGTHS = (4, 6, 5)  # of the episodes of the ``arrays`` fixture
STARTS = np.cumsum([0, *LENGTHS[:-1]])


@pytest.fixture
def dataset(arrays: dict[str, np.ndarray]) -> OfflineDataset:
    return from_arrays(arrays)


def draw(dataset: OfflineDataset, count: int = 200, **kwargs: Any) -> Any:
    return sequence_buffer(dataset, batch_size=count, seed=0, **kwargs).sample()


@pytest.mark.parametrize("slice_len", [1, 3, 4])
def test_sequences_are_all_slices_of_the_episodes(
    arrays: dict[str, np.ndarray], dataset: OfflineDataset, slice_len: int
) -> None:
    batch = draw(dataset, slice_len=slice_len)
    assert batch.batch_size == (200, slice_len)
    found = set()
    for b in range(200):
        episode = batch["episode"][b].tolist()
        first = int(batch["step"][b, 0])
        assert episode == [episode[0]] * slice_len
        assert batch["step"][b].tolist() == list(range(first, first + slice_len))
        start = STARTS[episode[0] - 10] + first
        rows = slice(start, start + slice_len)
        assert batch["index"][b].flatten().tolist() == list(range(rows.start, rows.stop))
        for key in ("agents/observation", "agents/action", "next/state", "next/truncated"):
            # flags of ends as well are the data's own
            np.testing.assert_array_equal(batch[tuple(key.split("/"))][b], arrays[key][rows])
        found.add((episode[0] - 10, first))
    windows = {(e, s) for e, n in enumerate(LENGTHS) for s in range(n - slice_len + 1)}
    assert found == windows


def test_first_steps_are_marked(dataset: OfflineDataset) -> None:
    batch = draw(dataset, slice_len=3)
    expected = torch.zeros(200, 3, 1, dtype=torch.bool)
    expected[:, 0] = True
    assert torch.equal(batch["is_init"], expected)
    # nothing else begins in a sequence
    assert ((batch["step"] == 0) <= expected.squeeze(-1)).all()
    assert "collector" not in batch.keys()


def test_episodes_are_equally_likely(dataset: OfflineDataset) -> None:
    batch = draw(dataset, count=6000, slice_len=4)
    counts = torch.bincount(batch["episode"][:, 0] - 10)
    assert (counts - 2000).abs().max() < 5 * (6000 * 2 / 9) ** 0.5


def test_short_episodes_are_refused(dataset: OfflineDataset) -> None:
    message = "1 of 3 episodes have fewer than slice_len=5 steps; the shortest has 4, the longest 6"
    with pytest.raises(ValueError, match=message):
        sequence_buffer(dataset, slice_len=5, batch_size=2)
    with pytest.raises(ValueError, match="3 of 3 episodes have fewer than slice_len=7"):
        sequence_buffer(dataset, slice_len=7, batch_size=2, short_episodes="drop")


def test_short_episodes_are_dropped(dataset: OfflineDataset) -> None:
    batch = draw(dataset, slice_len=5, short_episodes="drop")
    assert set(batch["episode"].flatten().tolist()) == {11, 12}


@pytest.mark.parametrize("slice_len", [3, 5, 8])
def test_short_episodes_are_padded(dataset: OfflineDataset, slice_len: int) -> None:
    batch = draw(dataset, slice_len=slice_len, short_episodes="pad")
    mask = batch["collector", "mask"]
    assert mask.shape == (200, slice_len, 1) and mask.dtype is torch.bool
    for b in range(200):
        length = LENGTHS[int(batch["episode"][b, 0]) - 10]
        real = min(length, slice_len)
        assert mask[b, :, 0].tolist() == [True] * real + [False] * (slice_len - real)
        first = int(batch["step"][b, 0])
        steps = [min(first + t, length - 1) for t in range(slice_len)]
        assert batch["step"][b].tolist() == steps
        assert len(set(batch["episode"][b].tolist())) == 1
    assert set(batch["episode"][:, 0].tolist()) == {10, 11, 12}
    assert batch["is_init"].sum() == 200 and batch["is_init"][:, 0].all()


def test_a_single_episode_does_not_go_round(dataset: OfflineDataset) -> None:
    one = dataset.split(0.4)[0]
    assert one.metadata.episodes == 1
    length = len(one)
    batch = draw(one, slice_len=3)
    assert (batch["step"].diff(dim=1) == 1).all()
    assert set(batch["step"][:, 0].tolist()) == set(range(length - 2))


def test_parts_of_a_dataset(dataset: OfflineDataset) -> None:
    for part in dataset.split(0.7):
        episodes = set(part.data["episode"].tolist())
        batch = draw(part, slice_len=4)
        assert set(batch["episode"].flatten().tolist()) == episodes
        assert (batch["step"].diff(dim=1) == 1).all()
        torch.testing.assert_close(
            part.data[batch["index"].reshape(200, 4)]["state"], batch["state"]
        )


def test_same_seed_same_batches(dataset: OfflineDataset) -> None:
    def make(seed: int) -> Any:
        return sequence_buffer(dataset, slice_len=3, batch_size=16, seed=seed)

    first, second, other = make(1), make(1), make(2)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    a = torch.stack([first.sample()["index"] for _ in range(3)])
    dataset.sample(4)  # leaves the sequences' random state alone
    torch.random.set_rng_state(before)
    b = torch.stack([second.sample()["index"] for _ in range(3)])
    assert torch.equal(a, b)
    assert not torch.equal(a, torch.stack([other.sample()["index"] for _ in range(3)]))
    # a checkpoint goes on where it was
    state = first.state_dict()
    expected = first.sample()["index"]
    third = make(9)
    third.load_state_dict(state)
    assert torch.equal(third.sample()["index"], expected)


def test_bad_arguments_are_refused(dataset: OfflineDataset) -> None:
    with pytest.raises(ValueError, match="positive slice_len and batch_size, found 0 and 4"):
        sequence_buffer(dataset, slice_len=0, batch_size=4)
    with pytest.raises(ValueError, match="positive slice_len and batch_size, found 3 and 0"):
        sequence_buffer(dataset, slice_len=3, batch_size=0)
    with pytest.raises(ValueError, match="'refuse', 'drop' or 'pad', found 'ignore'"):
        sequence_buffer(dataset, slice_len=3, batch_size=4, short_episodes="ignore")
    with pytest.raises(RuntimeError, match="doesn't allow writing"):
        sequence_buffer(dataset, slice_len=3, batch_size=4).extend(dataset[:3])
