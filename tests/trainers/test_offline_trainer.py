"""The offline trainer: methods, counts, resumption, what reaches logger and buffers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict.nn import TensorDictModuleBase
from torchrl.data import RandomSampler
from torchrl.envs import ExplorationType, set_exploration_type
from torchrl.modules import set_recurrent_mode

from torchrl_logo.data import (
    OfflineDataset,
    UncertaintySampler,
    collect,
    from_arrays,
    load_dataset,
)
from torchrl_logo.envs import make_env
from torchrl_logo.evaluation import evaluate
from torchrl_logo.modules import EnsembleWorldModel, JointWorldModel, LOGOWorldModel
from torchrl_logo.trainers import OfflineTrainer
from torchrl_logo.trainers.methods import METHODS

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


MODEL_FREE = sorted(name for name, method in METHODS.items() if method.world_model is None)


@pytest.fixture(scope="module")
def discrete_dataset() -> OfflineDataset:
    """Forty episodes of two agents; an agent's first action is always available."""
    rng = np.random.default_rng(0)
    frames = rng.normal(size=(40, 6, 2, 3)).astype(np.float32)
    masks = rng.random((40, 6, 2, 4)) < 0.6
    masks[..., 0] = True
    end = np.tile((np.arange(5) == 4)[:, None], (40, 1))
    arrays = {
        "agents/action": (masks[:, :-1] * rng.random((40, 5, 2, 4))).argmax(-1).reshape(200, 2),
        "next/reward": rng.normal(size=(200, 1)).astype(np.float32),
        "next/done": end,
        "next/terminated": np.zeros_like(end),
        "next/truncated": end,
    }
    for prefix, part in (("", slice(0, 5)), ("next/", slice(1, 6))):
        arrays[f"{prefix}agents/observation"] = frames[:, part].reshape(200, 2, 3)
        arrays[f"{prefix}agents/action_mask"] = masks[:, part].reshape(200, 2, 4)
        arrays[f"{prefix}state"] = frames[:, part].reshape(200, 6)
    return from_arrays(arrays)


@pytest.mark.parametrize("method", MODEL_FREE)
def test_model_free_training_changes_the_policy_and_counts_updates(
    dataset: OfflineDataset, method: str
) -> None:
    trainer = OfflineTrainer(method, dataset, steps=25, log_interval=10, **SMALL)
    before = parameters(trainer)
    result = trainer.train()
    act_within_bounds(result.policy, dataset)
    assert result.updates == 25
    assert any((a != b).any() for a, b in zip(before, parameters(trainer), strict=True))
    # two whole batches of ten and a last one of five
    assert [step for step, _ in result.history["loss_actor"]] == [10, 20, 25]
    assert trainer.world_model is None


@pytest.fixture(scope="module")
def replay_dataset(tmp_path_factory: pytest.TempPathFactory) -> OfflineDataset:
    root = tmp_path_factory.mktemp("data")
    return load_dataset("vmas/balance-medium-replay", root=root, frames=400)


CONTINUOUS = sorted(name for name, method in METHODS.items() if method.make_loss is not None)


@pytest.mark.parametrize("method", CONTINUOUS)
def test_each_method_fits_recorded_play_and_can_be_evaluated(
    replay_dataset: OfflineDataset, method: str
) -> None:
    imagined = {**IMAGINED, "imagine_interval": 20, "world_model_steps": 20}
    kwargs = imagined if METHODS[method].world_model is not None else SMALL
    trainer = OfflineTrainer(method, replay_dataset, steps=40, log_interval=20, **kwargs)
    result = trainer.train()
    losses = {name: [v for _, v in values] for name, values in result.history.items()}
    assert all(np.isfinite(values).all() for values in losses.values())
    runs = [evaluate(result.policy, "vmas/balance", episodes=2, seed=5) for _ in range(2)]
    assert runs[0].returns.shape == (2,) and runs[0].returns.isfinite().all()
    # nothing is sampled: the same starts give the same episodes
    torch.testing.assert_close(runs[0].returns, runs[1].returns)


