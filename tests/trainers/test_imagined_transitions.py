"""What reaches the buffer of imagined transitions, from hand-made rollouts."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from torchrl_logo.data import UncertaintySampler
from torchrl_logo.trainers import ImaginationError, ImaginedTransitions

KEYS = ["state", ("next", "state"), ("next", "reward"), ("next", "terminated")]
INF, NAN = float("inf"), float("nan")


def make_batch() -> TensorDict:
    """Two rollouts of three steps; uncertainty 1, 3, 6 and 10, 30, 60 after their steps."""
    after = torch.tensor([[1.0, 3.0, 6.0], [10.0, 30.0, 60.0]]).unsqueeze(-1)
    before = torch.cat([torch.zeros(2, 1, 1), after[:, :-1]], 1)
    state = torch.arange(6.0).view(2, 3, 1)
    return TensorDict(
        {
            "state": state,
            "uncertainty": before,
            "extra": torch.zeros(2, 3),
            "next": {
                "state": state + 0.5,
                "reward": 10 * state,
                "uncertainty": after,
                "terminated": torch.tensor([[0, 0, 1], [0, 0, 0]], dtype=torch.bool).unsqueeze(-1),
            },
        },
        [2, 3],
    )


def make_buffer() -> TensorDictReplayBuffer:
    return TensorDictReplayBuffer(
        storage=LazyTensorStorage(100),
        sampler=UncertaintySampler(100, C=30.0, temperature=10.0),
        priority_key="uncertainty",
        batch_size=4,
    )


def test_stores_the_uncertainty_of_the_transition_itself() -> None:
    buffer, batch = make_buffer(), make_batch()
    hook = ImaginedTransitions(buffer, KEYS)
    assert hook(batch) is batch
    stored = buffer[:]
    assert stored["uncertainty"].flatten().tolist() == [1, 3, 6, 10, 30, 60]
    assert stored["state"].flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert stored["next", "state"].flatten().tolist() == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]
    assert "extra" not in stored.keys() and ("next", "uncertainty") not in stored.keys(True)
    # The collector's batch is left as it was.
    assert batch["uncertainty"].flatten().tolist() == [0, 1, 3, 0, 10, 30]
    assert (batch == make_batch()).all()
    assert hook.log(batch) == {
        "imagination/reward": 25.0,
        "imagination/terminated": pytest.approx(1 / 6),
        "imagination/uncertainty": pytest.approx(110 / 6),
        "imagination/nonfinite": 0.0,
        "imagination/stuck": 0.0,
        "imagination/seen": 6.0,
    }


def test_the_sampler_weighs_by_that_uncertainty() -> None:
    buffer = make_buffer()
    ImaginedTransitions(buffer, KEYS)(make_batch())
    torch.manual_seed(0)
    drawn = buffer.sample(60_000)["state"].flatten().long().bincount(minlength=6) / 60_000
    u = torch.tensor([1.0, 3.0, 6.0, 10.0, 30.0, 60.0])
    expected = ((30.0 - u).clamp_min(0) / 10.0).exp()
    torch.testing.assert_close(drawn, expected / expected.sum(), atol=0.01, rtol=0)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("key", ["state", ("next", "state"), ("next", "reward")])
def test_rows_that_are_not_finite_are_dropped_and_counted(key: object, bad: float) -> None:
    buffer, batch = make_buffer(), make_batch()
    batch[key][1, 1] = bad
    hook = ImaginedTransitions(buffer, KEYS, max_nonfinite_share=0.2)
    hook(batch)
    assert buffer[:]["uncertainty"].flatten().tolist() == [1, 3, 6, 10, 60]
    assert (hook.nonfinite, hook.imagined) == (1, 6)
    hook(batch)
    assert (hook.nonfinite, hook.imagined, len(buffer)) == (2, 12, 10)
    assert hook.log(batch)["imagination/nonfinite"] == 2


def test_uncertainty_that_is_not_finite_is_dropped() -> None:
    buffer, batch = make_buffer(), make_batch()
    batch["next", "uncertainty"][0, 2] = INF
    ImaginedTransitions(buffer, KEYS, max_nonfinite_share=0.2)(batch)
    assert buffer[:]["uncertainty"].flatten().tolist() == [1, 3, 10, 30, 60]


def test_numbers_that_are_not_stored_do_not_count() -> None:
    buffer, batch = make_buffer(), make_batch()
    batch["extra"][:] = NAN
    ImaginedTransitions(buffer, KEYS, max_nonfinite_share=0.0)(batch)
    assert len(buffer) == 6


def test_rows_that_leave_an_agent_without_actions_are_dropped_unless_the_task_ends() -> None:
    buffer, batch, key = make_buffer(), make_batch(), ("next", "agents", "action_mask")
    batch[key] = torch.ones(2, 3, 2, 4, dtype=torch.bool)
    batch[key][0, 2] = False  # the task is over
    batch[key][1, 0, 1] = False
    batch[key][1, 2, :, 1:] = False  # one is left to each
    batch["next", "reward"][1, 1] = NAN
    batch[key][1, 1] = False  # dropped already
    hook = ImaginedTransitions(buffer, [*KEYS, key], max_nonfinite_share=0.2)
    hook(batch)
    assert buffer[:]["uncertainty"].flatten().tolist() == [1, 3, 6, 60]
    assert (hook.nonfinite, hook.stuck, hook.imagined) == (1, 1, 6)
    again = ImaginedTransitions(buffer, [*KEYS, key])
    again.load_state_dict(hook.state_dict())
    assert again.stuck == 1


def test_too_many_stop_training_and_store_nothing() -> None:
    buffer, batch = make_buffer(), make_batch()
    batch["next", "state"][0] = NAN
    batch["next", "reward"][0, 0] = INF
    ImaginedTransitions(buffer, KEYS, max_nonfinite_share=0.5)(batch)  # just allowed
    assert len(buffer) == 3
    hook = ImaginedTransitions(buffer, KEYS, max_nonfinite_share=0.49)
    with pytest.raises(ImaginationError) as error:
        hook(batch)
    message = str(error.value)
    assert "3 of 6 imagined transitions are not finite (allowed share 49.0%)" in message
    assert "('next', 'state')" in message and "('next', 'reward')" in message
    assert "'state'," not in message.replace("('next', 'state'),", "")
    assert len(buffer) == 3


def test_batch_without_a_key() -> None:
    batch = make_batch()
    with pytest.raises(KeyError, match="absent"):
        ImaginedTransitions(make_buffer(), [*KEYS, "absent"])(batch)


@pytest.mark.parametrize("share", [-0.1, 1.1, NAN])
def test_share_out_of_range(share: float) -> None:
    with pytest.raises(ValueError, match="max_nonfinite_share"):
        ImaginedTransitions(make_buffer(), KEYS, max_nonfinite_share=share)


def test_counters_survive_a_checkpoint() -> None:
    hook = ImaginedTransitions(make_buffer(), KEYS, max_nonfinite_share=0.2)
    batch = make_batch()
    batch["state"][0, 0] = NAN
    hook(batch)
    resumed = ImaginedTransitions(make_buffer(), KEYS)
    resumed.load_state_dict(hook.state_dict())
    assert (resumed.nonfinite, resumed.imagined) == (1, 6)
