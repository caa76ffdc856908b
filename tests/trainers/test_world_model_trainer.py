"""Training on a linear world, in which the right answers are known."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict

from torchrl_logo.data import OfflineDataset, TaskSpec
from torchrl_logo.modules import JointWorldModel, LOGOWorldModel
from torchrl_logo.trainers.world_model import WorldModelTrainer

SPEC = TaskSpec(
    n_agents=2,
    observation_size=2,
    state_size=3,
    action_size=1,
    action_low=(-1.0,),
    action_high=(1.0,),
)


@pytest.fixture(scope="module")
def dataset() -> OfflineDataset:
    """Agents push themselves along a line; the third state feature is their distance."""
    torch.manual_seed(0)
    episodes, length = 40, 20
    position = torch.randn(episodes, 2)
    rows = []
    for t in range(length):
        action = torch.rand(episodes, 2, 1) * 2 - 1
        following = position + 0.3 * action.squeeze(-1)
        step, then = (
            {
                "agents": {"observation": torch.stack([p, p.flip(-1) - p], -1)},
                "state": torch.cat([p, p[:, :1] - p[:, 1:]], -1),
            }
            for p in (position, following)
        )
        step["agents"]["action"] = action
        last = torch.full((episodes, 1), t == length - 1)
        then.update(
            reward=following[:, :1] - position[:, :1],
            done=last,
            terminated=torch.zeros_like(last),
            truncated=last.clone(),
        )
        step.update(next=then, episode=torch.arange(episodes), step=torch.full((episodes,), t))
        rows.append(TensorDict(step, [episodes]))
        position = following
    return OfflineDataset.from_transitions(torch.stack(rows, 1).reshape(-1).contiguous(), SPEC)


class Recorder:
    def __init__(self) -> None:
        self.scalars: dict[str, list[tuple[float, int]]] = {}

    def log_scalar(self, name: str, value: float, step: int | None = None) -> None:
        self.scalars.setdefault(name, []).append((float(value), step or 0))


@pytest.mark.parametrize("model_class", [LOGOWorldModel, JointWorldModel])
def test_it_learns_and_logs(model_class: type, dataset: OfflineDataset) -> None:
    torch.manual_seed(0)
    model, logger = model_class(SPEC, hidden_size=32), Recorder()
    trainer = WorldModelTrainer(
        model,
        dataset,
        steps=250,
        batch_size=64,
        evaluation_interval=100,
        logger=logger,
        progress_bar=False,
    )
    result = trainer.train()
    assert result.updates == 250 and not result.stopped_early
    assert [h["update"] for h in result.history] == [100, 200, 250]
    assert result.metrics["one_step/state_error"] < 0.05
    assert result.metrics["open_loop/state_error/15"] < 0.5
    assert ("open_loop/uncertainty_rho" in result.metrics) == model.has_uncertainty
    # At 100, 200 and 250 updates, counted in transitions.
    steps = [step for _, step in logger.scalars["world_model/one_step/state_error"]]
    assert steps == [6400, 12800, 16000]
    assert "world_model/train/loss_reward" in logger.scalars
    assert "world_model/final/open_loop/state_error/15" in logger.scalars


def test_normalisers_see_the_training_episodes_alone(dataset: OfflineDataset) -> None:
    model = JointWorldModel(SPEC, hidden_size=4)
    WorldModelTrainer(
        model, dataset, steps=1, seed=5, train_fraction=0.5, progress_bar=False
    ).train()
    train, _ = dataset.split(0.5, seed=5)
    torch.testing.assert_close(model.state_normalizer.mean, train.data["state"].mean(0))
    assert not torch.allclose(model.state_normalizer.mean, dataset.data["state"].mean(0))


def test_the_best_weights_are_restored_after_patience(dataset: OfflineDataset) -> None:
    torch.manual_seed(0)
    model = JointWorldModel(SPEC, hidden_size=8)
    trainer = WorldModelTrainer(
        model,
        dataset,
        steps=1000,
        batch_size=32,
        evaluation_interval=10,
        patience=2,
        progress_bar=False,
    )
    states, worse = [], 0.0

    def spoil() -> dict[str, float]:
        # From the third evaluation on, the loss only rises.
        nonlocal worse
        states.append({k: v.clone() for k, v in model.state_dict().items()})
        worse += 10.0 if len(states) > 2 else 0.0
        return {"held_out/loss_state": 5.0 - len(states) + worse}

    trainer._measure_held_out_loss = spoil  # type: ignore[method-assign]
    result = trainer.train()
    assert result.stopped_early and result.updates == 40 and result.best_update == 20
    for key, value in model.state_dict().items():
        assert torch.equal(value, states[1][key])
    assert any(not torch.equal(states[1][key], states[3][key]) for key in states[1])


def test_the_same_seed_gives_the_same_weights_and_leaves_global_randomness_alone(
    dataset: OfflineDataset,
) -> None:
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        model = JointWorldModel(SPEC, hidden_size=8)
        before = torch.get_rng_state()
        WorldModelTrainer(model, dataset, steps=20, seed=seed, progress_bar=False).train()
        assert torch.equal(torch.get_rng_state(), before)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_divergence_is_explained(dataset: OfflineDataset) -> None:
    model = JointWorldModel(SPEC, hidden_size=8)
    trainer = WorldModelTrainer(model, dataset, steps=10, evaluation_interval=5, progress_bar=False)
    with torch.no_grad():
        model.network[0].weight.fill_(math.nan)
    with pytest.raises(RuntimeError, match="diverged"):
        trainer.train()


def test_bad_arguments_are_refused(dataset: OfflineDataset) -> None:
    other = TaskSpec(2, 2, 4, 1, action_low=(-1.0,), action_high=(1.0,))
    with pytest.raises(ValueError, match="state_size: expected 4, found 3"):
        WorldModelTrainer(JointWorldModel(other, hidden_size=4), dataset, steps=1)
    model = JointWorldModel(SPEC, hidden_size=4)
    with pytest.raises(ValueError, match="steps must be a positive integer, found 0"):
        WorldModelTrainer(model, dataset, steps=0)
    with pytest.raises(ValueError, match="patience"):
        WorldModelTrainer(model, dataset, steps=1, patience=0)


@pytest.mark.parametrize("model_class", [LOGOWorldModel, JointWorldModel])
def test_it_trains_on_windows_after_the_warm_up(model_class: type, dataset: OfflineDataset) -> None:
    torch.manual_seed(0)
    model = model_class(SPEC, hidden_size=16)
    trainer = WorldModelTrainer(
        model,
        dataset,
        steps=50,
        batch_size=64,
        evaluation_interval=10,
        unroll=4,
        unroll_warm_up=0.3,
        progress_bar=False,
    )
    batches: list[TensorDict] = []
    forward = trainer.loss_module.forward
    trainer.loss_module.forward = lambda b: (batches.append(b), forward(b))[1]
    result = trainer.train()
    # 15 updates, rounded up to 20; then as many transitions, in windows. Evaluations have no
    # gradient.
    shapes = [tuple(b.batch_size) for b in batches if b.numel() == 64]
    assert shapes == [(64,)] * 20 + [(16, 4)] * 30
    assert result.best_update > 20
    windows = torch.stack([b for b in batches if tuple(b.batch_size) == (16, 4)])
    following = windows["next", "state"][..., :-1, :]
    assert torch.equal(windows["state"][..., 1:, :], following)
    assert (
        result.metrics["held_out_loss"]
        == result.history[result.best_update // 10 - 1]["held_out_loss"]
    )


def test_unrolling_that_cannot_happen_is_refused(dataset: OfflineDataset) -> None:
    model = JointWorldModel(SPEC, hidden_size=4)
    with pytest.raises(ValueError, match="leaves none of 100 to unroll"):
        WorldModelTrainer(model, dataset, steps=100, unroll=4, progress_bar=False)
    with pytest.raises(ValueError, match="longer than the dataset's episodes"):
        WorldModelTrainer(model, dataset, steps=1000, unroll=21, progress_bar=False)


@pytest.mark.parametrize("unroll", [1, 2])
def test_training_from_files_is_training_from_memory(dataset: OfflineDataset, unroll: int) -> None:
    weights = []
    for in_memory in (True, False):
        torch.manual_seed(0)
        model = JointWorldModel(SPEC, hidden_size=8)
        trainer = WorldModelTrainer(
            model,
            dataset,
            steps=20,
            batch_size=32,
            evaluation_interval=10,
            horizon=3,
            unroll=unroll,
            in_memory=in_memory,
            progress_bar=False,
        )
        shared = (
            trainer._train_rows._storage["state"].data_ptr() == dataset.data["state"].data_ptr()
        )
        assert shared != in_memory
        trainer.train()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)
