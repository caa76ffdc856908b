"""Trains a world model on a dataset and measures it on episodes held out.

python examples/train_world_model.py task=vmas/transport model=logo steps=3000
python examples/train_world_model.py -m model=logo,joint,ensemble
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from torchrl_logo.data import load_dataset
from torchrl_logo.mistakes import explain_mistakes
from torchrl_logo.modules import EnsembleWorldModel, JointWorldModel, LOGOWorldModel
from torchrl_logo.record import MLflowRun, log_world_model_figures
from torchrl_logo.trainers import WorldModelTrainer

MODELS = {"logo": LOGOWorldModel, "joint": JointWorldModel, "ensemble": EnsembleWorldModel}


@dataclasses.dataclass
class WorldModelConfig:
    """What to train; each field is a Hydra override, ``field=value``."""

    # The task, as make_env takes it, and the quality of its embedded dataset.
    task: str = "vmas/balance"
    quality: str = "medium-replay"
    # logo, joint or ensemble.
    model: str = "logo"
    hidden_size: int = 256
    steps: int = 3000
    batch_size: int = 256
    seed: int = 0
    # Where the trained model is written.
    out: str = "runs/world_model.pt"
    # Folder of the local MLflow store; MLFLOW_TRACKING_URI overrides the store.
    runs_dir: str = "runs"
    threads: int = 1


ConfigStore.instance().store(name="train_world_model", node=WorldModelConfig)


def train(config: WorldModelConfig) -> dict[str, float]:
    """Trains as configured; returns the errors on the held-out episodes."""
    if config.model not in MODELS:
        raise ValueError(f"No model {config.model!r}. There are: {', '.join(MODELS)}.")
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    name = f"{config.task}-{config.quality}"
    dataset = load_dataset(name)
    model = MODELS[config.model].from_dataset(dataset, hidden_size=config.hidden_size)
    with MLflowRun(
        config.task, run_name=f"world-model-{config.model}", runs_dir=config.runs_dir
    ) as run:
        run.log_dataset(name, dataset.metadata.hash)
        run.log_hparams(dataclasses.asdict(config))
        trainer = WorldModelTrainer(
            model,
            dataset,
            steps=config.steps,
            batch_size=config.batch_size,
            seed=config.seed,
            logger=run,
        )
        result = trainer.train()
        log_world_model_figures(run, model, trainer.held_out)
        out = Path(config.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        model.save(out)
        run.log_artifact(out, "world_model")
    print(f"{config.model} on {name}, best after {result.best_update} updates; held-out episodes:")
    for metric, value in result.metrics.items():
        print(f"  {metric:45} {value:10.4f}")
    print(f"written to {out}; see the run with: {run.ui_command}")
    return result.metrics


@hydra.main(version_base="1.3", config_path=None, config_name="train_world_model")
@explain_mistakes
def main(config: Any) -> float:
    settings = OmegaConf.to_object(config)
    assert isinstance(settings, WorldModelConfig)
    return train(settings)["one_step/state_error"]


if __name__ == "__main__":
    main()
