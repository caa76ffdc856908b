"""TorchRL's own trainer, without anything to collect."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.objectives import LossModule
from torchrl.trainers import Trainer

from torchrl_logo.trainers import NoCollection
from torchrl_logo.trainers.batch_sampling import BatchSampling


class MeanReward(LossModule):
    """Learns the mean of the rewards it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.nn.Parameter(torch.zeros(()))
        self.calls = 0

    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        self.calls += 1
        error = self.mean - tensordict["next", "reward"]
        return TensorDict({"loss_mean": error.square().mean()})


def test_trainer_counts_updates_as_frames() -> None:
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(50), batch_size=16)
    torch.manual_seed(0)
    rewards = torch.randn(50, 1) + 4
    buffer.extend(TensorDict({"next": {"reward": rewards}}, [50]))
    loss = MeanReward()
    trainer = Trainer(
        collector=NoCollection(10),
        total_frames=300,
        frame_skip=1,
        optim_steps_per_batch=10,
        loss_module=loss,
        optimizer=torch.optim.SGD(loss.parameters(), lr=0.05),
        progress_bar=False,
    )
    BatchSampling(buffer, batch_size=50, reward_scale=0.5).register(trainer)
    seen: list[int] = []
    trainer.register_op("post_steps", lambda: seen.append(trainer._optim_count))
    trainer.train()
    assert loss.calls == trainer._optim_count == trainer.collected_frames == 300
    assert seen == list(range(10, 301, 10))
    assert abs(loss.mean.item() - 0.5 * rewards.mean().item()) < 0.1


def test_batches_hold_nothing_but_the_count() -> None:
    batches = iter(NoCollection(7))
    for batch in (next(batches), next(batches)):
        assert batch.numel() == 7 and not list(batch.keys(True))


def test_what_a_trainer_may_ask_of_a_collector() -> None:
    collector = NoCollection(3)
    assert collector.init_random_frames == 0 and collector.set_seed(5) == 5
    collector.update_policy_weights_()
    collector.load_state_dict(collector.state_dict())
    collector.shutdown()


def test_bad_argument() -> None:
    with pytest.raises(ValueError, match="updates_per_batch must be at least 1, found 0"):
        NoCollection(0)
