"""Collects an offline dataset and prints what is in it.

A named dataset, made from the behaviour policies that ship with the package::

    python examples/collect_dataset.py task=vmas/balance quality=medium-replay

One of the behaviour policies, or random actions, into a folder of one's own, which
``load_dataset("<folder>")`` opens again::

    python examples/collect_dataset.py task=vmas/wheel policy=random frames=20000 root=data/wheel
"""

from __future__ import annotations

import dataclasses

import hydra
import torch
from hydra.core.config_store import ConfigStore

from torchrl_logo.data import OfflineDataset, collect, load_dataset
from torchrl_logo.data.behaviour_policies import load_behaviour_policy
from torchrl_logo.envs import make_env
from torchrl_logo.mistakes import explain_mistakes


@dataclasses.dataclass
class CollectionConfig:
    """What to collect; each field is a Hydra override, ``field=value``."""

    # The task, as make_env takes it.
    task: str = "vmas/balance"
    # Quality of a named dataset: random, medium-replay, medium, expert or mixed. The task needs
    # shipped behaviour policies. Not looked at if there is a `policy`.
    quality: str = "medium-replay"
    # Instead of a quality: one behaviour policy (random, medium, expert, replay_<k>). "random"
    # works for every task.
    policy: str | None = None
    # Transitions; rounded up to whole episodes.
    frames: int = 100_000
    # Simulations that run as one batch (with `policy` only).
    num_envs: int = 256
    # The same seed gives the same data.
    seed: int = 0
    # With `quality`: the folder that keeps the named datasets (default: $TORCHRL_LOGO_DATA, or
    # ~/.cache/torchrl_logo). With `policy`: the folder of this dataset, which must not exist.
    root: str | None = None


ConfigStore.instance().store(name="collect_dataset", node=CollectionConfig)


def collect_dataset(config: CollectionConfig) -> OfflineDataset:
    """Collects as configured."""
    if config.policy is None:
        name = f"{config.task}-{config.quality}"
        return load_dataset(name, root=config.root, frames=config.frames, seed=config.seed)
    if config.root is None:
        raise ValueError("With policy=... say where the dataset goes: root=<folder>.")
    random = config.policy == "random"
    policy = None if random else load_behaviour_policy(config.task, config.policy)
    return collect(
        make_env(config.task, num_envs=config.num_envs),
        policy,
        config.frames,
        quality=config.policy,
        seed=config.seed,
        root=config.root,
    )


@hydra.main(version_base="1.3", config_path=None, config_name="collect_dataset")
@explain_mistakes
def main(config: CollectionConfig) -> None:
    torch.set_num_threads(1)  # the simulators' tensors are small: one thread is fastest
    print(collect_dataset(config))


if __name__ == "__main__":
    main()
