"""Rewards less a world model's uncertainty, over a world that is known by heart."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.envs import TransformedEnv
from torchrl.envs.utils import check_env_specs

from torchrl_logo.data import TaskSpec
from torchrl_logo.envs import ImaginedEnv, UncertaintyPenalty
from torchrl_logo.modules import EnsembleWorldModel, Prediction, WorldModel

SPEC = TaskSpec(
    n_agents=2,
    observation_size=3,
    state_size=4,
    action_size=1,
    action_low=(-1.0,),
    action_high=(1.0,),
)


class CountingModel(WorldModel):
    """The state grows by 1 a step and is the reward; a tenth of it is the uncertainty."""

    def __init__(self) -> None:
        super().__init__(SPEC)
        self.config = {}
        self.weight = torch.nn.Parameter(torch.ones(()))

    @property
    def termination_bias(self) -> torch.Tensor:
        return torch.zeros(1)

    def predict(
        self, state: torch.Tensor, observation: torch.Tensor, action: torch.Tensor
    ) -> Prediction:
        following = state + self.weight
        one = following[..., :1]
        return Prediction(
            state=following,
            observation=observation,
            reward=one,
            termination_logit=torch.full_like(one, -100.0),
            action_mask_logit=None,
            uncertainty=0.1 * one,
        )


def make_imagined(model: WorldModel, **kwargs: bool) -> ImaginedEnv:
    starts = TensorDict(
        {"agents": {"observation": torch.zeros(5, 2, 3)}, "state": torch.zeros(5, 4)}, [5]
    )
    return ImaginedEnv(model, starts, batch_size=6, horizon=4, clamp_margin=None, seed=0, **kwargs)


@pytest.mark.parametrize("accumulate", [True, False])
def test_a_step_costs_its_own_uncertainty(accumulate: bool) -> None:
    env = make_imagined(CountingModel(), accumulate=accumulate)
    penalty = UncertaintyPenalty(2.5, accumulated=accumulate)
    # two rollouts in a row: what the first one added up must not reach the second
    rollout = TransformedEnv(env, penalty).rollout(8, break_when_any_done=False)
    # rewards 1, 2, 3, 4 less 2.5 times uncertainties of 0.1, 0.2, 0.3, 0.4
    expected = torch.tensor([0.75, 1.5, 2.25, 3.0]).repeat(2).expand(6, 8)
    torch.testing.assert_close(rollout["next", "reward"].squeeze(-1), expected)
    # the uncertainty itself is left to those who draw by it
    step = torch.tensor([0.1, 0.2, 0.3, 0.4])
    fading = torch.tensor([[0.85 ** max(t - k, 0) * (t >= k) for k in range(4)] for t in range(4)])
    left = (fading @ step.square()).sqrt() if accumulate else step
    left = left.repeat(2).expand(6, 8)
    torch.testing.assert_close(rollout["next", "uncertainty"].squeeze(-1), left)


def test_nothing_is_taken_off_without_a_coefficient() -> None:
    env = TransformedEnv(make_imagined(CountingModel()), UncertaintyPenalty(0.0))
    rollout = env.rollout(4)
    assert rollout["next", "reward"][0].flatten().tolist() == [1.0, 2.0, 3.0, 4.0]


def test_collected_rewards_are_penalised() -> None:
    env = TransformedEnv(make_imagined(CountingModel()), UncertaintyPenalty(1.0))
    collector = Collector(
        env, env.rand_action, frames_per_batch=24, total_frames=24, reset_at_each_iter=True
    )
    (batch,) = list(collector)
    expected = torch.tensor([0.9, 1.8, 2.7, 3.6]).expand(6, 4)
    torch.testing.assert_close(batch["next", "reward"].squeeze(-1), expected)
    collector.shutdown()


@pytest.mark.parametrize("accumulate", [True, False])
def test_specs(accumulate: bool) -> None:
    torch.manual_seed(0)
    env = make_imagined(EnsembleWorldModel(SPEC, hidden_size=8), accumulate=accumulate)
    check_env_specs(TransformedEnv(env, UncertaintyPenalty(2.5, accumulated=accumulate)))


def test_an_ensemble_pays_for_its_members_disagreement() -> None:
    torch.manual_seed(0)
    model = EnsembleWorldModel(SPEC, hidden_size=8, members=3)
    env = TransformedEnv(make_imagined(model), UncertaintyPenalty(2.5))
    rollout = env.rollout(4).detach()
    state = model.state_normalizer.normalize(rollout["state"])
    action = rollout["agents", "action"]
    deltas = model.predict_heads(
        state.expand(3, *state.shape), action.expand(3, *action.shape)
    ).state_delta  # [M, B, T, d_s]
    deviation = deltas - deltas.mean(0)
    disagreement = deviation.square().mean((0, -1)).sqrt()
    plain = model(rollout.select(*model.in_keys))["next", "reward"].squeeze(-1)
    torch.testing.assert_close(
        rollout["next", "reward"].squeeze(-1), plain - 2.5 * disagreement, atol=1e-5, rtol=1e-4
    )
    assert (disagreement > 0).all()


@pytest.mark.parametrize("coefficient", [-0.1, float("nan")])
def test_bad_coefficients_are_refused(coefficient: float) -> None:
    with pytest.raises(ValueError, match="coefficient must not be negative"):
        UncertaintyPenalty(coefficient)
