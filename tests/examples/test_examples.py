"""The example scripts run, at sizes that take seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FRAMES = "2000"

COMMANDS = {
    "collect_dataset.py": ["task=vmas/balance", "quality=random", f"frames={FRAMES}"],
    "inspect_dataset.py": ["dataset=recorded.npz", "others=[recorded.npz]", "out=inspected"],
    "import_components.py": [
        *("--frames", FRAMES),
        *("--model-updates", "20"),
        *("--policy-updates", "250"),
    ],
    "train_data_parallel.py": ["--steps", "10", "--batch-size", "64"],
    "train_world_model.py": ["quality=random", "steps=20", "hidden_size=16", "out=model.pt"],
    "train_behaviour.py": [
        *("--minutes", "0.01", "--num-envs", "8", "--rollout-steps", "20", "--minibatch", "32"),
        *("--episodes", "4", "--normalize", "--unshared", "--output", "behaviour"),
    ],
    "train_logo.py": [
        *("method=logo", "quality=random", "steps=20", "eval_episodes=4", "video=false"),
        *("+trainer.world_model_steps=20", "+trainer.imagined_envs=8", "+trainer.horizon=3"),
        *("+trainer.eval_interval=0", "+trainer.loss_kwargs.min_q_weight=2.0"),
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


def run(script: str, arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ, TORCHRL_LOGO_DATA=str(folder / "data"), OMP_NUM_THREADS="1")
    environment.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def write_arrays(path: Path) -> None:
    """Two episodes of three steps, as a user might have recorded them."""
    moved = np.random.default_rng(0).normal(size=(2, 4, 2, 3)).astype(np.float32)
    end = np.tile([[False], [False], [True]], (2, 1))
    arrays = {"agents/observation": moved[:, :-1].reshape(6, 2, 3)}
    arrays["next/agents/observation"] = moved[:, 1:].reshape(6, 2, 3)
    for prefix in ("", "next/"):
        arrays[f"{prefix}state"] = arrays[f"{prefix}agents/observation"].reshape(6, 6)
    arrays["agents/action"] = np.zeros((6, 2, 1), np.float32)
    arrays["next/reward"] = np.arange(6, dtype=np.float32)[:, None]
    arrays |= {"next/done": end, "next/terminated": end, "next/truncated": np.zeros_like(end)}
    np.savez(path, **arrays)


@pytest.mark.parametrize("script", COMMANDS)
def test_example_runs(script: str, folder: Path) -> None:
    if script == "inspect_dataset.py":
        write_arrays(folder / "recorded.npz")
    done = run(script, COMMANDS[script], folder)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = {
        "collect_dataset.py": "return",
        "import_components.py": "final return",
        "inspect_dataset.py": "same content (dataset): 2 of 2 episodes",
        "train_data_parallel.py": "world model: held-out loss",
        "train_world_model.py": "one_step/state_error",
        "train_behaviour.py": "expert",
        "train_logo.py": "MLflow run",
    }
    assert expected[script] in done.stdout
