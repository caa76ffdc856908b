"""The simulator as a world model replays what was recorded, from the recorded state alone."""

from __future__ import annotations

import pytest
import torch
from torchrl.envs.utils import step_mdp

from benchmarks.paper.simulator_world_model import REPLAYED_TASKS, SimulatorWorldModel
from torchrl_logo.data import TaskSpec, collect
from torchrl_logo.envs import ImaginedEnv, make_env


@pytest.mark.parametrize("task", REPLAYED_TASKS)
def test_recorded_transitions_are_reproduced(task):
    dataset = collect(make_env(task, num_envs=20, seed=3), None, 4000, seed=3)
    rows = dataset.data[torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))]
    # the last steps hold the ends
    last = torch.cat([dataset.episode_starts[1:], torch.tensor([len(dataset)])]) - 1
    rows = torch.cat([rows[:500], dataset.data[last]])
    model = SimulatorWorldModel(dataset.spec)
    found = model(rows.select(*model.in_keys).clone())
    assert torch.equal(found["next", "terminated"], rows["next", "terminated"])
    # The last bit depends on a row's place in the batch, for the sake of vector instructions.
    for key in [("next", "state"), ("next", "agents", "observation")]:
        torch.testing.assert_close(found[key], rows[key], rtol=1e-6, atol=1e-7)
    error = (found["next", "reward"] - rows["next", "reward"]).abs().squeeze(-1)
    if task == "vmas/navigation":
        # VMAS punishes agents that come within 5 mm only if any pair of the whole batch touches:
        # such rows' rewards depend on what else was simulated.
        position = rows["next", "state"].unflatten(-1, (-1, 6))[:, -rows["agents"].shape[1] :, :2]
        gap = torch.stack([torch.pdist(p).min() for p in position]) - 0.2
        error = error[(gap < 0) | (gap > 0.005)]
        assert len(error) > 400
    # a difference of distances times 100, in single precision
    assert error.max() < 3e-5


@pytest.mark.parametrize("task", ["vmas/balance", "vmas/navigation"])
def test_imagined_episodes_are_real_ones(task):
    env = make_env(task, num_envs=6, seed=1)
    real = env.rollout(15, break_when_any_done=False)
    model = SimulatorWorldModel(TaskSpec.from_env(env))
    imagined = ImaginedEnv(model, real[:, 0].exclude("next"), batch_size=6, horizon=15)
    step = imagined.reset(real[:, 0].select("state", ("agents", "observation")))
    running = torch.ones(6, 1, dtype=torch.bool)
    for t in range(15):
        step["agents", "action"] = real[:, t]["agents", "action"]
        step = imagined.step(step)
        here = running.squeeze(-1)
        for key in [("next", "state"), ("next", "terminated")]:
            assert torch.equal(step[key][here], real[:, t][key][here])
        running &= ~real[:, t]["next", "done"]
        step = step_mdp(step)


def test_a_task_with_hidden_state_is_refused():
    env = make_env("vmas/sampling", num_envs=1, seed=0)
    with pytest.raises(ValueError, match="vmas/sampling"):
        SimulatorWorldModel(TaskSpec.from_env(env))
