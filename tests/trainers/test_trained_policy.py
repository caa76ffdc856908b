"""Trained policies: their cards, their files, and the way back into an environment."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchrl.envs import ExplorationType, set_exploration_type

from torchrl_logo.data import OfflineDataset, collect, from_arrays
from torchrl_logo.envs import make_env
from torchrl_logo.evaluation import evaluate
from torchrl_logo.modules import LOGOWorldModel, make_gaussian_actor
from torchrl_logo.objectives import BCLoss
from torchrl_logo.trainers import OfflineTrainer, TrainedPolicy
from torchrl_logo.trainers.methods import METHODS
from torchrl_logo.weight_files import load_weights, save_weights

SMALL: dict[str, Any] = {
    "steps": 2,
    "eval_interval": 0,
    "progress_bar": False,
    "hidden_sizes": (8, 4),
    "batch_size": 16,
}
IMAGINED: dict[str, Any] = {"world_model_steps": 2, "imagined_envs": 4, "horizon": 2}


@cache
def continuous() -> OfflineDataset:
    return collect(make_env("vmas/balance", num_envs=4, seed=0), None, 400, seed=0)


@cache
def discrete() -> OfflineDataset:
    """Ten episodes of four steps, of two agents with three actions."""
    noise = np.random.default_rng(0)
    moved = noise.normal(size=(10, 5, 2, 3)).astype(np.float32)
    end = np.tile([[False], [False], [False], [True]], (10, 1))
    arrays: dict[str, Any] = {}
    for prefix, steps in (("", slice(0, 4)), ("next/", slice(1, 5))):
        arrays[f"{prefix}agents/observation"] = moved[:, steps].reshape(40, 2, 3)
        arrays[f"{prefix}state"] = moved[:, steps].reshape(40, 6)
        arrays[f"{prefix}agents/action_mask"] = np.ones((40, 2, 3), bool)
    arrays["agents/action"] = noise.integers(0, 3, size=(40, 2))
    arrays["next/reward"] = noise.normal(size=(40, 1)).astype(np.float32)
    arrays |= {"next/done": end, "next/terminated": end, "next/truncated": np.zeros_like(end)}
    return from_arrays(arrays)


def train(method: Any, dataset: OfflineDataset, **changed: Any) -> TrainedPolicy:
    return OfflineTrainer(method, dataset, **{**SMALL, **changed}).train().policy


def act(policy: TrainedPolicy, dataset: OfflineDataset) -> torch.Tensor:
    rows = dataset.data[:20].exclude(("agents", "action")).clone()
    with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
        return policy(rows)["agents", "action"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policy") / "policy.pt"
    train("bc", continuous()).save(path)
    return path


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
@pytest.mark.parametrize("method", METHODS)
def test_every_methods_policy_comes_back(method: str, kind: str, tmp_path: Path) -> None:
    dataset = continuous() if kind == "continuous" else discrete()
    found = METHODS[method]
    if (found.make_loss if kind == "continuous" else found.make_discrete_loss) is None:
        pytest.skip("no form for such actions")
    imagined = {} if found.world_model is None else IMAGINED
    policy = train(method, dataset, share_params=method != "omiga", **imagined)
    policy.save(tmp_path / "policy.pt")
    torch.manual_seed(99)  # the weights come from the file
    loaded = TrainedPolicy.load(tmp_path / "policy.pt")
    assert torch.equal(act(loaded, dataset), act(policy, dataset))
    assert loaded.card == policy.card
    assert loaded.card.method == method
    assert loaded.card.dataset["hash"] == dataset.metadata.hash


def test_a_policy_with_memory_comes_back(tmp_path: Path) -> None:
    policy = train("macql", discrete(), sequence_length=4)
    policy.save(tmp_path / "policy.pt")
    loaded = TrainedPolicy.load(tmp_path / "policy.pt")
    assert loaded.in_keys == policy.in_keys and "is_init" in loaded.in_keys
    for name, value in policy.td_module.state_dict().items():
        assert torch.equal(loaded.td_module.state_dict()[name], value)


def test_it_acts_in_its_environment(saved: Path) -> None:
    loaded = TrainedPolicy.load(saved)
    rollout = loaded.make_env(num_envs=3, seed=0).rollout(4, loaded)
    assert rollout.shape == (3, 4)
    # one line, into any environment of the task
    assert make_env("vmas/balance", num_envs=2).rollout(4, TrainedPolicy.load(saved)).shape == (
        2,
        4,
    )
    direct = evaluate(loaded.td_module, "vmas/balance", episodes=2).returns
    assert torch.equal(evaluate(loaded, "vmas/balance", episodes=2).returns, direct)


def test_without_a_task_there_is_no_environment() -> None:
    with pytest.raises(ValueError, match="names no task"):
        train("bc", discrete()).make_env()


def test_the_card_has_the_evaluation(saved: Path, tmp_path: Path) -> None:
    loaded = TrainedPolicy.load(saved)
    evaluation = evaluate(loaded, "vmas/balance", episodes=4)
    told = loaded.with_returns(evaluation)
    told.save(tmp_path / "policy.pt")
    returns = TrainedPolicy.load(tmp_path / "policy.pt").card.returns
    assert returns["mean"] == evaluation.mean and returns["episodes"] == 4
    assert (returns["low"], returns["high"]) == evaluation.interval
    assert returns["std"] == pytest.approx(float(np.std(evaluation.returns.numpy())), rel=1e-5)
    assert f"{evaluation.mean:.2f}" in repr(told) and "not evaluated" in repr(loaded)


def test_it_prints_as_a_summary(saved: Path) -> None:
    loaded = TrainedPolicy.load(saved)
    text, table, page = repr(loaded), loaded._repr_html_(), loaded.card.to_markdown()
    assert len(text.splitlines()) < 10
    for part in ("vmas/balance", "bc", "2 updates", "3 agents", continuous().metadata.hash):
        assert part in text and part in table and part in page
    assert table.startswith("<table>") and "<td>" in table
    assert "- hidden_sizes: [8, 4]" in page


def test_a_loss_of_ones_own_needs_its_module(tmp_path: Path) -> None:
    spec = continuous().spec
    policy = train(BCLoss(make_gaussian_actor(spec, hidden_sizes=(8,))), continuous())
    policy.save(tmp_path / "policy.pt")
    with pytest.raises(ValueError, match="made by 'BCLoss'.*Pass policy="):
        TrainedPolicy.load(tmp_path / "policy.pt")
    fresh = make_gaussian_actor(spec, hidden_sizes=(8,))
    loaded = TrainedPolicy.load(tmp_path / "policy.pt", policy=fresh)
    assert torch.equal(act(loaded, continuous()), act(policy, continuous()))


def test_other_files_are_refused(tmp_path: Path) -> None:
    LOGOWorldModel.from_dataset(continuous(), hidden_size=8).save(tmp_path / "model.pt")
    with pytest.raises(ValueError, match="World models are loaded by LOGOWorldModel.load"):
        TrainedPolicy.load(tmp_path / "model.pt")
    with pytest.raises(FileNotFoundError, match="no.pt"):
        TrainedPolicy.load(tmp_path / "no.pt")


def change(saved: Path, path: Path, **changed: Any) -> Path:
    """The same file with other entries in its card."""
    content = load_weights(saved)
    card = json.loads(content["policy_card"])
    for name, value in changed.items():
        if isinstance(value, dict) and isinstance(card[name], dict):
            card[name] |= value
        else:
            card[name] = value
    save_weights({**content, "policy_card": json.dumps(card)}, path)
    return path


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"method": "mcql"}, "made by 'mcql'"),
        ({"updates": "many"}, "updates must be of type int"),
        ({"color": "red"}, "needs .*found .*color"),
        ({"returns": {"mean": 1.0}}, "returns needs"),
        ({"dataset": {"hash": ["x"]}}, "dataset must hold numbers"),
        ({"hyperparameters": {"hidden_sizes": [8, 5]}}, "size mismatch"),
        ({"hyperparameters": {"hidden_sizes": [-8, 4]}}, "hidden_sizes"),
        # 4 TB, if it were believed
        ({"hyperparameters": {"hidden_sizes": [10**6, 10**6]}}, "networks of 1,0"),
        ({"hyperparameters": {"loss": {"exec": "ls"}}}, "takes no 'exec'"),
        ({"spec": {"n_agents": 2**19}}, "observation_sizes needs 524288"),
        ({"spec": {"observation_size": 15}}, "mismatch|observation"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(
    saved: Path, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TrainedPolicy.load(change(saved, tmp_path / "policy.pt", **changed))
