"""Values where one agent departs, against TorchRL's mixer called for each joint action."""

from __future__ import annotations

import itertools

import pytest
import torch
from torchrl.modules import QMixer

from torchrl_logo.objectives.single_deviations import mix_single_deviations


@pytest.mark.parametrize("batch_size", [(), (7,), (3, 2)], ids=str)
@pytest.mark.parametrize("state_shape", [(4,), (2, 3)], ids=str)
@pytest.mark.parametrize("n_agents", [1, 2, 5])
def test_equals_the_mixer_and_its_gradients(
    n_agents: int, state_shape: tuple[int, ...], batch_size: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    n_actions = 3
    mixer = QMixer(state_shape, 6, n_agents, "cpu").double()
    chosen = torch.randn(*batch_size, n_agents, dtype=torch.float64, requires_grad=True)
    own = torch.randn(*batch_size, n_agents, n_actions, dtype=torch.float64, requires_grad=True)
    state = torch.randn(*batch_size, *state_shape, dtype=torch.float64)

    expected = torch.empty(*batch_size, n_agents, n_actions, dtype=torch.float64)
    for agent, action in itertools.product(range(n_agents), range(n_actions)):
        joint = chosen.clone()
        joint[..., agent] = own[..., agent, action]
        expected[..., agent, action] = mixer(joint.unsqueeze(-1), state).squeeze(-1)
    found = mix_single_deviations(mixer, chosen, own, state)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)

    weights = torch.randn_like(expected)
    inputs = [chosen, own, *mixer.parameters()]
    gradients = [
        torch.autograd.grad((weights * value).sum(), inputs) for value in (found, expected)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
