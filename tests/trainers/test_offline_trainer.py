"""The offline trainer: methods, counts, resumption, what reaches logger and buffers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from torchrl_logo.data import OfflineDataset, collect
from torchrl_logo.envs import make_env
from torchrl_logo.modules import JointWorldModel, LOGOWorldModel
from torchrl_logo.trainers import OfflineTrainer

SMALL: dict[str, Any] = {
    "progress_bar": False,
    "eval_interval": 0,
    "hidden_sizes": (16,),
    "batch_size": 32,
}
IMAGINED: dict[str, Any] = {
    "imagined_envs": 8,
    "horizon": 3,
    "imagine_interval": 10,
    "imagined_capacity": 200,
    **SMALL,
}


@pytest.fixture(scope="module")
def dataset() -> OfflineDataset:
    return collect(make_env("vmas/balance", num_envs=8, seed=0), None, 800, seed=0)


@pytest.fixture(scope="module")
def world_model(dataset: OfflineDataset) -> LOGOWorldModel:
    torch.manual_seed(0)
    return LOGOWorldModel.from_dataset(dataset, hidden_size=8)


def parameters(trainer: OfflineTrainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.loss_module.parameters()]


@pytest.mark.parametrize("method", ["bc", "macql"])
def test_model_free_training_changes_the_policy_and_counts_updates(
    dataset: OfflineDataset, method: str
) -> None:
    trainer = OfflineTrainer(method, dataset, steps=25, log_interval=10, **SMALL)
    before = parameters(trainer)
    result = trainer.train()
    assert result.updates == 25
    assert any((a != b).any() for a, b in zip(before, parameters(trainer), strict=True))
    # two whole batches of ten and a last one of five
    assert [step for step, _ in result.history["loss_actor"]] == [10, 20, 25]
    assert trainer.world_model is None


def test_logo_imagines_with_the_current_policy_and_mixes_half(
    dataset: OfflineDataset, world_model: LOGOWorldModel
) -> None:
    trainer = OfflineTrainer("logo", dataset, steps=25, world_model=world_model, **IMAGINED)
    result = trainer.train()
    # three imaginations of 8 rollouts of 3 steps
    assert len(trainer.replay_buffer.imagined) == 3 * 8 * 3
    batch = trainer.replay_buffer.sample()
    assert batch["imagined"].sum() == 16 and not batch["imagined"][:16].any()
    stored = trainer.replay_buffer.imagined[:]
    assert (stored["uncertainty"] > 0).all()
    assert result.history["imagination/seen"][-1][1] == 72
    assert trainer.imagination is not None and trainer.imagination.threshold > 0
    assert trainer.imagination.temperature == pytest.approx(trainer.imagination.threshold / 3)
    # the model is used, not trained
    assert not any(p.requires_grad for p in world_model.parameters())


def test_the_same_seed_gives_the_same_policy(
    dataset: OfflineDataset, world_model: LOGOWorldModel
) -> None:
    runs = []
    for seed in (0, 0, 1):
        trainer = OfflineTrainer(
            "logo", dataset, steps=12, seed=seed, world_model=world_model, **IMAGINED
        )
        trainer.train()
        runs.append(parameters(trainer))
    same = [torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True)]
    other = [torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True)]
    assert all(same) and not all(other)


def test_rewards_are_standardised_only_in_batches(dataset: OfflineDataset) -> None:
    trainer = OfflineTrainer("macql", dataset, steps=1, **SMALL)
    scale = 1 / float(dataset.data["next", "reward"].std())
    assert trainer.hyperparameters["reward_scale"] == pytest.approx(scale)
    torch.testing.assert_close(
        trainer.replay_buffer[:]["next", "reward"], dataset.data["next", "reward"].clone()
    )


def test_learning_rate_falls_to_zero(dataset: OfflineDataset) -> None:
    trainer = OfflineTrainer("bc", dataset, steps=10, **SMALL)
    trainer.train()
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)


def test_targets_move_by_tau(dataset: OfflineDataset) -> None:
    trainer = OfflineTrainer("macql", dataset, steps=1, tau=0.5, lr_decay=False, **SMALL)
    loss = trainer.loss_module
    before = loss.target_qvalue_network_params.clone()
    trainer.train()
    after, online = loss.target_qvalue_network_params, loss.qvalue_network_params
    moved = 0
    for key in online.keys(True, True):
        value = online.get(key)
        if value.requires_grad:
            torch.testing.assert_close(after.get(key), 0.5 * before.get(key) + 0.5 * value.detach())
            moved += 1
    assert moved == 4


@pytest.mark.parametrize("method", ["macql", "logo"])
def test_a_training_that_was_cut_off_ends_as_if_it_had_not_been(
    dataset: OfflineDataset, world_model: LOGOWorldModel, tmp_path: Path, method: str
) -> None:
    kwargs = dict(IMAGINED if method == "logo" else SMALL, log_interval=10)
    if method == "logo":
        kwargs["world_model"] = world_model
    whole = OfflineTrainer(method, dataset, steps=40, **kwargs)
    whole.train()

    class Cut(Exception):
        pass

    def cut() -> None:
        if first._optim_count >= 30:
            raise Cut

    first = OfflineTrainer(
        method, dataset, steps=40, checkpoint_dir=tmp_path, checkpoint_interval=10, **kwargs
    )
    first.register_op("post_optim", cut)
    with pytest.raises(Cut):
        first.train()
    second = OfflineTrainer(
        method, dataset, steps=40, checkpoint_dir=tmp_path, checkpoint_interval=10, **kwargs
    )
    assert second._optim_count == 20
    second.train()
    for a, b in zip(parameters(whole), parameters(second), strict=True):
        torch.testing.assert_close(a, b)


def test_a_loss_module_can_be_given(dataset: OfflineDataset) -> None:
    from torchrl_logo.modules import make_gaussian_actor
    from torchrl_logo.objectives.bc import BCLoss

    loss = BCLoss(make_gaussian_actor(dataset.spec, hidden_sizes=(8,)))
    trainer = OfflineTrainer(loss, dataset, steps=3, **SMALL)
    assert trainer.train().updates == 3 and trainer.method == "BCLoss"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "macq"}, "No method 'macq'. Nearest: macql"),
        ({"steps": 0}, "steps must be at least 1, found 0"),
        ({"batch_size": 0}, "batch_size"),
        ({"log_interval": 0}, "log_interval"),
        ({"reward_scale": -1.0}, "reward_scale must be positive"),
        ({"clip_norm": 0.0}, "clip_norm must be positive"),
    ],
)
def test_bad_arguments_are_refused(
    dataset: OfflineDataset, changes: dict[str, Any], message: str
) -> None:
    kwargs = {"method": "macql", "steps": 5, **SMALL, **changes}
    with pytest.raises(ValueError, match=message):
        OfflineTrainer(kwargs.pop("method"), dataset, **kwargs)


def test_a_model_without_uncertainty_is_refused(dataset: OfflineDataset) -> None:
    joint = JointWorldModel.from_dataset(dataset, hidden_size=8)
    with pytest.raises(ValueError, match="reports no uncertainty"):
        OfflineTrainer("logo", dataset, steps=5, world_model=joint, **IMAGINED)


def test_a_model_of_another_task_is_refused(dataset: OfflineDataset) -> None:
    other = LOGOWorldModel.from_env(make_env("vmas/transport"), hidden_size=8)
    with pytest.raises(ValueError, match="belongs to another task"):
        OfflineTrainer("logo", dataset, steps=5, world_model=other, **IMAGINED)
