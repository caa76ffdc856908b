"""Decentralised actors for discrete actions."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import ExplorationType, set_exploration_type

from torchrl_logo.data import TaskSpec
from torchrl_logo.modules import Normalizer, make_categorical_actor
from torchrl_logo.objectives import BCLoss

SPEC = TaskSpec(n_agents=3, observation_size=4, state_size=5, action_size=6, discrete=True)


def observe(size: int = 6) -> TensorDict:
    mask = torch.rand(size, 3, 6) < 0.5
    mask[..., 2] = True
    agents = {"observation": torch.randn(size, 3, 4), "action_mask": mask}
    return TensorDict({"agents": agents}, [size])


@pytest.mark.parametrize("share_params", [True, False])
def test_actions_are_available_draws_with_their_log_probability(share_params: bool) -> None:
    torch.manual_seed(0)
    actor, data = make_categorical_actor(SPEC, share_params=share_params), observe(400)
    with set_exploration_type(ExplorationType.RANDOM):
        out = actor(data.clone())
    action, mask = out["agents", "action"], data["agents", "action_mask"]
    assert action.dtype == torch.int64 and action.shape == (400, 3)
    assert mask.gather(-1, action.unsqueeze(-1)).all()
    weights = out["agents", "logits"].exp() * mask
    chosen = (weights / weights.sum(-1, keepdim=True)).gather(-1, action.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(out["agents", "action_log_prob"], chosen.log())
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        greedy = actor(data.clone())["agents", "action"]
    assert (greedy == weights.argmax(-1)).all() and (greedy != action).any()


@pytest.mark.parametrize("share_params", [True, False])
def test_an_agent_sees_its_own_observation_only(share_params: bool) -> None:
    torch.manual_seed(0)
    actor, data = make_categorical_actor(SPEC, share_params=share_params), observe()
    before = actor(data.clone())["agents", "logits"]
    data["agents", "observation"][:, 1] += 1
    changed = (actor(data)["agents", "logits"] != before).flatten(2).any(-1)
    assert changed[:, 1].all() and not changed[:, [0, 2]].any()


def test_shared_parameters_permute_with_agents() -> None:
    torch.manual_seed(0)
    data, order = observe(), [2, 0, 1]
    permuted = data.apply(lambda value: value[:, order])
    shared, own = (make_categorical_actor(SPEC, share_params=share) for share in (True, False))
    logits = shared(data.clone())["agents", "logits"]
    torch.testing.assert_close(shared(permuted.clone())["agents", "logits"], logits[:, order])
    logits = own(data.clone())["agents", "logits"]
    assert not torch.isclose(own(permuted.clone())["agents", "logits"], logits[:, order]).all()


def test_normalizer_standardises_what_the_actor_sees() -> None:
    data = observe(50)
    data["agents", "observation"] = data["agents", "observation"] * 7 + 3
    normalizer = Normalizer(4)
    normalizer.fit(data["agents", "observation"])
    torch.manual_seed(0)
    normalizing = make_categorical_actor(SPEC, normalizer=normalizer)
    torch.manual_seed(0)
    plain = make_categorical_actor(SPEC)
    ready = data.clone()
    ready["agents", "observation"] = normalizer.normalize(data["agents", "observation"])
    torch.testing.assert_close(
        normalizing(data)["agents", "logits"], plain(ready)["agents", "logits"]
    )


def test_behaviour_cloning_learns_a_masked_policy() -> None:
    torch.manual_seed(0)
    data = observe(128)
    wanted = torch.where(data["agents", "action_mask"], data["agents", "observation"][..., :1], -9)
    wanted = wanted + torch.linspace(0, 1, 6) * data["agents", "action_mask"]
    data["agents", "action"] = wanted.argmax(-1)
    actor = make_categorical_actor(SPEC, hidden_sizes=(32,))
    loss = BCLoss(actor, action_spec=SPEC.action_spec())
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        loss(data)["loss_actor"].backward()
        optimizer.step()
    found = loss.actor_network(data.select(*loss.actor_network.in_keys))["agents", "action"]
    assert (found == data["agents", "action"]).float().mean() > 0.95


def test_runs_on_meta_tensors() -> None:
    actor = make_categorical_actor(SPEC, device="meta")
    with set_exploration_type(ExplorationType.RANDOM):
        assert actor(observe().to("meta"))["agents", "action"].shape == (6, 3)


def test_continuous_tasks_are_refused() -> None:
    continuous = TaskSpec(
        n_agents=2,
        observation_size=4,
        state_size=5,
        action_size=1,
        action_low=(-1.0,),
        action_high=(1.0,),
    )
    with pytest.raises(ValueError, match="needs discrete actions"):
        make_categorical_actor(continuous)
