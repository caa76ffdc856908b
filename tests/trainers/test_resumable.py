"""A training that a signal stops within a block of updates ends as if it had not been stopped."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from torchrl_logo.data import OfflineDataset, collect, sequence_buffer
from torchrl_logo.envs import make_env
from torchrl_logo.modules import JointWorldModel, RecurrentLatentWorldModel
from torchrl_logo.objectives import RecurrentLatentWorldModelLoss
from torchrl_logo.trainers import (
    OfflineTrainer,
    TrainingInterrupted,
    WorldModelTrainer,
    train_from_buffer,
)
from torchrl_logo.trainers.optimization import OfflineOptimizationStepper

SMALL: dict[str, Any] = {
    "steps": 30,
    "progress_bar": False,
    "eval_interval": 0,
    "hidden_sizes": (8,),
    "batch_size": 16,
    "log_interval": 10,
}
IMAGINED: dict[str, Any] = {
    "imagined_envs": 8,
    "horizon": 3,
    "imagine_interval": 10,
    "imagined_capacity": 40,
}


@pytest.fixture(scope="module")
def dataset() -> OfflineDataset:
    return collect(make_env("vmas/balance", num_envs=8, seed=0), None, 800, seed=0)


def stop_at(trainer: Any, update: int) -> None:
    def stop() -> None:
        if trainer._optim_count == update:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.register_op("post_optim", stop)


@pytest.mark.parametrize("update", [13, 20])
@pytest.mark.parametrize("method", ["macql", "combo"])
def test_policies(dataset: OfflineDataset, tmp_path: Path, method: str, update: int) -> None:
    def make(folder: Path | None) -> OfflineTrainer:
        extra: dict[str, Any] = {}
        if method == "combo":
            torch.manual_seed(0)
            extra = {"world_model": JointWorldModel.from_dataset(dataset, hidden_size=8)}
            extra |= IMAGINED
        return OfflineTrainer(
            method, dataset, checkpoint_dir=folder, checkpoint_interval=10, **SMALL, **extra
        )

    whole = make(None)
    expected = whole.train()
    first = make(tmp_path)
    stop_at(first, update)
    with pytest.raises(TrainingInterrupted):
        first.train()
    torch.manual_seed(99)
    second = make(tmp_path)
    assert second._optim_count == update
    found = second.train()
    pairs = zip(
        whole.loss_module.state_dict().items(), second.loss_module.state_dict().items(), strict=True
    )
    for (key, a), (_, b) in pairs:
        assert not isinstance(a, torch.Tensor) or torch.equal(a, b), key
    assert found.history == expected.history


@pytest.mark.parametrize("unroll", [1, 4])
def test_world_models(dataset: OfflineDataset, tmp_path: Path, unroll: int) -> None:
    def make(folder: Path | None) -> WorldModelTrainer:
        torch.manual_seed(0)
        return WorldModelTrainer(
            JointWorldModel(dataset.spec, hidden_size=8),
            dataset,
            steps=40,
            batch_size=32,
            unroll=unroll,
            evaluation_interval=10,
            horizon=3,
            progress_bar=False,
            checkpoint_dir=folder,
        )

    whole = make(None)
    expected = whole.train()
    for update in (7, 25, 30):
        trainer = make(tmp_path)
        stop_at(trainer, update)
        with pytest.raises(TrainingInterrupted):
            trainer.train()
    last = make(tmp_path)
    assert last._optim_count == 30
    assert last.train() == expected
    again = make(tmp_path)  # nothing is left to be done
    assert again.train() == expected
    for trainer in (last, again):
        pairs = zip(
            whole.world_model.state_dict().items(),
            trainer.world_model.state_dict().items(),
            strict=True,
        )
        assert all(torch.equal(a, b) for (_, a), (_, b) in pairs)


def test_losses_on_buffers(
    dataset: OfflineDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(folder: Path | None) -> tuple[dict[str, float], list[torch.Tensor]]:
        torch.manual_seed(0)
        sizes = {"memory_size": 8, "code_groups": 2, "code_classes": 4, "hidden_size": 8}
        model = RecurrentLatentWorldModel.from_dataset(dataset, **sizes)
        buffer = sequence_buffer(dataset, slice_len=4, batch_size=4, short_episodes="pad", seed=0)
        result = train_from_buffer(
            RecurrentLatentWorldModelLoss(model),
            buffer,
            steps=20,
            lr=1e-3,
            progress_bar=False,
            checkpoint_dir=folder,
        )
        return result, [p.detach() for p in model.parameters()]

    expected, weights = train(None)
    original = OfflineOptimizationStepper.step

    def step(self: Any, trainer: Any, batch: Any) -> Any:
        if trainer._optim_count == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, trainer, batch)

    with monkeypatch.context() as patched:
        patched.setattr(OfflineOptimizationStepper, "step", step)
        with pytest.raises(TrainingInterrupted):
            train(tmp_path)
    for _ in range(2):  # the second time nothing is left to be done
        found, other = train(tmp_path)
        assert found == expected
        assert all(torch.equal(a, b) for a, b in zip(weights, other, strict=True))
