"""The recurrent latent world model."""

from __future__ import annotations

from typing import Any

from torchrl.objectives import LossModule

from tests.objectives.loss_cases import CONTINUOUS, DISCRETE, Case, Cases
from torchrl_logo.data import TaskSpec
from torchrl_logo.modules import RecurrentLatentWorldModel
from torchrl_logo.objectives import RecurrentLatentWorldModelLoss


def latent_case(spec: TaskSpec) -> Case:
    def make(device: str = "cpu", keys: Any = None, **kwargs: Any) -> LossModule:
        model = RecurrentLatentWorldModel(
            spec,
            memory_size=6,
            code_groups=2,
            code_classes=3,
            hidden_size=8,
            attention_heads=2,
            device=device,
        )
        # without free nats, or a step of the optimiser need not change the divergence
        return RecurrentLatentWorldModelLoss(model, **{"free_nats": 0.0, **kwargs})

    return Case(make, spec, is_policy=False)


CASES: Cases = {
    RecurrentLatentWorldModelLoss: {
        "continuous": latent_case(CONTINUOUS),
        "discrete": latent_case(DISCRETE),
    }
}
