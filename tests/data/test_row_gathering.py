"""Gathering rows against indexing, and the storage and trainers that read through it."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_logo.data.episode_storage import EpisodeStorage
from torchrl_logo.data.row_gathering import gather_rows


def make_data(n=50):
    generator = torch.Generator().manual_seed(0)
    agents = TensorDict({"observation": torch.rand(n, 3, 4, generator=generator)}, [n, 3])
    flag = torch.rand(n, 1, generator=generator) < 0.5
    return TensorDict(
        {"agents": agents, "next": {"done": flag}, "step": torch.arange(n), "empty": {}}, [n]
    )


def require_equal(found, expected):
    assert set(found.keys(True)) == set(expected.keys(True))
    assert found.batch_size == expected.batch_size
    assert found["agents"].batch_size == expected["agents"].batch_size
    for key, value in expected.items(True, True):
        assert torch.equal(found.get(key), value) and found.get(key).dtype == value.dtype


@pytest.mark.parametrize("mapped", [False, True])
def test_rows_are_those_of_indexing(mapped, tmp_path):
    data = make_data().memmap(str(tmp_path)) if mapped else make_data()
    index = torch.tensor([49, 0, 7, 7])
    rows = gather_rows(data, index)
    require_equal(rows, make_data()[index])
    rows["step"].fill_(-1)  # a copy
    assert int(data["step"].min()) == 0
    with pytest.raises(IndexError):
        gather_rows(data, torch.tensor([50]))


@pytest.mark.parametrize("rows", [None, torch.arange(5, 45)])
@pytest.mark.parametrize(
    "index",
    [
        torch.tensor([3, 1, 3]),
        torch.tensor([-1, 2]),
        torch.tensor([[1, 2], [3, 4]]),
        torch.tensor([], dtype=torch.int64),
        torch.tensor([5, 6], dtype=torch.int32),
        torch.arange(40) % 3 == 0,
        slice(2, 9, 3),
        4,
        [1, 2],
    ],
    ids=str,
)
def test_storage_reads_what_indexing_reads(rows, index):
    data = make_data(40 if rows is None else 50)
    storage = EpisodeStorage(data, content_hash="", rows=rows)
    expected = (data if rows is None else data[rows])[index]
    require_equal(storage.get(index), expected)


def test_even_rows():
    storage = EpisodeStorage(make_data(), content_hash="", rows=torch.arange(10, 50))
    assert storage.read_evenly(40)["step"].tolist() == list(range(10, 50))
    assert storage.read_evenly(4)["step"].tolist() == [10, 20, 30, 40]
