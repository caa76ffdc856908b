"""The skeletons of ``examples/extending`` keep the contracts that the package's own parts keep."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.objectives import LossModule

import torchrl_logo.data.formats
import torchrl_logo.envs
import torchrl_logo.modules
import torchrl_logo.objectives
from tests.envs import test_env_contract as env_contract
from tests.objectives import test_loss_contract as loss_contract
from tests.objectives.loss_cases import CONTINUOUS, DISCRETE, Case
from torchrl_logo.data import DatasetError, collect, from_arrays, load_dataset
from torchrl_logo.envs import ImaginedEnv, available_tasks, make_env
from torchrl_logo.evaluation import evaluate, evaluate_world_model
from torchrl_logo.modules import make_gaussian_actor
from torchrl_logo.trainers import OfflineTrainer, WorldModelTrainer

EXTENDING = Path(__file__).resolve().parents[2] / "examples" / "extending"
TASK = "line/meeting"


@pytest.fixture
def put_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable]:
    """Makes a skeleton a file of one of the package's folders, as its first lines tell users to."""
    made = []

    def put(name: str, package: ModuleType) -> ModuleType:
        assert not hasattr(package, name)
        folder = tmp_path / package.__name__
        folder.mkdir()
        shutil.copy(EXTENDING / f"{name}.py", folder)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        made.append((package, name))
        return importlib.import_module(f"{package.__name__}.{name}")

    yield put
    for package, name in made:
        del sys.modules[f"{package.__name__}.{name}"]
        delattr(package, name)


def test_every_skeleton_is_tested_here() -> None:
    tested = {"reward_weighted_bc", "meeting", "csv_files", "linear_world_model"}
    assert {path.stem for path in EXTENDING.glob("*.py")} == tested


# Loss


@pytest.fixture
def loss_case(put_into: Callable) -> Case:
    module = put_into("reward_weighted_bc", torchrl_logo.objectives)

    def make(device: str = "cpu", keys: Any = None, **kwargs: Any) -> LossModule:
        actor = make_gaussian_actor(CONTINUOUS, hidden_sizes=(6,), device=device)
        return module.RewardWeightedBCLoss(actor, **kwargs)

    return Case(make)


def test_loss_keeps_the_contract(loss_case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    loss_contract.test_keys_are_what_is_read_and_written(loss_case)
    for key in ("action", "reward", "priority_weight"):
        loss_contract.test_keys_can_be_renamed(loss_case, key)
    loss_contract.test_unknown_keys_are_refused(loss_case)
    for weighted in (False, True):
        loss_contract.test_reductions(loss_case, weighted)
    loss_contract.test_sequences_are_batches(loss_case)
    loss_contract.test_outputs_can_be_selected(loss_case)
    loss_contract.test_plain_tensors(loss_case)
    loss_contract.test_state_dict_round_trip(loss_case)
    loss_contract.test_optimizer_steps_reach_every_output(loss_case)
    loss_contract.test_parameters_can_be_reset(loss_case)
    loss_contract.test_nothing_looks_at_values(loss_case)
    loss_contract.test_order_of_rows_does_not_matter(loss_case, monkeypatch)


def test_loss_is_its_formula(loss_case: Case) -> None:
    loss = loss_contract.make(loss_case, temperature=0.5)
    batch = loss_contract.make_batch(CONTINUOUS)
    batch["next", "reward"][0] = 100.0  # the largest weight holds
    with torch.no_grad():
        dist = loss_contract.make(loss_case).actor_network.get_dist(batch.clone())
        log_prob = dist.log_prob(batch["agents", "action"]).double().numpy()
    weight = np.minimum(np.exp(batch["next", "reward"][:, 0].double().numpy() / 0.5), 20)
    expected = -(weight * log_prob.reshape(len(weight), -1).sum(-1) / 2).mean()
    assert loss(batch)["loss_actor"].item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="temperature must be positive, found 0"):
        loss_case.make(temperature=0)


def test_loss_trains_a_policy(loss_case: Case) -> None:
    dataset = collect(make_env("vmas/balance", num_envs=4), None, 400, seed=0)
    module = sys.modules["torchrl_logo.objectives.reward_weighted_bc"]
    loss = module.RewardWeightedBCLoss(make_gaussian_actor(dataset.spec, hidden_sizes=(8,)))
    trainer = OfflineTrainer(loss, dataset, steps=20, eval_interval=0, progress_bar=False)
    before = [parameter.clone() for parameter in loss.parameters()]
    result = trainer.train()
    assert result.updates == 20 and "reward_weight" in result.history
    assert any((p != q).any() for p, q in zip(before, loss.parameters(), strict=True))