def act_within_bounds(policy: TensorDictModuleBase, dataset: OfflineDataset) -> None:
    data = dataset[:50].select(("agents", "observation")).clone()
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        action = policy(data)["agents", "action"]
        again = policy(data.select(("agents", "observation")))["agents", "action"]
    assert action.shape == (50, 3, 2) and (action.abs() <= 1).all()
    torch.testing.assert_close(again, action)
    assert action.std() > 0


DISCRETE = sorted(n for n in MODEL_FREE if METHODS[n].make_discrete_loss is not None)


@pytest.mark.parametrize("method", DISCRETE)
def test_discrete_training_gives_a_policy_of_available_actions(
    discrete_dataset: OfflineDataset, method: str
) -> None:
    trainer = OfflineTrainer(method, discrete_dataset, steps=25, log_interval=10, **SMALL)
    before = parameters(trainer)
    result = trainer.train()
    assert any((a != b).any() for a, b in zip(before, parameters(trainer), strict=True))
    data = discrete_dataset[:].clone()
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        action = result.policy(data)["agents", "action"]
    mask = discrete_dataset[:]["agents", "action_mask"]
    assert action.shape == (200, 2) and action.dtype == torch.int64
    assert mask.gather(-1, action.unsqueeze(-1)).all()
    assert len(action.unique()) > 1


RECURRENT = sorted(name for name, method in METHODS.items() if method.recurrent)


@pytest.mark.parametrize("method", RECURRENT)
def test_sequences_train_policies_with_memory(
    discrete_dataset: OfflineDataset, method: str
) -> None:
    trainer = OfflineTrainer(
        method, discrete_dataset, steps=12, log_interval=5, sequence_length=4, **SMALL
    )
    batch = trainer.replay_buffer.sample()
    assert batch.shape == (8, 4) and batch["is_init"][:, 0].all()
    result = trainer.train()
    assert result.updates == 12
    policy = result.policy
    state = [k for k in policy.in_keys if "recurrent_state" in str(k)]
    run = discrete_dataset[:5].clone().unsqueeze(0)
    run["is_init"] = (torch.arange(5) == 0).reshape(1, 5, 1)
    with torch.no_grad(), set_recurrent_mode(True), set_exploration_type(ExplorationType.MODE):
        policy(run)
        alone = discrete_dataset[4:5].clone().unsqueeze(0)
        alone["is_init"] = torch.ones(1, 1, 1, dtype=torch.bool)
        policy(alone)
    key = ("agents", "logits") if method == "bc" else ("agents", "action_value")
    # what was seen before matters
    assert not torch.allclose(run[key][0, 4], alone[key][0, 0]), state


def test_sequences_are_refused_where_they_cannot_be(
    dataset: OfflineDataset, discrete_dataset: OfflineDataset
) -> None:
    for method, data in (("macql", dataset), ("mabcq", discrete_dataset)):
        with pytest.raises(ValueError, match="sequence_length goes with"):
            OfflineTrainer(method, data, steps=1, sequence_length=4, **SMALL)
    with pytest.raises(ValueError, match="within"):
        OfflineTrainer("bc", discrete_dataset, steps=1, sequence_length=64, **SMALL)


@pytest.mark.parametrize("method", sorted(set(MODEL_FREE) - set(DISCRETE)))
def test_continuous_methods_refuse_discrete_data(
    discrete_dataset: OfflineDataset, method: str
) -> None:
    with pytest.raises(ValueError, match="no form for discrete actions"):
        OfflineTrainer(method, discrete_dataset, steps=1, **SMALL)


def test_discrete_logo_imagines_available_actions(discrete_dataset: OfflineDataset) -> None:
    trainer = OfflineTrainer("logo", discrete_dataset, steps=25, world_model_steps=20, **IMAGINED)
    trainer.train()
    stored = trainer.replay_buffer.imagined[:]
    action, mask = stored["agents", "action"], stored["agents", "action_mask"]
    assert len(stored) > 0 and mask.gather(-1, action.unsqueeze(-1)).all()


