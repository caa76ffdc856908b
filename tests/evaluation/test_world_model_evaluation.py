from __future__ import annotations

import torch
from tensordict import TensorDict

from torchrl_logo.data import TaskSpec
from torchrl_logo.evaluation.world_model import (
    area_under_roc,
    evaluate_world_model,
    find_windows,
    kept_error_ratio,
    measure_uncertainty,
    rank_correlation,
    trace_open_loop,
)
from torchrl_logo.modules import JointWorldModel
from torchrl_logo.modules.world_model import Prediction, WorldModel


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


class _Handmade(WorldModel):
    """Stays where it is, off by the action; as uncertain as the first feature says."""

    @property
    def termination_bias(self) -> torch.Tensor:
        return torch.zeros(1)

    def predict(
        self, state: torch.Tensor, observation: torch.Tensor, action: torch.Tensor
    ) -> Prediction:
        shift = action.to(torch.float32).reshape(*state.shape[:-1], -1).sum(-1, keepdim=True)
        mask = None
        if self.spec.discrete:
            # Claims that the first action alone is available.
            mask = torch.tensor([1.0, -1.0]).expand(*observation.shape[:-1], 2)
        return Prediction(
            state=state + shift,
            observation=observation,
            reward=torch.zeros_like(shift),
            termination_logit=state[..., :1],
            action_mask_logit=mask,
            uncertainty=shift.abs(),
        )


def _still_world(length: int, action: torch.Tensor, **entries: torch.Tensor) -> TensorDict:
    """A world in which nothing moves, for two episodes of ``length``."""
    rows = 2 * length
    still = {"agents": {"observation": torch.zeros(rows, 1, 1)}, "state": torch.zeros(rows, 1)}
    data = TensorDict({**still, "next": TensorDict(still, [rows]).clone()}, [rows])
    data["agents", "action"] = action
    data["episode"] = torch.arange(2).repeat_interleave(length)
    data["next", "reward"] = torch.arange(float(rows)).unsqueeze(-1)
    data["next", "terminated"] = torch.zeros(rows, 1, dtype=torch.bool)
    for name, value in entries.items():
        data["next", "agents", name] = value
    return data


def _scaled(spec: TaskSpec, scale: float) -> _Handmade:
    model = _Handmade(spec)
    for normalizer in (
        model.state_normalizer,
        model.state_delta_normalizer,
        model.observation_normalizer,
    ):
        normalizer.inverse_scale.fill_(scale)
    return model


def test_trace_adds_up_a_drift() -> None:
    """Each step moves the imagined state by the action: error (k a / s)^2, uncertainty a."""
    spec = TaskSpec(1, 1, 1, 1, action_low=(-1.0,), action_high=(1.0,))
    action = torch.cat([torch.full((4, 1, 1), 0.1), torch.full((4, 1, 1), 0.25)])
    model, data = _scaled(spec, 2.0), _still_world(4, action)
    trace = trace_open_loop(model, data, horizon=4)
    trace = trace[trace["uncertainty"][:, 0].argsort()]
    steps = torch.arange(1.0, 5.0)
    drift = torch.tensor([[0.1], [0.25]]) * steps
    torch.testing.assert_close(trace["state_error"], (2 * drift).square())
    faded = (1 - 0.85**steps) / (1 - 0.85)  # 1 + 0.85 + 0.85^2 + ...
    together = torch.tensor([[0.1], [0.25]]) * faded.sqrt()
    torch.testing.assert_close(trace["accumulated_uncertainty"], together)
    torch.testing.assert_close(trace["uncertainty"], drift[:, :1].expand(2, 4))
    assert trace["observation_error"].eq(0).all()

    found = measure_uncertainty(trace)
    # Drifts .1 .2 .3 .4 and .25 .5 .75 1 rank 1 2 4 5 and 3 6 7 8; uncertainties, .1 to .2 and .25
    # to .5, rank 1 to 8: squares of the differences add up to 6.
    assert abs(found["accumulated_uncertainty_rho"] - (1 - 6 * 6 / (8 * 63))) < 1e-9
    assert found["uncertainty_rho"] < 0.9
    squares = drift.square()
    assert abs(found["kept_error_ratio"] - (squares[0].mean() / squares.mean()).item()) < 1e-6
    results = evaluate_world_model(model, data, horizon=4)
    # Linear interpolation between two windows' errors 0.64 and 4.0.
    assert abs(results["open_loop/state_error_p99/4"] - (0.64 + 0.99 * (4.0 - 0.64))) < 1e-4
    assert results["open_loop/kept_error_ratio"] == found["kept_error_ratio"]


def test_kept_error_ratio_by_hand() -> None:
    uncertainty, error = torch.tensor([3.0, 1.0, 2.0, 4.0]), torch.tensor([5.0, 1.0, 2.0, 8.0])
    assert kept_error_ratio(uncertainty, error) == 1.5 / 4
    assert kept_error_ratio(uncertainty, error, coverage=0.25) == 1 / 4
    assert kept_error_ratio(uncertainty, error, coverage=1.0) == 1
    assert kept_error_ratio(-uncertainty, error) == 6.5 / 4


def test_action_mask_f1_counts_available_actions() -> None:
    spec = TaskSpec(1, 1, 1, 2, discrete=True)
    mask = torch.ones(8, 1, 2, dtype=torch.bool)
    mask[:2, :, 1] = False  # Two rows as claimed, six with the second action as well.
    data = _still_world(4, torch.zeros(8, 1, dtype=torch.int64), action_mask=mask)
    found = evaluate_world_model(_scaled(spec, 1.0), data, horizon=4)
    precision, recall = 1.0, 8 / 14
    assert (
        abs(found["one_step/action_mask_f1"] - 2 * precision * recall / (precision + recall)) < 1e-9
    )
