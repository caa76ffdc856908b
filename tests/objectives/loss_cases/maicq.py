"""Implicit constraint Q-learning, of continuous and of discrete actions."""

from __future__ import annotations

from typing import Any

from tensordict.nn import TensorDictModule
from torchrl.objectives import LossModule

from tests.objectives.loss_cases import CONTINUOUS, DISCRETE, Case, Cases
from torchrl_logo.data import TaskSpec
from torchrl_logo.modules import (
    make_action_value_network,
    make_agent_critic,
    make_categorical_actor,
    make_gaussian_actor,
    make_linear_mixer,
)
from torchrl_logo.objectives import DiscreteMAICQLoss, MAICQLoss


def make_mixer(spec: TaskSpec, device: str, keys: dict[str, Any]) -> TensorDictModule:
    made = make_linear_mixer(spec, device=device)
    return TensorDictModule(
        made.module,
        in_keys=[keys.get("local_value", ("agents", "state_action_value")), "state"],
        out_keys=[
            keys.get("global_value", "state_action_value"),
            keys.get("mixing_weight", ("agents", "mixing_weight")),
        ],
    )


def make_maicq(device: str = "cpu", keys: Any = None, **kwargs: Any) -> LossModule:
    keys = keys or {}
    critic = TensorDictModule(
        make_agent_critic(CONTINUOUS, hidden_sizes=(6,), device=device).module,
        in_keys=[("agents", "observation"), keys.get("action", ("agents", "action"))],
        out_keys=[keys.get("state_action_value", ("agents", "state_action_value"))],
    )
    actor = make_gaussian_actor(CONTINUOUS, hidden_sizes=(6,), device=device)
    return MAICQLoss(
        actor,
        critic,
        make_mixer(CONTINUOUS, device, keys),
        action_spec=CONTINUOUS.action_spec(),
        **kwargs,
    )


def make_discrete_maicq(device: str = "cpu", keys: Any = None, **kwargs: Any) -> LossModule:
    keys = keys or {}
    critic = TensorDictModule(
        make_action_value_network(DISCRETE, hidden_sizes=(6,), device=device).module,
        in_keys=[("agents", "observation")],
        out_keys=[keys.get("action_value", ("agents", "action_value"))],
    )
    actor = TensorDictModule(
        make_categorical_actor(DISCRETE, hidden_sizes=(6,), device=device)[0].module,
        in_keys=[("agents", "observation")],
        out_keys=[keys.get("logits", ("agents", "logits"))],
    )
    return DiscreteMAICQLoss(actor, critic, make_mixer(DISCRETE, device, keys), **kwargs)


CASES: Cases = {
    MAICQLoss: {"continuous": Case(make_maicq, targets="critic_network")},
    DiscreteMAICQLoss: {"discrete": Case(make_discrete_maicq, DISCRETE, targets="mixer_network")},
}
