"""A world model of your own, and the loss that trains it: one linear layer.

What follows the contract of :class:`~torchrl_logo.modules.WorldModel` works wherever a world model
does: in ``WorldModelTrainer(model, dataset, loss=LinearWorldModelLoss(model), ...)``, in
``ImaginedEnv``, ``evaluate_world_model`` and ``LOGOMPC``, and in
``OfflineTrainer("macql", dataset, world_model=model, ...)``.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from torchrl_logo.data import TaskSpec
from torchrl_logo.modules import Prediction, WorldModel
from torchrl_logo.objectives.world_model import WorldModelLoss

__all__ = ["LinearWorldModel", "LinearWorldModelLoss"]


class Heads(NamedTuple):
    """What the layer says, in standardised units."""

    state_delta: torch.Tensor  # [*, d_s]
    observation_delta: torch.Tensor  # [*, N, d_o]
    reward: torch.Tensor  # [*, 1]
    termination_logit: torch.Tensor  # [*, 1]
    action_mask_logit: torch.Tensor | None  # [*, N, A]


class LinearWorldModel(WorldModel):
    """Predicts the next step linearly in the state and the joint action.

    Its uncertainty is how far the state is from the mean of the data, in standard deviations.

    Args:
        spec (TaskSpec): the task's sizes; ``from_dataset`` and ``from_env`` find them.

    Keyword Args:
        device (torch.device, optional): where parameters and buffers are made.
    """

    # 1. Samplers and trainers ask; a model without an estimate writes zeros.
    has_uncertainty: ClassVar[bool] = True

    def __init__(self, spec: TaskSpec, *, device: torch.device | str | None = None) -> None:
        super().__init__(spec, device=device)  # makes the normalisers, which are buffers
        # 2. The constructor's other arguments, with which save() and load() make the model anew.
        self.config: dict[str, Any] = {}
        n = spec.n_agents
        self.sizes = [spec.state_size, n * spec.observation_size, 1, 1]
        if spec.discrete:
            self.sizes.append(n * spec.action_size)
        inputs = spec.state_size + n * spec.action_size
        self.layer = nn.Linear(inputs, sum(self.sizes), device=device)

    @property
    def termination_bias(self) -> torch.Tensor:
        """Set to the data's log-odds by ``fit_normalizers``, so that it is a view ``[1]``."""
        return self.layer.bias.data[sum(self.sizes[:3]) :][:1]

    def predict_heads(self, state: torch.Tensor, action: torch.Tensor) -> Heads:
        """The layer, from a standardised state ``[*, d_s]`` and encoded actions ``[*, N, d_a]``."""
        heads = self.layer(torch.cat([state, action.flatten(-2)], -1)).split(self.sizes, -1)
        agents = (self.spec.n_agents, -1)
        mask = heads[4].unflatten(-1, agents) if self.spec.discrete else None
        # features that only pad shorter observations stay zero
        observation = heads[1].unflatten(-1, agents) * self.observation_mask
        return Heads(heads[0], observation, heads[2], heads[3], mask)

    def predict(
        self, state: torch.Tensor, observation: torch.Tensor, action: torch.Tensor
    ) -> Prediction:
        """Predicts the next step; the base reads and writes TensorDicts around it."""
        # 3. Inside, everything is standardised; changes are predicted, and added in task's units.
        standard = self.state_normalizer.normalize(state)
        heads = self.predict_heads(standard, self.encode_action(action))
        change = self.observation_delta_normalizer.denormalize(heads.observation_delta)
        return Prediction(
            state=state + self.state_delta_normalizer.denormalize(heads.state_delta),
            observation=(observation + change) * self.observation_mask,
            reward=self.expect_reward(heads.reward, heads.termination_logit),
            termination_logit=heads.termination_logit,
            action_mask_logit=heads.action_mask_logit,
            uncertainty=standard.square().mean(-1, keepdim=True).sqrt(),
        )


class LinearWorldModelLoss(WorldModelLoss):
    """Trains a :class:`LinearWorldModel`: squares of standardised changes, and cross-entropies."""

    world_model_class: ClassVar[type[WorldModel]] = LinearWorldModel
    # 4. Terms and their coefficients, which users change: LinearWorldModelLoss(model, reward=2.0)
    default_coefficients: ClassVar[dict[str, float]] = {
        "state": 1.0,
        "observation": 1.0,
        "reward": 1.0,
        "termination": 1.0,
        "action_mask": 1.0,
    }
    world_model: LinearWorldModel

    def compute_terms(self, targets: Any) -> dict[str, torch.Tensor]:
        """Each term, one number a transition ``[*]``; the base weighs and reduces them."""
        heads = self.world_model.predict_heads(targets.state, targets.action)
        terms = {
            "state": (heads.state_delta - targets.state_delta).square().mean(-1),
            "observation": self._observation_term(
                heads.observation_delta - targets.observation_delta
            ),
            "reward": self._reward_term(heads.reward, targets),
            "termination": F.binary_cross_entropy_with_logits(
                heads.termination_logit, targets.terminated, reduction="none"
            ).squeeze(-1),
        }
        if heads.action_mask_logit is not None:
            terms["action_mask"] = self._mask_term(heads.action_mask_logit, targets.action_mask)
        return terms
