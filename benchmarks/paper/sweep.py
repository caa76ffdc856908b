"""One cell as a Hydra job, for Hydra's launchers on a cluster.

python -m benchmarks.paper.sweep -m dataset=vmas/balance-medium,vmas/wheel-medium \\
    method=logo,macql,bc 'seed=range(0,10)' hydra/launcher=submitit_slurm

It claims its cell and writes its row as ``python -m benchmarks.paper run`` does, and does nothing
where the row is there.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from benchmarks.paper.__main__ import RESULTS
from benchmarks.paper.cells import RunOptions
from benchmarks.paper.grid import Budget, Cell
from benchmarks.paper.workers import work


@dataclasses.dataclass
class SweepConfig:
    """A cell; each field is a Hydra override, ``field=value``."""

    dataset: str = "vmas/balance-medium-replay"
    method: str = "logo"
    # One of the method's variants; none for the method as it is.
    variant: str = ""
    seed: int = 0
    steps: int = Budget.steps
    world_model_steps: int = Budget.world_model_steps
    episodes: int = 64
    # Where world models and claims are kept; all jobs must see it.
    folder: str = "runs/paper"
    rows: str = str(RESULTS / "rows.jsonl")
    mlflow: bool = True


ConfigStore.instance().store(name="paper_sweep", node=SweepConfig)


@hydra.main(version_base="1.3", config_path=None, config_name="paper_sweep")
def main(config: Any) -> None:
    job = SweepConfig(**OmegaConf.to_container(config))  # type: ignore[arg-type]
    budget = Budget(job.steps, job.world_model_steps)
    cell = Cell(job.dataset, job.method, job.variant, job.seed, budget)
    options = RunOptions(job.episodes, Path(job.folder).absolute(), job.mlflow)
    work([(cell, None)], Path(job.rows), options)


if __name__ == "__main__":
    main()
