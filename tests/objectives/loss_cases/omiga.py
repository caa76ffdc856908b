"""Implicit global-to-local regularisation, of continuous and of discrete actions."""

from __future__ import annotations

from typing import Any

from tensordict.nn import TensorDictModule
from torchrl.objectives import LossModule

from tests.objectives.loss_cases import CONTINUOUS, DISCRETE, Case, Cases
from torchrl_logo.data import TaskSpec
from torchrl_logo.modules import (
    make_action_value_network,
    make_agent_critic,
    make_agent_value,
    make_categorical_actor,
    make_gaussian_actor,
    make_linear_mixer,
)
from torchrl_logo.objectives import OMIGALoss

OBSERVATION = ("agents", "observation")


def make_omiga(
    device: str = "cpu", keys: Any = None, *, spec: TaskSpec = CONTINUOUS, **kwargs: Any
) -> LossModule:
    keys = keys or {}
    local_value = keys.get("local_value", ("agents", "state_action_value"))
    if spec.discrete:
        actor = make_categorical_actor(spec, hidden_sizes=(6,), device=device)
        network = make_action_value_network(spec, hidden_sizes=(6,), device=device)
        critic = TensorDictModule(
            network.module, [OBSERVATION], [keys.get("action_value", ("agents", "action_value"))]
        )
    else:
        actor = make_gaussian_actor(spec, hidden_sizes=(6,), device=device)
        network = make_agent_critic(spec, hidden_sizes=(6,), device=device)
        action = keys.get("action", ("agents", "action"))
        critic = TensorDictModule(network.module, [OBSERVATION, action], [local_value])
    value = TensorDictModule(
        make_agent_value(spec, hidden_sizes=(6,), device=device).module,
        [OBSERVATION],
        [keys.get("state_value", ("agents", "state_value"))],
    )
    mixer = TensorDictModule(
        make_linear_mixer(spec, device=device).module,
        [local_value, "state"],
        [
            keys.get("global_value", "state_action_value"),
            keys.get("mixing_weight", ("agents", "mixing_weight")),
        ],
    )
    # advantages of networks that have just been made are small
    arguments = {"action_spec": spec.action_spec(), "alpha": 0.1, **kwargs}
    return OMIGALoss(actor, critic, value, mixer, **arguments)


def make_discrete_omiga(**kwargs: Any) -> LossModule:
    return make_omiga(spec=DISCRETE, **kwargs)


CASES: Cases = {
    OMIGALoss: {
        "continuous": Case(make_omiga, targets="value_network"),
        "discrete": Case(make_discrete_omiga, DISCRETE, targets="mixer_network"),
    },
}
