from __future__ import annotations

import numpy as np
import pytest
import torch

from torchrl_logo.data import DatasetError, TaskSpec, from_arrays


def test_every_array_arrives_unchanged(arrays):
    dataset = from_arrays(arrays)
    for key, value in arrays.items():
        path = tuple(key.split("/"))
        assert np.array_equal(dataset.data[path].numpy(), value), key
    assert dataset.spec == TaskSpec(
        n_agents=2,
        observation_size=3,
        state_size=5,
        action_size=2,
        action_low=(-1.0, -1.0),
        action_high=(1.0, 1.0),
    )
    expected = [arrays["next/reward"][arrays["episode"] == e].sum() for e in (10, 11, 12)]
    np.testing.assert_allclose(dataset.returns.numpy(), expected, rtol=1e-5)
    assert dataset.metadata.return_statistics["mean"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert dataset.metadata.return_statistics["std"] == pytest.approx(np.std(expected), rel=1e-5)
    assert dataset.metadata.return_statistics["q25"] == pytest.approx(
        np.quantile(expected, 0.25), rel=1e-5
    )
    assert dataset.metadata.length_statistics["max"] == 6


def test_tensors_are_taken_like_arrays(arrays):
    tensors = {k: torch.from_numpy(v) for k, v in arrays.items()}
    assert from_arrays(tensors).metadata.hash == from_arrays(arrays).metadata.hash


def test_awkward_arrays(arrays):
    expected = from_arrays(arrays).metadata.hash
    arrays["state"].flags.writeable = False
    arrays["next/reward"] = arrays["next/reward"][::-1].copy()[::-1]
    assert from_arrays(arrays).metadata.hash == expected
    arrays["state"] = arrays["state"].astype(object)
    with pytest.raises(DatasetError, match="'state': expected an array of numbers.*object"):
        from_arrays(arrays)


def test_episodes_and_steps_are_derived_from_done(arrays):
    given = from_arrays(arrays)
    del arrays["episode"], arrays["step"]
    dataset = from_arrays(arrays)
    assert dataset.data["episode"].tolist() == [0] * 4 + [1] * 6 + [2] * 5
    assert torch.equal(dataset.data["step"], given.data["step"])
    assert dataset.metadata.provenance["derived"] == ["episode", "step"]
    assert given.metadata.provenance["derived"] == []


@pytest.mark.parametrize(
    "key",
    ["next/agents/observation", "next/state", "next/truncated", "next/reward", "state"],
)
def test_nothing_else_is_derived(arrays, key):
    del arrays[key]
    with pytest.raises(DatasetError, match=f"'{key}': expected .* found no such key"):
        from_arrays(arrays)


def test_unknown_key_names_the_nearest(arrays):
    arrays["next/rewards"] = arrays.pop("next/reward")
    with pytest.raises(DatasetError, match="'next/rewards'.*'next/reward'"):
        from_arrays(arrays)


def test_different_lengths_are_refused(arrays):
    arrays["state"] = arrays["state"][:-1]
    with pytest.raises(DatasetError, match="'state': expected 15 rows.*found 14"):
        from_arrays(arrays)


def test_dtypes_are_cast_only_on_request(arrays):
    exact = from_arrays(arrays)
    arrays["state"] = arrays["state"].astype(np.float64)
    arrays["next/done"] = arrays["next/done"].astype(np.uint8)
    arrays["step"] = arrays["step"].astype(np.int32)
    with pytest.raises(DatasetError, match="'state': expected float32, found float64"):
        from_arrays(arrays)
    assert from_arrays(arrays, cast=True).metadata.hash == exact.metadata.hash


def test_casts_lose_nothing(arrays):
    arrays["state"] = arrays["state"].astype(np.float64)
    arrays["state"][3, 1] = 1e300
    with pytest.raises(DatasetError, match="'state': expected values that float32 can hold"):
        from_arrays(arrays, cast=True)
    arrays["next/done"] = arrays["next/done"].astype(np.uint8) * 3
    del arrays["state"]
    arrays["state"] = np.zeros((15, 5), np.float32)
    arrays["next/state"] = np.zeros((15, 5), np.float32)
    with pytest.raises(DatasetError, match="'next/done': expected 0 and 1 only.*found 3"):
        from_arrays(arrays, cast=True)


def test_discrete_actions(discrete_arrays):
    dataset = from_arrays(discrete_arrays)
    assert dataset.spec.discrete and dataset.spec.action_size == 4
    assert np.array_equal(
        dataset.data["next", "agents", "action_mask"].numpy(),
        discrete_arrays["next/agents/action_mask"],
    )


def test_missing_masks_have_to_be_asked_for(discrete_arrays):
    del discrete_arrays["agents/action_mask"], discrete_arrays["next/agents/action_mask"]
    with pytest.raises(DatasetError, match="'agents/action_mask': .*n_actions"):
        from_arrays(discrete_arrays)
    dataset = from_arrays(discrete_arrays, n_actions=4)
    assert dataset.data["agents", "action_mask"].all()
    assert dataset.spec.action_size == 4


def test_the_sizes_of_a_named_task_are_required(arrays):
    with pytest.raises(DatasetError, match="'agents/observation': expected 3 agents.*found 2"):
        from_arrays(arrays, task="vmas/balance")
    with pytest.raises(ValueError, match="vmas/balance"):
        from_arrays(arrays, task="vmas/balanse")


def test_bounds_of_the_actions(arrays):
    arrays["agents/action"] = arrays["agents/action"] * 3
    with pytest.raises(DatasetError, match="'agents/action': expected actions within"):
        from_arrays(arrays)
    assert from_arrays(arrays, action_bounds=(-3.0, 3.0)).spec.action_high == (3.0, 3.0)


def test_root_holds_the_dataset(arrays, tmp_path):
    dataset = from_arrays(arrays, root=tmp_path / "mine", quality="medium")
    assert dataset.path == tmp_path / "mine"
    with pytest.raises(FileExistsError, match="mine"):
        from_arrays(arrays, root=tmp_path / "mine")
