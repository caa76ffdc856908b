from __future__ import annotations

import torch
from tensordict import TensorDict

from torchrl_logo.data import TaskSpec
from torchrl_logo.evaluation.world_model import (
    area_under_roc,
    evaluate_world_model,
    find_windows,
    rank_correlation,
)
from torchrl_logo.modules import JointWorldModel


def test_windows_stay_within_episodes() -> None:
    episode = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2])
    assert find_windows(episode, 3).tolist() == [0, 4, 5]
    assert find_windows(episode, 5).tolist() == []
    assert find_windows(episode, 9).tolist() == []


def test_rank_correlation_with_ties() -> None:
    a, b = torch.tensor([1.0, 2.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0, 4.0])
    # Ranks 1, 2.5, 2.5, 4 against 1, 3, 2, 4: covariance 4.5, variances 4.5 and 5.
    assert abs(rank_correlation(a, b) - 4.5 / (4.5 * 5) ** 0.5) < 1e-6
    assert abs(rank_correlation(a, -a) + 1) < 1e-6


def test_area_under_roc_counts_pairs() -> None:
    score = torch.tensor([0.1, 0.5, 0.5, 0.9])
    positive = torch.tensor([False, True, False, True])
    # Pairs: (.5 over .1), (.5 ties .5), (.9 over .1), (.9 over .5).
    assert area_under_roc(score, positive) == 3.5 / 4


def test_a_model_that_predicts_the_mean_change() -> None:
    """With silent networks every error can be written down."""
    spec = TaskSpec(1, 1, 2, 1, action_low=(-1.0,), action_high=(1.0,))
    torch.manual_seed(0)
    length = 20
    state = torch.randn(length + 1, 2).cumsum(0)
    data = TensorDict(
        {
            "agents": {
                "observation": state[:-1, None, :1],
                "action": torch.zeros(length, 1, 1),
            },
            "state": state[:-1],
            "episode": torch.zeros(length, dtype=torch.int64),
            "next": {
                "agents": {"observation": state[1:, None, :1]},
                "state": state[1:],
                "reward": torch.randn(length, 1),
                "terminated": torch.zeros(length, 1, dtype=torch.bool),
            },
        },
        [length],
    )
    model = JointWorldModel(spec, hidden_size=4)
    model.fit_normalizers(data)
    for parameter in model.parameters():
        parameter.data.zero_()
    found = evaluate_world_model(model, data, horizon=5)
    assert abs(found["one_step/state_error"] - 1) < 1e-5
    assert abs(found["one_step/reward_error"] - 1) < 1e-5
    mean = (state[1:] - state[:-1]).mean(0)
    starts = torch.arange(length - 4)
    error = state[starts] + 5 * mean - state[starts + 5]
    expected = (error / state[:-1].std(0, correction=0)).square().mean().item()
    assert abs(found["open_loop/state_error/5"] - expected) < 1e-4
    assert "one_step/termination_auc" not in found and "open_loop/uncertainty_rho" not in found
