"""Signals end a real process in time, with a checkpoint and a run that says so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from torchrl_logo.trainers import StopSignals, TrainingInterrupted
from torchrl_logo.trainers.durable_checkpoint import DurableRotation

ROOT = Path(__file__).resolve().parents[2]


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    environment = dict(os.environ, TORCHRL_LOGO_DATA=str(folder / "data"), OMP_NUM_THREADS="1")
    environment.pop("MLFLOW_TRACKING_URI", None)
    arguments = ["quality=random", "video=false", "experiment=signals", "checkpoint_dir=kept"]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "train_logo.py"), *arguments, *overrides],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "part", "overrides"),
    [
        (signal.SIGTERM, "", ("method=bc", "steps=100000000")),
        (
            signal.SIGINT,
            "world_model",
            ("method=logo", "steps=10", "+trainer.world_model_steps=100000000"),
        ),
    ],
)
def test_a_signal_ends_training_with_a_checkpoint(
    tmp_path: Path, number: signal.Signals, part: str, overrides: tuple[str, ...]
) -> None:
    process = start(tmp_path, *overrides)
    try:
        wait_for(tmp_path / "kept" / part / ".lock", process)
        time.sleep(1.0)
        begin = time.monotonic()
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
        seconds = time.monotonic() - begin
    finally:
        process.kill()
    assert process.returncode == 128 + number, output
    assert f"stopped by {number.name}; the same command goes on" in output
    assert seconds < 10.0
    path = DurableRotation(tmp_path / "kept" / part).find_whole()
    assert path is not None
    # of the moment of the signal, and not of the end of a block
    assert int(path.name.split("-")[1]) > 0
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("signals")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "KILLED"
    assert f"stopped by {number.name}" in run.data.tags["error"]


def test_a_signal_is_raised_at_once_or_where_it_is_asked_for() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingInterrupted, match="SIGTERM"), StopSignals.installed():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1.0)
    reached = False
    with pytest.raises(TrainingInterrupted) as raised, StopSignals.installed() as signals:
        with signals.deferred():
            os.kill(os.getpid(), signal.SIGINT)
            while signals.requested is None:
                time.sleep(0.001)
            reached = True
    assert reached and raised.value.exit_code == 130
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_deferred_signal_waits_only_so_long() -> None:
    with StopSignals.installed() as signals:
        signals.grace = 0.05
        begin = time.monotonic()
        with pytest.raises(TrainingInterrupted), signals.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            while time.monotonic() < begin + 5.0:
                time.sleep(0.001)
        assert time.monotonic() < begin + 5.0