# Environment


@pytest.fixture
def env_module(put_into: Callable) -> ModuleType:
    return put_into("meeting", torchrl_logo.envs)


def test_env_keeps_the_contract(env_module: ModuleType) -> None:
    assert TASK in available_tasks()
    for rows in (1, 3):
        env_contract.test_specs(TASK, rows)
        env_contract.test_layout(TASK, rows)
    env_contract.test_spec_is_the_layout_s(TASK)
    env_contract.test_seed_decides_the_episode(TASK)
    env_contract.test_partial_reset_changes_the_marked_rows_only(TASK)
    env_contract.test_masks(TASK)


def test_env_ends_where_agents_meet_or_time_is_up(env_module: ModuleType) -> None:
    env = make_env(TASK, num_envs=2, seed=0)
    start = env.reset()
    env.position = torch.tensor([[0.2, 0.46], [0.05, 1.0]])
    start["agents", "action"] = torch.tensor([[2, 1], [0, 0]])  # both of them; none
    after = env.step(start.clone())["next"]
    torch.testing.assert_close(after["state"], torch.tensor([[0.3, 0.36], [0.05, 1.0]]))
    torch.testing.assert_close(after["reward"], torch.tensor([[-0.06], [-0.95]]))
    assert after["terminated"].tolist() == [[True], [False]]
    assert not after["truncated"].any()
    # neither can leave the line
    stays = after["agents", "action_mask"][1].tolist()
    assert stays == [[True, False, True], [True, True, False]]
    after["agents", "action"] = torch.tensor([[0, 0], [1, 0]])
    with pytest.raises(ValueError, match="not available"):
        env.step(after)
    env.steps += env.max_steps - 2
    after["agents", "action"] *= 0
    ends = env.step(after)["next"]
    assert ends["truncated"].tolist() == [[False], [True]] and ends["done"].all()


def test_env_gives_data_and_is_trained_on(env_module: ModuleType) -> None:
    env = make_env(TASK, num_envs=8)
    dataset = collect(env, None, 400, seed=0)
    trainer = OfflineTrainer("bc", dataset, steps=10, eval_interval=0, progress_bar=False)
    assert evaluate(trainer.train().policy, env, episodes=8).lengths.max() <= 20


# Dataset format


def write_csv(folder: Path, episode: int, position: np.ndarray, terminated: bool) -> np.ndarray:
    """An episode of two agents at ``position`` ``[T + 1, 2]``; returns its actions ``[T, 2]``."""
    folder.mkdir(exist_ok=True)
    action = np.diff(position, axis=0)
    names = ["reward", "terminated", "state_0", "state_1"]
    names += [f"{kind}_{i}_0" for kind in ("observation", "action") for i in (0, 1)]
    rows = []
    for t, here in enumerate(position):
        last = t == len(action)
        acts = [0, 0] if last else action[t]
        rows.append([-t, t == len(action) - 1 and terminated, *here, *here, *acts])
    lines = [",".join(names), *(",".join(map(str, map(float, row))) for row in rows)]
    (folder / f"episode_{episode:03}.csv").write_text("\n".join(lines) + "\n")
    return action


def test_format_is_recognised_and_read(put_into: Callable, tmp_path: Path) -> None:
    put_into("csv_files", torchrl_logo.data.formats)
    rng = np.random.default_rng(0)
    positions = [rng.uniform(-0.4, 0.4, (rows, 2)).astype(np.float32) for rows in (4, 3)]
    folder = tmp_path / "recorded"
    actions = [write_csv(folder, i, p, terminated=i == 0) for i, p in enumerate(positions)]
    dataset = load_dataset(folder, root=tmp_path / "converted", action_bounds=(-2.0, 2.0))
    data = dataset.data
    assert dataset.episode_lengths.tolist() == [3, 2]
    assert dataset.spec.action_low == (-2.0,)
    np.testing.assert_allclose(data["state"], np.concatenate([p[:-1] for p in positions]))
    np.testing.assert_allclose(data["next", "state"], np.concatenate([p[1:] for p in positions]))
    np.testing.assert_allclose(
        data["agents", "action"].squeeze(-1), np.concatenate(actions), atol=1e-6
    )
    assert data["next", "terminated"].flatten().tolist() == [False, False, True, False, False]
    assert data["next", "truncated"].flatten().tolist() == [False] * 4 + [True]
    assert data["next", "reward"].flatten().tolist() == [0, -1, -2, 0, -1]


