"""Behaviour cloning, continuous and discrete."""

from __future__ import annotations

from typing import Any

from torchrl.objectives import LossModule

from tests.objectives.loss_cases import CONTINUOUS, DISCRETE, Case, Cases
from torchrl_logo.modules import make_categorical_actor, make_gaussian_actor
from torchrl_logo.objectives import BCLoss


def make_bc(device: str = "cpu", keys: Any = None, **kwargs: Any) -> LossModule:
    actor = make_gaussian_actor(CONTINUOUS, hidden_sizes=(6,), device=device)
    return BCLoss(actor, action_spec=CONTINUOUS.action_spec(), **kwargs)


def make_discrete_bc(device: str = "cpu", keys: Any = None, **kwargs: Any) -> LossModule:
    actor = make_categorical_actor(DISCRETE, hidden_sizes=(6,), device=device)
    return BCLoss(actor, action_spec=DISCRETE.action_spec(), **kwargs)


CASES: Cases = {
    BCLoss: {"continuous": Case(make_bc), "discrete": Case(make_discrete_bc, DISCRETE)},
}
