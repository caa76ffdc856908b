"""MAMBA for offline use: a recurrent latent world model, and PPO in its imagination."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential
from torchrl.collectors import Collector
from torchrl.data import (
    LazyTensorStorage,
    SamplerWithoutReplacement,
    TensorDictReplayBuffer,
)
from torchrl.envs import ExplorationType
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE
from torchrl.record.loggers import Logger
from torchrl.trainers.algorithms.ppo import PPOTrainer
from torchrl.trainers.trainers import Trainer, TrainerHookBase

from torchrl_logo.argument_checks import find_device, require_arguments, require_type
from torchrl_logo.data.dataset import OfflineDataset
from torchrl_logo.envs.latent_imagined import LatentImaginedEnv
from torchrl_logo.modules.attention_critic import make_latent_critic
from torchrl_logo.modules.latent_policy import LatentPolicy, make_latent_actor
from torchrl_logo.modules.recurrent_latent_world_model import RecurrentLatentWorldModel
from torchrl_logo.objectives.bc import BCLoss
from torchrl_logo.trainers.buffer_training import train_from_buffer
from torchrl_logo.trainers.latent_world_model import infer_latents, train_latent_world_model
from torchrl_logo.trainers.number_watch import NumberWatch
from torchrl_logo.trainers.resumable import ResumableTraining, make_checkpointing

__all__ = ["BehaviourPenalty", "MAMBAResult", "train_in_imagination", "train_mamba"]


@dataclasses.dataclass
class MAMBAResult:
    """What MAMBA leaves.

    Attributes:
        policy: the final policy; :func:`~torchrl_logo.evaluation.evaluate` runs it.
        world_model: the model that it filters with and was trained in.
        imagined_return: mean over rollouts of the imagined rewards' sum, of each iteration, in
            the task's units: against real returns it tells whether the model was exploited.
        divergence: mean log-ratio to the cloned behaviour at each iteration; empty without one.
    """

    policy: LatentPolicy
    world_model: RecurrentLatentWorldModel
    imagined_return: list[float]
    divergence: list[float]


class BehaviourPenalty(TrainerHookBase):
    r"""Takes the divergence from the data's behaviour off imagined rewards, and scales these.

    :math:`r \cdot c - \beta \frac{1}{N} \sum_i [\log \pi_i(a_i) - \log b_i(a_i)]`, with
    :math:`b` the behaviour: in expectation a penalty on :math:`KL(\pi \Vert b)` along rollouts.

    Args:
        behaviour (ProbabilisticTensorDictSequential, optional): an actor cloned from the data;
            without it only the scale is applied.

    Keyword Args:
        coefficient (float): :math:`\beta`.
        reward_scale (float): :math:`c`.
    """

    def __init__(
        self,
        behaviour: ProbabilisticTensorDictSequential | None,
        *,
        coefficient: float,
        reward_scale: float,
    ) -> None:
        self.behaviour = behaviour
        self.coefficient, self.reward_scale = coefficient, reward_scale
        self.imagined_return: list[torch.Tensor] = []
        self.divergence: list[torch.Tensor] = []

    @torch.no_grad()
    def __call__(self, batch: TensorDictBase) -> TensorDictBase:
        """Changes the rewards of a batch of rollouts ``[B, T]``."""
        reward = batch.get(("next", "reward"))
        self.imagined_return.append(reward.sum() / batch.shape[0])
        reward = reward * self.reward_scale
        if self.behaviour is not None:
            inputs = batch.select(*self.behaviour.in_keys)
            log_prob = self.behaviour.get_dist(inputs).log_prob(batch.get(("agents", "action")))
            ratio = (batch.get(("agents", "action_log_prob")) - log_prob).mean(-1, keepdim=True)
            self.divergence.append(ratio.mean())
            reward = reward - self.coefficient * ratio
        return batch.set(("next", "reward"), reward)

    def state_dict(self) -> dict[str, Any]:
        """The figures of earlier iterations."""
        return {
            "imagined_return": list(self.imagined_return),
            "divergence": list(self.divergence),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the figures."""
        self.imagined_return = list(state_dict["imagined_return"])
        self.divergence = list(state_dict["divergence"])

    def register(self, trainer: Trainer, name: str = "behaviour_penalty") -> None:
        """Registers the hook where batches arrive from the collector."""
        trainer.register_op("batch_process", self)
        trainer.register_module(name, self)


