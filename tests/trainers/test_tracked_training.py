"""A tracked training leaves one complete MLflow run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from torchrl_logo.data import OfflineDataset, collect
from torchrl_logo.envs import make_env
from torchrl_logo.modules import LOGOWorldModel
from torchrl_logo.trainers import ImaginationError, train_tracked

SMALL: dict[str, Any] = {
    "progress_bar": False,
    "hidden_sizes": (16,),
    "batch_size": 32,
    "eval_episodes": 4,
    "log_interval": 10,
}


@pytest.fixture(scope="module")
def dataset() -> OfflineDataset:
    env = make_env("vmas/balance", num_envs=8, seed=0)
    return collect(env, None, 800, quality="random", seed=0)


@pytest.fixture(scope="module")
def world_model(dataset: OfflineDataset) -> LOGOWorldModel:
    torch.manual_seed(0)
    return LOGOWorldModel.from_dataset(dataset, hidden_size=8)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all tests: making its tables takes seconds."""
    return tmp_path_factory.mktemp("runs")


def client(folder: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")


@pytest.fixture(autouse=True)
def _local_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_a_run_holds_everything(
    dataset: OfflineDataset, world_model: LOGOWorldModel, store: Path, tmp_path: Path
) -> None:
    tracked = train_tracked(
        "logo",
        dataset,
        steps=20,
        runs_dir=store,
        world_model=world_model,
        imagined_envs=8,
        horizon=3,
        imagine_interval=10,
        eval_interval=10,
        **SMALL,
    )
    run = client(store).get_run(tracked.run_id)
    assert run.info.status == "FINISHED"
    params, metrics = run.data.params, run.data.metrics
    assert params["method"] == "logo" and params["steps"] == "20"
    assert params["loss.min_q_weight"] == "1.0" and params["horizon"] == "3"
    assert params["dataset_hash"] == dataset.metadata.hash
    assert metrics["final/return"] == pytest.approx(tracked.evaluation.mean, rel=1e-5)
    assert metrics["final/normalized"] == pytest.approx(tracked.evaluation.normalized, rel=1e-5)
    history = client(store).get_metric_history(tracked.run_id, "loss_qvalue")
    assert [point.step for point in history] == [10, 20]
    files = {
        f"{folder}/{Path(f.path).name}"
        for folder in ("figures", "videos", "checkpoints")
        for f in client(store).list_artifacts(tracked.run_id, folder)
    }
    assert files == {
        "figures/error_by_horizon.png",
        "figures/learning_curves.png",
        "figures/open_loop_state.png",
        "figures/reliability.png",
        "figures/risk_coverage.png",
        "figures/uncertainty_against_error.png",
        "videos/final_policy.mp4",
        "videos/imagined_beside_true.mp4",
        "checkpoints/policy.md",
        "checkpoints/policy.pt",
        "checkpoints/world_model.pt",
    }
    local = client(store).download_artifacts(tracked.run_id, "final.json", str(tmp_path))
    assert len(json.loads(Path(local).read_text())["returns"]) == 4


def test_a_training_that_raises_is_marked_failed(
    dataset: OfflineDataset, world_model: LOGOWorldModel, store: Path
) -> None:
    broken = LOGOWorldModel.from_dataset(dataset, hidden_size=8)
    broken.load_state_dict(world_model.state_dict())
    with torch.no_grad():
        # the network that judges rewards goes to NaN: every imagined transition is unusable
        broken.outcome_network[-1].weight.fill_(float("nan"))
    with pytest.raises(ImaginationError, match="not finite"):
        train_tracked(
            "logo",
            dataset,
            steps=10,
            runs_dir=store,
            experiment="broken",
            world_model=broken,
            imagined_envs=8,
            horizon=3,
            uncertainty_threshold=1.0,
            video=False,
            **SMALL,
        )
    experiment = client(store).get_experiment_by_name("broken")
    (run,) = client(store).search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED" and "not finite" in run.data.tags["error"]


def test_a_training_goes_on_in_the_same_run(
    dataset: OfflineDataset, store: Path, tmp_path: Path
) -> None:
    kwargs: dict[str, Any] = {
        "steps": 40,
        "runs_dir": store,
        "experiment": "cut",
        "checkpoint_dir": tmp_path / "checkpoints",
        "checkpoint_interval": 10,
        "video": False,
        **SMALL,
    }

    class Cut(Exception):
        pass

    import torchrl_logo.trainers.tracked_training as module

    original = module.OfflineTrainer.train

    def train_until_cut(trainer: Any) -> Any:
        def cut() -> None:
            if trainer._optim_count >= 30:
                raise Cut

        trainer.register_op("post_optim", cut)
        return original(trainer)

    module.OfflineTrainer.train = train_until_cut
    try:
        with pytest.raises(Cut):
            train_tracked("bc", dataset, **kwargs)
    finally:
        module.OfflineTrainer.train = original
    tracked = train_tracked("bc", dataset, **kwargs)
    experiment = client(store).get_experiment_by_name("cut")
    (run,) = client(store).search_runs([experiment.experiment_id])
    assert run.info.run_id == tracked.run_id and run.info.status == "FINISHED"
    steps = [p.step for p in client(store).get_metric_history(tracked.run_id, "loss_actor")]
    assert steps == [10, 20, 30, 40]


def test_several_runs_in_one_process(dataset: OfflineDataset, store: Path) -> None:
    ids = {
        train_tracked(
            "bc", dataset, steps=5, seed=seed, runs_dir=store, video=False, **SMALL
        ).run_id
        for seed in (0, 1)
    }
    assert len(ids) == 2
    assert {client(store).get_run(i).info.status for i in ids} == {"FINISHED"}


def test_a_server_that_is_not_there(
    dataset: OfflineDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody listens there
    settings = {"steps": 10, "runs_dir": tmp_path, "video": False, **SMALL}
    with pytest.raises(ConnectionError, match="127.0.0.1:9.*offline"):
        train_tracked("bc", dataset, **settings)
    with pytest.warns(RuntimeWarning, match="127.0.0.1:9"):
        tracked = train_tracked("bc", dataset, when_unreachable="offline", **settings)
    assert len(tracked.evaluation.returns) == SMALL["eval_episodes"]
    kept = b"".join(f.read_bytes() for f in (tmp_path / "spool").rglob("*") if f.is_file())
    assert b"final/return" in kept
