"""World models, trained once for a dataset and a seed and shared by all methods that use them."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
import time
from pathlib import Path
from typing import Any

from filelock import FileLock

from benchmarks.paper.borrowed_uncertainty import BorrowedUncertainty
from benchmarks.paper.simulator_world_model import SimulatorWorldModel
from benchmarks.paper.variants import Variant
from torchrl_logo.data import OfflineDataset
from torchrl_logo.modules import EnsembleWorldModel, JointWorldModel, LOGOWorldModel
from torchrl_logo.modules.world_model import WorldModel
from torchrl_logo.objectives.world_model import make_world_model_loss
from torchrl_logo.trainers import WorldModelTrainer

__all__ = ["WORLD_MODELS", "find_kind", "share_world_model"]

WORLD_MODELS: dict[str, type[WorldModel]] = {
    "logo": LOGOWorldModel,
    "joint": JointWorldModel,
    "ensemble": EnsembleWorldModel,
}


def find_kind(model_class: type[WorldModel]) -> str:
    """The name of a class of world models."""
    return {value: name for name, value in WORLD_MODELS.items()}[model_class]


def share_world_model(
    kind: str,
    dataset: OfflineDataset,
    variant: Variant,
    *,
    steps: int,
    seed: int,
    folder: Path,
) -> tuple[WorldModel, float, dict[str, float]]:
    """The trained model of a kind, with a variant's changes.

    Args:
        kind (str): one of :data:`WORLD_MODELS`, or ``"simulator"``.
        dataset (OfflineDataset): what it is trained on.
        variant (Variant): changes the loss, or borrows another model's uncertainty.

    Keyword Args:
        steps (int): updates.
        seed (int): of weights and batches.
        folder (Path): where trained models are kept.

    Returns:
        The model; the seconds that its training took, whoever it was done for; and its measures
        on held-out episodes.
    """
    if kind == "simulator":
        return SimulatorWorldModel(dataset.spec), 0.0, {}
    model, seconds, metrics = _train_once(
        kind, dataset, variant.model_loss, steps=steps, seed=seed, folder=folder
    )
    if variant.judge is not None:
        judge, more, _ = _train_once(
            variant.judge, dataset, {}, steps=steps, seed=seed, folder=folder
        )
        model, seconds = BorrowedUncertainty(model, judge), seconds + more
    return model, seconds, metrics


def _train_once(
    kind: str,
    dataset: OfflineDataset,
    coefficients: dict[str, float],
    *,
    steps: int,
    seed: int,
    folder: Path,
) -> tuple[WorldModel, float, dict[str, float]]:
    import torch

    model_class = WORLD_MODELS[kind]
    what = {
        "dataset": dataset.metadata.hash,
        "kind": kind,
        "coefficients": coefficients,
        "steps": steps,
        "seed": seed,
        # a newer model never meets an older one's weights
        "code": _digest_code(model_class),
    }
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"{kind}-{digest}.pt"
    record = path.with_suffix(".json")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not record.exists():
            start = time.monotonic()
            torch.manual_seed(seed)
            model = model_class.from_dataset(dataset)
            result = WorldModelTrainer(
                model,
                dataset,
                steps=steps,
                seed=seed,
                loss=make_world_model_loss(model, **coefficients),
                progress_bar=False,
            ).train()
            unfinished = path.with_suffix(".part")
            model.save(unfinished)
            unfinished.replace(path)
            content: dict[str, Any] = {
                **what,
                "seconds": time.monotonic() - start,
                "metrics": {name: float(value) for name, value in result.metrics.items()},
            }
            # The record comes last: it says that the weights are whole.
            unfinished.write_text(json.dumps(content))
            unfinished.replace(record)
    content = json.loads(record.read_text())
    return model_class.load(path), content["seconds"], content["metrics"]


def _digest_code(model_class: type[WorldModel]) -> str:
    """Twelve hexadecimal digits of the code that decides a model's weights."""
    modules = {cls.__module__ for cls in model_class.__mro__ if "torchrl_logo" in cls.__module__}
    modules |= {make_world_model_loss.__module__, WorldModelTrainer.__module__}
    digest = hashlib.sha256()
    for name in sorted(modules):
        digest.update(inspect.getsource(sys.modules[name]).encode())
    return digest.hexdigest()[:12]