class _ImaginationTrainer(ResumableTraining, PPOTrainer):
    """PPO that goes on from the last whole iteration."""

    def watch_losses(self, optim_steps: int, average_losses: TensorDictBase | None) -> None:
        """Stops at the first iteration with a loss that is not finite."""
        if average_losses is not None:
            self.watch.observe(optim_steps, average_losses)
            self.watch.check()


def train_in_imagination(
    world_model: RecurrentLatentWorldModel,
    actor: ProbabilisticTensorDictSequential,
    start_latents: TensorDict,
    *,
    iterations: int,
    behaviour: ProbabilisticTensorDictSequential | None = None,
    behaviour_coeff: float = 0.0,
    reward_scale: float = 1.0,
    horizon: int = 15,
    rollouts: int = 256,
    epochs: int = 4,
    minibatches: int = 4,
    lr: float = 5e-4,
    clip_norm: float = 10.0,
    gamma: float = 0.95,
    lmbda: float = 0.95,
    clip_epsilon: float = 0.2,
    entropy_coeff: float = 1e-3,
    hidden_size: int = 128,
    seed: int = 0,
    logger: Logger | None = None,
    progress_bar: bool = True,
    checkpoint_dir: str | Path | None = None,
    checkpoint_interval: int = 10,
    settings: Mapping[str, Any] | None = None,
) -> BehaviourPenalty:
    """Trains an actor on latents with PPO inside a world model, in place.

    TorchRL's parts: a :class:`~torchrl.collectors.Collector` over a
    :class:`~torchrl_logo.envs.LatentImaginedEnv`, :class:`~torchrl.objectives.ClipPPOLoss`,
    :class:`~torchrl.objectives.value.GAE` and the PPO trainer.

    Args:
        world_model (RecurrentLatentWorldModel): a trained model; frozen here.
        actor (ProbabilisticTensorDictSequential): acts on latents.
        start_latents (TensorDict): where rollouts start, see :func:`infer_latents`.

    Keyword Args:
        iterations (int): collections, each of one rollout of every row.
        behaviour (ProbabilisticTensorDictSequential, optional): see :class:`BehaviourPenalty`.
        behaviour_coeff (float): see there.
        reward_scale (float): see there.
        horizon (int): steps of a rollout. Defaults to ``15``, MAMBA's.
        rollouts (int): rollouts that run at once. Defaults to ``256``.
        epochs (int): passes over a collection. Defaults to ``4``.
        minibatches (int): parts of a pass. Defaults to ``4``.
        lr (float): Adam's learning rate. Defaults to ``5e-4``.
        clip_norm (float): largest norm of the gradient. Defaults to ``10.0``.
        gamma (float): discount. Defaults to ``0.95``.
        lmbda (float): of the generalised advantages. Defaults to ``0.95``.
        clip_epsilon (float): PPO's. Defaults to ``0.2``.
        entropy_coeff (float): factor of the entropy bonus. Defaults to ``1e-3``.
        hidden_size (int): width of the critic. Defaults to ``128``.
        seed (int): of imagination and minibatches.
        logger (Logger, optional): gets losses and rewards.
        progress_bar (bool): whether a progress bar is shown.
        checkpoint_dir (str or Path, optional): where checkpoints are kept. If it holds one,
            training goes on from the newest that is whole, and ends as if it had not been cut off.
        checkpoint_interval (int): iterations between two checkpoints. Defaults to ``10``.
        settings (mapping, optional): what a continued training must share, beside the arguments
            here.

    Returns:
        The hook, which has each iteration's imagined return and divergence.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, found {iterations}.")
    device = world_model.observation_mask.device
    world_model.requires_grad_(False).eval()
    env = LatentImaginedEnv(
        world_model, start_latents, batch_size=rollouts, horizon=horizon, seed=seed
    )
    frames = rollouts * horizon
    collector = Collector(
        env,
        actor,
        frames_per_batch=frames,
        total_frames=iterations * frames,
        exploration_type=ExplorationType.RANDOM,
        reset_at_each_iter=True,
        device=device,
        auto_register_policy_transforms=False,
        # nobody reads them, and a collector that goes on counts from another number
        track_traj_ids=False,
    )
    critic = make_latent_critic(world_model, hidden_size=hidden_size, device=device)
    loss = ClipPPOLoss(
        actor,
        critic,
        clip_epsilon=clip_epsilon,
        entropy_coeff=entropy_coeff,
        normalize_advantage=True,
        loss_critic_type="smooth_l1",
    )
    loss.set_keys(action=("agents", "action"), sample_log_prob=("agents", "action_log_prob"))
    optimizer = torch.optim.Adam(loss.parameters(), lr=lr)
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(frames, device=device),
        sampler=SamplerWithoutReplacement(),
        batch_size=frames // minibatches,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*experimental/prototype feature")
        trainer = _ImaginationTrainer(
            collector=collector,
            total_frames=iterations * frames,
            frame_skip=1,
            optim_steps_per_batch=minibatches,
            num_epochs=epochs,
            loss_module=loss,
            optimizer=optimizer,
            lr_scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations),
            clip_grad_norm=True,
            clip_norm=clip_norm,
            logger=logger,
            progress_bar=progress_bar,
            replay_buffer=buffer,
            # attention has no batching rule on every device, so that vmap is left out
            gae=GAE(
                gamma=gamma, lmbda=lmbda, value_network=loss.critic_network, deactivate_vmap=True
            ),
            action_key=("agents", "action"),
            enable_logging=logger is not None,
            seed=seed,
            save_trainer_interval=max(1, checkpoint_interval * frames - 1),
            **make_checkpointing(checkpoint_dir, imagined_env=env),
        )
    penalty = BehaviourPenalty(behaviour, coefficient=behaviour_coeff, reward_scale=reward_scale)
    penalty.register(trainer)
    trainer.register_op("post_optim_complete_log", trainer.watch_losses)
    trainer.prepare_resume(
        {
            "iterations": iterations,
            "behaviour_coeff": behaviour_coeff,
            "reward_scale": reward_scale,
            "horizon": horizon,
            "rollouts": rollouts,
            "epochs": epochs,
            "minibatches": minibatches,
            "lr": lr,
            "clip_norm": clip_norm,
            "gamma": gamma,
            "lmbda": lmbda,
            "clip_epsilon": clip_epsilon,
            "entropy_coeff": entropy_coeff,
            "seed": seed,
            **(settings or {}),
        },
        NumberWatch(),
    )
    trainer.train()
    return penalty


def train_mamba(
    dataset: OfflineDataset,
    *,
    world_model: RecurrentLatentWorldModel | None = None,
    world_model_steps: int = 1000,
    world_model_kwargs: dict[str, Any] | None = None,
    clone_steps: int = 1000,
    behaviour_coeff: float = 0.1,
    iterations: int = 100,
    start_rows: int = 20_000,
    hidden_sizes: Sequence[int] = (128, 128),
    seed: int = 0,
    device: torch.device | str = "cpu",
    logger: Logger | None = None,
    progress_bar: bool = True,
    checkpoint_dir: str | Path | None = None,
    **imagination: Any,
) -> MAMBAResult:
    """Trains MAMBA from a dataset alone.

    MAMBA (Egorov and Shpilman, 2022, arXiv 2205.15023) alternates between a real environment and
    imagination. Offline, its parts run one after the other:

    1. the world model, on sequences (:func:`train_latent_world_model`);
    2. latents of the dataset's steps, from which rollouts start (:func:`infer_latents`);
    3. PPO in imagination, with a critic that attends over agents
       (:func:`train_in_imagination`).

    From the paper: the model's structure and its loss, the horizon, PPO in imagination with
    advantages over imagined rewards, actors on each agent's own latent, communication between
    steps. Ours, since nothing corrects a model that is exploited offline: the actor starts as a
    clone of the data's behaviour (``clone_steps=0`` leaves this out), and its divergence from that
    clone is taken off the imagined rewards (``behaviour_coeff=0`` leaves that out). On the
    package's ``vmas/balance-medium-replay``, with one world model, 60 iterations without the
    penalty imagine more (2.8 a rollout against 2.6) and score less (55 against 79). World models
    of other seeds differ: an end that the model does not foresee is exploited all the same, so
    compare over several seeds.

    Args:
        dataset (OfflineDataset): the transitions to learn from.

    Keyword Args:
        world_model (RecurrentLatentWorldModel, optional): a trained model, in place of step 1.
        world_model_steps (int): updates of the world model. Defaults to ``1000``.
        world_model_kwargs (dict, optional): the model's sizes.
        clone_steps (int): updates of the clone. Defaults to ``1000``.
        behaviour_coeff (float): see :class:`BehaviourPenalty`. Defaults to ``0.1``.
        iterations (int): collections in imagination. Defaults to ``100``.
        start_rows (int): latents to start from, and to clone on. Defaults to ``20_000``.
        hidden_sizes (sequence of int): widths of the actor's hidden layers.
        seed (int): seeds all of it. Defaults to ``0``.
        device (torch.device or str): where networks and imagination live.
        logger (Logger, optional): gets the figures of all steps.
        progress_bar (bool): whether progress bars are shown.
        checkpoint_dir (str or Path, optional): where the three trainings keep checkpoints, each in
            a folder. Started again with the same arguments, a training that was cut off goes on,
            and ends as if it had not been.
        **imagination: further arguments of :func:`train_in_imagination`.

    Raises:
        ValueError: if there is a penalty but no clone, or arguments are out of range.

    Examples:
        >>> from torchrl_logo.data import collect
        >>> from torchrl_logo.envs import make_env
        >>> dataset = collect(make_env("vmas/balance", num_envs=4, seed=0), None, 400, seed=0)
        >>> sizes = {"memory_size": 8, "code_groups": 2, "code_classes": 4, "hidden_size": 8}
        >>> result = train_mamba(dataset, world_model_steps=2, world_model_kwargs=sizes,
        ...                      clone_steps=2, iterations=2, start_rows=50, rollouts=8,
        ...                      progress_bar=False)
        >>> len(result.imagined_return)
        2
    """
    if behaviour_coeff and not clone_steps:
        raise ValueError(
            f"A behaviour_coeff of {behaviour_coeff} needs a clone, found clone_steps=0."
        )
    require_type(dataset, OfflineDataset, "dataset", "load_dataset(name_or_path)")
    require_arguments(imagination, (train_mamba, train_in_imagination), "train_mamba")
    device = find_device(device)
    folders: dict[str, Path | None] = {
        part: None if checkpoint_dir is None else Path(checkpoint_dir) / part
        for part in ("world_model", "clone", "imagination")
    }
    settings = {"dataset": dataset.metadata.hash, "seed": seed, "start_rows": start_rows}
    torch.manual_seed(seed)
    if world_model is None:
        world_model = RecurrentLatentWorldModel(
            dataset.spec, **(world_model_kwargs or {}), device=device
        )
        world_model.fit_normalizers(dataset.data.to(device))
        train_latent_world_model(
            world_model,
            dataset,
            steps=world_model_steps,
            seed=seed,
            logger=logger,
            progress_bar=progress_bar,
            checkpoint_dir=folders["world_model"],
        )
    world_model.to(device).requires_grad_(False).eval()
    latents = infer_latents(world_model, dataset, rows=start_rows, seed=seed)
    actor = make_latent_actor(world_model, hidden_sizes=hidden_sizes, device=device)
    behaviour = None
    if clone_steps:
        buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(start_rows, device=device), batch_size=256
        )
        buffer.extend(latents)
        train_from_buffer(
            BCLoss(actor, action_spec=dataset.spec.action_spec(device)),
            buffer,
            steps=clone_steps,
            lr=1e-3,
            device=device,
            logger=logger,
            progress_bar=progress_bar,
            checkpoint_dir=folders["clone"],
            settings=settings,
        )
        behaviour = copy.deepcopy(actor).requires_grad_(False)
    scale = 1.0 / max(float(dataset.data.get(("next", "reward")).std()), 1e-6)
    penalty = train_in_imagination(
        world_model,
        actor,
        latents,
        iterations=iterations,
        behaviour=behaviour if behaviour_coeff else None,
        behaviour_coeff=behaviour_coeff,
        reward_scale=scale,
        seed=seed,
        logger=logger,
        progress_bar=progress_bar,
        checkpoint_dir=folders["imagination"],
        settings=settings,
        **imagination,
    )
    return MAMBAResult(
        LatentPolicy(world_model, actor),
        world_model,
        [float(value) for value in penalty.imagined_return],
        [float(value) for value in penalty.divergence],
    )
