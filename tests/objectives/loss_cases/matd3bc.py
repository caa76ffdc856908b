"""TD3 with behaviour cloning, of a stochastic and of a deterministic actor."""

from __future__ import annotations

from typing import Any

from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import nn
from torchrl.objectives import LossModule

from tests.objectives.loss_cases import CONTINUOUS, Case, Cases
from torchrl_logo.modules import make_centralized_critic, make_gaussian_actor
from torchrl_logo.modules.squashed_normal import SquashedNormalModule
from torchrl_logo.objectives import MATD3BCLoss


def make_actor(device: str, action: Any, *, deterministic: bool) -> Any:
    """An actor that writes the action where it is told to."""
    if deterministic:
        network = nn.Sequential(nn.Linear(3, 2, device=device), nn.Tanh())
        return TensorDictModule(network, [("agents", "observation")], [action])
    # the factory's, with the action's name
    made = make_gaussian_actor(CONTINUOUS, hidden_sizes=(6,), device=device)
    squash = SquashedNormalModule(
        made.module[1].low,
        made.module[1].high,
        in_keys=made.module[1].in_keys,
        out_keys=[action],
        log_prob_key=("agents", "action_log_prob"),
    )
    return ProbabilisticTensorDictSequential(made.module[0], squash)


def make_matd3bc(
    device: str = "cpu", keys: Any = None, *, deterministic: bool = False, **kwargs: Any
) -> LossModule:
    keys = keys or {}
    action = keys.get("action", ("agents", "action"))
    value = keys.get("state_action_value", "state_action_value")
    critics = [
        TensorDictModule(
            make_centralized_critic(CONTINUOUS, hidden_sizes=(6,), device=device).module,
            in_keys=["state", ("agents", "observation"), action],
            out_keys=[value],
        )
        for _ in range(2)
    ]
    actor = make_actor(device, action, deterministic=deterministic)
    return MATD3BCLoss(actor, critics, action_spec=CONTINUOUS.action_spec(), **kwargs)


def make_deterministic_matd3bc(**kwargs: Any) -> LossModule:
    return make_matd3bc(deterministic=True, **kwargs)


CASES: Cases = {
    MATD3BCLoss: {
        "stochastic": Case(make_matd3bc, targets="qvalue_network"),
        "deterministic": Case(make_deterministic_matd3bc, targets="actor_network"),
    },
}
