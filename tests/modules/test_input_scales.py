"""Features on several scales, and world models that read them."""

from __future__ import annotations

import math

import pytest
import torch

from torchrl_logo.data import TaskSpec
from torchrl_logo.modules import (
    EnsembleWorldModel,
    JointWorldModel,
    LOGOWorldModel,
    WorldModel,
    read_on_scales,
)

SPEC = TaskSpec(2, 3, 4, 1, action_low=(-1.0,), action_high=(1.0,))


def test_sines_and_cosines() -> None:
    found = read_on_scales(torch.tensor([[0.5, -1.0]]), (2.0, 4.0))
    expected = [0.5, -1.0]
    for frequency in (2, 4):
        expected += [math.sin(frequency * 0.5), math.sin(-frequency)]
        expected += [math.cos(frequency * 0.5), math.cos(-frequency)]
    torch.testing.assert_close(found, torch.tensor([expected]))
    features = torch.randn(5, 3)
    assert torch.equal(read_on_scales(features, ()), features)


@pytest.mark.parametrize("model_class", [LOGOWorldModel, JointWorldModel, EnsembleWorldModel])
def test_models_tell_close_inputs_apart(model_class: type[WorldModel]) -> None:
    """A network that reads fine scales answers more to a hair's breadth than one that does not."""

    def answer(frequencies: tuple[float, ...]) -> torch.Tensor:
        torch.manual_seed(0)
        model = model_class(SPEC, hidden_size=32, frequencies=frequencies)  # type: ignore[call-arg]
        assert model.config["frequencies"] == list(frequencies)
        near = torch.zeros(2, 4), torch.zeros(2, 2, 3), torch.zeros(2, 2, 1)
        near[0][1] += 0.01
        near[1][1] += 0.01
        first, second = model.predict(*near).state.detach()
        return (second - first - 0.01).norm()

    assert answer((64.0, 128.0)) > 1.5 * answer(())
