"""One world model's predictions with another one's uncertainty."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from torchrl_logo.modules.world_model import Prediction, WorldModel

__all__ = ["BorrowedUncertainty"]


class BorrowedUncertainty(WorldModel):
    """Predicts as one model does and doubts as another does.

    It tells what an estimate of uncertainty is worth when the predictions are the same.

    Args:
        model (WorldModel): predicts; its normalisers are used.
        judge (WorldModel): a model of the same task with an uncertainty.

    Raises:
        ValueError: if the judge has no uncertainty, or is of another task.
    """

    has_uncertainty: ClassVar[bool] = True

    def __init__(self, model: WorldModel, judge: WorldModel) -> None:
        if not judge.has_uncertainty:
            raise ValueError(f"A {type(judge).__name__} has no uncertainty to borrow.")
        model.spec.require_match(judge.spec, "The judge")
        super().__init__(model.spec, device=model.observation_mask.device)
        self.model, self.judge = model, judge
        self.config: dict[str, Any] = {}
        for name, module in model.named_children():
            if name.endswith("_normalizer"):
                setattr(self, name, module)

    @property
    def termination_bias(self) -> torch.Tensor:
        """The predicting model's."""
        return self.model.termination_bias

    def predict(
        self, state: torch.Tensor, observation: torch.Tensor, action: torch.Tensor
    ) -> Prediction:
        """Predicts the next step; see :class:`~torchrl_logo.modules.WorldModel`."""
        doubt = self.judge.predict(state, observation, action).uncertainty
        return self.model.predict(state, observation, action)._replace(uncertainty=doubt)
