"""Counterfactual conservative Q-learning of mixed values, with and without a behaviour network."""

from __future__ import annotations

from typing import Any

from tensordict.nn import TensorDictModule
from torchrl.objectives import LossModule

from tests.objectives.loss_cases import DISCRETE, Case, Cases
from tests.objectives.loss_cases.discrete_macql import make_value_networks
from torchrl_logo.modules import make_categorical_actor
from torchrl_logo.objectives import DiscreteCFCQLLoss


def make_weighted(device: str = "cpu", keys: Any = None, **kwargs: Any) -> LossModule:
    actor = make_categorical_actor(DISCRETE, hidden_sizes=(6,), device=device)
    behaviour = TensorDictModule(
        actor[0].module,
        in_keys=actor[0].in_keys,
        out_keys=[(keys or {}).get("logits", ("agents", "logits"))],
    )
    networks = make_value_networks("qmix", device, keys)
    return DiscreteCFCQLLoss(*networks, behaviour_network=behaviour, **kwargs)


def make_unweighted(device: str = "cpu", keys: Any = None, **kwargs: Any) -> LossModule:
    return DiscreteCFCQLLoss(*make_value_networks("vdn", device, keys), **kwargs)


CASES: Cases = {
    DiscreteCFCQLLoss: {
        "weighted": Case(make_weighted, DISCRETE, targets="action_value_network"),
        "unweighted": Case(make_unweighted, DISCRETE, targets="action_value_network"),
    },
}
