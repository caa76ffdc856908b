"""Generators of actions and their perturbations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from torchrl_logo.data import TaskSpec
from torchrl_logo.modules import Normalizer, make_action_vae, make_perturbation_network

LOW, HIGH = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 5.0])
SPEC = TaskSpec(
    n_agents=3,
    observation_size=4,
    state_size=5,
    action_size=2,
    action_low=(-1.0, 0.0),
    action_high=(1.0, 5.0),
)


def observe(size: int = 6) -> TensorDict:
    agents = {
        "observation": torch.randn(size, 3, 4),
        "action": LOW + torch.rand(size, 3, 2) * (HIGH - LOW),
        "latent": torch.randn(size, 3, 4),
    }
    return TensorDict({"agents": agents}, [size])


def mlp(module: Any, x: torch.Tensor) -> torch.Tensor:
    first, last = module.network._empty_net[0], module.network._empty_net[2]
    return (x @ first.weight.T + first.bias).clamp_min(0) @ last.weight.T + last.bias


def test_networks_are_their_formulas() -> None:
    torch.manual_seed(0)
    encoder, decoder = make_action_vae(SPEC, hidden_sizes=(7,))
    perturbation = make_perturbation_network(SPEC, hidden_sizes=(7,), phi=0.3)
    data = observe()
    observation, action, latent = (
        data["agents", key] for key in ("observation", "action", "latent")
    )
    unit = 2 * (action - LOW) / (HIGH - LOW) - 1
    raw = mlp(encoder.module, torch.cat([observation, unit], -1))
    out = encoder(data.clone())
    torch.testing.assert_close(out["agents", "latent_loc"], raw[..., :4])
    assert (out["agents", "latent_scale"] > 0).all()
    # the larger what the network says, the larger the scale
    order = out["agents", "latent_scale"].flatten().argsort()
    assert (order == raw[..., 4:].flatten().argsort()).all()

    decoded = mlp(decoder.module, torch.cat([observation, latent], -1)).tanh()
    expected = LOW + (decoded + 1) / 2 * (HIGH - LOW)
    torch.testing.assert_close(decoder(data.clone())["agents", "action"], expected)

    moved = mlp(perturbation.module, torch.cat([observation, unit], -1)).tanh()
    expected = action + 0.3 * (HIGH - LOW) / 2 * moved
    expected = torch.minimum(torch.maximum(expected, LOW), HIGH)
    torch.testing.assert_close(perturbation(data.clone())["agents", "action"], expected)


def test_actions_are_within_bounds_and_perturbations_small() -> None:
    torch.manual_seed(0)
    _, decoder = make_action_vae(SPEC)
    perturbation = make_perturbation_network(SPEC)
    data = observe(200)
    data["agents", "observation"] = 100 * data["agents", "observation"]
    decoded = decoder(data.clone())["agents", "action"]
    assert (decoded >= LOW).all() and (decoded <= HIGH).all()
    moved = perturbation(data.clone())["agents", "action"]
    assert (moved >= LOW).all() and (moved <= HIGH).all()
    distance = (moved - data["agents", "action"]).abs()
    assert (distance <= 0.05 * (HIGH - LOW) / 2 + 1e-6).all() and distance.amax() > 0.05


@pytest.mark.parametrize("share_params", [True, False])
def test_an_agent_sees_its_own_part_only(share_params: bool) -> None:
    torch.manual_seed(0)
    networks = (
        *make_action_vae(SPEC, share_params=share_params),
        make_perturbation_network(SPEC, share_params=share_params, phi=1.0),
    )
    for network in networks:
        for key in network.in_keys:
            data = observe()
            before = network(data.clone())[network.out_keys[0]]
            data[key][:, 1] *= 0.5
            changed = (network(data)[network.out_keys[0]] != before).flatten(2).any(-1)
            assert changed[:, 1].all() and not changed[:, [0, 2]].any()


def test_normalizer_standardises_what_networks_see() -> None:
    data = observe(50)
    data["agents", "observation"] = data["agents", "observation"] * 7 + 3
    normalizer = Normalizer(4)
    normalizer.fit(data["agents", "observation"])
    ready = data.clone()
    ready["agents", "observation"] = normalizer.normalize(data["agents", "observation"])
    made = []
    for given in (normalizer, None):
        torch.manual_seed(0)
        made.append(
            (
                *make_action_vae(SPEC, normalizer=given),
                make_perturbation_network(SPEC, normalizer=given),
            )
        )
    for normalizing, plain in zip(*made, strict=True):
        key = plain.out_keys[0]
        torch.testing.assert_close(normalizing(data.clone())[key], plain(ready.clone())[key])


def test_bounds_move_with_networks_and_are_not_saved() -> None:
    for network in (*make_action_vae(SPEC), make_perturbation_network(SPEC)):
        assert not any("low" in key or "high" in key for key in network.state_dict())
        out = network.to("meta")(observe().to("meta"))
        assert out[network.out_keys[0]].device.type == "meta"


def test_bad_tasks_and_sizes_are_refused() -> None:
    discrete = TaskSpec(n_agents=2, observation_size=4, state_size=5, action_size=6, discrete=True)
    unbounded = TaskSpec(
        n_agents=2,
        observation_size=4,
        state_size=5,
        action_size=1,
        action_low=(-math.inf,),
        action_high=(1.0,),
    )
    for make in (make_action_vae, make_perturbation_network):
        with pytest.raises(ValueError, match="discrete"):
            make(discrete)
        with pytest.raises(ValueError, match="finite action bounds"):
            make(unbounded)
    with pytest.raises(ValueError, match="latent_size must be positive, found 0"):
        make_action_vae(SPEC, latent_size=0)
    with pytest.raises(ValueError, match=r"phi must be in \(0, 2\], found 0"):
        make_perturbation_network(SPEC, phi=0.0)
