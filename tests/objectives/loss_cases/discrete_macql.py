"""Conservative Q-learning of mixed values, with sampled and with exact penalties."""

from __future__ import annotations

from typing import Any

from tensordict.nn import TensorDictModule
from torchrl.objectives import LossModule

from tests.objectives.loss_cases import DISCRETE, Case, Cases
from torchrl_logo.modules import make_action_value_network, make_mixer
from torchrl_logo.objectives import DiscreteMACQLLoss


def make_value_networks(
    kind: str, device: str, keys: dict[str, Any] | None
) -> tuple[TensorDictModule, TensorDictModule]:
    keys = keys or {}
    network = make_action_value_network(DISCRETE, hidden_sizes=(6,), device=device)
    mixer = make_mixer(DISCRETE, kind, mixing_embed_dim=4, device=device)
    local_value = keys.get("local_value", ("agents", "chosen_action_value"))
    return (
        TensorDictModule(
            network.module,
            in_keys=network.in_keys,
            out_keys=[keys.get("action_value", ("agents", "action_value"))],
        ),
        TensorDictModule(
            mixer.module,
            in_keys=[local_value, *mixer.in_keys[1:]],
            out_keys=[keys.get("global_value", "chosen_action_value")],
        ),
    )


def make_sampled(device: str = "cpu", keys: Any = None, **kwargs: Any) -> LossModule:
    networks = make_value_networks("qmix", device, keys)
    return DiscreteMACQLLoss(*networks, num_samples=7, **kwargs)


def make_exact(device: str = "cpu", keys: Any = None, **kwargs: Any) -> LossModule:
    return DiscreteMACQLLoss(*make_value_networks("vdn", device, keys), **kwargs)


CASES: Cases = {
    DiscreteMACQLLoss: {
        "sampled": Case(make_sampled, DISCRETE, targets="action_value_network"),
        "exact": Case(make_exact, DISCRETE, targets="action_value_network"),
    },
}
