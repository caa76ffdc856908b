"""Every name that a run logs has its line in the glossary, ``docs/metrics.md``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from torchrl.trainers import Trainer

from tests.objectives.loss_cases import find_cases
from torchrl_logo.data import OfflineDataset, collect
from torchrl_logo.envs import make_env
from torchrl_logo.modules import JointWorldModel, LOGOWorldModel
from torchrl_logo.trainers import WorldModelTrainer, train_mamba, train_tracked

GLOSSARY = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"


def read_glossary() -> set[str]:
    """Names in the first column of the tables."""
    rows = [line for line in GLOSSARY.read_text().splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])}


def describes(glossary: set[str], name: str) -> bool:
    """Whether a name has a line, as it is or where the glossary has a placeholder."""
    name = name.replace("world_model/final/", "world_model/")
    for part in ("train", "held_out"):
        prefix = f"world_model/{part}/"
        if name.startswith(f"{prefix}loss_"):
            return f"{prefix}<loss>" in glossary and name.removeprefix(prefix) in glossary
    return re.sub(r"/\d+$", "/<k>", name) in glossary


@pytest.fixture(scope="module")
def dataset() -> OfflineDataset:
    return collect(make_env("vmas/balance", num_envs=4, seed=0), None, 400, seed=0)


def test_placeholders_stand_for_what_they_say() -> None:
    glossary = {"world_model/train/<loss>", "loss_state", "world_model/open_loop/error/<k>"}
    assert describes(glossary, "world_model/train/loss_state")
    assert describes(glossary, "world_model/final/open_loop/error/15")
    assert not describes(glossary, "world_model/train/loss_other")
    assert not describes(glossary, "world_model/held_out/loss_state")
    assert not describes(glossary, "world_model/open_loop/other/15")


def test_what_losses_write_is_in_the_glossary() -> None:
    glossary = read_glossary()
    written = {
        (loss.__name__, key)
        for loss, cases in find_cases().items()
        for case in cases.values()
        for key in case.make().out_keys
    }
    assert ("MACQLLoss", "loss_cql") in written
    assert not {(loss, key) for loss, key in written if not describes(glossary, key)}


def test_what_a_tracked_training_logs_is_in_the_glossary(
    dataset: OfflineDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracked = train_tracked(
        "logo",
        dataset,
        steps=4,
        world_model=LOGOWorldModel.from_dataset(dataset, hidden_size=8),
        imagined_envs=4,
        imagine_interval=2,
        horizon=2,
        log_interval=1,
        eval_interval=2,
        eval_episodes=2,
        progress_bar=False,
        video=False,
        runs_dir=tmp_path,
    )
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    names = set(client.get_run(tracked.run_id).data.metrics)
    assert {"final/return", "eval/return", "imagination/seen", "grad_norm"} <= names
    glossary = read_glossary()
    assert not {name for name in names if not describes(glossary, name)}


@pytest.mark.parametrize("kind", [LOGOWorldModel, JointWorldModel])
def test_what_a_world_model_s_training_logs_is_in_the_glossary(
    kind: type, dataset: OfflineDataset
) -> None:
    names: set[str] = set()

    class Names:
        """A logger that keeps what metrics are called."""

        def log_scalar(self, name: str, value: Any, step: int | None = None) -> None:
            names.add(name)

    model = kind.from_dataset(dataset, hidden_size=8)
    WorldModelTrainer(
        model, dataset, steps=2, evaluation_interval=1, progress_bar=False, logger=Names()
    ).train()
    assert "world_model/final/open_loop/state_error/15" in names
    glossary = read_glossary()
    assert not {name for name in names if not describes(glossary, name)}


def test_what_mamba_logs_is_in_the_glossary(
    dataset: OfflineDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: set[str] = set()
    log = Trainer._log

    def keep(self: Trainer, log_pbar: bool = False, **metrics: Any) -> None:
        names.update(metrics)
        log(self, log_pbar=log_pbar, **metrics)

    monkeypatch.setattr(Trainer, "_log", keep)

    class Silent:
        def log_scalar(self, name: str, value: Any, step: int | None = None) -> None:
            pass

    train_mamba(
        dataset,
        world_model_steps=2,
        world_model_kwargs={
            "memory_size": 8,
            "code_groups": 2,
            "code_classes": 4,
            "hidden_size": 16,
        },
        clone_steps=2,
        iterations=2,
        start_rows=60,
        rollouts=8,
        horizon=3,
        hidden_sizes=(16,),
        progress_bar=False,
        logger=Silent(),
    )
    assert {"loss_kl", "loss_objective", "r_training"} <= names
    glossary = read_glossary()
    assert not {name for name in names if not describes(glossary, name)}
