"""Puts together what LOGO adds to offline training: rollouts in a model, stored and mixed."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers.samplers import RandomSampler
from torchrl.envs import EnvBase, ExplorationType, TransformedEnv

from torchrl_logo.data.dataset import OfflineDataset
from torchrl_logo.data.real_and_imagined_buffer import (
    RealAndImaginedBuffer,
    real_and_imagined_buffer,
)
from torchrl_logo.data.uncertainty_sampler import UncertaintySampler
from torchrl_logo.data.validation import layout_shapes
from torchrl_logo.envs.imagined import ImaginedEnv
from torchrl_logo.envs.uncertainty_penalty import UncertaintyPenalty
from torchrl_logo.modules.world_model import WorldModel
from torchrl_logo.trainers.held_out import find_held_out
from torchrl_logo.trainers.imagined_transitions import ImaginedTransitions
from torchrl_logo.trainers.uncertainty_threshold import find_uncertainty_threshold

__all__ = ["Imagination", "build_imagination"]

# A certain transition is drawn e^3, about 20, times as often as an unknown one.
_CERTAIN_TO_UNKNOWN_LOG_ODDS = 3.0


@dataclasses.dataclass(frozen=True)
class Imagination:
    """The parts of imagination.

    Attributes:
        env: the world model as an environment.
        collector: runs the policy in it; a batch is one rollout of every row.
        buffer: real and imagined transitions, mixed in each batch.
        storing: the trainer hook that puts imagined transitions into the buffer.
        threshold: the sampler's ``C``; none where imagined transitions are drawn uniformly.
        temperature: the sampler's temperature, likewise.
        reward_penalty: what a unit of uncertainty costs, in the task's units of reward.
    """

    env: ImaginedEnv
    collector: Collector
    buffer: RealAndImaginedBuffer
    storing: ImaginedTransitions
    threshold: float | None
    temperature: float | None
    reward_penalty: float


def build_imagination(
    world_model: WorldModel,
    policy: TensorDictModuleBase,
    dataset: OfflineDataset,
    real: TensorDictReplayBuffer,
    *,
    batch_size: int,
    horizon: int,
    rollouts: int,
    capacity: int,
    real_fraction: float,
    threshold: float | None,
    quantile: float,
    temperature: float | None,
    weighted: bool,
    reward_penalty: float,
    max_nonfinite_share: float,
    seed: int,
    device: torch.device,
) -> Imagination:
    """Builds environment, collector, mixed buffer and storing hook.

    Args:
        world_model (WorldModel): a trained model; frozen here.
        policy (TensorDictModuleBase): acts in it, as it is at each collection.
        dataset (OfflineDataset): where rollouts start.
        real (TensorDictReplayBuffer): the real transitions that are mixed in.

    Keyword Args:
        batch_size (int): transitions of a mixed batch.
        horizon (int): steps of a rollout.
        rollouts (int): rollouts that run at once.
        capacity (int): imagined transitions that are kept.
        real_fraction (float): share of real transitions in a batch.
        threshold (float, optional): the sampler's ``C``; without it, measured on the
            part of the data that is held out.
        quantile (float): of that measurement.
        temperature (float, optional): the sampler's; a third of ``C`` without it.
        weighted (bool): whether imagined transitions are drawn by their uncertainty; uniformly
            otherwise.
        reward_penalty (float): what a unit of uncertainty costs, in the task's units of reward.
        max_nonfinite_share (float): see
            :class:`~torchrl_logo.trainers.imagined_transitions.ImaginedTransitions`.
        seed (int): of start states and of the measurement.
        device (torch.device): where all of it lives.

    Raises:
        ValueError: if the model belongs to another task, or has no estimate of the uncertainty
            that is asked for.
    """
    world_model.requires_grad_(False).eval()
    env = ImaginedEnv(
        world_model, dataset, batch_size=rollouts, horizon=horizon, seed=seed, device=device
    )
    if (weighted or reward_penalty) and not world_model.has_uncertainty:
        raise ValueError(
            f"{type(world_model).__name__} does not estimate its uncertainty: imagined transitions "
            "can be neither weighted nor penalised by it (uncertainty_weights=False, "
            "reward_penalty=0)."
        )
    drawing: dict[str, Any] = {"sampler": RandomSampler()}
    if weighted:
        if threshold is None:
            threshold = find_uncertainty_threshold(
                world_model,
                find_held_out(dataset, seed),
                horizon=horizon,
                quantile=quantile,
                seed=seed,
            )
        if temperature is None:
            temperature = threshold / _CERTAIN_TO_UNKNOWN_LOG_ODDS
        drawing = {
            "sampler": UncertaintySampler(capacity, C=threshold, temperature=temperature),
            "priority_key": "uncertainty",
        }
    else:
        threshold = temperature = None
    collected: EnvBase = env
    if reward_penalty:
        collected = TransformedEnv(env, UncertaintyPenalty(reward_penalty))
    collector = Collector(
        collected,
        policy,
        frames_per_batch=rollouts * horizon,
        total_frames=-1,
        exploration_type=ExplorationType.RANDOM,
        # A batch depends on nothing but policy and generators: it can be resumed.
        reset_at_each_iter=True,
        device=device,
        auto_register_policy_transforms=False,
        # nobody reads them, and a collector that goes on counts from another number
        track_traj_ids=False,
        # A batch is stacked once, and copied no more.
        use_buffers=False,
        return_same_td=True,
    )
    imagined = TensorDictReplayBuffer(
        storage=LazyTensorStorage(capacity, device=device),
        batch_size=batch_size,
        **drawing,
    )
    buffer = real_and_imagined_buffer(
        real, imagined, batch_size=batch_size, real_fraction=real_fraction
    )
    keys: list[NestedKey] = [k for k in layout_shapes(dataset.spec) if k not in ("episode", "step")]
    storing = ImaginedTransitions(buffer, keys, max_nonfinite_share=max_nonfinite_share)
    return Imagination(env, collector, buffer, storing, threshold, temperature, reward_penalty)
