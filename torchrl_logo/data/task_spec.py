"""What every component needs to know of a task: sizes, action kind and bounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torchrl.data import Bounded, Categorical, Composite, TensorSpec, Unbounded
from torchrl.envs import EnvBase

from torchrl_logo.argument_checks import MissingKeyError

__all__ = ["LARGEST_SIZE", "TaskSpec"]

#: Sizes of a task above this one are taken for damage to a file.
LARGEST_SIZE = 2**20


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """The sizes of a task in the package's layout.

    Stored with each dataset and each world model, so that a component made for one task refuses
    to run on another.

    Attributes:
        n_agents: number of agents, ``N``.
        observation_size: features of an agent's (padded) observation, ``d_o``.
        state_size: features of the global state, ``d_s``.
        action_size: action components ``d_a`` (continuous), or number of actions ``A`` (discrete).
        discrete: whether actions are categorical.
        action_low: lower bound of each action component; empty for discrete actions.
        action_high: upper bound of each action component; empty for discrete actions.
        observation_sizes: true sizes of the agents' observations before padding.
        max_steps: steps after which an episode is truncated, if there is such a limit.
        task: name of the task, as :func:`torchrl_logo.envs.make_env` takes it, if it has one.

    Examples:
        >>> spec = TaskSpec(n_agents=3, observation_size=16, state_size=42, action_size=2,
        ...                 action_low=(-1.0, -1.0), action_high=(1.0, 1.0))
        >>> spec.action_spec().shape
        torch.Size([3, 2])
        >>> TaskSpec.from_dict(spec.to_dict()) == spec
        True
    """

    n_agents: int
    observation_size: int
    state_size: int
    action_size: int
    discrete: bool = False
    action_low: tuple[float, ...] = ()
    action_high: tuple[float, ...] = ()
    observation_sizes: tuple[int, ...] = ()
    max_steps: int | None = None
    task: str | None = None

    def __post_init__(self) -> None:
        for name in ("n_agents", "observation_size", "state_size", "action_size"):
            value = getattr(self, name)
            # bool is a kind of int. The limit keeps what a file says from asking for terabytes.
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"TaskSpec.{name} must be a positive integer, found {value!r}.")
            if value > LARGEST_SIZE:
                raise ValueError(f"TaskSpec.{name} must be at most {LARGEST_SIZE}, found {value}.")
        for name in ("action_low", "action_high", "observation_sizes"):
            if not isinstance(getattr(self, name), tuple):
                raise ValueError(f"TaskSpec.{name} must be a tuple, found {getattr(self, name)!r}.")
        if not isinstance(self.discrete, bool):
            raise ValueError(f"TaskSpec.discrete must be a bool, found {self.discrete!r}.")
        if not isinstance(self.task, str | None):
            raise ValueError(f"TaskSpec.task must be a string or None, found {self.task!r}.")
        steps = self.max_steps
        if steps is not None and (type(steps) is not int or steps < 1):
            raise ValueError(f"TaskSpec.max_steps must be positive or None, found {steps!r}.")
        for name in ("action_low", "action_high"):
            found, expected = len(getattr(self, name)), 0 if self.discrete else self.action_size
            if found != expected:
                raise ValueError(f"TaskSpec.{name} needs {expected} values, found {found}.")
        for low, high in zip(self.action_low, self.action_high, strict=True):
            # Not "low > high": that is never so for NaN, within which every action would be.
            if not all(isinstance(b, float | int) for b in (low, high)) or not low <= high:
                raise ValueError(
                    "TaskSpec.action_low and action_high must be numbers, the first not above "
                    f"the second, found {low!r} and {high!r}."
                )
        if not self.observation_sizes:
            sizes = (self.observation_size,) * self.n_agents
            object.__setattr__(self, "observation_sizes", sizes)
        if len(self.observation_sizes) != self.n_agents:
            raise ValueError(
                f"TaskSpec.observation_sizes needs {self.n_agents} values, one an agent, "
                f"found {len(self.observation_sizes)}."
            )
        for size in self.observation_sizes:
            if not isinstance(size, int) or not 1 <= size <= self.observation_size:
                raise ValueError(
                    "TaskSpec.observation_sizes must be within 1 and observation_size="
                    f"{self.observation_size}, found {size!r}."
                )

    @classmethod
    def from_env(cls, env: EnvBase) -> TaskSpec:
        """Reads the sizes off an environment in the package's layout.

        Args:
            env (EnvBase): an environment with ``("agents", "observation")``, ``"state"`` and
                ``("agents", "action")``.

        Raises:
            KeyError: if one of these keys is missing from the environment's specs.
            ValueError: if actions are neither continuous nor categorical, or agents' bounds
                differ.
        """
        batch = len(env.batch_size)
        observations = env.full_observation_spec
        found = {str(k) for k in observations.keys(True, True)}
        found |= {str(k) for k in env.full_action_spec.keys(True, True)}
        action = env.full_action_spec.get(("agents", "action"), None)
        required = {
            ("agents", "observation"): observations.get(("agents", "observation"), None),
            "state": observations.get("state", None),
            ("agents", "action"): action,
        }
        for key, value in required.items():
            if value is None:
                raise MissingKeyError(
                    f"The environment has no entry {key!r}; found {sorted(found)}. "
                    "Environments must follow the package's layout (see make_env)."
                )
        n_agents, observation_size = observations["agents", "observation"].shape[batch:]
        discrete = isinstance(action, Categorical)
        low: tuple[float, ...] = ()
        high: tuple[float, ...] = ()
        if discrete:
            action_size = int(action.space.n)
        elif not action.dtype.is_floating_point:
            raise ValueError(
                "('agents', 'action'): expected floats, or integers of a Categorical spec, found "
                f"{type(action).__name__} of {action.dtype}."
            )
        else:
            action_size = action.shape[-1]
            if isinstance(action, Bounded):
                low_all = action.space.low.reshape(-1, action_size)
                high_all = action.space.high.reshape(-1, action_size)
                if (low_all != low_all[0]).any() or (high_all != high_all[0]).any():
                    raise ValueError("All agents must have the same action bounds.")
                low, high = tuple(low_all[0].tolist()), tuple(high_all[0].tolist())
            else:
                low, high = (-float("inf"),) * action_size, (float("inf"),) * action_size
        return cls(
            n_agents=int(n_agents),
            observation_size=int(observation_size),
            state_size=int(observations["state"].shape[-1]),
            action_size=int(action_size),
            discrete=discrete,
            action_low=low,
            action_high=high,
            observation_sizes=tuple(getattr(env, "observation_sizes", ())),
            max_steps=getattr(env, "max_steps", None),
            task=getattr(env, "task", None),
        )

    def action_spec(self, device: torch.device | str | None = None) -> TensorSpec:
        """The unbatched spec of the joint action: ``[N, d_a]`` floats or ``[N]`` integers."""
        if self.discrete:
            return Categorical(self.action_size, shape=(self.n_agents,), device=device)
        shape = (self.n_agents, self.action_size)
        return Bounded(
            low=torch.tensor(self.action_low, device=device).expand(shape),
            high=torch.tensor(self.action_high, device=device).expand(shape),
            shape=shape,
            device=device,
        )

    def observation_spec(self, device: torch.device | str | None = None) -> Composite:
        """The unbatched spec of observations, masks (discrete only), state and step count."""
        agents = Composite(
            observation=Unbounded((self.n_agents, self.observation_size), device=device),
            shape=(self.n_agents,),
            device=device,
        )
        if self.discrete:
            mask_shape = (self.n_agents, self.action_size)
            agents["action_mask"] = Categorical(
                2, shape=mask_shape, dtype=torch.bool, device=device
            )
        return Composite(
            agents=agents,
            state=Unbounded((self.state_size,), device=device),
            step=Unbounded((1,), dtype=torch.int64, device=device),
            device=device,
        )

    def require_match(self, other: TaskSpec, what: str) -> None:
        """Raises if ``other`` cannot be served by a component made for this spec.

        Args:
            other (TaskSpec): the spec found.
            what (str): how the error names the thing that was found.

        Raises:
            ValueError: names each field that differs, with the expected and the found value.
        """
        names = ["n_agents", "observation_size", "state_size", "action_size", "discrete"]
        names += ["action_low", "action_high"]
        if self.task and other.task:
            names.append("task")
        wrong = [n for n in names if getattr(self, n) != getattr(other, n)]
        if wrong:
            listed = "; ".join(
                f"{n}: expected {getattr(self, n)!r}, found {getattr(other, n)!r}" for n in wrong
            )
            raise ValueError(
                f"{what} belongs to another task: {listed}. Take one of the same task, or make "
                "what uses it for this one."
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as JSON holds it."""
        return {
            k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TaskSpec:
        """Inverse of :meth:`to_dict`; unknown fields, and missing ones without default, raise."""
        if not isinstance(data, Mapping):
            raise ValueError(f"TaskSpec: expected fields, found {data!r}.")
        fields = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(data) - fields)
        if unknown:
            raise ValueError(f"Unknown TaskSpec fields {unknown}; expected {sorted(fields)}.")
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data.items()
        }
        return cls(**values)
