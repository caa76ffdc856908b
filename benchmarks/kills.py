"""Kills short trainings at random moments, and compares how they end with ones left alone.

    python benchmarks/kills.py --kills 60

Each training runs in a process of its own, which gets SIGKILL again and again, aimed at what it is
doing (a model's update, imagination, a policy's update, a checkpoint, an MLflow call), and is
started again until it reaches its end. Compared are the checksums of its last checkpoints (weights,
optimisers, targets, normalisers, buffers, samplers, random states, counters) and the metrics in
MLflow. Results are added to ``results/kills.json``; the command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import atexit
import collections
import contextlib
import functools
import json
import mmap
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot  # noqa: F401  (before the processes are forked)
import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
import torch
from mlflow import MlflowClient

from torchrl_logo.data import OfflineDataset, collect
from torchrl_logo.envs import ImaginedEnv, make_env
from torchrl_logo.envs.latent_imagined import LatentImaginedEnv
from torchrl_logo.trainers import train_mamba, train_tracked
from torchrl_logo.trainers.durable_checkpoint import DurableCheckpoint, DurableRotation
from torchrl_logo.trainers.optimization import OfflineOptimizationStepper
from torchrl_logo.trainers.world_model import _ScheduledStepper

RESULTS = Path(__file__).parent / "results" / "kills.json"
# The time; the run's name; and Python's own random state, which MLflow draws names from, and
# training nothing (torch's state is in files of its own).
_NOT_COMPARED = ("manifest.json", "-logger/", "random_state/state.json")
_NO_DEVICE = '"kind":"value","value":null'
PHASES = ("other", "world model", "imagination", "update", "checkpoint", "MLflow", "evaluation")
# What a training is aimed at: MAMBA's is not followed in MLflow, and its parts are all updates.
AIMS = {"logo": PHASES, "mamba": ("other", "imagination", "update", "checkpoint")}


def train_logo(dataset: OfflineDataset, folder: Path) -> None:
    """World model, imagination and policy, followed in MLflow."""
    train_tracked(
        "logo",
        dataset,
        steps=60,
        seed=3,
        eval_episodes=4,
        runs_dir=folder / "runs",
        experiment="kills",
        checkpoint_dir=folder / "checkpoints",
        checkpoint_interval=20,
        video=False,
        world_model_steps=500,
        batch_size=32,
        hidden_sizes=(16,),
        imagined_envs=8,
        horizon=3,
        imagine_interval=10,
        imagined_capacity=100,
        log_interval=10,
        eval_interval=30,
        progress_bar=False,
    )


def train_small_mamba(dataset: OfflineDataset, folder: Path) -> None:
    """A latent world model, a clone of the behaviour, and PPO in imagination."""
    train_mamba(
        dataset,
        world_model_steps=40,
        world_model_kwargs={
            "memory_size": 8,
            "code_groups": 2,
            "code_classes": 4,
            "hidden_size": 8,
        },
        clone_steps=40,
        iterations=6,
        start_rows=60,
        rollouts=8,
        horizon=3,
        hidden_sizes=(8,),
        seed=3,
        checkpoint_dir=folder / "checkpoints",
        checkpoint_interval=2,
        progress_bar=False,
    )


TRAININGS: dict[str, Callable[[OfflineDataset, Path], None]] = {
    "logo": train_logo,
    "mamba": train_small_mamba,
}


def make_dataset() -> OfflineDataset:
    env = make_env("vmas/balance", num_envs=8, seed=0)
    return collect(env, None, 800, quality="random", seed=0)


class Phase:
    """What another process is doing: one byte that both see."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 1)

    def get(self) -> str:
        return PHASES[self._memory[0]]

    def mark(self, owner: Any, name: str, phase: str) -> None:
        """Tells of each call of a function that it is going on."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def marked(*args: Any, **kwargs: Any) -> Any:
            before, self._memory[0] = self._memory[0], PHASES.index(phase)
            try:
                return function(*args, **kwargs)
            finally:
                self._memory[0] = before

        setattr(owner, name, marked)

    def mark_all(self) -> None:
        import torchrl_logo.trainers.tracked_training as tracked

        self.mark(_ScheduledStepper, "step", "world model")
        self.mark(ImaginedEnv, "_step", "imagination")
        self.mark(LatentImaginedEnv, "_step", "imagination")
        self.mark(OfflineOptimizationStepper, "step", "update")
        self.mark(DurableCheckpoint, "save", "checkpoint")
        self.mark(tracked, "evaluate", "evaluation")
        for name in ("create_run", "log_batch", "log_inputs", "log_figure", "log_artifact"):
            self.mark(MlflowClient, name, "MLflow")


def start(method: str, dataset: OfflineDataset, folder: Path, phase: Phase) -> int:
    """Starts, or goes on with, a training in a process of its own; returns its number."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.setsid()
        with (folder / "output.txt").open("a") as output:
            os.dup2(output.fileno(), sys.stdout.fileno())
            os.dup2(output.fileno(), sys.stderr.fileno())
            phase.mark_all()
            torch.manual_seed(os.getpid())  # a new process has another random state
            TRAININGS[method](dataset, folder)
            code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(code)


