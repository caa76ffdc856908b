"""What every world model reads, writes and stores."""

from __future__ import annotations

import abc
import dataclasses
import inspect
import pathlib
from typing import Any, ClassVar, NamedTuple

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase

from torchrl_logo.argument_checks import MissingKeyError, require_type
from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.modules.normalizer import Normalizer
from torchrl_logo.weight_files import load_weights, save_weights

__all__ = ["FITTED_ROWS", "Prediction", "WorldModel"]

#: Transitions that normalisers are fitted on, at most: of more, these many at even distances.
FITTED_ROWS = 2**20


class Prediction(NamedTuple):
    """What a world model says about one transition, in the environment's units.

    Attributes:
        state: next global state, ``[*, d_s]``.
        observation: next local observations, ``[*, N, d_o]``.
        reward: team reward, ``[*, 1]``.
        termination_logit: log-odds that the episode terminates, ``[*, 1]``.
        action_mask_logit: log-odds that an action is available next, ``[*, N, A]``; ``None`` for
            continuous actions.
        uncertainty: how much the model doubts the transition, ``[*, 1]``, not negative.
    """

    state: torch.Tensor
    observation: torch.Tensor
    reward: torch.Tensor
    termination_logit: torch.Tensor
    action_mask_logit: torch.Tensor | None
    uncertainty: torch.Tensor


