"""MAMBA offline: its steps by themselves, and all of them end to end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import ExplorationType, set_exploration_type

from torchrl_logo.data import OfflineDataset, collect, from_arrays
from torchrl_logo.envs import make_env
from torchrl_logo.evaluation import evaluate
from torchrl_logo.modules import LatentPolicy, RecurrentLatentWorldModel, make_latent_actor
from torchrl_logo.objectives import BCLoss
from torchrl_logo.trainers import (
    BehaviourPenalty,
    infer_latents,
    train_from_buffer,
    train_latent_world_model,
    train_mamba,
)

SIZES = {"memory_size": 8, "code_groups": 2, "code_classes": 4, "hidden_size": 16}
TINY: dict[str, Any] = {
    "world_model_steps": 5,
    "world_model_kwargs": SIZES,
    "clone_steps": 5,
    "iterations": 2,
    "start_rows": 60,
    "rollouts": 8,
    "horizon": 3,
    "hidden_sizes": (16,),
    "progress_bar": False,
}


@pytest.fixture(scope="module")
def balance() -> OfflineDataset:
    return collect(make_env("vmas/balance", num_envs=4, seed=0), None, 400, seed=0)


def make_matching(episodes: int = 200, steps: int = 5) -> OfflineDataset:
    """Random play: 1 for a team whose agents all play the cue they see, one of two.

    A third action is available in one of four steps.
    """
    rng = np.random.default_rng(0)
    cue = rng.integers(2, size=(episodes, steps + 1))
    mask = np.ones((episodes, steps + 1, 2, 3), bool)
    mask[..., 2] = rng.random((episodes, steps + 1, 2)) < 0.25
    observation = np.stack([cue == 0, cue == 1], -1).astype(np.float32)[:, :, None].repeat(2, 2)
    action = rng.integers(3, size=(episodes, steps, 2))
    barred = ~np.take_along_axis(mask[:, :-1], action[..., None], -1)[..., 0]
    action[barred] = rng.integers(2, size=int(barred.sum()))
    end = np.zeros((episodes, steps, 1), bool)
    end[:, -1] = True

    def flatten(array: np.ndarray) -> np.ndarray:
        return array.reshape(episodes * steps, *array.shape[2:])

    return from_arrays(
        {
            "agents/observation": flatten(observation[:, :-1]),
            "next/agents/observation": flatten(observation[:, 1:]),
            "agents/action": flatten(action),
            "agents/action_mask": flatten(mask[:, :-1]),
            "next/agents/action_mask": flatten(mask[:, 1:]),
            "state": flatten(observation[:, :-1, 0]),
            "next/state": flatten(observation[:, 1:, 0]),
            "next/reward": flatten(
                (action == cue[:, :-1, None]).all(-1, keepdims=True).astype(np.float32)
            ),
            "next/done": flatten(end),
            "next/terminated": flatten(np.zeros_like(end)),
            "next/truncated": flatten(end),
        }
    )


def test_it_runs_end_to_end_and_leaves_a_policy(balance: OfflineDataset) -> None:
    result = train_mamba(balance, **TINY)
    assert len(result.imagined_return) == len(result.divergence) == 2
    assert not any(p.requires_grad for p in result.world_model.parameters())
    evaluation = evaluate(result.policy, "vmas/balance", episodes=4)
    assert evaluation.returns.shape == (4,) and evaluation.returns.isfinite().all()
    # the same seed gives the same policy, and memories do not outlive an episode
    again = train_mamba(balance, **TINY)
    for name, value in result.policy.state_dict().items():
        torch.testing.assert_close(again.policy.state_dict()[name], value, msg=name)
    repeated = evaluate(again.policy, "vmas/balance", episodes=4)
    torch.testing.assert_close(repeated.returns, evaluation.returns)


def test_it_plays_discrete_tasks() -> None:
    pytest.importorskip("mpe2")
    env = make_env("mpe/simple_spread_discrete", num_envs=2, seed=0)
    dataset = collect(env, None, 120, seed=0)
    result = train_mamba(dataset, **TINY)
    evaluation = evaluate(result.policy, env, episodes=2)
    assert evaluation.returns.isfinite().all() and (evaluation.lengths > 1).all()


def test_imagination_trains_the_actor_and_not_the_model(balance: OfflineDataset) -> None:
    model = RecurrentLatentWorldModel.from_dataset(balance, **SIZES)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain = {**TINY, "clone_steps": 0, "behaviour_coeff": 0.0}
    result = train_mamba(balance, world_model=model, **plain)
    assert result.divergence == []
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    torch.manual_seed(0)
    untrained = make_latent_actor(model, hidden_sizes=(16,))
    infer_latents(model, balance, rows=60)
    pairs = zip(untrained.parameters(), result.policy.actor.parameters(), strict=True)
    assert all((a != b).any() for a, b in pairs)


def test_it_learns_in_imagination_what_random_play_never_did() -> None:
    dataset = make_matching()
    torch.manual_seed(0)
    model = RecurrentLatentWorldModel.from_dataset(dataset, **{**SIZES, "hidden_size": 32})
    train_latent_world_model(model, dataset, steps=150, slice_len=5, lr=1e-2, progress_bar=False)
    result = train_mamba(
        dataset,
        world_model=model,
        clone_steps=50,
        behaviour_coeff=0.01,
        iterations=12,
        start_rows=500,
        rollouts=64,
        horizon=4,
        lr=5e-3,
        hidden_sizes=(32,),
        progress_bar=False,
    )
    assert result.imagined_return[-1] > 2 * result.imagined_return[0]
    cue = torch.arange(100) % 2
    observation = torch.nn.functional.one_hot(cue, 2).float().unsqueeze(1).expand(100, 2, 2)
    mask = torch.ones(100, 2, 3, dtype=torch.bool)
    mask[50:, :, 2] = False
    with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
        policy: LatentPolicy = result.policy
        step = TensorDict(
            {
                "agents": {
                    "observation": observation,
                    "action_mask": mask,
                    "memory": torch.zeros(100, 2, 8),
                },
                "is_init": torch.ones(100, 1, dtype=torch.bool),
            },
            [100],
        )
        played = policy(step)["agents", "action"]
    # random play is right in a quarter of the steps or less
    assert (played == cue.unsqueeze(-1)).all(-1).float().mean() > 0.9
    sampled = policy(step)["agents", "action"]
    assert mask.gather(-1, sampled.unsqueeze(-1)).all()


def test_latents_are_those_of_whole_sequences_without_padding() -> None:
    dataset = make_matching(episodes=3, steps=5)
    model = RecurrentLatentWorldModel.from_dataset(dataset, **SIZES)
    with torch.no_grad():
        for head in (model.posterior_head, model.prior_head):  # draws that do not matter
            head[-1].weight.zero_()
            head[-1].bias.copy_(torch.tensor([99.0, 0, 0, 0]).repeat(2))
    # sequences are longer than episodes: each is an episode and padding
    found = infer_latents(model, dataset, rows=200, slice_len=8)
    assert found.shape == (200,)
    steps = dataset.data.reshape(3, 5)
    sequence = model.unroll(
        model.standardise(steps["agents", "observation"]),
        model.encode_action(steps["agents", "action"]),
        model.standardise(steps["next", "agents", "observation"]),
    )
    expected = torch.cat(
        [
            sequence.latent.flatten(0, 1).flatten(1),
            steps["agents", "action"].flatten(0, 1).float(),
            steps["agents", "action_mask"].flatten(0, 1).flatten(1),
        ],
        -1,
    )
    rows = torch.cat(
        [
            found["agents", "latent"].flatten(1),
            found["agents", "action"].float(),
            found["agents", "action_mask"].flatten(1),
        ],
        -1,
    )
    nearest = torch.cdist(rows, expected.detach(), compute_mode="donot_use_mm_for_euclid_dist").min(
        -1
    )
    assert nearest.values.max() < 1e-3
    assert set(nearest.indices.tolist()) == set(range(15))


def test_the_penalty_by_hand() -> None:
    dataset = make_matching(episodes=3)
    model = RecurrentLatentWorldModel.from_dataset(dataset, **SIZES)
    behaviour = make_latent_actor(model, hidden_sizes=(8,))
    batch = TensorDict(
        {
            "agents": {
                "latent": torch.randn(4, 3, 2, model.latent_size),
                "action_mask": torch.ones(4, 3, 2, 3, dtype=torch.bool),
            },
            "next": {"reward": torch.randn(4, 3, 1)},
        },
        [4, 3],
    )
    actor = make_latent_actor(model, hidden_sizes=(8,))
    batch = actor(batch).detach()
    reward, action = batch["next", "reward"].clone(), batch["agents", "action"]

    def log_prob(network: Any) -> torch.Tensor:
        logits = network(batch.clone())["agents", "logits"].log_softmax(-1)
        return logits.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    ratio = (log_prob(actor) - log_prob(behaviour)).mean(-1, keepdim=True)
    hook = BehaviourPenalty(behaviour, coefficient=0.3, reward_scale=2.0)
    found = hook(batch.clone())["next", "reward"]
    torch.testing.assert_close(found, (2 * reward - 0.3 * ratio).detach())
    torch.testing.assert_close(hook.imagined_return[0], reward.sum((1, 2)).mean())
    torch.testing.assert_close(hook.divergence[0], ratio.mean().detach())
    plain = BehaviourPenalty(None, coefficient=0.0, reward_scale=2.0)
    torch.testing.assert_close(plain(batch.clone())["next", "reward"], 2 * reward)


@pytest.mark.parametrize("steps", [1, 7, 200])
def test_a_buffer_is_trained_on_for_so_many_updates(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_matching(episodes=3)
    model = RecurrentLatentWorldModel.from_dataset(dataset, **SIZES)
    latents = infer_latents(model, dataset, rows=40)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(40), batch_size=8)
    buffer.extend(latents)
    rates = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam,
        "step",
        lambda self, *args: rates.append(self.param_groups[0]["lr"]) or step(self, *args),
    )
    loss = BCLoss(make_latent_actor(model, hidden_sizes=(8,)))
    losses = train_from_buffer(loss, buffer, steps=steps, lr=1e-2, progress_bar=False)
    assert len(rates) == steps and rates[0] == 1e-2
    assert {"loss_actor", "grad_norm"} <= set(losses)
    half = steps // 2
    assert rates[half] == pytest.approx(5e-3 * (1 + np.cos(np.pi * half / steps)))


def test_what_diverges_is_reported() -> None:
    dataset = make_matching(episodes=3)
    model = RecurrentLatentWorldModel.from_dataset(dataset, **SIZES)
    latents = infer_latents(model, dataset, rows=40)
    latents["agents", "latent"].fill_(float("nan"))
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(40), batch_size=8)
    buffer.extend(latents)
    with pytest.raises(RuntimeError, match="loss_actor, first at update 1.*has diverged"):
        train_from_buffer(
            BCLoss(make_latent_actor(model)), buffer, steps=2, lr=1e-3, progress_bar=False
        )


def test_bad_arguments_are_refused(balance: OfflineDataset) -> None:
    other = RecurrentLatentWorldModel.from_dataset(make_matching(episodes=3), **SIZES)
    cases: list[tuple[str, dict[str, Any]]] = [
        ("needs a clone, found clone_steps=0", {"clone_steps": 0}),
        ("belongs to another task", {"world_model": other}),
        ("iterations must be at least 1, found 0", {"iterations": 0}),
        ("rows must be at least 1, found 0", {"start_rows": 0}),
        ("steps must be at least 1, found 0", {"world_model_steps": 0}),
    ]
    for message, kwargs in cases:
        with pytest.raises(ValueError, match=message):
            train_mamba(balance, **{**TINY, **kwargs})
