"""Imagination in Ray's actors, where Ray is installed: ``pip install "torchrl-logo[ray]"``."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch
from tensordict import TensorDict

from torchrl_logo.data import TaskSpec
from torchrl_logo.envs import ImaginedEnv
from torchrl_logo.modules import LOGOWorldModel, make_gaussian_actor

ray = pytest.importorskip("ray", reason="needs the extra 'ray'")

SPEC = TaskSpec(
    n_agents=2,
    observation_size=3,
    state_size=4,
    action_size=1,
    action_low=(-1.0,),
    action_high=(1.0,),
)
ROLLOUTS, HORIZON, ACTORS = 4, 5, 2


@pytest.fixture
def cluster() -> Iterator[None]:
    """A cluster of this machine alone."""
    ray.init(num_cpus=ACTORS, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_actors_imagine_what_the_model_predicts(cluster: None) -> None:
    from torchrl.collectors.distributed import RayCollector

    torch.manual_seed(0)
    model = LOGOWorldModel(SPEC, hidden_size=8)
    with torch.no_grad():
        model.termination_bias.fill_(-10.0)
    agents = {"observation": torch.randn(50, 2, 3)}
    starts = TensorDict({"agents": agents, "state": torch.randn(50, 4)}, [50])
    makers = [
        functools.partial(
            ImaginedEnv,
            model,
            starts,
            batch_size=ROLLOUTS,
            horizon=HORIZON,
            clamp_margin=None,
            seed=seed,
        )
        for seed in range(ACTORS)
    ]
    frames = ACTORS * ROLLOUTS * HORIZON
    collector = RayCollector(
        makers,
        make_gaussian_actor(SPEC, hidden_sizes=(8,)),
        frames_per_batch=frames,
        total_frames=2 * frames,
        sync=True,
        remote_configs={"num_cpus": 1, "num_gpus": 0},
        collector_kwargs={"auto_register_policy_transforms": False},
    )
    # no list(): RayCollector's length cannot be asked for
    batches = [batch for batch in collector]
    collector.shutdown()
    assert [batch.numel() for batch in batches] == [frames, frames]
    rollouts = torch.cat([batch.reshape(-1) for batch in batches])
    # start states are the given ones, and the actors draw different ones
    first = rollouts[rollouts["step"].squeeze(-1) == 0]["state"]
    assert len(first.unique(dim=0)) > ROLLOUTS
    assert all((starts["state"] == state).all(-1).any() for state in first)
    with torch.no_grad():
        read = ("state", ("agents", "observation"), ("agents", "action"))
        expected = model(rollouts.select(*read))["next"]
    for key in ("state", "reward", ("agents", "observation")):
        torch.testing.assert_close(rollouts["next", key], expected[key], rtol=1e-4, atol=1e-4)
