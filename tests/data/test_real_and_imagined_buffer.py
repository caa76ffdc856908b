"""The mix of real and imagined transitions: exact shares, right rows, nothing lost silently."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from tensordict import TensorDict
from torchrl.data import (
    LazyTensorStorage,
    ReplayBuffer,
    TensorDictReplayBuffer,
)
from torchrl.trainers import ReplayBufferTrainer

from torchrl_logo.data.real_and_imagined_buffer import (
    RealAndImaginedBuffer,
    real_and_imagined_buffer,
)
from torchrl_logo.data.uncertainty_sampler import UncertaintySampler

REAL, IMAGINED = 40, 60


def make_transitions(*batch, first=0):
    """Transitions in the layout, whose state says which row they are."""
    n = int(np.prod(batch))
    row = torch.arange(first, first + n, dtype=torch.float32).reshape(*batch, 1)
    flag = torch.zeros(*batch, 1, dtype=torch.bool)
    observation = row.unsqueeze(-1).expand(*batch, 2, 3).clone()
    return TensorDict(
        {
            "agents": TensorDict(
                {"observation": observation, "action": observation[..., :1].clone()}, [*batch, 2]
            ),
            "state": row.clone(),
            "next": {
                "agents": TensorDict({"observation": observation + 0.5}, [*batch, 2]),
                "state": row + 0.5,
                "reward": -row,
                "done": flag,
                "terminated": flag.clone(),
                "truncated": flag.clone(),
            },
        },
        batch,
    )


def make_real(n=REAL, seed=1, **kwargs):
    real = TensorDictReplayBuffer(
        storage=LazyTensorStorage(n), generator=torch.Generator().manual_seed(seed), **kwargs
    )
    data = make_transitions(n)
    data["episode"] = torch.zeros(n, dtype=torch.int64)
    data["step"] = torch.arange(n)
    real.extend(data)
    return real


def make_imagined(capacity=IMAGINED, seed=2, **kwargs):
    return TensorDictReplayBuffer(
        storage=LazyTensorStorage(capacity),
        sampler=UncertaintySampler(capacity, C=1.0),
        priority_key="uncertainty",
        generator=torch.Generator().manual_seed(seed),
        **kwargs,
    )


def make_rollout(*batch, seed=0):
    """Imagined transitions, whose rows are counted from 1000, with what a collector adds."""
    data = make_transitions(*batch, first=1000)
    data["uncertainty"] = torch.rand(*batch, 1, generator=torch.Generator().manual_seed(seed)) * 2
    data["collector"] = TensorDict({"traj_ids": torch.zeros(batch, dtype=torch.int64)}, batch)
    data["step"] = torch.zeros(*batch, 1, dtype=torch.int64)  # an environment's, of another shape
    return data


def make_mix(**kwargs):
    buffer = real_and_imagined_buffer(make_real(), make_imagined(), **{"batch_size": 32, **kwargs})
    buffer.extend(make_rollout(IMAGINED))
    return buffer


@pytest.mark.parametrize(
    ("batch_size", "fraction", "real_rows"),
    [
        (32, 0.5, 16),
        (33, 0.5, 16),
        (35, 0.5, 18),
        (256, 0.05, 13),
        (7, 0.9, 6),
        (8, 1.0, 8),
        (8, 0.0, 0),
    ],
)
def test_mix_is_exact_in_each_batch(batch_size, fraction, real_rows):
    buffer = make_mix(batch_size=batch_size, real_fraction=fraction)
    for _ in range(20):
        batch = buffer.sample()
        assert batch.batch_size == (batch_size,)
        imagined = torch.arange(batch_size).unsqueeze(-1) >= real_rows
        assert torch.equal(batch["imagined"], imagined)
        # The rows themselves say where they are from, and stay whole.
        assert torch.equal(batch["state"] >= 1000, imagined)
        origin = batch["index"].unsqueeze(-1) + 1000 * imagined
        torch.testing.assert_close(batch["state"], origin.float())
        torch.testing.assert_close(batch["next", "reward"], -batch["state"])
        torch.testing.assert_close(
            batch["next", "agents", "observation"][:, 1, 2:], batch["state"] + 0.5
        )


def test_real_rows_are_uniform_and_imagined_ones_follow_their_uncertainty():
    buffer = make_mix(batch_size=200_000)
    batch = buffer.sample()
    index = batch["index"].numpy()
    assert chisquare(np.bincount(index[:100_000], minlength=REAL)).pvalue > 1e-3
    uncertainty = make_rollout(IMAGINED)["uncertainty"].squeeze(-1).double().numpy()
    weight = np.exp(np.maximum(1.0 - uncertainty, 0.0))
    share = weight / weight.sum()
    counts = np.bincount(index[100_000:], minlength=IMAGINED)
    assert chisquare(counts, share * 100_000).pvalue > 1e-3
    expected = np.concatenate([np.ones(100_000), share[index[100_000:]] * IMAGINED])
    np.testing.assert_allclose(batch["uncertainty_weight"].numpy(), expected, rtol=1e-5)


def test_keys_are_those_that_both_have_alike():
    batch = make_mix().sample()
    layout = set(make_transitions(1).keys(include_nested=True, leaves_only=True))
    added = {"imagined", "uncertainty_weight", "index"}
    assert set(batch.keys(include_nested=True, leaves_only=True)) == layout | added
    assert batch["agents"].batch_size == (32, 2)


def test_only_what_can_be_used_is_stored_and_the_callers_data_stay_as_they_were():
    buffer = make_mix()
    data = make_rollout(4, 5)  # as a collector yields it: simulations by time
    before = data.clone()
    buffer.extend(data)
    assert (data == before).all() and set(data.keys(True)) == set(before.keys(True))
    stored = buffer.imagined.storage[:]
    assert ("collector", "traj_ids") not in stored.keys(True)
    assert len(buffer) == REAL + IMAGINED and len(buffer.imagined) == IMAGINED


def test_is_a_replay_buffer_without_touching_its_members_settings():
    real, imagined = make_real(batch_size=8), make_imagined(batch_size=8)
    expected = make_real().sample(16)["index"]
    buffer = RealAndImaginedBuffer(real, imagined, batch_size=32)
    buffer.extend(make_rollout(10))
    assert isinstance(buffer, ReplayBuffer)
    assert buffer[0] is real and buffer[1] is imagined
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # TorchRL warns when a buffer's batch_size is overruled
        batch = buffer.sample()
    # The members still draw from their own generators.
    assert torch.equal(batch["index"][:16], expected)
    assert torch.equal(before, torch.get_rng_state())
    buffer.set_rng(torch.Generator().manual_seed(5))
    first = buffer.sample()["index"]
    buffer.set_rng(torch.Generator().manual_seed(5))
    assert torch.equal(first, buffer.sample()["index"])
    assert len(buffer.sample(10)) == 10
    data, info = buffer.sample(return_info=True)
    assert torch.equal(data["imagined"], info["imagined"])


def test_runs_in_the_trainers_hook():
    buffer = make_mix()
    hook = ReplayBufferTrainer(buffer, batch_size=16, flatten_tensordicts=True)
    hook.extend(make_rollout(2, 10))
    batch = hook.sample(None)
    state = buffer.imagined.sampler.state_dict()["uncertainty"]
    hook.update_priority(batch)
    assert torch.equal(state, buffer.imagined.sampler.state_dict()["uncertainty"])
    assert int(batch["imagined"].sum()) == 8


def test_update_priority_reaches_the_imagined_buffer():
    buffer = make_mix(batch_size=2000)
    buffer.update_priority(torch.arange(1, IMAGINED), torch.full((IMAGINED - 1,), 50.0))
    buffer.imagined.sampler.set_threshold(50.0)
    buffer.update_priority(torch.tensor([0]), torch.tensor([0.0]))
    batch = buffer.sample()
    assert (batch["index"][1000:] == 0).all()


def test_state_returns(tmp_path):
    buffer = make_mix()
    state = buffer.state_dict()
    buffer.dumps(tmp_path)
    expected = [buffer.sample() for _ in range(3)]
    for load in ("load_state_dict", "loads"):
        other = real_and_imagined_buffer(
            make_real(seed=7), make_imagined(seed=8), batch_size=5, real_fraction=0.2
        )
        getattr(other, load)(state if load == "load_state_dict" else tmp_path)
        assert len(other) == REAL + IMAGINED
        for batch in expected:
            assert (other.sample() == batch).all()


def test_without_imagined_data():
    buffer = real_and_imagined_buffer(make_real(), make_imagined(), batch_size=8)
    assert not buffer.can_sample()
    with pytest.raises(RuntimeError, match="needs 4 imagined transitions"):
        buffer.sample()
    real_only = real_and_imagined_buffer(
        make_real(), make_imagined(), batch_size=8, real_fraction=1.0
    )
    assert real_only.can_sample() and not real_only.sample()["imagined"].any()
    buffer.extend(make_rollout(10))
    assert buffer.can_sample() and len(buffer.sample()) == 8
    buffer.empty()
    assert len(buffer) == REAL and not buffer.can_sample()


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
def test_bad_uncertainty_is_refused_before_it_is_stored(bad):
    buffer = make_mix()
    data = make_rollout(5)
    data["uncertainty"][2] = bad
    with pytest.raises(ValueError, match="'uncertainty'.*found 1 of 5"):
        buffer.extend(data)
    assert len(buffer.imagined) == IMAGINED
    assert buffer.imagined.write_count == IMAGINED


def test_a_layout_key_is_never_dropped():
    buffer = make_mix()
    for key in ("state", ("next", "reward"), ("next", "agents", "observation"), "uncertainty"):
        with pytest.raises(KeyError) as caught:
            buffer.extend(make_rollout(5).exclude(key))
        assert str(key if isinstance(key, str) else key[-1]) in str(caught.value)
    masked = make_rollout(5)
    masked["agents", "action_mask"] = torch.ones(5, 2, 4, dtype=torch.bool)
    with pytest.raises(KeyError, match="real transitions lack .*action_mask"):
        buffer.extend(masked)
    wider = make_rollout(5)
    wider["state"] = torch.zeros(5, 3)
    with pytest.raises(ValueError, match=r"'state': expected \[1\] float32.*found \[3\] float32"):
        buffer.extend(wider)
    double = make_rollout(5)
    double["state"] = double["state"].double()
    with pytest.raises(ValueError, match="found .* float64"):
        buffer.extend(double)
    # Also if the imagined buffer was filled directly.
    imagined = make_imagined()
    imagined.extend(make_rollout(5).exclude(("next", "terminated")))
    direct = real_and_imagined_buffer(make_real(), imagined, batch_size=8)
    with pytest.raises(KeyError, match="imagined transitions lack .*terminated"):
        direct.sample()
    real = TensorDictReplayBuffer(storage=LazyTensorStorage(5))
    real.extend(make_transitions(5).exclude("state"))
    with pytest.raises(KeyError, match="real buffer lacks .*state"):
        real_and_imagined_buffer(real, make_imagined(), batch_size=8)


def test_bad_arguments_are_refused():
    for fraction in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="real_fraction must be within 0 and 1"):
            real_and_imagined_buffer(
                make_real(), make_imagined(), batch_size=8, real_fraction=fraction
            )
    with pytest.raises(ValueError, match="would have 0 real rows"):
        real_and_imagined_buffer(make_real(), make_imagined(), batch_size=1)
    with pytest.raises(ValueError, match="would have 4 real rows"):
        make_mix(real_fraction=0.9).sample(4)
    with pytest.raises(ValueError, match="batch_size must be a positive integer, found 0"):
        real_and_imagined_buffer(make_real(), make_imagined(), batch_size=0)
    empty = TensorDictReplayBuffer(storage=LazyTensorStorage(5))
    with pytest.raises(ValueError, match="real buffer is empty"):
        real_and_imagined_buffer(empty, make_imagined(), batch_size=8)
    nested = TensorDictReplayBuffer(storage=LazyTensorStorage(5, ndim=2))
    with pytest.raises(ValueError, match="imagined buffer's storage must have one dimension"):
        real_and_imagined_buffer(make_real(), nested, batch_size=8)
