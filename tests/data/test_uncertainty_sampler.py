"""UncertaintySampler against the formula it is specified by."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from tensordict import TensorDict
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, ListStorage, TensorDictReplayBuffer

from torchrl_logo.data import uncertainty_sampler
from torchrl_logo.data.uncertainty_sampler import UncertaintySampler
from torchrl_logo.data.validation import DatasetError

DRAWS = 1_000_000


def make_buffer(capacity, *, C=1.0, temperature=1.0, storage=None, **kwargs):
    return TensorDictReplayBuffer(
        storage=LazyTensorStorage(capacity) if storage is None else storage,
        sampler=UncertaintySampler(capacity, C=C, temperature=temperature),
        priority_key="uncertainty",
        generator=torch.Generator().manual_seed(0),
        **kwargs,
    )


def make_data(uncertainty):
    n = len(uncertainty)
    return TensorDict({"state": torch.zeros(n, 1), "uncertainty": uncertainty}, [n])


def expected_probability(uncertainty, C, temperature):
    """The specification, by numpy and not by the code under test."""
    weight = np.exp(np.maximum(C - np.asarray(uncertainty, np.float64), 0.0) / temperature)
    return weight / weight.sum()


def require_match(buffer, uncertainty, C, temperature):
    index, info = buffer.sampler.sample(buffer.storage, DRAWS)
    counts = np.bincount(index.numpy(), minlength=len(uncertainty))
    expected = expected_probability(uncertainty, C, temperature)
    assert chisquare(counts, expected * DRAWS).pvalue > 1e-3
    weight = info["uncertainty_weight"].numpy()
    np.testing.assert_allclose(weight, expected[index.numpy()] * len(expected), rtol=1e-5)


def draw_uncertainty(n, seed=0):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("temperature", [1.0, 0.4])
@pytest.mark.parametrize("n", [2, 64, 65, 500])
def test_frequencies_match_the_formula(n, temperature):
    uncertainty = draw_uncertainty(n)  # two thirds are beyond C and share the lowest weight
    buffer = make_buffer(1000, temperature=temperature)
    buffer.extend(make_data(uncertainty))
    require_match(buffer, uncertainty, 1.0, temperature)


@pytest.mark.parametrize("few", [10, 65_536])  # updates one by one, or all re-weighted
def test_frequencies_after_each_kind_of_change(few, tmp_path, monkeypatch):
    monkeypatch.setattr(uncertainty_sampler, "_FEW", few)
    capacity = 300
    buffer = make_buffer(capacity, C=1.5)
    uncertainty = draw_uncertainty(capacity)
    buffer.extend(make_data(uncertainty[:200]))
    require_match(buffer, uncertainty[:200], 1.5, 1.0)

    # Overwrites: 100 fill the ring, 50 replace its oldest.
    newer = draw_uncertainty(150, seed=1)
    buffer.extend(make_data(newer))
    uncertainty = torch.cat([newer[100:], uncertainty[50:200], newer[:100]])
    require_match(buffer, uncertainty, 1.5, 1.0)

    # A partial update in random order.
    index = torch.tensor([299, 7, 64, 128, 63])
    buffer.update_priority(index, torch.zeros(5))
    uncertainty[index] = 0.0
    require_match(buffer, uncertainty, 1.5, 1.0)

    # Other parameters, set as TorchRL's schedulers set them.
    buffer.sampler.set_threshold(2.5)
    buffer.sampler.temperature = 0.5
    require_match(buffer, uncertainty, 2.5, 0.5)

    # Reloaded, with parameters, into buffers that were made with others.
    by_state = make_buffer(capacity, C=9.0)
    by_state.load_state_dict(buffer.state_dict())
    buffer.dumps(tmp_path)
    by_path = make_buffer(capacity, C=9.0)
    by_path.loads(tmp_path)
    # The copies are their own: what happens to the first buffer now is not seen by them.
    buffer.update_priority(torch.arange(capacity), torch.full((capacity,), 5.0))
    require_match(by_state, uncertainty, 2.5, 0.5)
    require_match(by_path, uncertainty, 2.5, 0.5)
    require_match(buffer, np.full(capacity, 5.0), 2.5, 0.5)

    buffer.empty()
    assert len(buffer) == 0
    buffer.extend(make_data(uncertainty[:70]))
    require_match(buffer, uncertainty[:70], 2.5, 0.5)


@pytest.mark.parametrize("shape", [(4, 25), (10, 10)])
def test_storage_of_two_dimensions(shape):
    buffer = make_buffer(100, storage=LazyTensorStorage(100, ndim=2))
    uncertainty = draw_uncertainty(100).reshape(shape)
    data = TensorDict({"state": torch.zeros(*shape, 1), "uncertainty": uncertainty}, shape)
    buffer.extend(data)
    index, _ = buffer.sampler.sample(buffer.storage, DRAWS)
    stored = buffer.storage[:]["uncertainty"]
    flat = np.ravel_multi_index([i.numpy() for i in index], stored.shape)
    counts = np.bincount(flat, minlength=100)
    expected = expected_probability(stored.flatten(), 1.0, 1.0)
    assert chisquare(counts, expected * DRAWS).pvalue > 1e-3


def test_small_weights_are_not_lost_among_ten_million():
    n = 10_000_000
    sampler = UncertaintySampler(n, C=14.0)
    storage = LazyTensorStorage(n)
    storage.set(torch.arange(n), TensorDict({"x": torch.zeros(n, dtype=torch.bool)}, [n]))
    # One in 1e5 weighs 1e6 times the rest (whose sum is then 9% of all): in float32, the sum
    # would absorb each of the small ones.
    uncertainty = torch.full((n,), 14.0)
    uncertainty[::100_000] = 14.0 - float(np.log(1e6))
    sampler.update_priority(torch.arange(n), uncertainty, storage=storage)
    sampler._rng = torch.Generator().manual_seed(0)
    draws = 200_000
    index = sampler.sample(storage, draws)[0].numpy()
    small = index[index % 100_000 != 0]
    share = n * (1 - 1e-5) / (n * (1 - 1e-5) + 100 * 1e6)
    assert (
        chisquare([len(small), draws - len(small)], [share * draws, (1 - share) * draws]).pvalue
        > 1e-3
    )
    # And the small ones are uniform from the first to the last.
    assert chisquare(np.histogram(small, bins=50, range=(0, n))[0]).pvalue > 1e-3


def test_weights_may_span_any_range():
    # exp(C / temperature) overflows float64, and so would exp(5000) between the two halves.
    buffer = make_buffer(300, C=100.0, temperature=0.01)
    uncertainty = torch.cat([torch.full((150,), 60.0), torch.full((150,), 99.0)])
    buffer.extend(make_data(uncertainty))
    batch = buffer.sample(1000)
    assert (batch["index"] < 150).all()
    torch.testing.assert_close(batch["uncertainty_weight"], torch.full((1000,), 2.0))
    # Without the certain half, the uncertain one is drawn uniformly instead of underflowing.
    buffer.update_priority(torch.arange(150), torch.full((150,), 200.0))
    batch = buffer.sample(100_000)
    assert (batch["index"][batch["index"] < 150]).numel() == 0
    counts = np.bincount(batch["index"].numpy() - 150, minlength=150)
    assert chisquare(counts).pvalue > 1e-3


def test_draws_come_from_the_buffers_generator():
    first, second = (make_buffer(100, batch_size=32) for _ in range(2))
    for buffer in (first, second):
        buffer.extend(make_data(draw_uncertainty(100)))
    before = torch.get_rng_state()
    torch.testing.assert_close(first.sample()["index"], second.sample()["index"])
    assert not torch.equal(first.sample()["index"], first.sample()["index"])
    assert torch.equal(before, torch.get_rng_state())


def test_another_generator_drops_what_was_drawn_ahead():
    buffer = make_buffer(100, batch_size=32)
    buffer.extend(make_data(draw_uncertainty(100)))
    batches = []
    for _ in range(2):
        buffer.set_rng(torch.Generator().manual_seed(3))
        batches.append([buffer.sample()["index"] for _ in range(5)])
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))


@pytest.mark.parametrize("few", [10, 65_536])
def test_loaded_state_goes_on_with_the_same_draws(few, tmp_path, monkeypatch):
    monkeypatch.setattr(uncertainty_sampler, "_FEW", few)
    buffer = make_buffer(2000, batch_size=16)
    buffer.extend(make_data(draw_uncertainty(1500)))
    buffer.sample()
    index = torch.randperm(1500, generator=torch.Generator().manual_seed(0))[:40]
    buffer.update_priority(index, draw_uncertainty(40, seed=1))
    for _ in range(6):  # the last ones leave draws ahead
        buffer.sample()
    state = buffer.state_dict()
    buffer.dumps(tmp_path)
    others = [make_buffer(2000, batch_size=16, C=3.0) for _ in range(2)]
    others[0].load_state_dict(state)
    others[1].loads(tmp_path)
    assert ("order" in state["_sampler"]) == (few == 10)
    for step in range(12):
        batches = [each.sample() for each in (buffer, *others)]
        for other in batches[1:]:
            assert torch.equal(batches[0]["index"], other["index"])
            torch.testing.assert_close(
                batches[0]["uncertainty_weight"], other["uncertainty_weight"], rtol=1e-6, atol=0
            )
        if step == 5:
            for each in (buffer, *others):
                each.update_priority(torch.arange(20), torch.full((20,), 0.3))
        if step == 8:
            for each in (buffer, *others):
                each.extend(make_data(draw_uncertainty(30, seed=2)))


def test_state_of_earlier_versions():
    sampler = UncertaintySampler(10, C=1.0)
    state = {"C": 2.0, "temperature": 0.5, "uncertainty": torch.linspace(0, 3, 10)}
    sampler.load_state_dict(state)
    buffer = make_buffer(10)
    buffer.extend(make_data(torch.zeros(10)))
    buffer.sampler.load_state_dict(state)
    require_match(buffer, state["uncertainty"], 2.0, 0.5)


def test_damaged_state_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(uncertainty_sampler, "_FEW", 10)
    buffer = make_buffer(100, batch_size=8)
    buffer.extend(make_data(draw_uncertainty(90)))
    buffer.sample()
    buffer.update_priority(torch.tensor([5]), torch.tensor([0.1]))
    for _ in range(2):
        buffer.sample()
    state = buffer.sampler.state_dict()
    order, room, ahead = state["order"], state["room"], state["ahead_index"]
    for change, expected in (
        ({"length": 101}, "length"),
        ({"length": 3.0}, "length"),
        ({"ahead": -1}, "ahead"),
        ({"ahead_index": ahead + 90}, "ahead_index.*below 90"),
        ({"ahead_index": ahead.float()}, "ahead_index"),
        ({"ahead_weight": state["ahead_weight"].double()}, "ahead_weight"),
        ({"order": order.clone().fill_(3)}, "order.*different"),
        ({"order": order - 1}, "order"),
        ({"order": order.unsqueeze(0)}, "order"),
        ({"uncertainty": torch.full((100,), float("nan"))}, "order.*have an uncertainty"),
        ({"room": room[:5]}, "room"),
        ({"room": room - 200}, "room"),
        ({"room": room * 2**40}, "room"),
    ):
        with pytest.raises(ValueError, match=f"State {chr(39)}.*{expected}"):
            UncertaintySampler(100, C=1.0).load_state_dict({**state, **change})
    monkeypatch.setattr(buffer.sampler, "state_dict", lambda: {**state, "order": order - 1})
    buffer.sampler.dumps(tmp_path)
    with pytest.raises(DatasetError, match="order"):
        buffer.sampler.loads(tmp_path)


def test_memmap_and_list_storages(tmp_path):
    uncertainty = draw_uncertainty(50)
    for storage in (LazyMemmapStorage(50, scratch_dir=tmp_path), ListStorage(50)):
        buffer = make_buffer(50, storage=storage)
        buffer.extend(make_data(uncertainty.unsqueeze(-1)))  # [k, 1], as a model writes it
        require_match(buffer, uncertainty, 1.0, 1.0)


def test_batch_has_no_priority_weight():
    # TorchRL's losses would take it for an importance weight.
    buffer = make_buffer(10, batch_size=4)
    buffer.extend(make_data(torch.rand(10)))
    batch = buffer.sample()
    assert "priority_weight" not in batch.keys()
    assert batch["uncertainty_weight"].shape == (4,)


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
def test_bad_uncertainty_is_refused_and_never_drawn(bad):
    buffer = make_buffer(10, batch_size=4)
    with pytest.raises(RuntimeError) as caught:
        buffer.extend(make_data(torch.tensor([0.0, bad, 1.0])))
    assert isinstance(caught.value.__cause__, ValueError)
    assert "found 1 of 3" in str(caught.value.__cause__)
    # TorchRL had written the data before it asked the sampler.
    with pytest.raises(RuntimeError, match="3 of the 3 stored transitions have no uncertainty"):
        buffer.sample()
    buffer.update_priority(torch.arange(3), torch.zeros(3))
    assert len(buffer.sample()) == 4


def test_transitions_without_uncertainty_are_an_error():
    buffer = make_buffer(10, batch_size=4)
    buffer.extend(make_data(torch.rand(6)))
    buffer.sample()
    buffer.extend(TensorDict({"state": torch.zeros(2, 1), "uncertainty": torch.zeros(2)}, [2]))
    buffer.sample()
    buffer.extend(make_data(torch.zeros(3)), update_priority=False)
    with pytest.raises(RuntimeError, match="3 of the 10 stored transitions have no uncertainty"):
        buffer.sample()
    with pytest.raises(RuntimeError, match="3 of the 10"):  # still, on a second try
        buffer.sample()


def test_transitions_written_past_the_buffer_are_an_error():
    buffer = make_buffer(10, batch_size=4)
    buffer.extend(make_data(torch.rand(6)))
    buffer.sample()
    buffer.storage.set(torch.arange(6, 8), buffer.storage[:2].clone())
    for _ in range(2):
        with pytest.raises(RuntimeError, match="2 of the 8 stored transitions"):
            buffer.sample()
    buffer.update_priority(torch.arange(6, 8), torch.zeros(2))
    assert len(buffer.sample()) == 4


def test_bad_arguments_are_refused():
    for kwargs in ({"C": 0.0}, {"C": -1.0}, {"C": float("inf")}, {"C": 1.0, "temperature": 0.0}):
        with pytest.raises(ValueError, match="must be positive and finite"):
            UncertaintySampler(10, **kwargs)
    with pytest.raises(ValueError, match="max_capacity"):
        UncertaintySampler(0, C=1.0)
    sampler = UncertaintySampler(10, C=1.0)
    with pytest.raises(ValueError, match="C must be positive"):
        sampler.set_threshold(float("nan"))
    with pytest.raises(ValueError, match=r"each of the 3 transitions.*found shape \[3, 2\]"):
        sampler.update_priority(torch.arange(3), torch.zeros(3, 2))
    with pytest.raises(IndexError, match="found 10"):
        sampler.update_priority(torch.tensor([0, 10]), torch.zeros(2))
    with pytest.raises(ValueError, match="max_capacity=10, the storage needs 20"):
        make = TensorDictReplayBuffer(storage=LazyTensorStorage(20), sampler=sampler)
        make.extend(make_data(torch.zeros(2)))
    with pytest.raises(ValueError, match=r"expected shape \[10\].*found \[20\]"):
        sampler.load_state_dict(UncertaintySampler(20, C=1.0).state_dict())
    with pytest.raises(RuntimeError, match="empty storage"):
        make_buffer(10).sample(4)


def test_draw_does_not_wait_for_the_device():
    # Meta tensors have no values: anything that reads one on the host raises.
    buffer = make_buffer(1000)
    buffer.extend(make_data(draw_uncertainty(1000)))
    sampler, storage = buffer.sampler, buffer.storage
    sampler._rng = None
    sampler.sample(storage, 2)
    sampler.sample(storage, 2)  # of all that were drawn ahead
    for part in (sampler, sampler._classes):
        for name, value in list(vars(part).items()):
            if isinstance(value, torch.Tensor):
                setattr(part, name, value.to("meta"))
    sampler._device = storage.device = sampler._classes.device = torch.device("meta")
    index, info = sampler.sample(storage, 32)
    assert index.device.type == info["uncertainty_weight"].device.type == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_gpu():
    buffer = make_buffer(500, storage=LazyTensorStorage(500, device="cuda"))
    uncertainty = draw_uncertainty(500)
    buffer.extend(make_data(uncertainty).to("cuda"))
    buffer.set_rng(torch.Generator("cuda").manual_seed(0))
    buffer.sampler.sample(buffer.storage, 2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        index, _ = buffer.sampler.sample(buffer.storage, DRAWS)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    counts = np.bincount(index.cpu().numpy(), minlength=500)
    expected = expected_probability(uncertainty, 1.0, 1.0)
    assert chisquare(counts, expected * DRAWS).pvalue > 1e-3
