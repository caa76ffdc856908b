"""A world model of agents that die: what it learns of them, and what imagination does with it."""

from __future__ import annotations

import torch
from tensordict import TensorDict

from torchrl_logo.data import OfflineDataset, TaskSpec
from torchrl_logo.envs import ImaginedEnv
from torchrl_logo.modules import LOGOWorldModel
from torchrl_logo.trainers.world_model import WorldModelTrainer

# Actions: nothing, which is all that the dead can do; fight, which costs a third of one's health;
# and rest. Whoever is dead sees zeros, and the last death ends the episode.
NOTHING, FIGHT, REST = 0, 1, 2
SPEC = TaskSpec(n_agents=2, observation_size=2, state_size=2, action_size=3, discrete=True)


def observe(wounds: torch.Tensor) -> dict[str, TensorDict | torch.Tensor]:
    """What belongs to the agents' wounds, ``[B, 2]`` from 0 to 3."""
    alive = wounds < 3
    health = (3 - wounds) / 3
    mask = torch.stack([~alive, alive, alive], -1)
    observation = torch.stack([health, alive.float()], -1)
    return {"agents": {"observation": observation, "action_mask": mask}, "state": health}


def fight_at_random(episodes: int) -> OfflineDataset:
    generator = torch.Generator().manual_seed(0)
    wounds = torch.randint(3, (episodes, 2), generator=generator).float()
    ended = torch.zeros(episodes, dtype=torch.bool)
    rows = []
    for t in range(12):
        drawn = torch.where(torch.rand(episodes, 2, generator=generator) < 0.5, FIGHT, REST)
        action = torch.where(wounds < 3, drawn, NOTHING)
        following = wounds + (action == FIGHT)
        terminated = (following == 3).all(-1, keepdim=True)
        truncated = torch.full((episodes, 1), t == 11) & ~terminated
        step, then = observe(wounds), observe(following)
        step["agents"]["action"] = action
        then.update(
            reward=(action == FIGHT).float().sum(-1, keepdim=True),
            done=terminated | truncated,
            terminated=terminated,
            truncated=truncated,
        )
        step.update(next=then, episode=torch.arange(episodes), step=torch.full((episodes,), t))
        rows.append(TensorDict(step, [episodes])[~ended])
        wounds, ended = following, ended | terminated[:, 0]
    data = torch.cat(rows)
    order = (data["episode"] * 12 + data["step"]).argsort()
    return OfflineDataset.from_transitions(data[order].contiguous(), SPEC)


def test_the_dead_stay_dead_and_are_given_nothing_to_do() -> None:
    dataset = fight_at_random(300)
    torch.manual_seed(0)
    model = LOGOWorldModel(SPEC, hidden_size=32)
    WorldModelTrainer(model, dataset, steps=400, horizon=3, progress_bar=False).train()

    # One step, from all pairs of wounds of whom one at least is alive.
    wounds = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))[:-1]
    for choice in (FIGHT, REST):
        action = torch.where(wounds < 3, choice, NOTHING)
        step = TensorDict(observe(wounds), [15])
        step["agents", "action"] = action
        found = model(step)["next"]
        expected = TensorDict(observe(wounds + (action == FIGHT)), [15])
        assert torch.equal(found["agents", "action_mask"], expected["agents", "action_mask"])
        assert (found["state"] - expected["state"]).abs().max() < 0.05
        last = expected["agents", "action_mask"][..., NOTHING].all(-1, keepdim=True)
        assert torch.equal(found["terminated"], last)

    # Along rollouts: nobody acts against a mask or rises again, and the last death ends the row.
    env = ImaginedEnv(model, dataset, batch_size=64, horizon=8, seed=0)
    rollout = env.rollout(8, break_when_any_done=False)
    mask, action = rollout["agents", "action_mask"], rollout["agents", "action"]  # [64, T, 2, 3]
    assert mask.gather(-1, action.unsqueeze(-1)).all()
    dead, dead_next = mask[..., NOTHING], rollout["next", "agents", "action_mask"][..., NOTHING]
    assert 0.1 < dead.float().mean() < 0.9
    assert dead_next[dead & ~rollout["next", "done"]].float().mean() > 0.98
    ended = rollout["next", "terminated"].squeeze(-1)
    assert ended.any() and (ended == dead_next.all(-1)).float().mean() > 0.95
