"""Numbers that go wrong are named, with the update, and end training or are skipped and counted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from torchrl_logo.data import OfflineDataset, collect
from torchrl_logo.envs import make_env
from torchrl_logo.trainers import NonFiniteError, NumberWatch, OfflineTrainer
from torchrl_logo.trainers.durable_checkpoint import DurableRotation

SMALL: dict[str, Any] = {
    "progress_bar": False,
    "eval_interval": 0,
    "hidden_sizes": (8,),
    "batch_size": 16,
    "log_interval": 10,
}


@pytest.fixture(scope="module")
def dataset() -> OfflineDataset:
    return collect(make_env("vmas/balance", num_envs=4, seed=0), None, 400, seed=0)


def poison(trainer: OfflineTrainer, updates: set[int], value: float) -> None:
    """Puts a value into the rewards of some updates' batches."""

    def spoil(batch: TensorDict) -> TensorDict:
        if trainer._optim_count in updates:
            batch["next", "reward"] = torch.full_like(batch["next", "reward"], value)
        return batch

    trainer.register_op("process_optim_batch", spoil)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_training_stops_and_the_last_good_checkpoint_stays(
    dataset: OfflineDataset, tmp_path: Path, value: float
) -> None:
    trainer = OfflineTrainer(
        "macql", dataset, steps=40, checkpoint_dir=tmp_path, checkpoint_interval=10, **SMALL
    )
    poison(trainer, {27}, value)
    with pytest.raises(NonFiniteError, match="loss_qvalue, first at update 27"):
        trainer.train()
    assert DurableRotation(tmp_path).find_whole() == tmp_path / "checkpoint-000000000020"
    again = OfflineTrainer(
        "macql", dataset, steps=40, checkpoint_dir=tmp_path, checkpoint_interval=10, **SMALL
    )
    assert again.train().updates == 40
    assert all(p.isfinite().all() for p in again.loss_module.parameters())


def test_skipped_updates_change_nothing_and_are_counted(dataset: OfflineDataset) -> None:
    trainer = OfflineTrainer("macql", dataset, steps=20, max_skipped_updates=3, **SMALL)
    poison(trainer, {5, 6}, math.nan)
    seen: dict[int, torch.Tensor] = {}

    def note() -> None:
        seen[trainer._optim_count] = next(trainer.policy.parameters()).detach().clone()

    trainer.register_op("post_optim", note)
    with pytest.warns(RuntimeWarning, match="2 updates skipped so far"):
        result = trainer.train()
    assert result.updates == 20 and trainer.watch.skipped == 2
    assert torch.equal(seen[4], seen[5]) and torch.equal(seen[5], seen[6])
    assert not torch.equal(seen[6], seen[7])
    assert all(p.isfinite().all() for p in trainer.loss_module.parameters())


def test_more_than_the_limit_of_skipped_updates_stop(dataset: OfflineDataset) -> None:
    trainer = OfflineTrainer("macql", dataset, steps=20, max_skipped_updates=1, **SMALL)
    poison(trainer, {5, 6}, math.nan)
    with pytest.raises(NonFiniteError, match="2 updates skipped, more than 1"):
        trainer.train()


def test_weights_are_named(dataset: OfflineDataset, tmp_path: Path) -> None:
    watch = NumberWatch()
    layer = nn.Linear(2, 2)
    watch.check(layer.named_parameters())
    with torch.no_grad():
        layer.bias[1] = math.inf
    with pytest.raises(NonFiniteError, match="weights of bias"):
        watch.check(layer.named_parameters())


def test_diverging_values_are_named_once(dataset: OfflineDataset) -> None:
    trainer = OfflineTrainer("macql", dataset, steps=30, gamma=0.9, **SMALL)
    limit = trainer.watch.value_limit
    rewards = dataset.data["next", "reward"]
    assert limit == pytest.approx(float(10 * rewards.abs().max() / rewards.std() / 0.1), rel=1e-5)
    poison(trainer, {12}, 1e9)
    with pytest.warns(RuntimeWarning, match="Values diverge: 'target_value'") as found:
        trainer.train()
    assert len([w for w in found if "Values diverge" in str(w.message)]) == 1


@pytest.mark.parametrize("changes", [{"max_skipped": -1}, {"value_limit": 0.0}])
def test_bad_arguments_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        NumberWatch(**changes)
