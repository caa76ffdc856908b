"""Trains a team's policy from a dataset: LOGO or a baseline, followed in MLflow.

python examples/train_logo.py task=vmas/balance quality=medium-replay method=logo seed=0
python examples/train_logo.py -m method=bc,macql,logo seed=0,1,2
python examples/train_logo.py dataset=path/to/dataset method=macql +trainer.gamma=0.99
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import hydra
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from torchrl_logo.data import load_dataset
from torchrl_logo.mistakes import explain_mistakes
from torchrl_logo.trainers import TrackedResult, TrainingInterrupted, train_tracked


@dataclasses.dataclass
class TrainingConfig:
    """What to train; each field is a Hydra override, ``field=value``."""

    # The task, as make_env takes it, and the quality of its embedded dataset.
    task: str = "vmas/balance"
    quality: str = "medium-replay"
    # Instead of a named dataset: the folder of a saved one.
    dataset: str | None = None
    # A name of OfflineTrainer's methods: logo, macql, cfcql, bc, ...
    method: str = "logo"
    # Policy updates.
    steps: int = 6000
    seed: int = 0
    # Episodes of the final evaluation.
    eval_episodes: int = 64
    device: str = "cpu"
    # Folder of the local MLflow store; MLFLOW_TRACKING_URI overrides the store.
    runs_dir: str = "runs"
    experiment: str | None = None
    # An MLflow server that does not answer at the start: "raise", or "offline" to go on without
    # it and deliver what is logged when it is back.
    when_unreachable: str = "raise"
    # Where checkpoints are kept. Started again with the same folder, a run that was cut off
    # continues, in the same MLflow run.
    checkpoint_dir: str | None = None
    video: bool = True
    # Threads of torch; one is fastest for networks of this size.
    threads: int = 1
    # Any other argument of OfflineTrainer: +trainer.lr=1e-3 +trainer.horizon=5
    # +trainer.loss_kwargs.min_q_weight=2.0
    trainer: dict[str, Any] = dataclasses.field(default_factory=dict)


ConfigStore.instance().store(name="train_logo", node=TrainingConfig)


def train(config: TrainingConfig) -> TrackedResult:
    """Trains as configured."""
    torch.set_num_threads(config.threads)
    dataset = load_dataset(config.dataset or f"{config.task}-{config.quality}")
    return train_tracked(
        config.method,
        dataset,
        steps=config.steps,
        seed=config.seed,
        eval_episodes=config.eval_episodes,
        experiment=config.experiment,
        runs_dir=config.runs_dir,
        when_unreachable=config.when_unreachable,
        checkpoint_dir=config.checkpoint_dir,
        video=config.video,
        device=config.device,
        **config.trainer,
    )


@hydra.main(version_base="1.3", config_path=None, config_name="train_logo")
@explain_mistakes
def main(config: Any) -> float:
    settings = OmegaConf.to_object(config)
    assert isinstance(settings, TrainingConfig)
    try:
        tracked = train(settings)
    except TrainingInterrupted as error:
        goes_on = settings.checkpoint_dir is not None
        print(f"{error}; the same command {'goes on' if goes_on else 'starts again'}")
        sys.exit(error.exit_code)
    evaluation = tracked.evaluation
    low, high = evaluation.interval
    score = "" if evaluation.normalized is None else f", normalised {evaluation.normalized:.1f}"
    print(
        f"{settings.method} on {settings.task}: final return {evaluation.mean:.2f} "
        f"[{low:.2f}, {high:.2f}] over {len(evaluation.returns)} episodes{score}\n"
        f"MLflow run {tracked.run_id}; see it with: {tracked.ui_command}"
    )
    # what a Hydra sweeper optimises
    return evaluation.mean


if __name__ == "__main__":
    main()
