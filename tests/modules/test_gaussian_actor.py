"""Decentralised actors and their squashed Gaussian."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import ExplorationType, set_exploration_type
from torchrl.modules import TanhNormal

from torchrl_logo.data import TaskSpec
from torchrl_logo.modules import Normalizer, make_gaussian_actor
from torchrl_logo.modules.squashed_normal import SquashedNormal

SPEC = TaskSpec(
    n_agents=3,
    observation_size=4,
    state_size=5,
    action_size=2,
    action_low=(-1.0, 0.0),
    action_high=(1.0, 5.0),
)


def observe(size: int = 6) -> TensorDict:
    return TensorDict({("agents", "observation"): torch.randn(size, 3, 4)}, [size])


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (-0.5, 3.0)])
def test_squashed_normal_is_torchrls_tanh_normal(bounds: tuple[float, float]) -> None:
    torch.manual_seed(0)
    loc, scale = torch.randn(7, 3, 2) * 2, torch.rand(7, 3, 2) + 0.1
    low, high = (torch.full((2,), bound) for bound in bounds)
    mine = SquashedNormal(loc, scale, low=low, high=high)
    theirs = TanhNormal(loc, scale, low=low, high=high)
    for method in ("rsample_and_log_prob", "sample_and_log_prob"):
        torch.manual_seed(1)
        found = getattr(mine, method)((4,))
        torch.manual_seed(1)
        torch.testing.assert_close(found, getattr(theirs, method)((4,)), rtol=0, atol=0)
    action = low + torch.rand(7, 3, 2) * (high - low)
    torch.testing.assert_close(mine.log_prob(action), theirs.log_prob(action))
    torch.testing.assert_close(mine.deterministic_sample, theirs.deterministic_sample)


def test_log_prob_is_the_tanh_normal_density() -> None:
    torch.manual_seed(0)
    actor = make_gaussian_actor(SPEC).double()
    data = observe().double()
    out = actor(data)
    loc, scale = out["agents", "loc"], out["agents", "scale"]
    low, high = torch.tensor([-1.0, 0.0]).double(), torch.tensor([1.0, 5.0]).double()
    unit = (out["agents", "action"] - (high + low) / 2) / ((high - low) / 2)
    x = 0.5 * ((1 + unit) / (1 - unit)).log()
    density = (-(((x - loc) / scale) ** 2) / 2).exp() / (scale * math.sqrt(2 * math.pi))
    density = density / ((1 - unit**2) * (high - low) / 2)
    torch.testing.assert_close(
        out["agents", "action_log_prob"], density.log().sum(-1), rtol=1e-6, atol=1e-6
    )


def test_actions_are_within_bounds_and_deterministic_when_asked() -> None:
    torch.manual_seed(0)
    actor = make_gaussian_actor(SPEC)
    data = TensorDict({("agents", "observation"): 100 * torch.randn(500, 3, 4)}, [500])
    action = actor(data)["agents", "action"]
    low, high = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 5.0])
    assert (action >= low).all() and (action <= high).all()
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        out = actor(data)
    expected = (low + high) / 2 + (high - low) / 2 * out["agents", "loc"].tanh()
    torch.testing.assert_close(out["agents", "action"], expected)


@pytest.mark.parametrize("share_params", [True, False])
def test_an_agent_sees_its_own_observation_only(share_params: bool) -> None:
    torch.manual_seed(0)
    actor = make_gaussian_actor(SPEC, share_params=share_params)
    data = observe()
    before = actor(data.clone())["agents", "loc"]
    data["agents", "observation"][:, 1] += 1
    changed = (actor(data)["agents", "loc"] != before).flatten(2).any(-1)
    assert changed[:, 1].all() and not changed[:, [0, 2]].any()


def test_shared_parameters_permute_with_agents() -> None:
    torch.manual_seed(0)
    shared, own = (make_gaussian_actor(SPEC, share_params=share) for share in (True, False))
    data, order = observe(), [2, 0, 1]
    permuted = TensorDict({("agents", "observation"): data["agents", "observation"][:, order]}, [6])
    loc = shared(data.clone())["agents", "loc"]
    torch.testing.assert_close(shared(permuted.clone())["agents", "loc"], loc[:, order])
    loc = own(data.clone())["agents", "loc"]
    # every agent's own network starts from other weights
    assert not torch.isclose(own(permuted.clone())["agents", "loc"], loc[:, order]).any(0).all()


def test_normalizer_standardises_what_the_actor_sees() -> None:
    data = torch.randn(50, 3, 4) * 7 + 3
    normalizer = Normalizer(4)
    normalizer.fit(data)
    torch.manual_seed(0)
    normalizing = make_gaussian_actor(SPEC, normalizer=normalizer)
    torch.manual_seed(0)
    plain = make_gaussian_actor(SPEC)
    raw = TensorDict({("agents", "observation"): data}, [50])
    ready = TensorDict({("agents", "observation"): normalizer.normalize(data)}, [50])
    torch.testing.assert_close(normalizing(raw)["agents", "loc"], plain(ready)["agents", "loc"])


def test_bounds_move_with_the_actor_and_are_not_saved() -> None:
    actor = make_gaussian_actor(SPEC)
    assert not any("low" in key or "high" in key for key in actor.state_dict())
    out = actor.to("meta")(observe().to("meta"))
    assert out["agents", "action"].device.type == "meta"
    assert make_gaussian_actor(SPEC, device="meta")(observe().to("meta"))["agents", "action"].shape


def test_tasks_without_finite_continuous_actions_are_refused() -> None:
    discrete = TaskSpec(n_agents=2, observation_size=4, state_size=5, action_size=6, discrete=True)
    with pytest.raises(ValueError, match="discrete"):
        make_gaussian_actor(discrete)
    unbounded = TaskSpec(
        n_agents=2,
        observation_size=4,
        state_size=5,
        action_size=1,
        action_low=(-math.inf,),
        action_high=(1.0,),
    )
    with pytest.raises(ValueError, match="finite action bounds"):
        make_gaussian_actor(unbounded)
