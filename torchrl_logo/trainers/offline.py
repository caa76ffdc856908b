"""Offline training of a team's policy, with or without a world model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey
from torchrl.data import ImmutableDatasetWriter, TensorDictReplayBuffer
from torchrl.envs import EnvBase
from torchrl.objectives import LossModule, SoftUpdate
from torchrl.record.loggers import Logger
from torchrl.trainers.trainers import TargetNetUpdaterHook

from torchrl_logo.argument_checks import (
    find_device,
    require_discount,
    require_logger,
    require_positive,
    require_positive_integers,
    require_seed,
    require_type,
    require_widths,
)
from torchrl_logo.data.dataset import OfflineDataset
from torchrl_logo.data.episode_storage import EpisodeStorage
from torchrl_logo.data.next_actions import add_next_actions
from torchrl_logo.data.sequences import sequence_buffer
from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.data.validation import layout_shapes
from torchrl_logo.envs import make_env
from torchrl_logo.modules.centralized_critic import CRITIC_KINDS
from torchrl_logo.modules.world_model import FITTED_ROWS, WorldModel
from torchrl_logo.trainers.batch_sampling import BatchSampling
from torchrl_logo.trainers.data_parallel import require_even_shares
from torchrl_logo.trainers.evaluation_hook import EvaluationHook
from torchrl_logo.trainers.imagination import Imagination, build_imagination
from torchrl_logo.trainers.method_networks import Networks
from torchrl_logo.trainers.methods import METHODS, Method, find_method, find_policy
from torchrl_logo.trainers.no_collection import NoCollection
from torchrl_logo.trainers.number_watch import NumberWatch
from torchrl_logo.trainers.optimization import OfflineOptimizationStepper
from torchrl_logo.trainers.policy_card import PolicyCard
from torchrl_logo.trainers.resumable import BlockwiseTrainer, BufferDraws, make_checkpointing
from torchrl_logo.trainers.trained_policy import TrainedPolicy
from torchrl_logo.trainers.update_log import UpdateLog
from torchrl_logo.trainers.world_model import WorldModelTrainer

__all__ = ["OfflineResult", "OfflineTrainer"]

_WORLD_MODEL_FOLDER = "world_model"
# Above so many times the largest return that the data's rewards allow, values diverge.
_VALUE_MARGIN = 10.0
# Found by the run itself, and restored with its sampler.
_MEASURED = ("uncertainty_threshold", "temperature")


@dataclasses.dataclass
class OfflineResult:
    """What a finished training leaves.

    Attributes:
        policy: the final policy, which acts on ``("agents", "observation")``; it prints as a
            summary, and can be saved.
        history: every logged figure: name → list of (update, value).
        updates: number of updates made.
    """

    policy: TrainedPolicy
    history: dict[str, list[tuple[int, float]]]
    updates: int


class OfflineTrainer(BlockwiseTrainer):
    """Trains a policy from a dataset; a TorchRL trainer put together from hooks.

    A :class:`torchrl.trainers.Trainer` iterates over a collector. For LOGO that is an ordinary
    TorchRL :class:`~torchrl.collectors.Collector` that runs the current policy in an
    :class:`~torchrl_logo.envs.ImaginedEnv`; a hook stores what it imagined with its uncertainty;
    batches are half real and uniform, half imagined and weighted by
    :class:`~torchrl_logo.data.UncertaintySampler`. For model-free methods the same trainer runs
    over :class:`~torchrl_logo.trainers.NoCollection`.

    Args:
        method (str or LossModule): a name of
            :data:`~torchrl_logo.trainers.methods.METHODS` (``"logo"``; model-free ``"bc"``,
            ``"macql"``, ``"cfcql"``, ``"mabcq"``, ``"maicq"``, ``"omiga"``, and for continuous
            actions ``"matd3bc"``, ``"omar"``; model-based ``"mopo"``, ``"combo"``), or a loss
            module with an ``actor_network`` or an ``action_value_network``. All are trained
            without a model unless they have one of their own or ``world_model`` is given.
        dataset (OfflineDataset): the transitions to learn from.

    Keyword Args:
        steps (int): number of policy updates.
        seed (int): seeds networks, batches and imagination. Defaults to ``0``.
        logger (Logger, optional): a TorchRL logger, for instance
            :class:`~torchrl_logo.record.MLflowRun`. Its steps are policy updates.
        batch_size (int): transitions of an update. Defaults to ``256``.
        lr (float, optional): learning rate of Adam, at the start. Defaults to the method's own
            (see :data:`~torchrl_logo.trainers.methods.METHODS`); ``5e-4`` for a loss module.
        lr_decay (bool): whether the learning rate falls to zero along a cosine, which takes much
            of the noise out of the *final* policy. Defaults to ``True``.
        gamma (float): discount. Defaults to ``0.95``: with dense rewards over 100 steps it
            converges several times faster than 0.99 (measured on VMAS).
        tau (float, optional): share by which targets move at each update. Defaults to the
            method's own; ``0.005`` for a loss module.
        clip_norm (float): largest norm of the gradient. Defaults to ``10.0``.
        hidden_sizes (sequence of int): widths of the hidden layers of actors and critics.
        share_params (bool): whether agents share the weights of their own networks. Defaults to
            ``True``; agents with different bodies need weights of their own.
        critic (str): kind of the centralised critic of continuous joint actions: ``"additive"``,
            ``"joint"`` or ``"state"`` (:func:`~torchrl_logo.modules.make_centralized_critic`).
            Methods without one make no use of it. Defaults to ``"joint"``.
        sequence_length (int, optional): trains actors and utilities with memory (GRUs), for
            discrete actions, on batches ``[batch_size // sequence_length, sequence_length]`` of
            consecutive steps (:func:`~torchrl_logo.data.sequence_buffer`; shorter episodes are
            padded and masked). With ``"bc"``, ``"macql"`` and ``"cfcql"``. Defaults to none: no
            memory, and single transitions.
        loss_kwargs (dict, optional): arguments of the method's loss, over the method's own.
        reward_scale (float, optional): what rewards are multiplied by in updates. Defaults to one
            over the standard deviation of the dataset's rewards.
        world_model (WorldModel, optional): a trained model to imagine with. Without it, a
            model-based method trains one of its own kind on the dataset first.
        world_model_steps (int): updates of that training. Defaults to ``4000``.
        horizon (int, optional): steps of an imagined rollout. Defaults to the method's own:
            ``15``, the paper's best, for LOGO; ``5`` for MOPO and COMBO.
        imagined_envs (int): rollouts that run at once. Defaults to ``256``.
        imagine_interval (int): updates between two imaginations. Defaults to ``250``.
        imagined_capacity (int): imagined transitions that are kept; the oldest go first.
            Defaults to ``100_000``.
        real_fraction (float): share of real transitions in a batch. Defaults to ``0.5``.
        uncertainty_weights (bool, optional): whether imagined transitions are drawn by their
            uncertainty. Defaults to the method's own, and to ``False`` with a model that has no
            estimate of it.
        reward_penalty (float, optional): what a unit of uncertainty costs an imagined transition,
            in standard deviations of rewards. Defaults to the method's own.
        uncertainty_threshold (float, optional): the sampler's ``C``. Defaults to the
            ``uncertainty_quantile`` of the model's accumulated uncertainty over ``horizon`` steps
            along recorded actions of held-out episodes
            (:func:`~torchrl_logo.trainers.find_uncertainty_threshold`): what the model does not
            know better than its worst known steps counts as unknown.
        uncertainty_quantile (float): see above. Defaults to ``0.95``.
        temperature (float, optional): the sampler's temperature. Defaults to ``C / 3``: a certain
            transition is drawn about 20 times as often as an unknown one.
        eval_env (str or EnvBase, optional): where the policy is evaluated on the way. Defaults to
            the dataset's task; pass ``eval_interval=0`` for none.
        eval_interval (int): updates between two evaluations. Defaults to a tenth of ``steps``.
        eval_episodes (int): episodes of such an evaluation. Defaults to ``32``.
        log_interval (int): updates between two points of a logged figure. Defaults to ``100``.
        checkpoint_dir (str or Path, optional): where checkpoints are kept, those of the world
            model's training in a folder there. If it holds one, the run goes on from the newest
            that is whole, and ends as if it had not been cut off; on a CPU, in each bit.
        checkpoint_interval (int): updates between two checkpoints. Defaults to ``1000``. One is
            also written after a SIGINT or SIGTERM, before
            :class:`~torchrl_logo.trainers.TrainingInterrupted` is raised.
        max_nonfinite_share (float): imagination stops training above this share of transitions
            that are not finite. Defaults to ``0.05``.
        max_skipped_updates (int): updates with a loss or gradient that is infinite or NaN which
            are left out, with a warning, before training stops. Defaults to ``0``: it stops at
            the first.
        progress_bar (bool): whether a progress bar with a time left is shown.
        device (torch.device or str): where networks, imagination and batches live.
        compile (bool): whether the loss is compiled with ``torch.compile(fullgraph=True)``.
        data_parallel (bool): whether a batch is shared out among the processes of the default
            process group, which must all be given the same arguments. For methods without a world
            model, and without checkpoints. Defaults to ``False``.
        in_memory (bool): whether the transitions are copied to the device's memory first. If not,
            batches are read from the dataset's files, which may be larger than memory; not for
            methods that bootstrap from the data's next actions. Defaults to ``True``.

    Raises:
        ValueError: for an unknown method or arguments out of range, or a world model or loss that
            belongs to another task.
        ImaginationError: if imagination diverges.
        NonFiniteError: from :meth:`train`, if a loss, a gradient or a weight becomes infinite or
            NaN; names it and the update. The last checkpoint is from before.

    Examples:
        >>> from torchrl_logo.data import collect
        >>> from torchrl_logo.envs import make_env
        >>> dataset = collect(make_env("vmas/balance", num_envs=4, seed=0), None, 400, seed=0)
        >>> trainer = OfflineTrainer("bc", dataset, steps=20, progress_bar=False, eval_interval=0)
        >>> result = trainer.train()
        >>> result.updates
        20
    """

    def __init__(
        self,
        method: str | LossModule,
        dataset: OfflineDataset,
        *,
        steps: int,
        seed: int = 0,
        logger: Logger | None = None,
        batch_size: int = 256,
        lr: float | None = None,
        lr_decay: bool = True,
        gamma: float = 0.95,
        tau: float | None = None,
        clip_norm: float = 10.0,
        hidden_sizes: Sequence[int] = (128, 128),
        share_params: bool = True,
        critic: str = "joint",
        sequence_length: int | None = None,
        loss_kwargs: dict[str, Any] | None = None,
        reward_scale: float | None = None,
        world_model: WorldModel | None = None,
        world_model_steps: int = 4000,
        horizon: int | None = None,
        imagined_envs: int = 256,
        imagine_interval: int = 250,
        imagined_capacity: int = 100_000,
        real_fraction: float = 0.5,
        uncertainty_weights: bool | None = None,
        reward_penalty: float | None = None,
        uncertainty_threshold: float | None = None,
        uncertainty_quantile: float = 0.95,
        temperature: float | None = None,
        eval_env: str | EnvBase | None = None,
        eval_interval: int | None = None,
        eval_episodes: int = 32,
        log_interval: int = 100,
        checkpoint_dir: str | Path | None = None,
        checkpoint_interval: int = 1000,
        max_nonfinite_share: float = 0.05,
        max_skipped_updates: int = 0,
        progress_bar: bool = True,
        device: torch.device | str = "cpu",
        compile: bool = False,
        data_parallel: bool = False,
        in_memory: bool = True,
    ) -> None:
        require_type(dataset, OfflineDataset, "dataset", "load_dataset(name_or_path)")
        device = find_device(device)
        if world_model is not None:
            require_type(world_model, WorldModel, "world_model", "LOGOWorldModel.load(path)")
            world_model.spec.require_match(dataset.spec, "The dataset")
        require_logger(logger)
        require_seed(seed)
        require_widths(hidden_sizes, "hidden_sizes")
        require_discount(gamma, type(self).__name__)
        require_positive_integers(
            steps=steps,
            batch_size=batch_size,
            horizon=horizon,
            world_model_steps=world_model_steps,
            imagined_envs=imagined_envs,
            imagined_capacity=imagined_capacity,
            eval_episodes=eval_episodes,
            log_interval=log_interval,
            checkpoint_interval=checkpoint_interval,
            imagine_interval=imagine_interval,
        )
        require_positive(
            lr=lr,
            tau=tau,
            clip_norm=clip_norm,
            reward_scale=reward_scale,
            temperature=temperature,
            # the sampler's C
            uncertainty_threshold=uncertainty_threshold,
        )
        if critic not in CRITIC_KINDS:
            raise ValueError(f"critic must be one of {list(CRITIC_KINDS)}, found {critic!r}.")
        if not 0.0 <= real_fraction <= 1.0:
            raise ValueError(f"real_fraction must be in [0, 1], found {real_fraction!r}.")
        if isinstance(eval_env, EnvBase):
            dataset.spec.require_match(TaskSpec.from_env(eval_env), "eval_env")
        elif isinstance(eval_env, str) and eval_env != dataset.spec.task:
            dataset.spec.require_match(_read_spec(eval_env), "eval_env")
        self.method = method if isinstance(method, str) else type(method).__name__
        self.dataset = dataset
        self.steps = steps
        self.log = UpdateLog(logger, log_interval)
        torch.manual_seed(seed)
        spec = dataset.spec
        found = Method() if isinstance(method, LossModule) else find_method(method)
        if isinstance(method, LossModule) and loss_kwargs:
            raise ValueError("loss_kwargs go with a method's name; the loss is given here.")
        if sequence_length is not None:
            _check_sequences(method, found, dataset, sequence_length, batch_size, world_model)
        transitions = _find_transitions(found, dataset, in_memory, device)
        real = TensorDictReplayBuffer(
            storage=transitions, writer=ImmutableDatasetWriter(), batch_size=batch_size
        )
        reward = transitions.get_column(("next", "reward"))
        reward_std = max(float(reward.std()), 1e-6)
        if reward_scale is None:
            reward_scale = 1.0 / reward_std

        if isinstance(method, LossModule):
            loss = method
        else:
            networks = Networks.from_data(
                spec,
                transitions.read_evenly(FITTED_ROWS),
                hidden_sizes=hidden_sizes,
                share_params=share_params,
                recurrent=sequence_length is not None,
                device=device,
                critic=critic,
            )
            loss = found.build_loss(networks, gamma, loss_kwargs or {})
            own = found.discrete_loss_kwargs if spec.discrete else found.loss_kwargs
            loss_kwargs = {**own, **(loss_kwargs or {})}
        imagines = world_model is not None or found.world_model is not None
        if imagines and found.next_actions:
            raise ValueError(
                f"{method!r} bootstraps from the data's next actions, which imagined transitions "
                "do not have: it takes no world_model."
            )
        rows = batch_size if sequence_length is None else batch_size // sequence_length
        require_even_shares(data_parallel, rows, checkpoint_dir)
        if data_parallel and imagines:
            raise ValueError(
                f"data_parallel=True goes with methods that have no world model, found {method!r}."
            )
        lr = found.lr if lr is None else lr
        tau = found.tau if tau is None else tau
        horizon = found.horizon if horizon is None else horizon
        self.policy = find_policy(loss)
        self.horizon = horizon
        self.world_model: WorldModel | None = None
        imagination: Imagination | None = None
        if imagines:
            if world_model is None:
                assert found.world_model is not None
                world_model = _train_world_model(
                    found.world_model,
                    dataset,
                    steps=world_model_steps,
                    seed=seed,
                    logger=logger,
                    progress_bar=progress_bar,
                    device=device,
                    checkpoint_dir=checkpoint_dir,
                    in_memory=in_memory,
                )
            self.world_model = world_model
            if uncertainty_weights is None:
                uncertainty_weights = found.weighted and world_model.has_uncertainty
            penalty = found.reward_penalty if reward_penalty is None else reward_penalty
            imagination = build_imagination(
                world_model,
                self.policy,
                dataset,
                real,
                batch_size=batch_size,
                horizon=horizon,
                rollouts=imagined_envs,
                capacity=imagined_capacity,
                real_fraction=real_fraction,
                threshold=uncertainty_threshold,
                quantile=uncertainty_quantile,
                temperature=temperature,
                weighted=uncertainty_weights,
                reward_penalty=penalty * reward_std,
                max_nonfinite_share=max_nonfinite_share,
                seed=seed,
                device=device,
            )
        self.imagination = imagination
        if imagination is None:
            interval = frames_per_batch = min(log_interval, steps)
            collector: Any = NoCollection(interval)
            buffer: Any = real
            if sequence_length is not None:
                batch_size //= sequence_length
                buffer = sequence_buffer(
                    dataset,
                    slice_len=sequence_length,
                    batch_size=batch_size,
                    short_episodes="pad",
                    seed=seed,
                )
        else:
            interval, frames_per_batch = min(imagine_interval, steps), imagined_envs * horizon
            collector, buffer = imagination.collector, imagination.buffer
        self._updates_per_batch = interval
        self.hyperparameters: dict[str, Any] = {
            "batch_size": batch_size,
            "sequence_length": sequence_length,
            "lr": lr,
            "lr_decay": lr_decay,
            "gamma": gamma,
            "tau": tau,
            "clip_norm": clip_norm,
            "hidden_sizes": list(hidden_sizes),
            "share_params": share_params,
            "critic": critic,
            "reward_scale": reward_scale,
            "loss": loss_kwargs or {},
        }
        if imagination is not None:
            self.hyperparameters |= {
                "world_model": type(self.world_model).__name__,
                "world_model_steps": world_model_steps,
                "horizon": horizon,
                "imagined_envs": imagined_envs,
                "imagine_interval": imagine_interval,
                "imagined_capacity": imagined_capacity,
                "real_fraction": real_fraction,
                "uncertainty_weights": uncertainty_weights,
                "reward_penalty": imagination.reward_penalty,
                "uncertainty_threshold": imagination.threshold,
                "temperature": imagination.temperature,
            }
        iterations = math.ceil(steps / interval)
        # A fused optimiser is one operation in place of a dozen for each weight, and can leave
        # out an update without asking the host.
        fused = True if max_skipped_updates or device.type in ("cpu", "cuda") else None
        optimizer = torch.optim.Adam(loss.parameters(), lr=lr, fused=fused)
        scheduler = (
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if lr_decay else None
        )
        largest = float(reward.abs().max()) * reward_scale / max(1.0 - gamma, 1e-6)
        watch = NumberWatch(
            max_skipped=max_skipped_updates,
            value_limit=_VALUE_MARGIN * largest if largest > 0 else None,
        )
        # The real transitions are the dataset's, whose hash the checkpoint has.
        components: dict[str, Any] = (
            {"replay_buffer": BufferDraws(buffer)}
            if imagination is None
            else {"replay_buffer": imagination.buffer.imagined, "imagined_env": imagination.env}
        )
        super().__init__(
            collector=collector,
            total_frames=iterations * frames_per_batch,
            frame_skip=1,
            optim_steps_per_batch=interval,
            loss_module=torch.compile(loss, fullgraph=True) if compile else loss,
            optimizer=optimizer,
            optimization_stepper=OfflineOptimizationStepper(
                clip_norm, scheduler, watch, data_parallel
            ),
            replay_buffer=buffer,
            logger=logger,
            progress_bar=progress_bar,
            seed=seed,
            log_interval=log_interval,
            save_trainer_interval=max(1, checkpoint_interval * frames_per_batch // interval - 1),
            **make_checkpointing(checkpoint_dir, log=self.log, **components),
        )
        if imagination is not None:
            imagination.storing.register(self)
        BatchSampling(
            buffer,
            batch_size=batch_size,
            reward_scale=reward_scale,
            device=device,
            data_parallel=data_parallel,
        ).register(self)
        if any(name.startswith("target_") for name, _ in loss.named_parameters()) or any(
            name.startswith("target_") for name, _ in loss.named_buffers()
        ):
            self.register_op("post_optim", TargetNetUpdaterHook(SoftUpdate(loss, tau=tau)))
        if eval_interval is None:
            eval_interval = max(steps // 10, 1)
        where = eval_env if eval_env is not None else dataset.spec.task
        if eval_interval and where is not None:
            EvaluationHook(
                self.policy, where, interval=eval_interval, episodes=eval_episodes
            ).register(self)
        self.prepare_resume(
            {
                "method": self.method,
                "steps": steps,
                "seed": seed,
                "dataset": dataset.metadata.hash,
                **{k: v for k, v in self.hyperparameters.items() if k not in _MEASURED},
            },
            watch,
        )

    def optim_steps(self, batch: Any) -> None:
        """Makes the updates of one batch, and no more than ``steps`` in all."""
        made = self._optim_count - self.progress.done  # before this batch
        self.optim_steps_per_batch = min(self._updates_per_batch, self.steps - made)
        if self.optim_steps_per_batch > 0:
            super().optim_steps(batch)

    def _restore_block(self) -> TensorDictBase:
        return TensorDict()  # batches are drawn from buffers: what was collected is stored there

    def _log(self, log_pbar: bool = False, **kwargs: Any) -> None:
        """Holds figures back until the interval, an evaluation or the training is over."""
        self.log.add(kwargs)
        for key, item in kwargs.items():
            if log_pbar and self.progress_bar and not key.startswith("loss"):
                self._pbar_str[key] = float(item)
        over = self._optim_count >= self.steps or "eval/return" in kwargs
        if over or self.log.is_due(self._optim_count):
            self.log.flush(self._optim_count)

    def _pbar_description(self) -> None:
        """Names the method and its latest return before the bar."""
        if self.progress_bar:
            figures = [f"{key} {value:.1f}" for key, value in sorted(self._pbar_str.items())]
            self._pbar.set_description(", ".join([self.method, *figures]))

    def train(self) -> OfflineResult:
        """Trains to the end (from a checkpoint, if one was loaded) and returns the result."""
        super().train()
        self.log.flush(self._optim_count)
        if self.progress_bar and hasattr(self, "_pbar"):
            self._pbar.close()
        card = PolicyCard.from_training(
            self.dataset,
            self.method,
            updates=self._optim_count,
            seed=self.seed,
            hyperparameters=self.hyperparameters,
        )
        policy = TrainedPolicy(self.policy, card)
        return OfflineResult(policy, dict(self.log.history), self._optim_count)


def _read_spec(task: str) -> TaskSpec:
    env = make_env(task)
    spec = TaskSpec.from_env(env)
    env.close()
    return spec


def _check_sequences(
    method: str | LossModule,
    found: Method,
    dataset: OfflineDataset,
    length: int,
    batch_size: int,
    world_model: WorldModel | None,
) -> None:
    """Refuses what cannot be trained on sequences."""
    if not isinstance(method, LossModule):
        named = [name for name, other in METHODS.items() if other.recurrent]
        if not found.recurrent or not dataset.spec.discrete:
            kind = "discrete" if dataset.spec.discrete else "continuous"
            raise ValueError(
                f"sequence_length goes with the methods {named} and discrete actions; found "
                f"{method!r} and {kind} ones."
            )
    if world_model is not None or found.world_model is not None:
        raise ValueError("Imagined transitions are no sequences: sequence_length takes no model.")
    if not 1 <= length <= batch_size:
        raise ValueError(
            f"sequence_length must be within [1, batch_size], found {length} and {batch_size}."
        )


def _find_transitions(
    method: Method, dataset: OfflineDataset, in_memory: bool, device: torch.device
) -> EpisodeStorage:
    """The rows that batches are drawn from."""
    keys: list[NestedKey] = list(layout_shapes(dataset.spec))
    if not method.next_actions:
        return dataset.select_rows(keys, in_memory=in_memory, device=device)
    if not in_memory:
        raise ValueError(
            "in_memory=False goes with methods that read transitions alone; this one needs the "
            "data's next actions, which are found for all of them at once."
        )
    keys += [("next", "agents", "action"), ("next", "action_recorded")]
    data = add_next_actions(dataset.data).select(*keys).to(device).clone()
    return EpisodeStorage(data, content_hash=dataset.metadata.hash)


def _train_world_model(
    kind: type[WorldModel],
    dataset: OfflineDataset,
    *,
    steps: int,
    seed: int,
    logger: Logger | None,
    progress_bar: bool,
    device: torch.device,
    checkpoint_dir: str | Path | None,
    in_memory: bool,
) -> WorldModel:
    """Trains a method's model, from its last checkpoint if there is one."""
    if checkpoint_dir is not None:
        checkpoint_dir = Path(checkpoint_dir) / _WORLD_MODEL_FOLDER
    model = kind.from_dataset(dataset).to(device)
    WorldModelTrainer(
        model,
        dataset,
        steps=steps,
        seed=seed,
        logger=logger,
        progress_bar=progress_bar,
        checkpoint_dir=checkpoint_dir,
        in_memory=in_memory,
    ).train()
    return model
