"""One training from dataset to final evaluation, followed in MLflow."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import uuid
from pathlib import Path
from typing import Any

from torchrl.envs import EnvBase
from torchrl.objectives import LossModule

from torchrl_logo.argument_checks import require_arguments
from torchrl_logo.data.dataset import OfflineDataset
from torchrl_logo.data.json_files import read_json
from torchrl_logo.envs import make_env
from torchrl_logo.evaluation import Evaluation, evaluate
from torchrl_logo.record import (
    MLflowRun,
    log_world_model_figures,
    plot_learning_curves,
    render_episode,
)
from torchrl_logo.record.run_color import RUN_COLOR_TAG, pick_run_color
from torchrl_logo.trainers.held_out import find_held_out
from torchrl_logo.trainers.methods import METHODS
from torchrl_logo.trainers.offline import OfflineResult, OfflineTrainer
from torchrl_logo.trainers.stop_signals import StopSignals
from torchrl_logo.whole_files import write_file

__all__ = ["TrackedResult", "train_tracked"]

_RUN_FILE = "mlflow_run.json"


@dataclasses.dataclass
class TrackedResult:
    """What a tracked training leaves.

    Attributes:
        result: the trainer's result: policy, logged figures.
        evaluation: returns of the final policy.
        run_id: id of the MLflow run.
        ui_command: shell command that opens the store in MLflow's user interface.
    """

    result: OfflineResult
    evaluation: Evaluation
    run_id: str
    ui_command: str


def train_tracked(
    method: str | LossModule,
    dataset: OfflineDataset,
    *,
    steps: int,
    seed: int = 0,
    eval_env: str | EnvBase | None = None,
    eval_episodes: int = 64,
    experiment: str | None = None,
    runs_dir: str | Path = "runs",
    when_unreachable: str = "raise",
    checkpoint_dir: str | Path | None = None,
    video: bool = True,
    tags: dict[str, str] | None = None,
    **trainer_kwargs: Any,
) -> TrackedResult:
    """Trains one method, evaluates its final policy, and records all of it as one MLflow run.

    The run holds the parameters, the dataset's name and hash, versions, metrics by update, the
    final returns (``final/return``, ``final/normalized``), learning curves, for model-based
    methods the model's open-loop trajectories and its uncertainty against its error, a video of
    the team (VMAS), the policy with its card (see
    :class:`~torchrl_logo.trainers.TrainedPolicy`) and the world model. In MLflow's charts its line
    has the method's colour, in a shade of the seed's. It ends as ``FINISHED``, as ``FAILED`` with
    the error if the training raises, or as ``KILLED`` after a SIGINT or SIGTERM. With
    ``checkpoint_dir``, a training that was cut off, at whatever moment, goes on from its last
    checkpoint *and in the same run*, which has each metric once a step.

    Args:
        method (str or LossModule): as :class:`~torchrl_logo.trainers.OfflineTrainer` takes it.
        dataset (OfflineDataset): the transitions to learn from.

    Keyword Args:
        steps (int): number of policy updates.
        seed (int): seed of the training.
        eval_env (str or EnvBase, optional): where the final policy is evaluated. Defaults to the
            dataset's task.
        eval_episodes (int): episodes of the final evaluation. Defaults to ``64``.
        experiment (str, optional): name of the MLflow experiment. Defaults to the task's name.
        runs_dir (str or Path): folder of the default local store.
        when_unreachable (str): ``"raise"`` or ``"offline"``, what to do if the MLflow server
            does not answer at the start (see :class:`~torchrl_logo.record.MLflowRun`). Defaults
            to ``"raise"``.
        checkpoint_dir (str or Path, optional): where checkpoints are kept and looked for.
        video (bool): whether a video is recorded. Defaults to ``True``.
        tags (dict, optional): tags of the run.
        **trainer_kwargs: passed on to :class:`~torchrl_logo.trainers.OfflineTrainer`.

    Raises:
        ValueError: if the dataset has no task name and there is no ``eval_env``.
        ConnectionError: if the MLflow server does not answer and ``when_unreachable`` is
            ``"raise"``.
        TrainingInterrupted: after a SIGINT or SIGTERM: a checkpoint was written (if there is a
            ``checkpoint_dir``) and the run ended, within 10 seconds.
    """
    task = dataset.spec.task
    where = task if eval_env is None else eval_env
    if where is None:
        raise ValueError(
            "The dataset names no task, and eval_env is None: pass eval_env, an environment or the "
            "name of a task."
        )
    require_arguments(trainer_kwargs, OfflineTrainer, "OfflineTrainer")
    data_name = f"{task}-{dataset.metadata.quality}"
    method_name = method if isinstance(method, str) else type(method).__name__
    family = [*METHODS].index(method_name) if method_name in METHODS else len(METHODS)
    color = pick_run_color(family, seed)
    with (
        StopSignals.installed(),
        MLflowRun(
            experiment or str(task),
            run_name=f"{method_name}-{dataset.metadata.quality}-seed{seed}",
            run_key=None if checkpoint_dir is None else _find_run_key(Path(checkpoint_dir)),
            runs_dir=runs_dir,
            when_unreachable=when_unreachable,
            tags={"method": method_name, RUN_COLOR_TAG: color, **(tags or {})},
        ) as run,
    ):
        run.log_dataset(data_name, dataset.metadata.hash, source=str(dataset.metadata.task))
        trainer = OfflineTrainer(
            method,
            dataset,
            steps=steps,
            seed=seed,
            logger=run,
            eval_env=where,
            checkpoint_dir=checkpoint_dir,
            **trainer_kwargs,
        )
        settings = {"method": method_name, "steps": steps, "seed": seed}
        run.log_hparams({**settings, **trainer.hyperparameters})
        result = trainer.train()
        evaluation = evaluate(result.policy, where, episodes=eval_episodes, seed=seed + 1)
        result = dataclasses.replace(result, policy=result.policy.with_returns(evaluation))
        _log_final(run, trainer, result, evaluation)
        if trainer.world_model is not None:
            held_out = find_held_out(dataset, seed)
            log_world_model_figures(run, trainer.world_model, held_out, video=video)
        if video and isinstance(where, str) and where.startswith("vmas/"):
            frames = render_episode(make_env(where, seed=seed), result.policy)
            run.log_video("final_policy", frames)
        return TrackedResult(result, evaluation, run.run_id, run.ui_command)


def _find_run_key(checkpoint_dir: Path) -> str:
    """The key under which the training of a folder finds its run, kept before there is a run."""
    path = checkpoint_dir / _RUN_FILE
    if not path.exists():
        checkpoint_dir.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"run_key": uuid.uuid4().hex})
        write_file("the run's key", path, content.encode())
    return str(read_json(path)["run_key"])


def _log_final(
    run: MLflowRun, trainer: OfflineTrainer, result: OfflineResult, evaluation: Evaluation
) -> None:
    final = {"final/return": evaluation.mean}
    if evaluation.normalized is not None:
        final["final/normalized"] = evaluation.normalized
    run.log_metrics(final, step=result.updates)
    low, high = evaluation.interval
    run.log_dict(
        "final.json",
        {
            **final,
            "interval": [low, high],
            "returns": evaluation.returns.tolist(),
            "dataset_hash": trainer.dataset.metadata.hash,
        },
    )
    curves = {
        key: points
        for key, points in result.history.items()
        if key.startswith(("loss_", "eval/", "imagination/")) and len(points) > 1
    }
    if curves:
        run.log_figure("learning_curves", plot_learning_curves(curves, step_name="update"))
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder)
        result.policy.save(weights / "policy.pt")
        (weights / "policy.md").write_text(result.policy.card.to_markdown())
        if trainer.world_model is not None:
            trainer.world_model.save(weights / "world_model.pt")
        for file in sorted(weights.iterdir()):
            run.log_artifact(file, "checkpoints")
