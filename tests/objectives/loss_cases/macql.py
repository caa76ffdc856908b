"""Conservative Q-learning, with a fixed and a learned weight."""

from __future__ import annotations

from typing import Any

from tensordict.nn import TensorDictModule
from torchrl.objectives import LossModule

from tests.objectives.loss_cases import CONTINUOUS, Case, Cases
from torchrl_logo.modules import make_centralized_critic, make_gaussian_actor
from torchrl_logo.objectives import MACQLLoss


def make_macql(device: str = "cpu", keys: Any = None, **kwargs: Any) -> LossModule:
    keys = keys or {}
    critics = []
    for _ in range(2):
        made = make_centralized_critic(
            CONTINUOUS, kind="additive", hidden_sizes=(6,), device=device
        )
        critics.append(
            TensorDictModule(
                made.module,
                in_keys=[
                    "state",
                    ("agents", "observation"),
                    keys.get("action", ("agents", "action")),
                ],
                out_keys=[keys.get("state_action_value", "state_action_value")],
            )
        )
    return MACQLLoss(
        make_gaussian_actor(CONTINUOUS, hidden_sizes=(6,), device=device),
        critics,
        action_spec=CONTINUOUS.action_spec(),
        bc_coeff=0.5,
        **kwargs,
    )


def make_lagrangian_macql(**kwargs: Any) -> LossModule:
    return make_macql(lagrange_thresh=1.0, **kwargs)


CASES: Cases = {
    MACQLLoss: {
        "fixed": Case(make_macql, targets="qvalue_network", compiles_alone=False),
        "lagrangian": Case(make_lagrangian_macql, targets="qvalue_network"),
    },
}
