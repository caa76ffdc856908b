from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch

from torchrl_logo.data import (
    ReferenceReturns,
    available_datasets,
    from_arrays,
    load_dataset,
    reference_returns,
)
from torchrl_logo.data.behaviour_policies import (
    behaviour_tasks,
    load_behaviour_policy,
    read_recipe,
)

NAME = "vmas/balance-medium"
FRAMES = 200


def test_every_shipped_task_has_the_five_qualities():
    assert "vmas/balance" in behaviour_tasks()
    qualities = ("random", "medium-replay", "medium", "expert", "mixed")
    names = {f"{task}-{quality}" for task in behaviour_tasks() for quality in qualities}
    assert names == set(available_datasets())


@pytest.mark.parametrize("task", behaviour_tasks())
def test_behaviour_policies_are_what_their_recipe_says(task):
    recipe = read_recipe(task)
    returns = recipe["returns"]
    assert returns["random"] < returns["medium"] < returns["expert"]
    score = reference_returns(task).normalize(returns["medium"])
    assert 40 < score < 65  # medium is about half of the expert
    for name in {n for names in recipe["qualities"].values() for n in names}:
        policy = load_behaviour_policy(task, name)
        assert (policy is None) == (name == "random")
        assert name in returns
    with pytest.raises(ValueError, match="No behaviour policy 'experts'.*expert"):
        load_behaviour_policy(task, "experts")


def test_the_same_seed_gives_the_same_hash_in_another_place(tmp_path):
    first = load_dataset(NAME, root=tmp_path / "a", frames=FRAMES)
    threads = torch.get_num_threads()
    torch.manual_seed(7)
    second = load_dataset(NAME, root=tmp_path / "b", frames=FRAMES, verify=True)
    other = load_dataset(NAME, root=tmp_path / "b", frames=FRAMES, seed=1)
    assert first.metadata.hash == second.metadata.hash != other.metadata.hash
    assert torch.get_num_threads() == threads
    assert first.path.parent == tmp_path / "a"
    assert len(first) >= FRAMES
    assert first.metadata.quality == "medium" and first.metadata.task == "vmas/balance"
    assert first.metadata.provenance["policies"][0]["policy"] == "medium"
    assert first.metadata.provenance["versions"]["vmas"]
    assert first.metadata.reference_returns == reference_returns("vmas/balance")


def test_it_is_collected_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHRL_LOGO_DATA", str(tmp_path))
    first = load_dataset(NAME, frames=FRAMES)
    monkeypatch.setattr("torchrl_logo.data.embedded.collect", None)
    again = load_dataset(NAME, frames=FRAMES, batch_size=8)
    assert again.path == first.path and again.path.parent == tmp_path
    assert len(again.sample()) == 8


def test_mixed_data_are_half_expert(tmp_path):
    mixed = load_dataset("vmas/balance-mixed", root=tmp_path, frames=600)
    names = [p["policy"] for p in mixed.metadata.provenance["policies"]]
    assert names == ["medium", "expert"]
    # The first half are the medium policy's episodes: the expert's returns are clearly higher.
    half = (mixed.episode_starts >= len(mixed) / 2 - 50).nonzero()[0, 0]
    assert mixed.returns[half:].mean() > mixed.returns[:half].mean() + 10


def _load(root: str, queue: multiprocessing.Queue) -> None:
    torch.set_num_threads(1)
    queue.put(load_dataset(NAME, root=root, frames=FRAMES).metadata.hash)


def test_two_processes_at_once_share_one_collection(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_load, args=(str(tmp_path), queue)) for _ in range(2)]
    for process in processes:
        process.start()
    hashes = {queue.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(60)
    assert len(hashes) == 1
    assert len([p for p in tmp_path.iterdir() if p.is_dir()]) == 1


def test_a_folder_is_loaded(arrays, tmp_path):
    saved = from_arrays(arrays, root=tmp_path / "mine")
    for path in (tmp_path / "mine", str(tmp_path / "mine")):
        assert load_dataset(path, verify=True).metadata == saved.metadata


@pytest.mark.parametrize("name", ["vmas/balanse-medium", "vmas/balance", Path("nowhere")])
def test_unknown_names_are_told_the_nearest(name):
    with pytest.raises(ValueError, match=f"No dataset '{name}'") as caught:
        load_dataset(name)
    if name != Path("nowhere"):
        assert "vmas/balance-medium" in str(caught.value)


def test_normalised_scores():
    reference = ReferenceReturns(random=-10.0, expert=40.0)
    assert reference.normalize(-10.0) == 0.0
    assert reference.normalize(40.0) == 100.0
    assert reference.normalize(50.0) == pytest.approx(120.0)
    with pytest.raises(ValueError, match="differ"):
        ReferenceReturns(random=1.0, expert=1.0)
    assert (
        reference_returns("vmas/balance").expert == read_recipe("vmas/balance")["returns"]["expert"]
    )
    assert reference_returns("mine/own") is None
