"""Actor rectification, of a stochastic and of a deterministic actor."""

from __future__ import annotations

from typing import Any

from tensordict.nn import TensorDictModule
from torchrl.objectives import LossModule

from tests.objectives.loss_cases import CONTINUOUS, Case, Cases
from tests.objectives.loss_cases.matd3bc import make_actor
from torchrl_logo.modules.decentralized_mlp import DecentralizedMLP
from torchrl_logo.objectives import OMARLoss


def make_omar(
    device: str = "cpu", keys: Any = None, *, deterministic: bool = False, **kwargs: Any
) -> LossModule:
    keys = keys or {}
    action = keys.get("action", ("agents", "action"))
    value = keys.get("state_action_value", ("agents", "state_action_value"))
    critics = [
        TensorDictModule(
            DecentralizedMLP(3 + 2, 1, n_agents=2, num_cells=(6,), device=device),
            in_keys=[("agents", "observation"), action],
            out_keys=[value],
        )
        for _ in range(2)
    ]
    actor = make_actor(device, action, deterministic=deterministic)
    return OMARLoss(actor, critics, action_spec=CONTINUOUS.action_spec(), **kwargs)


def make_deterministic_omar(**kwargs: Any) -> LossModule:
    return make_omar(deterministic=True, **kwargs)


CASES: Cases = {
    OMARLoss: {
        "stochastic": Case(make_omar, targets="qvalue_network"),
        "deterministic": Case(make_deterministic_omar, targets="actor_network"),
    },
}