def test_format_names_what_is_wrong(put_into: Callable, tmp_path: Path) -> None:
    put_into("csv_files", torchrl_logo.data.formats)
    folder = tmp_path / "recorded"
    write_csv(folder, 0, np.zeros((3, 2), np.float32), terminated=True)
    write_csv(folder, 1, np.zeros((1, 2), np.float32), terminated=True)
    with pytest.raises(DatasetError, match="episode_001.csv.*two rows or more"):
        load_dataset(folder, root=tmp_path / "converted")
    broken = folder / "episode_001.csv"
    broken.write_text((folder / "episode_000.csv").read_text().replace("0.0", "many", 1))
    with pytest.raises(DatasetError, match="episode_001.csv.*many"):
        load_dataset(folder, root=tmp_path / "converted")
    broken.write_text("reward\n0\n0\n")
    with pytest.raises(DatasetError, match="the columns of episode_000.csv"):
        load_dataset(folder, root=tmp_path / "converted")


# World model


@pytest.fixture
def model_module(put_into: Callable) -> ModuleType:
    return put_into("linear_world_model", torchrl_logo.modules)


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])
def test_world_model_s_loss_keeps_the_contract(model_module: ModuleType, spec: Any) -> None:
    def make(device: str = "cpu", keys: Any = None, **kwargs: Any) -> LossModule:
        model = model_module.LinearWorldModel(spec, device=device)
        return model_module.LinearWorldModelLoss(model, **kwargs)

    case = Case(make, spec, is_policy=False)
    loss_contract.test_keys_are_what_is_read_and_written(case)
    loss_contract.test_reductions(case, True)
    loss_contract.test_sequences_are_batches(case)
    loss_contract.test_state_dict_round_trip(case)
    loss_contract.test_optimizer_steps_reach_every_output(case)


def test_world_model_finds_linear_dynamics(model_module: ModuleType, tmp_path: Path) -> None:
    dataset = make_linear_dataset()
    model = model_module.LinearWorldModel.from_dataset(dataset)
    WorldModelTrainer(
        model,
        dataset,
        steps=400,
        loss=model_module.LinearWorldModelLoss(model),
        learning_rate=5e-2,
        progress_bar=False,
    ).train()
    errors = evaluate_world_model(model, dataset)
    assert errors["one_step/state_error"] < 0.01 and errors["one_step/reward_error"] < 0.2
    model.save(tmp_path / "model.pt")
    again = model_module.LinearWorldModel.load(tmp_path / "model.pt")
    batch = dataset.data[:5].select("agents", "state")
    torch.testing.assert_close(again(batch.clone()), model(batch.clone()))
    # doubt grows with the distance from the data
    far = TensorDict({**batch, "state": batch["state"] + 50}, batch.batch_size)
    assert (model(far)["uncertainty"] > model(batch.clone())["uncertainty"] + 1).all()
    rollout = ImaginedEnv(model, dataset, batch_size=4, horizon=3).rollout(3)
    assert rollout["next", "state"].isfinite().all()


def make_linear_dataset() -> Any:
    """Two agents who push a point along a line each."""
    rng = np.random.default_rng(0)
    episodes, steps = 30, 20
    action = rng.uniform(-1, 1, (episodes, steps, 2, 1)).astype(np.float32)
    start = rng.normal(size=(episodes, 1, 2))
    moved = np.concatenate([start, start + 0.1 * action[..., 0].cumsum(1)], 1).astype(np.float32)

    def flat(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array.reshape(-1, *array.shape[2:]))

    last = np.tile(np.arange(steps) == steps - 1, episodes)[:, None]
    return from_arrays(
        {
            "agents/observation": flat(moved[:, :-1, :, None]),
            "next/agents/observation": flat(moved[:, 1:, :, None]),
            "agents/action": flat(action),
            "state": flat(moved[:, :-1]),
            "next/state": flat(moved[:, 1:]),
            "next/reward": flat(moved[:, 1:].sum(-1, keepdims=True)),
            "next/done": last,
            "next/truncated": last,
            "next/terminated": np.zeros_like(last),
        }
    )
