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


def world_model_case(model_class: Any, loss_class: Any, spec: TaskSpec) -> Case:
    def make(device: str = "cpu", keys: Any = None, **kwargs: Any) -> LossModule:
        return loss_class(model_class(spec, hidden_size=6, device=device), **kwargs)

    return Case(make, spec, is_policy=False)


CASES: Cases = {
    loss: {
        "continuous": world_model_case(model, loss, CONTINUOUS),
        "discrete": world_model_case(model, loss, DISCRETE),
    }
    for model, loss in (
        (LOGOWorldModel, LOGOWorldModelLoss),
        (JointWorldModel, JointWorldModelLoss),
        (EnsembleWorldModel, EnsembleWorldModelLoss),
    )
}
