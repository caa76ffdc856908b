"""Networks with memory are refused where a loss would run them from the wrong state."""

from __future__ import annotations

from typing import Any

import pytest
from torchrl.objectives import LossModule

from tests.objectives.loss_cases import CONTINUOUS, DISCRETE, find_cases
from torchrl_logo.modules import (
    make_action_value_network,
    make_agent_critic,
    make_agent_value,
    make_categorical_actor,
    make_centralized_critic,
    make_gaussian_actor,
    make_linear_mixer,
    make_mixer,
    make_recurrent_action_value_network,
    make_recurrent_categorical_actor,
    make_recurrent_gaussian_actor,
)
from torchrl_logo.objectives import (
    CFCQLLoss,
    DiscreteMABCQLoss,
    DiscreteMAICQLoss,
    MACQLLoss,
    MAICQLoss,
    MATD3BCLoss,
    OMARLoss,
    OMIGALoss,
)

ACTION_SPEC: Any = {"action_spec": CONTINUOUS.action_spec()}


def make_with_memory(loss: type[LossModule]) -> LossModule:
    actor = make_recurrent_gaussian_actor(CONTINUOUS)
    plain, mixer = make_gaussian_actor(CONTINUOUS), make_linear_mixer(CONTINUOUS)
    critic, agent_critic = make_centralized_critic(CONTINUOUS), make_agent_critic(CONTINUOUS)
    if loss is CFCQLLoss:
        return loss(plain, critic, behaviour_network=actor, **ACTION_SPEC)
    if loss in (MACQLLoss, MATD3BCLoss):
        return loss(actor, critic, **ACTION_SPEC)
    if loss is OMARLoss:
        return loss(actor, agent_critic, **ACTION_SPEC)
    if loss is OMIGALoss:
        return loss(actor, agent_critic, make_agent_value(CONTINUOUS), mixer, **ACTION_SPEC)
    if loss is MAICQLoss:
        return loss(actor, agent_critic, mixer, **ACTION_SPEC)
    if loss is DiscreteMAICQLoss:
        utilities = make_action_value_network(DISCRETE)
        actor = make_recurrent_categorical_actor(DISCRETE)
        return loss(actor, utilities, make_linear_mixer(DISCRETE))
    assert loss is DiscreteMABCQLoss
    utilities = make_recurrent_action_value_network(DISCRETE)
    return loss(make_categorical_actor(DISCRETE), utilities, make_mixer(DISCRETE))


REFUSING = [
    loss
    for loss, cases in find_cases().items()
    # MABCQ's generators have no recurrent factory
    if next(iter(cases.values())).is_policy and not loss.recurrent and loss.__name__ != "MABCQLoss"
]


@pytest.mark.parametrize("loss", REFUSING, ids=lambda loss: loss.__name__)
def test_memory_is_refused(loss: type[LossModule]) -> None:
    with pytest.raises(ValueError, match=f"{loss.__name__} expected networks without memory"):
        make_with_memory(loss)
