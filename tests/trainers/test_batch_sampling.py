"""Batches with scaled rewards, and buffers that keep the task's own."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from torchrl_logo.data import UncertaintySampler, collect, real_and_imagined_buffer
from torchrl_logo.envs.vmas import VmasTeamEnv
from torchrl_logo.trainers.batch_sampling import BatchSampling


class FirstRows:
    """A buffer whose batches are views of its memory."""

    def __init__(self, rows: int) -> None:
        self.data = TensorDict(
            {"next": {"reward": torch.arange(1.0, rows + 1).unsqueeze(-1)}}, [rows]
        )

    def sample(self, batch_size: int) -> TensorDictBase:
        return self.data[:batch_size]


@pytest.fixture(scope="module")
def dataset():
    env = VmasTeamEnv("balance", num_envs=4, max_steps=5, seed=0)
    return collect(env, None, 20, seed=0)


def test_scales_the_batch_and_not_the_memory_it_views() -> None:
    buffer = FirstRows(6)
    hook = BatchSampling(buffer, batch_size=4, reward_scale=0.5)
    for _ in range(2):
        assert hook()["next", "reward"].flatten().tolist() == [0.5, 1, 1.5, 2]
    assert buffer.data["next", "reward"].flatten().tolist() == [1, 2, 3, 4, 5, 6]


def test_dataset_keeps_its_rewards(dataset) -> None:
    before = dataset.data.clone()
    hook = BatchSampling(dataset, batch_size=64, reward_scale=100.0, device="cpu")
    batch = hook(TensorDict(batch_size=[7]))  # the collector's batch is not looked at
    assert batch.shape == (64,) and batch.device == torch.device("cpu")
    truth = {
        tuple(state.tolist()): reward
        for state, reward in zip(before["state"], before["next", "reward"], strict=True)
    }
    expected = torch.stack([truth[tuple(state.tolist())] for state in batch["state"]])
    assert expected.any()
    torch.testing.assert_close(batch["next", "reward"], 100 * expected)
    assert (dataset.data == before).all()


def test_both_parts_of_a_mixed_buffer_are_scaled_alike(dataset) -> None:
    imagined = TensorDictReplayBuffer(
        storage=LazyTensorStorage(20),
        sampler=UncertaintySampler(20, C=1.0),
        priority_key="uncertainty",
    )
    buffer = real_and_imagined_buffer(dataset, imagined, batch_size=8)
    rows = dataset.data.exclude("episode", "step").clone()
    rows["uncertainty"] = torch.zeros(len(rows), 1)
    rows["next", "reward"] = torch.full((len(rows), 1), 3.0)
    buffer.extend(rows)
    batch = BatchSampling(buffer, batch_size=8, reward_scale=2.0)()
    assert batch["imagined"].flatten().tolist() == [False] * 4 + [True] * 4
    assert (batch["next", "reward"][4:] == 6).all()
    own = dataset.data["next", "reward"][batch["index"][:4]]
    torch.testing.assert_close(batch["next", "reward"][:4], 2 * own)
    assert (imagined[:]["next", "reward"] == 3).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, found 0"),
        ({"batch_size": 4, "reward_scale": 0.0}, "reward_scale must be positive, found 0.0"),
        ({"batch_size": 4, "reward_scale": float("nan")}, "reward_scale must be positive"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchSampling(FirstRows(6), **arguments)


def test_scale_survives_a_checkpoint() -> None:
    resumed = BatchSampling(FirstRows(6), batch_size=2)
    resumed.load_state_dict(
        BatchSampling(FirstRows(6), batch_size=2, reward_scale=3.0).state_dict()
    )
    assert resumed()["next", "reward"].flatten().tolist() == [3, 6]