@pytest.mark.parametrize("method", ["mopo", "combo"])
def test_ensemble_methods_draw_uniformly(dataset: OfflineDataset, method: str) -> None:
    trainer = OfflineTrainer(method, dataset, steps=25, world_model_steps=20, **IMAGINED)
    trainer.train()
    assert isinstance(trainer.world_model, EnsembleWorldModel)
    assert isinstance(trainer.replay_buffer.imagined.sampler, RandomSampler)
    assert trainer.hyperparameters["uncertainty_threshold"] is None
    imagined = trainer.replay_buffer.imagined[:]
    model = trainer.world_model
    again = model(imagined.select(*model.in_keys))
    cost = imagined["next", "reward"] - again["next", "reward"]
    if method == "combo":
        torch.testing.assert_close(cost, torch.zeros_like(cost), atol=1e-4, rtol=1e-4)
    else:  # what the penalty took off is the step's own uncertainty, in the data's reward spread
        coefficient = 2.5 * float(dataset.data["next", "reward"].std())
        torch.testing.assert_close(cost, -coefficient * again["uncertainty"], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", [JointWorldModel, EnsembleWorldModel, LOGOWorldModel])
def test_macql_with_each_world_model(dataset: OfflineDataset, kind: type) -> None:
    torch.manual_seed(0)
    model = kind.from_dataset(dataset, hidden_size=8)
    trainer = OfflineTrainer("macql", dataset, steps=12, world_model=model, **IMAGINED)
    trainer.train()
    weighted = isinstance(trainer.replay_buffer.imagined.sampler, UncertaintySampler)
    assert weighted == (kind is not JointWorldModel)
    if kind is JointWorldModel:
        for change in ({"uncertainty_weights": True}, {"reward_penalty": 1.0}):
            with pytest.raises(ValueError, match="does not estimate its uncertainty"):
                OfflineTrainer(
                    "macql", dataset, steps=1, world_model=model, **{**IMAGINED, **change}
                )


def test_next_actions_are_not_imagined(
    dataset: OfflineDataset, world_model: LOGOWorldModel
) -> None:
    with pytest.raises(ValueError, match="next actions"):
        OfflineTrainer("maicq", dataset, steps=1, world_model=world_model, **IMAGINED)


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


@pytest.mark.parametrize("method", ["macql", "logo", "maicq", "mopo"])
def test_a_training_that_was_cut_off_ends_as_if_it_had_not_been(
    dataset: OfflineDataset, world_model: LOGOWorldModel, tmp_path: Path, method: str
) -> None:
    imagines = METHODS[method].world_model is not None
    kwargs = dict(IMAGINED if imagines else SMALL, log_interval=10)
    if method == "logo":
        kwargs["world_model"] = world_model
    elif imagines:
        kwargs["world_model"] = EnsembleWorldModel.from_dataset(dataset, hidden_size=8)
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
        ({"method": "logi"}, "No method 'logi'. Nearest: logo"),
        ({"steps": 0}, "steps must be a positive integer, found 0"),
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


def test_a_model_of_another_task_is_refused(dataset: OfflineDataset) -> None:
    other = LOGOWorldModel.from_env(make_env("vmas/transport"), hidden_size=8)
    with pytest.raises(ValueError, match="belongs to another task"):
        OfflineTrainer("logo", dataset, steps=5, world_model=other, **IMAGINED)


def test_training_from_files_is_training_from_memory(dataset, world_model) -> None:
    for method, kwargs in (("macql", SMALL), ("logo", {**IMAGINED, "world_model": world_model})):
        weights = []
        for in_memory in (True, False):
            trainer = OfflineTrainer(method, dataset, steps=12, in_memory=in_memory, **kwargs)
            trainer.train()
            weights.append(torch.cat([p.flatten() for p in parameters(trainer)]))
        assert torch.equal(*weights), method


def test_methods_that_need_next_actions_train_from_memory_only(dataset) -> None:
    needing = next(name for name, method in METHODS.items() if method.next_actions)
    with pytest.raises(ValueError, match="in_memory=False goes with methods"):
        OfflineTrainer(needing, dataset, steps=1, in_memory=False, **SMALL)
