"""Batch-constrained Q-learning of continuous actions."""

from __future__ import annotations

from typing import Any

from tensordict.nn import TensorDictModule
from torchrl.objectives import LossModule

from tests.objectives.loss_cases import CONTINUOUS, Case, Cases
from torchrl_logo.modules import (
    make_action_vae,
    make_centralized_critic,
    make_perturbation_network,
)
from torchrl_logo.objectives import MABCQLoss


def make_mabcq(device: str = "cpu", keys: Any = None, **kwargs: Any) -> LossModule:
    made: Any = {"hidden_sizes": (6,), "device": device}
    modules = [
        *make_action_vae(CONTINUOUS, **made),
        make_perturbation_network(CONTINUOUS, **made),
        make_centralized_critic(CONTINUOUS, **made),
        make_centralized_critic(CONTINUOUS, **made),
    ]
    names = {
        "action": ("agents", "action"),
        "latent": ("agents", "latent"),
        "latent_loc": ("agents", "latent_loc"),
        "latent_scale": ("agents", "latent_scale"),
        "state_action_value": "state_action_value",
    }
    new = {names[name]: key for name, key in (keys or {}).items() if name in names}
    encoder, decoder, perturbation, *critics = (
        TensorDictModule(
            module.module,
            in_keys=[new.get(key, key) for key in module.in_keys],
            out_keys=[new.get(key, key) for key in module.out_keys],
        )
        for module in modules
    )
    return MABCQLoss(
        encoder, decoder, perturbation, critics, action_spec=CONTINUOUS.action_spec(), **kwargs
    )


CASES: Cases = {MABCQLoss: {"twin": Case(make_mabcq, targets="qvalue_network")}}
