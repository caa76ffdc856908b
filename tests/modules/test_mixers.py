"""Mixers."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_logo.data import TaskSpec
from torchrl_logo.modules import make_mixer

SPEC = TaskSpec(n_agents=3, observation_size=4, state_size=5, action_size=6, discrete=True)


def make_data() -> TensorDict:
    torch.manual_seed(1)
    data = {("agents", "chosen_action_value"): torch.randn(2, 4, 3, 1)}
    return TensorDict({**data, "state": torch.randn(2, 4, 5)}, [2, 4])


def test_vdn_is_the_sum() -> None:
    data = make_data()
    mixer = make_mixer(SPEC, "vdn")
    assert mixer.in_keys == [("agents", "chosen_action_value")]
    values = data["agents", "chosen_action_value"]
    expected = values[..., 0, :] + values[..., 1, :] + values[..., 2, :]
    torch.testing.assert_close(mixer(data)["chosen_action_value"], expected)


def test_qmix_is_the_papers_network() -> None:
    torch.manual_seed(0)
    data = make_data()
    mixer = make_mixer(SPEC, mixing_embed_dim=7)
    net, state = mixer.module, data["state"]
    values = data["agents", "chosen_action_value"].squeeze(-1)
    first = net.hyper_w_1(state).abs().unflatten(-1, (3, 7))
    hidden = torch.einsum("...n,...ne->...e", values, first) + net.hyper_b_1(state)
    hidden = torch.where(hidden > 0, hidden, hidden.exp() - 1)
    total = (hidden * net.hyper_w_final(state).abs()).sum(-1, keepdim=True) + net.V(state)
    torch.testing.assert_close(mixer(data)["chosen_action_value"], total)


@pytest.mark.parametrize("kind", ["qmix", "vdn"])
def test_the_team_gains_with_each_agent(kind: str) -> None:
    torch.manual_seed(0)
    data = make_data()
    mixer = make_mixer(SPEC, kind)
    values = data["agents", "chosen_action_value"].requires_grad_()
    (gradient,) = torch.autograd.grad(mixer(data)["chosen_action_value"].sum(), values)
    assert (gradient > 0).all()


def test_other_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="'qmix' or 'vdn', found 'sum'"):
        make_mixer(SPEC, "sum")
