"""Shows what is in a dataset: its card, a figure, and checks for the field's known accidents.

    python examples/inspect_dataset.py dataset=vmas/balance-medium-replay
    python examples/inspect_dataset.py dataset=data/5m_vs_6m_medium.h5 task=smax/5m_vs_6m \\
        others='[data/5m_vs_6m_mixed.h5]'

A file of another format is converted first (and kept, see load_dataset); choices that its reader
needs are added as ``+options.reward_rule=mean``.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.config_store import ConfigStore

from torchrl_logo.data import TaskSpec, load_dataset
from torchrl_logo.data.accidents import find_accidents
from torchrl_logo.data.card import make_card
from torchrl_logo.envs import make_env
from torchrl_logo.mistakes import explain_mistakes
from torchrl_logo.record.dataset_plots import plot_dataset


@dataclasses.dataclass
class InspectionConfig:
    """What to look at; each field is a Hydra override, ``field=value``."""

    # A named dataset, the folder of a saved one, or a file or folder of another format.
    dataset: str = "vmas/balance-medium-replay"
    # The task whose sizes the data must have, as make_env takes it.
    task: str | None = None
    # Other datasets of the task, which should not have the same episodes.
    others: list[str] = dataclasses.field(default_factory=list)
    # Folder of the card and the figure.
    out: str = "."
    # What the reader of another format takes.
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


ConfigStore.instance().store(name="inspect_dataset", node=InspectionConfig)


@hydra.main(version_base="1.3", config_path=None, config_name="inspect_dataset")
@explain_mistakes
def main(config: InspectionConfig) -> None:
    torch.set_num_threads(1)
    dataset = load_dataset(config.dataset, **config.options)
    spec = None if config.task is None else TaskSpec.from_env(make_env(config.task))
    others = [load_dataset(name) for name in config.others]
    card = make_card(dataset, accidents=find_accidents(dataset, task=spec, others=others))
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "card.md").write_text(card)
    plot_dataset(dataset).savefig(out / "dataset.png", dpi=120)
    print(card)
    print(f"Written: {out / 'card.md'}, {out / 'dataset.png'}")


if __name__ == "__main__":
    main()
