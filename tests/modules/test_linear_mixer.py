"""Linear mixers."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_logo.data import TaskSpec
from torchrl_logo.modules import LinearMixer, Normalizer, make_linear_mixer

SPEC = TaskSpec(n_agents=3, observation_size=4, state_size=5, action_size=6, discrete=True)


def test_total_is_the_weighted_sum() -> None:
    torch.manual_seed(0)
    mixer = LinearMixer(5, n_agents=3, hidden_sizes=(7,)).double()
    values, state = torch.randn(2, 4, 3, 1).double(), torch.randn(2, 4, 5).double()
    total, weight = mixer(values, state)
    first, last = mixer.network[0], mixer.network[2]
    hidden = (state @ first.weight.T + first.bias).clamp_min(0)
    for row in range(2):
        for step in range(4):
            out = (last.weight @ hidden[row, step] + last.bias).tolist()
            found = values[row, step, :, 0].tolist()
            expected = sum(abs(w) * v for w, v in zip(out[:3], found, strict=True)) + out[3]
            assert abs(total[row, step].item() - expected) < 1e-12
            assert weight[row, step, :, 0].tolist() == pytest.approx([abs(w) for w in out[:3]])
    assert (mixer.network(state)[..., :3] < 0).any()


def test_weights_are_the_gradient_and_do_not_depend_on_values() -> None:
    torch.manual_seed(0)
    mixer = LinearMixer(5, n_agents=3)
    state = torch.randn(8, 5)
    values = torch.randn(8, 3, 1, requires_grad=True)
    total, weight = mixer(values, state)
    (gradient,) = torch.autograd.grad(total.sum(), values)
    torch.testing.assert_close(gradient, weight.detach())
    other = torch.randn(8, 3, 1)
    other_total, same = mixer(other, state)
    assert torch.equal(same, weight)
    torch.testing.assert_close(total - other_total, (weight * (values - other)).sum(-2))


def test_factory_reads_and_writes_the_layout() -> None:
    torch.manual_seed(0)
    normalizer = Normalizer(5)
    normalizer.fit(torch.randn(20, 5) * 3 + 1)
    mixer = make_linear_mixer(SPEC, normalizer=normalizer)
    state, values = torch.randn(4, 5), torch.randn(4, 3, 1)
    data = TensorDict({"state": state, ("agents", "state_action_value"): values}, [4])
    out = mixer(data.clone())
    plain = LinearMixer(5, n_agents=3)
    plain.network = mixer.module.network
    total, weight = plain(values, normalizer(state))
    torch.testing.assert_close(out["state_action_value"], total)
    torch.testing.assert_close(out["agents", "mixing_weight"], weight)
    assert torch.equal(out["agents", "state_action_value"], values)