class WorldModel(TensorDictModuleBase, abc.ABC):
    """Base of models that predict a team's next step from this one.

    Reads ``("agents", "observation")`` ``[*, N, d_o]``, ``("agents", "action")`` ``[*, N, d_a]``
    (or ``[*, N]`` integers) and ``"state"`` ``[*, d_s]``; writes ``("next", "agents",
    "observation")``, ``("next", "state")``, ``("next", "reward")`` ``[*, 1]``, ``("next",
    "terminated")`` and ``("next", "done")`` ``[*, 1]`` (which are equal: a model knows no time
    limit), for discrete actions ``("next", "agents", "action_mask")`` ``[*, N, A]``, and
    ``"uncertainty"`` ``[*, 1]`` of the transition. ``*`` is any number of batch dimensions.

    A termination is written where its predicted probability is above one half, an action mask
    likewise. Where no action of an agent seems available, none is made so.

    Networks work on standardised values; the constants are buffers of the model, set by
    :meth:`fit_normalizers` from training data. Networks predict *changes*, which are as easy for
    a value that hardly moves as for one that moves far.

    A subclass makes its networks, sets :attr:`config` to its constructor's arguments, and
    implements :meth:`predict`.

    Args:
        spec (TaskSpec): the task's sizes.

    Keyword Args:
        device (torch.device, optional): where parameters and buffers are made.
    """

    @dataclasses.dataclass
    class _AcceptedKeys:
        """The keys that :meth:`set_keys` renames.

        Attributes:
            observation (NestedKey): local observations. Defaults to ``("agents", "observation")``.
            action (NestedKey): the team's action. Defaults to ``("agents", "action")``.
            action_mask (NestedKey): which actions are available. Defaults to
                ``("agents", "action_mask")``.
            state (NestedKey): global state. Defaults to ``"state"``.
            reward (NestedKey): team reward. Defaults to ``"reward"``.
            terminated (NestedKey): end of the task. Defaults to ``"terminated"``.
            done (NestedKey): end of the episode. Defaults to ``"done"``.
            uncertainty (NestedKey): doubt about the transition. Defaults to ``"uncertainty"``.
        """

        observation: NestedKey = ("agents", "observation")
        action: NestedKey = ("agents", "action")
        action_mask: NestedKey = ("agents", "action_mask")
        state: NestedKey = "state"
        reward: NestedKey = "reward"
        terminated: NestedKey = "terminated"
        done: NestedKey = "done"
        uncertainty: NestedKey = "uncertainty"

    #: Whether ``"uncertainty"`` is an estimate; without one, the model writes zeros.
    has_uncertainty: ClassVar[bool] = True

    config: dict[str, Any]
    observation_mask: torch.Tensor

    def __init__(self, spec: TaskSpec, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        require_type(spec, TaskSpec, "spec", "dataset.spec or TaskSpec.from_env(env)")
        self.spec = spec
        self.tensor_keys = self._AcceptedKeys()
        self.state_normalizer = Normalizer(spec.state_size, device=device)
        self.state_delta_normalizer = Normalizer(spec.state_size, device=device)
        # Agents share their observations' constants, as they share the local networks.
        self.observation_normalizer = Normalizer(spec.observation_size, device=device)
        self.observation_delta_normalizer = Normalizer(spec.observation_size, device=device)
        self.reward_normalizer = Normalizer(1, device=device)
        # What an end adds to the reward. Networks predict the reward without it: one rare and
        # large value would decide the scale of all others, and be predicted by none.
        self.register_buffer("ending_reward", torch.zeros(1, device=device))
        sizes = torch.tensor(spec.observation_sizes, device=device).unsqueeze(-1)
        features = torch.arange(spec.observation_size, device=device)
        # 1 where an agent's observation has a feature, 0 where it is padded.
        self.register_buffer("observation_mask", (features < sizes).to(torch.float32))  # [N, d_o]

    @property
    def in_keys(self) -> list[NestedKey]:
        """The keys that :meth:`forward` reads."""
        keys = self.tensor_keys
        return [keys.observation, keys.action, keys.state]

    @property
    def out_keys(self) -> list[NestedKey]:
        """The keys that :meth:`forward` writes."""
        keys = self.tensor_keys
        names = [keys.observation, keys.state, keys.reward, keys.terminated, keys.done]
        if self.spec.discrete:
            names.append(keys.action_mask)
        return [next_key(name) for name in names] + [keys.uncertainty]

    def set_keys(self, **kwargs: NestedKey) -> None:
        """Renames keys; what is written under ``"next"`` is renamed with it.

        Raises:
            ValueError: if a name is not one of the accepted keys.

        Examples:
            >>> from torchrl_logo.modules import JointWorldModel
            >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=1,
            ...                 action_low=(-1.0,), action_high=(1.0,))
            >>> model = JointWorldModel(spec, hidden_size=8)
            >>> model.set_keys(reward="team_reward")
            >>> ("next", "team_reward") in model.out_keys
            True
        """
        accepted = {field.name for field in dataclasses.fields(self._AcceptedKeys)}
        for name, key in kwargs.items():
            if name not in accepted:
                raise ValueError(f"{name!r} is not an accepted key; expected {sorted(accepted)}.")
            setattr(self.tensor_keys, name, key)

    @abc.abstractmethod
    def predict(
        self, state: torch.Tensor, observation: torch.Tensor, action: torch.Tensor
    ) -> Prediction:
        """Predicts the next step.

        Args:
            state (torch.Tensor): ``[*, d_s]``.
            observation (torch.Tensor): ``[*, N, d_o]``.
            action (torch.Tensor): ``[*, N, d_a]``, or ``[*, N]`` integers.
        """

    @property
    @abc.abstractmethod
    def termination_bias(self) -> torch.Tensor:
        """Bias of the termination head, ``[1]``, a view that can be written to."""

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes the predicted next step and the uncertainty into ``tensordict``.

        Raises:
            KeyError: if one of :attr:`in_keys` is missing.
            ValueError: if an input's shape is not the task's.
        """
        state, observation, action = self.read_inputs(tensordict)
        prediction = self.predict(state, observation, action)
        keys = self.tensor_keys
        terminated = prediction.termination_logit > 0
        tensordict.set(next_key(keys.observation), prediction.observation)
        tensordict.set(next_key(keys.state), prediction.state)
        tensordict.set(next_key(keys.reward), prediction.reward)
        tensordict.set(next_key(keys.terminated), terminated)
        tensordict.set(next_key(keys.done), terminated.clone())
        if prediction.action_mask_logit is not None:
            tensordict.set(next_key(keys.action_mask), prediction.action_mask_logit > 0)
        tensordict.set(keys.uncertainty, prediction.uncertainty)
        return tensordict

    def read_inputs(
        self, tensordict: TensorDictBase
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Reads state, observation and action, and checks their shapes against the task.

        Raises:
            KeyError: if a key is missing.
            ValueError: if a shape is not the task's.
        """
        keys, spec = self.tensor_keys, self.spec
        action_shape = (spec.n_agents,) if spec.discrete else (spec.n_agents, spec.action_size)
        expected = {
            keys.state: (spec.state_size,),
            keys.observation: (spec.n_agents, spec.observation_size),
            keys.action: action_shape,
        }
        batch = tensordict.batch_size
        found = []
        for key, shape in expected.items():
            value = tensordict.get(key, None)
            if value is None:
                raise MissingKeyError(
                    f"{type(self).__name__} reads {key!r}, which is missing; found "
                    f"{sorted(map(str, tensordict.keys(True, True)))}. Entries of other names are "
                    "named by set_keys()."
                )
            if value.is_floating_point() and value.dtype != self.state_normalizer.mean.dtype:
                raise ValueError(
                    f"{type(self).__name__} expected {key!r} of "
                    f"{self.state_normalizer.mean.dtype}, found {value.dtype}: convert "
                    "the data, or the model (model.to(dtype))."
                )
            if value.shape[len(batch) :] != torch.Size(shape):
                raise ValueError(
                    f"{type(self).__name__} expected {key!r} of shape {(*batch, *shape)}, found "
                    f"{tuple(value.shape)}. Models and data must be of one task."
                )
            found.append(value)
        return found[0], found[1], found[2]

    def encode_action(self, action: torch.Tensor) -> torch.Tensor:
        """The action as networks read it: floats, or one-hot, ``[*, N, d_a]``."""
        if self.spec.discrete:
            # A comparison and not one_hot(), which looks at the values on the host.
            indices = torch.arange(self.spec.action_size, device=action.device)
            return (action.unsqueeze(-1) == indices).to(torch.float32)
        return action

    @torch.no_grad()
    def fit_normalizers(self, data: TensorDictBase) -> None:
        """Sets the normalisers, and the termination head's starting point, from training data.

        The termination head starts at the log-odds of the data, so that rare ends need not be
        learnt down from one half first.

        Args:
            data (TensorDictBase): transitions ``[*]`` in the package's layout, of the training
                episodes only.

        Raises:
            KeyError: if a key is missing.
        """
        keys = self.tensor_keys
        state, next_state = data.get(keys.state), data.get(next_key(keys.state))
        observation, next_observation = (
            data.get(keys.observation),
            data.get(next_key(keys.observation)),
        )
        self.state_normalizer.fit(state)
        self.state_delta_normalizer.fit(
            next_state - state, magnitude=state.reshape(-1, state.shape[-1]).abs().amax(0)
        )
        # Padding is left out: an agent's missing feature is no sample of another agent's.
        present = self.observation_mask.bool().expand(observation.shape)
        _fit_present(self.observation_normalizer, observation, present)
        _fit_present(
            self.observation_delta_normalizer,
            next_observation - observation,
            present,
            magnitude=observation.reshape(-1, observation.shape[-1]).abs().amax(0),
        )
        reward = data.get(next_key(keys.reward))
        terminated = data.get(next_key(keys.terminated))
        self.ending_reward.zero_()
        if terminated.any() and not terminated.all():
            self.ending_reward.copy_(reward[terminated].mean() - reward[~terminated].mean())
        self.reward_normalizer.fit(reward - terminated * self.ending_reward.to(reward.device))
        # Half an end is added to either side, so that data without ends has finite odds.
        ends = terminated.sum() + 0.5
        others = (~terminated).sum() + 0.5
        self.termination_bias.copy_((ends / others).log())

    def normalize_reward(self, reward: torch.Tensor, terminated: torch.Tensor) -> torch.Tensor:
        """Takes off what an end adds, and standardises: what networks predict, ``[*, 1]``.

        Args:
            reward (torch.Tensor): ``[*, 1]``.
            terminated (torch.Tensor): whether the step ends the task, ``[*, 1]``.
        """
        return self.reward_normalizer.normalize(reward - terminated * self.ending_reward)

    def expect_reward(self, reward: torch.Tensor, logit: torch.Tensor) -> torch.Tensor:
        """The reward to expect, whether or not the task ends: ``[*, 1]``, in its own units.

        Args:
            reward (torch.Tensor): what a network predicts, standardised, ``[*, 1]``.
            logit (torch.Tensor): log-odds of termination, ``[*, 1]``.
        """
        return self.reward_normalizer.denormalize(reward) + logit.sigmoid() * self.ending_reward

    @property
    def is_fitted(self) -> bool:
        """Whether the normalisers have been fitted (reads a buffer: not for hot paths)."""
        return bool(self.state_normalizer.fitted)

    @classmethod
    def from_dataset(cls, dataset: Any, **kwargs: Any) -> WorldModel:
        """Makes a model for a dataset's task.

        The sizes and, provisionally, the normalisers come from the dataset (of more than a
        million transitions, from a million of them); a
        :class:`~torchrl_logo.trainers.WorldModelTrainer` fits the normalisers again, on its
        training episodes only.

        Args:
            dataset (OfflineDataset): has ``spec`` and ``read_evenly``.

        Keyword Args:
            **kwargs: the constructor's, for instance ``hidden_size``.
        """
        model = cls(dataset.spec, **kwargs)
        model.fit_normalizers(dataset.read_evenly(FITTED_ROWS))
        return model

    @classmethod
    def from_env(cls, env: Any, **kwargs: Any) -> WorldModel:
        """Makes a model for an environment's task, its normalisers not yet fitted.

        Args:
            env (EnvBase): an environment in the package's layout.

        Keyword Args:
            **kwargs: the constructor's, for instance ``hidden_size``.
        """
        kwargs.setdefault("device", env.device)
        return cls(TaskSpec.from_env(env), **kwargs)

    def save(self, path: str | pathlib.Path) -> None:
        """Writes weights, normalisers, task and architecture into one file.

        It is written aside and put in its place, and :meth:`load` runs no code from it.

        Raises:
            OSError: if the disk is full or read-only; an earlier file is then left as it was.
        """
        content = {
            "class": type(self).__name__,
            "spec": self.spec.to_dict(),
            "config": self.config,
            "state_dict": self.state_dict(),
        }
        save_weights(content, path, what="the world model")

    @classmethod
    def load(
        cls, path: str | pathlib.Path, *, device: torch.device | str | None = None
    ) -> WorldModel:
        """Makes the model that :meth:`save` wrote.

        Args:
            path (str or Path): the file.

        Keyword Args:
            device (torch.device, optional): where the model is made. Defaults to the cpu.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is damaged or holds a model of another class, or weights of
                another architecture than it says.
        """
        stored = load_weights(path, device=device)
        if set(stored) != {"class", "spec", "config", "state_dict"}:
            raise ValueError(f"{path}: expected a world model, found {sorted(map(str, stored))}.")
        if stored["class"] != cls.__name__:
            raise ValueError(
                f"{path} holds a {stored['class']}, expected a {cls.__name__}: load it by "
                f"{stored['class']}.load(path)."
            )
        weights = _require_tensors(path, stored["state_dict"])
        config = _require_config(path, stored["config"], cls, weights)
        try:
            spec = TaskSpec.from_dict(stored["spec"])
            # Shapes alone, which take no memory: whatever the file says fits its weights, or is
            # refused before anything of that size is made.
            shapes = cls(spec, **config, device="meta").state_dict()
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            raise ValueError(f"{path}: expected a {cls.__name__}, found {error}") from error
        for name in sorted(shapes.keys() | weights.keys()):
            expected, found = (
                f"{tensors[name].dtype} {list(tensors[name].shape)}" if name in tensors else "none"
                for tensors in (shapes, weights)
            )
            if expected != found:
                raise ValueError(
                    f"{path}, weight {name!r}: expected {expected}, found {found}. A model that "
                    "another version of the package saved is trained again."
                )
        model = cls(spec, **config, device=device)
        model.load_state_dict(weights)
        return model


def _require_tensors(path: str | pathlib.Path, found: Any) -> dict[str, torch.Tensor]:
    if not isinstance(found, dict) or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise ValueError(f"{path}: expected tensors by their names, found {type(found).__name__}.")
    return found


def _require_config(
    path: str | pathlib.Path, config: Any, kind: type, weights: dict[str, torch.Tensor]
) -> dict[str, Any]:
    """Refuses what is no keyword of the class, and numbers beyond what the weights can be of."""
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected an architecture, found {config!r}.")
    accepted = inspect.signature(kind).parameters
    # No width, depth or number of members is larger than the number of weights.
    largest = sum(tensor.numel() for tensor in weights.values())
    for name, value in config.items():
        if name not in accepted or name in ("spec", "device"):
            raise ValueError(f"{path}: {kind.__name__} has no {name!r}.")
        if isinstance(value, list):
            # Such as frequencies: numbers, no more of them than there are weights.
            fits = len(value) <= largest and all(type(v) in (int, float) for v in value)
        elif isinstance(value, int):
            fits = 0 <= value <= largest
        else:
            fits = isinstance(value, float | str | None)
        if not fits:
            raise ValueError(f"{path}: expected another {name} of a {kind.__name__}: {value!r}.")
    return config


def next_key(key: NestedKey) -> NestedKey:
    return ("next", key) if isinstance(key, str) else ("next", *key)


def _fit_present(
    normalizer: Normalizer,
    values: torch.Tensor,
    present: torch.Tensor,
    magnitude: torch.Tensor | None = None,
) -> None:
    """Fits a normaliser to values where they are present, ``[*, size]`` both.

    Absent values are replaced by the mean of the present ones; the scale is corrected for them.
    """
    size = values.shape[-1]
    rows, there = values.reshape(-1, size), present.reshape(-1, size)
    count = there.sum(0).clamp_min(1)
    mean = torch.where(there, rows, torch.zeros_like(rows)).double().sum(0) / count
    normalizer.fit(torch.where(there, rows, mean.to(rows)), magnitude=magnitude)
    share = (count / rows.shape[0]).to(normalizer.scale).sqrt()
    normalizer.scale.div_(share)
    normalizer.inverse_scale.mul_(share)
