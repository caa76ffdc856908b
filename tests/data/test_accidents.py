"""Each accident is made on purpose and found; sound data have none."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from torchrl_logo.data import OfflineDataset, TaskSpec, from_arrays
from torchrl_logo.data.accidents import find_accidents
from torchrl_logo.data.card import make_card, measure_coverage

EPISODES, LENGTH = 30, 8


def make_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """Thirty episodes, of which every third terminates early."""
    rng = np.random.default_rng(seed)
    parts: dict[str, list[np.ndarray]] = {}
    for episode in range(EPISODES):
        early = episode % 3 == 0
        length = int(rng.integers(3, LENGTH)) if early else LENGTH
        observation = rng.normal(size=(length + 1, 2, 3)).astype(np.float32)
        state = rng.normal(size=(length + 1, 4)).astype(np.float32)
        last = (np.arange(length) == length - 1)[:, None]
        for key, value in {
            "agents/observation": observation[:-1],
            "next/agents/observation": observation[1:],
            "state": state[:-1],
            "next/state": state[1:],
            "agents/action": rng.uniform(-1, 1, (length, 2, 1)).astype(np.float32),
            "next/reward": rng.normal(size=(length, 1)).astype(np.float32),
            "next/done": last,
            "next/terminated": last & early,
            "next/truncated": last & (not early),
            "episode": np.full(length, episode),
        }.items():
            parts.setdefault(key, []).append(value)
    return {key: np.concatenate(values) for key, values in parts.items()}


def kinds(dataset: OfflineDataset, **kwargs) -> list[str]:
    return [accident.kind for accident in find_accidents(dataset, **kwargs)]


def test_sound_data_have_none() -> None:
    dataset = from_arrays(make_arrays())
    assert find_accidents(dataset, task=dataset.spec, others=[from_arrays(make_arrays(1))]) == []


def test_constant_features_are_named() -> None:
    arrays = make_arrays()
    for prefix in ("", "next/"):
        arrays[f"{prefix}state"][:, 2] = 5.0
        arrays[f"{prefix}agents/observation"][:, 1, 0] = -1.0
    found = find_accidents(from_arrays(arrays))
    assert [(a.kind, a.key) for a in found] == [
        ("constant features", "state"),
        ("constant features", "agents/observation"),
    ]
    assert "1 of 4 never change (2)" in found[0].found
    assert "1 of 6 never change ((1, 0))" in found[1].found


def test_padding_is_meant_to_be_constant() -> None:
    arrays = make_arrays()
    for prefix in ("", "next/"):
        arrays[f"{prefix}agents/observation"][:, 1, 2] = 0.0
    dataset = from_arrays(arrays)
    spec = dataclasses.replace(dataset.spec, observation_sizes=(3, 2))
    assert kinds(from_arrays(arrays, task=spec)) == []


def test_timeouts_as_terminations() -> None:
    arrays = make_arrays()
    full = np.bincount(arrays["episode"])[arrays["episode"]] == LENGTH
    keep = {key: value[full] for key, value in arrays.items()}
    keep["next/terminated"], keep["next/truncated"] = (
        keep["next/truncated"],
        keep["next/terminated"],
    )
    found = find_accidents(from_arrays(keep))
    assert [a.kind for a in found] == ["time-outs as terminations"]
    assert "20 of 20 terminations are at step 8" in found[0].found


def test_next_observations_that_cross_episodes() -> None:
    arrays = make_arrays()
    ends = np.flatnonzero(arrays["next/done"])[:-1]
    arrays["next/state"][ends] = arrays["state"][ends + 1]
    found = find_accidents(from_arrays(arrays))
    assert [a.kind for a in found] == ["next observations cross episodes"]
    assert "29 of 29 episodes" in found[0].found


@pytest.mark.parametrize("form", ["constant", "to go", "so far"])
def test_rewards_that_are_returns(form: str) -> None:
    arrays = make_arrays()
    # many small rewards of one sign, as dense tasks have
    reward = np.abs(arrays["next/reward"][:, 0])
    for episode in range(EPISODES):
        rows = arrays["episode"] == episode
        if form == "constant":
            arrays["next/reward"][rows, 0] = reward[rows].sum()
    if form != "constant":
        arrays = long_episodes_with_rewards_to_go()
    if form == "so far":
        reward = arrays["next/reward"].reshape(4, -1)  # sums of later rewards
        arrays["next/reward"] = (reward[:, :1] - reward + 1).reshape(-1, 1)
    assert kinds(from_arrays(arrays)) == ["rewards are returns"]


def long_episodes_with_rewards_to_go() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    length, episodes = 100, 4
    state = rng.normal(size=(episodes, length + 1, 4)).astype(np.float32)
    observation = rng.normal(size=(episodes, length + 1, 2, 3)).astype(np.float32)
    reward = rng.uniform(0.5, 1.5, size=(episodes, length, 1))
    to_go = reward[:, ::-1].cumsum(1)[:, ::-1]
    last = np.tile((np.arange(length) == length - 1)[:, None], (episodes, 1))
    flat = episodes * length
    return {
        "agents/observation": observation[:, :-1].reshape(flat, 2, 3),
        "next/agents/observation": observation[:, 1:].reshape(flat, 2, 3),
        "state": state[:, :-1].reshape(flat, 4),
        "next/state": state[:, 1:].reshape(flat, 4),
        "agents/action": rng.uniform(-1, 1, (flat, 2, 1)).astype(np.float32),
        "next/reward": to_go.reshape(flat, 1).astype(np.float32),
        "next/done": last,
        "next/terminated": np.zeros_like(last),
        "next/truncated": last,
    }


def test_other_dimensions() -> None:
    dataset = from_arrays(make_arrays())
    found = find_accidents(dataset, task=dataclasses.replace(dataset.spec, state_size=7))
    assert [a.kind for a in found] == ["other dimensions"]
    assert "state_size: expected 7, found 4" in found[0].found


def test_two_qualities_with_the_same_content() -> None:
    first, second = make_arrays(), make_arrays(1)
    shared = first["episode"] < 6
    other = {k: np.concatenate([v[shared], second[k]]) for k, v in first.items()}
    other["episode"][shared.sum() :] += EPISODES
    found = find_accidents(
        from_arrays(first, quality="medium"), others=[from_arrays(other, quality="mixed")]
    )
    assert [a.kind for a in found] == ["same content"]
    assert "6 of 30 episodes of 'medium' are in 'mixed' too" in found[0].found


def test_coverage_by_hand() -> None:
    arrays = make_arrays()
    rows = len(arrays["episode"])
    # agent 0 takes one of two bins in equal shares, agent 1 always the same
    arrays["agents/action"][:, 0, 0] = np.where(np.arange(rows) % 2, 0.9, -0.9)
    arrays["agents/action"][:, 1, 0] = 0.1
    even = {k: v[: rows - rows % 2] for k, v in arrays.items()}
    if not even["next/done"][-1]:
        even["next/done"][-1] = even["next/truncated"][-1] = True
    coverage = measure_coverage(from_arrays(even))
    assert coverage.per_agent == (2 / 8, 1 / 8)
    assert coverage.joint == pytest.approx(2.0)
    assert coverage.joint_possible == 4


def test_coverage_of_discrete_actions(discrete_arrays) -> None:
    action = np.zeros_like(discrete_arrays["agents/action"])
    coverage = measure_coverage(from_arrays({**discrete_arrays, "agents/action": action}))
    assert coverage.per_agent == (1 / 4, 1 / 4) and coverage.joint == pytest.approx(1.0)
    assert coverage.joint_possible == 16


def test_card_says_what_is_there() -> None:
    dataset = from_arrays(make_arrays(), quality="medium")
    card = make_card(dataset)
    assert "# Unnamed task, medium quality" in card
    assert f"{len(dataset):,} transitions in 30 episodes, 33% of which terminate" in card
    assert dataset.metadata.hash in card and "No accident was found." in card
    spec: TaskSpec = dataset.spec
    assert f"{spec.n_agents} agents, 3 observation features" in card
