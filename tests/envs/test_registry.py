"""Tasks by name, and simulators that are found by themselves."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import torchrl_logo.envs
from torchrl_logo.envs import available_tasks, make_env

SIMULATOR = """
TASK_PREFIX = "grid"

def available_tasks():
    return ["grid/meeting"]

def build_env(name, *, num_envs=1, device="cpu", seed=None):
    return name, num_envs, device, seed
"""


@pytest.fixture
def simulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One more file in the folder of environments."""
    (tmp_path / "grid_for_test.py").write_text(SIMULATOR)
    monkeypatch.setattr(torchrl_logo.envs, "__path__", [*torchrl_logo.envs.__path__, str(tmp_path)])
    yield
    sys.modules.pop("torchrl_logo.envs.grid_for_test", None)


def test_new_simulator_is_one_new_file(simulator: None) -> None:
    assert "grid/meeting" in available_tasks() and "vmas/balance" in available_tasks()
    made = make_env("grid/meeting", num_envs=3, device="cpu", seed=5)
    assert made == ("meeting", 3, "cpu", 5)
    with pytest.raises(ValueError, match="Nearest: grid/meeting"):
        make_env("gird/meeting")


def test_arguments_reach_the_environment() -> None:
    env = make_env("vmas/transport", num_envs=3, seed=0)
    assert env.batch_size == (3,) and env.task == "vmas/transport"
    assert env.device == torch.device("cpu")
    assert torch.equal(
        env.reset()["state"], make_env("vmas/transport", num_envs=3, seed=0).reset()["state"]
    )


@pytest.mark.parametrize(
    ("task", "nearest"),
    [
        ("vmas/blance", "vmas/balance"),
        ("vmas/transprot", "vmas/transport"),
        ("vams/wheel", "vmas/wheel"),
        ("navigation", "vmas/navigation"),
    ],
)
def test_unknown_task_names_the_nearest(task: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"Nearest: .*{nearest}"):
        make_env(task)


@pytest.mark.parametrize("task", ["", "vmas", "vmas/", "/", "vmas/balance/x"])
def test_incomplete_names_are_refused(task: str) -> None:
    with pytest.raises(ValueError, match="Nearest"):
        make_env(task)


@pytest.mark.parametrize("num_envs", [0, -1, 1.5, True, "2"])
def test_bad_number_of_simulations(num_envs: object) -> None:
    with pytest.raises(ValueError, match="num_envs must be a positive integer"):
        make_env("vmas/balance", num_envs=num_envs)


def test_task_must_be_a_name() -> None:
    with pytest.raises(TypeError, match="task must be a name.*None"):
        make_env(None)