def wait(process: int, seconds: float | None, until: Callable[[], bool] = lambda: False) -> bool:
    """Waits for a process; true if it has reached its end.

    Raises:
        RuntimeError: if it failed.
    """
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            if status:
                raise RuntimeError(f"the training ended with status {status}")
            return True
        if (end is not None and time.monotonic() >= end) or until():
            return False
        time.sleep(0.0003)


def describe(folder: Path) -> dict[str, Any]:
    """All that a training leaves which must not depend on whether it was cut off."""
    found: dict[str, Any] = {}
    for part in sorted({path.parent.parent for path in folder.rglob("checksums.json")}):
        path = DurableRotation(part).find_whole()
        assert path is not None
        sums = json.loads((path / "checksums.json").read_text())
        for file, value in sums.items():
            if not any(part in file for part in _NOT_COMPARED):
                if "-replay_buffer/state.json" in file:
                    # A storage that was loaded does not name its device; its tensors do.
                    state = (path / file).read_text()
                    value = state.replace('"kind":"torch_device","value":"cpu"', _NO_DEVICE)
                found[f"{part.relative_to(folder)}/{path.name}/{file}"] = value
    store = folder / "runs" / "mlflow.db"
    if (folder / "runs" / "artifacts").exists():
        client = MlflowClient(f"sqlite:///{store}")
        experiment = client.get_experiment_by_name("kills")
        runs = client.search_runs([experiment.experiment_id])
        found["runs"] = [run.info.status for run in runs]
        found["metrics"] = {
            name: [
                (point.step, point.value)
                for point in client.get_metric_history(runs[0].info.run_id, name)
            ]
            for name in sorted(runs[0].data.metrics)
        }
    return found


def count_differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return sorted(k for k in one.keys() | other.keys() if one.get(k) != other.get(k))


@functools.cache
def make_store() -> Path:
    """A new MLflow store, which takes longer to make than the rest of a training."""
    folder = Path(tempfile.mkdtemp(prefix="kills-store-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    process = os.fork()
    if not process:
        MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
        os._exit(0)
    wait(process, None)
    return folder


@contextlib.contextmanager
def temporary() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    shutil.copytree(make_store(), folder / "runs")
    try:
        yield folder
    except RuntimeError as error:
        output = folder / "output.txt"
        raise RuntimeError(f"{error}: {output.read_text() if output.exists() else ''}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def leave_alone(method: str, dataset: OfflineDataset) -> tuple[dict[str, Any], float]:
    """How a training ends that nobody kills, and the seconds that it takes."""
    with temporary() as folder:
        begin = time.monotonic()
        wait(start(method, dataset, folder, Phase()), None)
        return describe(folder), time.monotonic() - begin


def kill_often(
    method: str,
    dataset: OfflineDataset,
    expected: dict[str, Any],
    seconds: float,
    seed: int,
    most: int = 12,
) -> dict[str, Any]:
    """One training that is killed up to ``most`` times; what differs at its end."""
    draw = random.Random(seed)
    kills: collections.Counter[str] = collections.Counter()
    ended = False
    with temporary() as folder:
        while not ended:
            phase = Phase()
            process = start(method, dataset, folder, phase)
            if kills.total() >= most:
                ended = wait(process, None)
                break
            aim = draw.choice(AIMS[method])
            ended = wait(process, draw.uniform(0.0, 0.2 * seconds))
            if not ended:
                # Short and rare phases are waited for as long as a whole training takes.
                ended = wait(process, seconds, lambda p=phase, a=aim: p.get() == a)
            if not ended:
                ended = wait(process, draw.choice([0.0, 0.0, 0.001, 0.004]))
            if not ended:
                met = phase.get()
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
                kills[met] += 1
        differ = count_differences(expected, describe(folder))
    return {"training": method, "seed": seed, "kills": dict(kills), "differ": differ}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60, help="kills in all, of both trainings")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    dataset = make_dataset()
    rows = json.loads(args.out.read_text())["trainings"] if args.out.exists() else []
    left_alone: dict[str, tuple[dict[str, Any], float]] = {}
    while sum(sum(row["kills"].values()) for row in rows) < args.kills:
        method = tuple(TRAININGS)[len(rows) % len(TRAININGS)]
        if method not in left_alone:
            expected, seconds = leave_alone(method, dataset)
            left_alone[method] = expected, seconds
        expected, seconds = left_alone[method]
        rows.append(kill_often(method, dataset, expected, seconds, seed=len(rows)))
        phases: collections.Counter[str] = collections.Counter()
        for row in rows:
            phases.update(row["kills"])
        result = {
            "kills": phases.total(),
            "kills_while": dict(sorted(phases.items())),
            "trainings_that_differ": sum(bool(row["differ"]) for row in rows),
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "trainings": rows,
        }
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
