"""Open loops in latents: what is compared with what, and in which units."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_logo.data import TaskSpec
from torchrl_logo.evaluation import evaluate_latent_world_model
from torchrl_logo.modules import RecurrentLatentWorldModel
from torchrl_logo.modules import recurrent_latent_world_model as module

SPEC = TaskSpec(2, 3, 4, 1, action_low=(-1.0,), action_high=(1.0,), observation_sizes=(3, 2))


def make_data(length: int = 12) -> TensorDict:
    torch.manual_seed(0)
    observation, state = torch.randn(length + 1, 2, 3) * 5 + 1, torch.randn(length + 1, 4) * 3
    observation[:, 1, 2] = 0  # padding
    return TensorDict(
        {
            "agents": {"observation": observation[:-1], "action": torch.rand(length, 2, 1)},
            "state": state[:-1],
            "episode": torch.zeros(length, dtype=torch.int64),
            "next": {
                "agents": {"observation": observation[1:]},
                "state": state[1:],
                "reward": torch.randn(length, 1) * 2 + 4,
                "terminated": torch.zeros(length, 1, dtype=torch.bool),
            },
        },
        [length],
    )


def make_model(data: TensorDict) -> RecurrentLatentWorldModel:
    torch.manual_seed(1)
    model = RecurrentLatentWorldModel(
        SPEC, memory_size=6, code_groups=2, code_classes=3, hidden_size=8, attention_heads=2
    )
    model.fit_normalizers(data)
    return model


def test_errors_are_those_of_a_loop_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data()
    model = make_model(data)
    monkeypatch.setattr(  # the likeliest codes in place of draws
        module,
        "draw_code",
        lambda logits, generator=None: (
            torch.nn.functional.one_hot(logits.argmax(-1), 3).to(logits).flatten(-2)
        ),
    )
    # 12 steps hold one window of 3 + 10 - 1
    found = evaluate_latent_world_model(model, data, horizon=10, context=3)
    assert len(found) == 3 * 3
    observation = model.standardise(data["agents", "observation"])
    memory = torch.zeros(2, 6)
    for t in range(3):
        latent = model.observe(memory, observation[t], deterministic=True)
        memory = model.remember(latent, data["agents", "action"][t])
    for k in range(1, 11):
        code = torch.nn.functional.one_hot(model.prior_logits(memory).argmax(-1), 3).flatten(-2)
        latent = torch.cat([memory, code.float()], -1)
        row = data["next"][2 + k - 1]
        if k in (1, 5, 10):
            said = model.describe(latent)
            reward = (said.reward - row["reward"]) / data["next", "reward"].std(correction=0)
            expected = reward.square().mean().item()
            assert found[f"open_loop/reward_error/{k}"] == pytest.approx(expected, rel=1e-4)
            state = (said.state - row["state"]) / model.state_normalizer.scale
            expected = state.square().mean().item()
            assert found[f"open_loop/state_error/{k}"] == pytest.approx(expected, rel=1e-4)
            difference = said.observation - row["agents", "observation"]
            scaled = difference / model.observation_normalizer.scale
            # five features are there, the sixth is padding
            expected = scaled.square().sum().item() / 5
            assert found[f"open_loop/observation_error/{k}"] == pytest.approx(expected, rel=1e-4)
        if k < 10:
            memory = model.remember(latent, data["agents", "action"][2 + k])


def test_bad_arguments_are_refused() -> None:
    data = make_data()
    model = make_model(data)
    with pytest.raises(ValueError, match="context must be at least 1, found 0"):
        evaluate_latent_world_model(model, data, context=0)
    with pytest.raises(ValueError, match="has the 13 steps of context and horizon"):
        evaluate_latent_world_model(model, data, horizon=10, context=4)
