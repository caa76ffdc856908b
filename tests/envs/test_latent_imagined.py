"""The latent environment: TorchRL's contract, a step by hand, ends, masks, seeds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch._subclasses.fake_tensor import FakeTensorMode
from torchrl.collectors import Collector
from torchrl.envs.utils import check_env_specs

from torchrl_logo.data import TaskSpec
from torchrl_logo.envs import LatentImaginedEnv
from torchrl_logo.modules import RecurrentLatentWorldModel, make_latent_actor

CONTINUOUS = TaskSpec(
    n_agents=3,
    observation_size=4,
    state_size=5,
    action_size=2,
    action_low=(-1.0, -1.0),
    action_high=(1.0, 1.0),
)
DISCRETE = TaskSpec(n_agents=3, observation_size=4, state_size=5, action_size=6, discrete=True)


def make_model(spec: TaskSpec) -> RecurrentLatentWorldModel:
    torch.manual_seed(0)
    return RecurrentLatentWorldModel(
        spec, memory_size=7, code_groups=2, code_classes=3, hidden_size=8, attention_heads=2
    )


def make_starts(spec: TaskSpec, model: RecurrentLatentWorldModel) -> TensorDict:
    starts = TensorDict({("agents", "latent"): torch.randn(20, 3, model.latent_size)}, [20])
    if spec.discrete:
        mask = torch.rand(20, 3, 6) < 0.5
        mask[..., 0] = True
        starts["agents", "action_mask"] = mask
    return starts


def make_env(spec: TaskSpec = CONTINUOUS, **kwargs: Any) -> LatentImaginedEnv:
    model = make_model(spec)
    with torch.no_grad():
        model.termination_bias.fill_(-9.0)  # nothing ends
        if model.action_mask_head is not None:
            model.action_mask_head[-1].bias[0] = 9.0  # one action is always there
    arguments: dict[str, Any] = {"batch_size": 4, "horizon": 5, "seed": 0, **kwargs}
    return LatentImaginedEnv(model, make_starts(spec, model), **arguments)


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])
def test_torchrl_takes_it_for_an_environment(spec: TaskSpec) -> None:
    check_env_specs(make_env(spec))


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])
def test_a_step_is_the_models(spec: TaskSpec) -> None:
    env = make_env(spec)
    model = env.world_model
    model.reward_normalizer.fit(torch.randn(50, 1) * 3 + 2)
    start = env.rand_action(env.reset())
    generator = torch.Generator()
    generator.set_state(env.state_dict()["generator"])
    found = env.step(start.clone())["next"]
    latent = model.imagine_step(
        start["agents", "latent"],
        model.encode_action(start["agents", "action"]),
        generator=generator,
    )
    torch.testing.assert_close(found["agents", "latent"], latent.detach())
    said = model.describe(latent)
    torch.testing.assert_close(found["reward"], said.reward.detach())
    assert not found["reward"].requires_grad
    if spec.discrete:
        assert torch.equal(found["agents", "action_mask"], said.action_mask_logit > 0)


def test_rollouts_start_at_start_latents_and_end_at_the_horizon() -> None:
    env = make_env()
    rollout = env.rollout(12, break_when_any_done=False)
    starts = env._start_latents["agents", "latent"].flatten(1)
    for t in (0, 5, 10):
        first = rollout["agents", "latent"][:, t].flatten(1)
        assert (first[:, None] == starts).all(-1).any(-1).all()
    truncated = rollout["next", "truncated"].squeeze(-1)
    assert truncated[:, [4, 9]].all() and truncated.sum() == 8
    assert not rollout["next", "terminated"].any()


def test_what_the_model_ends_is_terminated() -> None:
    env = make_env()
    with torch.no_grad():
        env.world_model.termination_bias.fill_(9.0)
    step = env.rollout(1)["next"]
    assert step["terminated"].all() and step["done"].all() and not step["truncated"].any()


def test_a_row_without_actions_is_truncated() -> None:
    env = make_env(DISCRETE)
    with torch.no_grad():
        env.world_model.action_mask_head[-1].bias.fill_(-9.0)
    step = env.rollout(1)["next"]
    assert step["truncated"].all() and not step["terminated"].any()


def test_actors_never_violate_masks_in_imagination() -> None:
    env = make_env(DISCRETE, horizon=8)
    actor = make_latent_actor(env.world_model, hidden_sizes=(8,))
    collector = Collector(
        env,
        actor,
        frames_per_batch=4 * 16,
        total_frames=4 * 64,
        auto_register_policy_transforms=False,
    )
    some_missing = False
    for batch in collector:
        mask = batch["agents", "action_mask"]
        taken = mask.gather(-1, batch["agents", "action"].unsqueeze(-1))
        assert taken.all()
        some_missing |= not bool(mask.all())
    assert some_missing
    collector.shutdown()


def test_the_same_seed_imagines_the_same() -> None:
    first, again, other = (
        make_env(DISCRETE, seed=s).rollout(5, auto_cast_to_device=True, policy=act_zero)
        for s in (3, 3, 4)
    )
    assert torch.equal(first["agents", "latent"], again["agents", "latent"])
    assert not torch.equal(first["agents", "latent"], other["agents", "latent"])
    env = make_env(DISCRETE)
    state = env.state_dict()
    before = env.rollout(5, policy=act_zero)["agents", "latent"]
    env.load_state_dict(state)
    assert torch.equal(env.rollout(5, policy=act_zero)["agents", "latent"], before)


def act_zero(tensordict: TensorDict) -> TensorDict:
    return tensordict.set(("agents", "action"), torch.zeros(4, 3, dtype=torch.int64))


def test_bad_arguments_are_refused() -> None:
    model = make_model(DISCRETE)
    starts = make_starts(DISCRETE, model)
    cases: list[tuple[type[Exception], str, TensorDict, dict[str, int]]] = [
        (ValueError, "at least 1, found 0 and 4", starts, {"horizon": 0}),
        (ValueError, "found batch size", starts.reshape(4, 5), {}),
        (KeyError, "start_latents lack", starts.exclude(("agents", "action_mask")), {}),
        (ValueError, "expected shape", starts.apply(lambda x: x[..., :2]), {}),
    ]
    for error, message, wrong, kwargs in cases:
        with pytest.raises(error, match=message):
            LatentImaginedEnv(model, wrong, batch_size=4, **kwargs)


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])
def test_a_step_needs_no_host_and_mixes_no_devices(spec: TaskSpec) -> None:
    env = make_env(spec)
    inputs = env.rand_action(env.reset())
    env._generator = None  # there is none for devices that are not there
    with FakeTensorMode(allow_non_fake_inputs=True):
        env.world_model.cuda()
        env._device = torch.device("cuda:0")
        tensors = {
            k: torch.empty(v.shape, dtype=v.dtype, device="cuda:0")
            for k, v in inputs.items(True, True)
        }
        out = env._step(TensorDict(tensors, [4], device="cuda:0"))
        assert all(v.device.type == "cuda" for v in out.values(True, True))
