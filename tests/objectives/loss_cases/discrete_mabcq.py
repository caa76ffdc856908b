"""Discrete batch-constrained Q-learning, with both mixers."""

from __future__ import annotations

from typing import Any

from tensordict.nn import TensorDictModule
from torchrl.modules import QMixer, VDNMixer
from torchrl.objectives import LossModule

from tests.objectives.loss_cases import DISCRETE, Case, Cases
from torchrl_logo.modules import make_categorical_actor
from torchrl_logo.modules.decentralized_mlp import DecentralizedMLP
from torchrl_logo.objectives import DiscreteMABCQLoss

NAMES = {
    "logits": ("agents", "logits"),
    "action_value": ("agents", "action_value"),
    "local_value": ("agents", "chosen_action_value"),
    "global_value": "chosen_action_value",
}


def make_qmix(device: str = "cpu", keys: Any = None, **kwargs: Any) -> LossModule:
    return make(QMixer((4,), 6, 2, device), ["state"], device, keys, **kwargs)


def make_vdn(device: str = "cpu", keys: Any = None, **kwargs: Any) -> LossModule:
    return make(VDNMixer(2, device), [], device, keys, **kwargs)


def make(mixer: Any, reads: list[str], device: str, keys: Any, **kwargs: Any) -> LossModule:
    names: Any = NAMES | (keys or {})
    behaviour = make_categorical_actor(DISCRETE, hidden_sizes=(6,), device=device)
    observation = [("agents", "observation")]
    return DiscreteMABCQLoss(
        TensorDictModule(
            behaviour.module[0].module, in_keys=observation, out_keys=[names["logits"]]
        )
        if keys
        else behaviour,
        TensorDictModule(
            DecentralizedMLP(3, 5, 2, num_cells=(6,), device=device),
            in_keys=observation,
            out_keys=[names["action_value"]],
        ),
        TensorDictModule(
            mixer, in_keys=[names["local_value"], *reads], out_keys=[names["global_value"]]
        ),
        **kwargs,
    )


CASES: Cases = {
    DiscreteMABCQLoss: {
        "qmix": Case(make_qmix, DISCRETE, targets="action_value_network"),
        "vdn": Case(make_vdn, DISCRETE, targets="action_value_network", compiles_alone=False),
    },
}
