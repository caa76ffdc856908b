"""World models."""

from __future__ import annotations

from typing import Any

from torchrl.objectives import LossModule

from tests.objectives.loss_cases import CONTINUOUS, DISCRETE, Case, Cases
from torchrl_logo.data import TaskSpec
from torchrl_logo.modules import EnsembleWorldModel, JointWorldModel, LOGOWorldModel
from torchrl_logo.objectives import (
    EnsembleWorldModelLoss,
    JointWorldModelLoss,
    LOGOWorldModelLoss,
)


def world_model_case(model_class: Any, loss_class: Any, spec: TaskSpec, **defaults: Any) -> Case:
    def make(device: str = "cpu", keys: Any = None, **kwargs: Any) -> LossModule:
        return loss_class(model_class(spec, hidden_size=6, device=device), **{**defaults, **kwargs})

    return Case(make, spec, is_policy=False)


# Every term on, and none that depends on which row is which.
LOGO_DEFAULTS = {"state": 1.0, "decoded_share": 0.0}

CASES: Cases = {
    loss: {
        "continuous": world_model_case(model, loss, CONTINUOUS, **defaults),
        "discrete": world_model_case(model, loss, DISCRETE, **defaults),
    }
    for model, loss, defaults in (
        (LOGOWorldModel, LOGOWorldModelLoss, LOGO_DEFAULTS),
        (JointWorldModel, JointWorldModelLoss, {}),
        (EnsembleWorldModel, EnsembleWorldModelLoss, {}),
    )
}
