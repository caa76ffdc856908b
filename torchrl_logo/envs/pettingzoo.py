"""Any PettingZoo parallel environment in the package's layout."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any
from urllib.parse import parse_qsl, urlencode

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Bounded, Categorical, Composite, TensorSpec, Unbounded
from torchrl.envs import EnvBase

from torchrl_logo.optional_dependencies import require

__all__ = ["TASK_PREFIX", "PettingZooTeamEnv", "available_tasks", "build_env"]

#: What the names of these tasks begin with.
TASK_PREFIX = "pettingzoo"

# What the contract of environments is tested on; the tasks themselves are open-ended.
CONTRACT_TASKS = (
    "pettingzoo/mpe2:simple_tag_v3?state=simulator&team_reward=sum&continuous_actions=True",
    "pettingzoo/mpe2:simple_speaker_listener_v4",
)

TEAM_REWARDS = ("shared", "mean", "sum")
STATES = ("simulator", "concatenate")

_MASK = "action_mask"

_unseeded = itertools.count()  # environments of this process that were made without a seed


class PettingZooTeamEnv(EnvBase):
    """Several simulators of one PettingZoo parallel environment as one batched team task.

    Differs from :class:`torchrl.envs.libs.pettingzoo.PettingZooWrapper` in what an offline
    multi-agent dataset needs:

    - all agents are one group, ``"agents"``, in the order of ``possible_agents``. Observations
      are flattened and padded with zeros at the end; ``observation_sizes`` holds the true sizes.
      Continuous actions of agents that have fewer components are padded too (what is written
      there is ignored), and discrete ones by actions that are never available; ``action_sizes``
      holds the true sizes;
    - ``"state"`` is the simulator's own ``state()``. A simulator that has none is refused, unless
      ``state="concatenate"`` asks for the agents' observations in its place;
    - ``"reward"`` is one team reward, made from the agents' rewards by a named rule;
    - ``("agents", "action_mask")`` is, for discrete actions, what the simulator gives as
      ``"action_mask"`` of an agent's info or observation, or else all of its actions;
    - an agent that is out before the others has action 0 alone available (it is not passed on),
      is rewarded with 0, and observes zeros once the simulator shows it nothing;
    - the episode ends with its last agent. It is ``"truncated"`` where an agent's end in that step
      is a truncation, and ``"terminated"`` where all of them are terminations. The last step is
      the simulator's last, and a simulator is reset only when asked to;
    - simulator ``i`` draws from a stream of seeds that belongs to it, so that resets of others
      change nothing for it, and the same seed yields the same episodes. (Simulators that draw
      from the process' random state are beyond that.)

    Args:
        make_simulator (Callable): makes one simulator, a ``pettingzoo.ParallelEnv``.

    Keyword Args:
        num_envs (int): number of simulators that run as one batch. Defaults to ``1``.
        team_reward (str): ``"shared"`` takes the reward that all agents share, and raises where
            they differ; ``"mean"`` and ``"sum"`` are over all agents. Defaults to ``"shared"``.
        state (str): ``"simulator"`` or ``"concatenate"``. Defaults to ``"simulator"``.
        task (str, optional): name of the task.
        seed (int, optional): seed of the environment's own random state. Defaults to another one
            for each environment, made from :func:`torch.initial_seed`.
        device (torch.device, optional): where tensors are written; the simulators run on the CPU.

    Raises:
        ValueError: if an argument is not one of those named, the simulator has no state, or its
            spaces do not fit the layout: other observations than boxes, other actions than boxes
            or discrete ones, both kinds of actions, or bounds that differ between agents.

    Examples:
        >>> from mpe2 import simple_spread_v3  # doctest: +SKIP
        >>> env = PettingZooTeamEnv(lambda: simple_spread_v3.parallel_env(local_ratio=0.0),
        ...                         num_envs=2, seed=0)  # doctest: +SKIP
        >>> env.rollout(3)["next", "reward"].shape  # doctest: +SKIP
        torch.Size([2, 3, 1])
    """

    batch_locked = True

    def __init__(
        self,
        make_simulator: Callable[[], Any],
        *,
        num_envs: int = 1,
        team_reward: str = "shared",
        state: str = "simulator",
        task: str | None = None,
        seed: int | None = None,
        device: torch.device | str | None = "cpu",
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, found {num_envs}.")
        if team_reward not in TEAM_REWARDS:
            raise ValueError(f"team_reward must be one of {TEAM_REWARDS}, found {team_reward!r}.")
        if state not in STATES:
            raise ValueError(f"state must be one of {STATES}, found {state!r}.")
        super().__init__(device=device, batch_size=torch.Size([num_envs]))
        self.task = task
        self.team_reward = team_reward
        self.simulators = [make_simulator() for _ in range(num_envs)]
        self._concatenate = state == "concatenate"
        self._read_spaces(self.simulators[0])
        if seed is None:
            seed = (torch.initial_seed() + 1_000_003 * next(_unseeded)) % 2**31
        self._allocate()
        self._make_specs()
        self._set_seed(seed)

    @property
    def n_agents(self) -> int:
        """Number of agents, ``N``."""
        return len(self.agent_names)

    @property
    def max_steps(self) -> int | None:
        """The simulator's own ``max_cycles``, after which it truncates, where it has one."""
        found = getattr(self.simulators[0].unwrapped, "max_cycles", None)
        return int(found) if isinstance(found, int) else None

    def _read_spaces(self, simulator: Any) -> None:
        """Reads agents' names, sizes and bounds, and refuses what does not fit the layout."""
        from gymnasium import spaces

        names = list(getattr(simulator, "possible_agents", ()))
        if not names:
            raise ValueError(f"{self._name}: the simulator names no possible_agents.")
        self.agent_names = names
        self.group_map = {"agents": names}
        self.observation_sizes: list[int] = []
        for name in names:
            space = simulator.observation_space(name)
            if isinstance(space, spaces.Dict) and "observation" in space.spaces:
                space = space["observation"]
            if not isinstance(space, spaces.Box):
                raise ValueError(f"{self._name}: {name!r} must observe a Box, found {space}.")
            self.observation_sizes.append(int(np.prod(space.shape)))

        found = {name: simulator.action_space(name) for name in names}
        self.action_spaces = list(found.values())
        self.discrete = all(isinstance(space, spaces.Discrete) for space in found.values())
        if self.discrete:
            self.action_sizes = [int(space.n) for space in self.action_spaces]
            return
        if not all(isinstance(space, spaces.Box) for space in found.values()):
            raise ValueError(
                f"{self._name}: actions must be all Discrete or all Box, found {found}."
            )
        self.action_sizes = [int(np.prod(space.shape)) for space in self.action_spaces]
        width = max(self.action_sizes)
        self._action_low = np.full(width, np.nan, dtype=np.float32)
        self._action_high = self._action_low.copy()
        for bound, attribute in ((self._action_low, "low"), (self._action_high, "high")):
            for space, size in zip(self.action_spaces, self.action_sizes, strict=True):
                own = getattr(space, attribute).reshape(-1).astype(np.float32)
                known = ~np.isnan(bound[:size])
                if (bound[:size][known] != own[known]).any():
                    raise ValueError(f"{self._name}: agents' action bounds differ: {found}.")
                bound[:size] = own

    @property
    def _name(self) -> str:
        return self.task or "PettingZooTeamEnv"

    def _allocate(self) -> None:
        """Makes the arrays that hold the current step."""
        envs, agents = len(self.simulators), self.n_agents
        self._observation = np.zeros((envs, agents, max(self.observation_sizes)), np.float32)
        self._alive = np.zeros((envs, agents), dtype=bool)
        self._reward = np.zeros((envs, 1), dtype=np.float32)
        self._terminated = np.zeros((envs, 1), dtype=bool)
        self._truncated = np.zeros((envs, 1), dtype=bool)
        self._steps = np.zeros((envs, 1), dtype=np.int64)
        if self.discrete:
            self._available = np.zeros((envs, agents, max(self.action_sizes)), dtype=bool)
        # The size of the state is known from a state alone: not all simulators have its space.
        observations, _ = self.simulators[0].reset(seed=0)
        self._observe(0, observations, {}, {})
        self._state = np.zeros((envs, self._read_state(0).size), dtype=np.float32)

    def _make_specs(self) -> None:
        device, agents = self.device, self.n_agents
        observation = Composite(
            observation=Unbounded((agents, self._observation.shape[-1]), device=device),
            shape=(agents,),
            device=device,
        )
        width = max(self.action_sizes)
        action: TensorSpec
        if self.discrete:
            observation[_MASK] = Categorical(
                2, shape=(agents, width), dtype=torch.bool, device=device
            )
            action = Categorical(width, shape=(agents,), dtype=torch.int64, device=device)
        elif np.isfinite(self._action_low).all() and np.isfinite(self._action_high).all():
            shape = (agents, width)
            action = Bounded(
                low=torch.as_tensor(self._action_low, device=device).expand(shape),
                high=torch.as_tensor(self._action_high, device=device).expand(shape),
                shape=shape,
                dtype=torch.float32,
                device=device,
            )
        else:
            action = Unbounded((agents, width), device=device)
        self.observation_spec = Composite(
            agents=observation,
            state=Unbounded((self._state.shape[-1],), device=device),
            step=Unbounded((1,), dtype=torch.int64, device=device),
            device=device,
        ).expand(self.batch_size)
        self.action_spec = Composite(
            agents=Composite(action=action, shape=(agents,), device=device), device=device
        ).expand(self.batch_size)
        self.reward_spec = Composite(reward=Unbounded((1,), device=device), device=device).expand(
            self.batch_size
        )
        flag = Categorical(2, shape=(1,), dtype=torch.bool, device=device)
        self.done_spec = Composite(
            {name: flag.clone() for name in ("done", "terminated", "truncated")}, device=device
        ).expand(self.batch_size)

    def _set_seed(self, seed: int | None) -> None:
        seed = 0 if seed is None else seed
        self._seeds = [np.random.default_rng([seed, i]) for i in range(len(self.simulators))]

    def _start(self, index: int) -> None:
        """Starts an episode of one simulator."""
        seed = int(self._seeds[index].integers(2**31))
        observations, infos = self.simulators[index].reset(seed=seed)
        self._reward[index] = 0.0
        self._terminated[index] = False
        self._truncated[index] = False
        self._steps[index] = 0
        self._observe(index, observations, infos, {})
        self._state[index] = self._read_state(index)

    def _observe(
        self,
        index: int,
        observations: Mapping[str, Any],
        infos: Mapping[str, Any],
        terminations: Mapping[str, Any],
    ) -> None:
        """Takes what a simulator shows its agents."""
        acting = set(self.simulators[index].agents)
        for i, name in enumerate(self.agent_names):
            seen = observations.get(name)
            self._alive[index, i] = name in acting
            mask = None
            if seen is None:
                self._observation[index, i] = 0.0
            else:
                if isinstance(seen, Mapping):
                    mask = seen.get(_MASK)
                    seen = seen["observation"]
                size = self.observation_sizes[i]
                self._observation[index, i, :size] = np.asarray(seen).reshape(-1)
            if self.discrete:
                available = self._available[index, i]
                available[:] = False
                # Where an agent is cut off, what it could have done next is needed to bootstrap.
                if seen is None or terminations.get(name, False):
                    available[0] = True
                    continue
                mask = infos.get(name, {}).get(_MASK, mask)
                available[: self.action_sizes[i]] = True if mask is None else mask

    def _read_state(self, index: int) -> np.ndarray:
        if self._concatenate:
            pairs = zip(self._observation[index], self.observation_sizes, strict=True)
            return np.concatenate([own[:size] for own, size in pairs])
        try:
            state = self.simulators[index].state()
        except (NotImplementedError, AttributeError) as error:
            raise ValueError(
                f"{self._name}: the simulator has no state() of its own. To take the agents' "
                "concatenated observations in its place, say so: state='concatenate'."
            ) from error
        return np.asarray(state, dtype=np.float32).reshape(-1)

    def _reduce_rewards(self, rewards: Mapping[str, Any]) -> float:
        values = [float(value) for value in rewards.values()]
        if self.team_reward == "sum":
            return sum(values)
        if self.team_reward == "mean":
            return sum(values) / self.n_agents
        if values and max(values) != min(values):
            raise ValueError(
                f"{self._name}: agents' rewards differ ({dict(rewards)}), so that a team reward "
                "needs a rule: team_reward='mean' or 'sum'."
            )
        return values[0] if values else 0.0

    def _advance(self, index: int, actions: list[Any]) -> None:
        """Steps one simulator; one whose episode has ended stays where it is."""
        simulator = self.simulators[index]
        if self._terminated[index, 0] or self._truncated[index, 0]:
            self._reward[index] = 0.0
            return
        alive = self._alive[index]
        joint = {name: actions[i] for i, name in enumerate(self.agent_names) if alive[i]}
        observations, rewards, terminations, truncations, infos = simulator.step(joint)
        self._observe(index, observations, infos, terminations)
        self._state[index] = self._read_state(index)
        self._reward[index] = self._reduce_rewards(rewards)
        self._steps[index] += 1
        going_on = [
            name
            for name in simulator.agents
            if not (terminations.get(name, False) or truncations.get(name, False))
        ]
        if not going_on:
            by_limit = any(truncations.values())
            self._truncated[index] = by_limit
            self._terminated[index] = not by_limit or all(terminations.values())

    def _split_actions(self, action: np.ndarray) -> list[list[Any]]:
        """The actions of each simulator's agents, in their own spaces' shapes."""
        if self.discrete:
            # Judged before any simulator is stepped: a batch is never left half-stepped.
            allowed = np.take_along_axis(self._available, action[..., None], -1)[..., 0]
            wrong = np.argwhere(~allowed & self._alive)
            if len(wrong):
                index, agent = wrong[0]
                raise ValueError(
                    f"{self._name}: agent {self.agent_names[agent]!r} of simulator {index} cannot "
                    f"take action {action[index, agent]}; available are "
                    f"{np.flatnonzero(self._available[index, agent]).tolist()}."
                )
            starts = np.array([int(space.start) for space in self.action_spaces])
            return (action + starts).tolist()
        columns = [
            action[:, i, :size].reshape(-1, *space.shape).astype(space.dtype, copy=False)
            for i, (space, size) in enumerate(
                zip(self.action_spaces, self.action_sizes, strict=True)
            )
        ]
        return [list(row) for row in zip(*columns, strict=True)]

    def _write(self) -> TensorDict:
        def copy(array: np.ndarray) -> torch.Tensor:
            return torch.tensor(array, device=self.device)

        agents = {"observation": copy(self._observation)}
        if self.discrete:
            agents[_MASK] = copy(self._available)
            # Random actions are drawn from the spec: only available ones, as in TorchRL's SMAC.
            self.full_action_spec["agents", "action"].update_mask(agents[_MASK])
        return TensorDict(
            {
                "agents": TensorDict(
                    agents, batch_size=self._observation.shape[:2], device=self.device
                ),
                "state": copy(self._state),
                "step": copy(self._steps),
                "terminated": copy(self._terminated),
                "truncated": copy(self._truncated),
                "done": copy(self._terminated | self._truncated),
            },
            batch_size=self.batch_size,
            device=self.device,
        )

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDict:
        reset = None if tensordict is None else tensordict.get("_reset", None)
        if reset is None:
            marked = range(len(self.simulators))
        else:
            marked = reset.reshape(-1).nonzero().flatten().tolist()
        for index in marked:
            self._start(index)
        return self._write()

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        action = tensordict.get(("agents", "action")).detach().cpu().numpy()
        for index, actions in enumerate(self._split_actions(action)):
            self._advance(index, actions)
        out = self._write()
        out.set("reward", torch.tensor(self._reward, device=self.device))
        return out

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Closes all simulators."""
        for simulator in self.simulators:
            simulator.close()
        super().close(raise_if_closed=raise_if_closed)


def available_tasks() -> list[str]:
    """An empty list: any installed PettingZoo environment is a task, none is listed."""
    return []


def _import_module(name: str) -> ModuleType:
    """Imports a simulator's module, which can be of any package."""
    if name.partition(".")[0] == "mpe2":
        return require(name, extra="mpe")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if missing == name or name.startswith(f"{missing}."):
            hint = "Is the name right, and the package that has it installed?"
            raise ImportError(f"There is no module {name!r}. {hint}", name=missing) from error
        hint = "Install what the simulator's documentation says it needs"
        if name.startswith("pettingzoo."):
            hint += f", for instance: pip install 'pettingzoo[{name.split('.')[1]}]'"
        raise ImportError(f"{name} needs {missing}, which is not installed. {hint}") from error


def _find_factory(module_name: str, env_name: str) -> Callable[..., Any]:
    """What makes the simulator: a module's ``parallel_env``, or a class of parallel environments.

    Nothing else is ever called, since names of tasks come with datasets from elsewhere.
    """
    pettingzoo = require("pettingzoo", extra="mpe")
    module = _import_module(module_name)
    found = getattr(module, env_name, None)
    if found is None:
        path = f"{module_name}.{env_name}"
        try:
            found = importlib.import_module(path)
        except ModuleNotFoundError as error:
            if error.name == path or not hasattr(module, "__path__"):
                raise ValueError(f"{module_name!r} has no environment {env_name!r}.") from error
            raise
    if inspect.ismodule(found):
        found = getattr(found, "parallel_env", None)
    elif env_name != "parallel_env" and not (
        inspect.isclass(found) and issubclass(found, pettingzoo.ParallelEnv)
    ):
        found = None
    if not callable(found):
        raise ValueError(
            f"{module_name}:{env_name} is no PettingZoo parallel environment: expected a module "
            "with parallel_env, a function parallel_env, or a subclass of pettingzoo.ParallelEnv."
        )
    return found


def _read_options(query: str) -> dict[str, Any]:
    """Options of a task's name: Python literals where they are some, text otherwise."""
    options: dict[str, Any] = {}
    for key, text in parse_qsl(query, keep_blank_values=True):
        try:
            options[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            options[key] = text
    return options


def build_env(
    name: str,
    *,
    num_envs: int = 1,
    device: torch.device | str = "cpu",
    seed: int | None = None,
    **options: Any,
) -> PettingZooTeamEnv:
    """Builds any PettingZoo parallel environment.

    Args:
        name (str): ``"<module>:<env>"``, for instance ``"pettingzoo.sisl:pursuit_v5"`` or
            ``"mpe2:simple_spread_v3"``: a module with ``parallel_env``, that function itself
            (``"my_package.my_env:parallel_env"``), or a class of parallel environments. Options
            may follow, as in ``"mpe2:simple_spread_v3?local_ratio=0.0"``.

    Keyword Args:
        num_envs (int): number of simulators that run as one batch.
        device (torch.device or str): where tensors are written.
        seed (int, optional): seed of the environment's own random state.
        **options: ``team_reward`` and ``state`` of :class:`PettingZooTeamEnv`; all others are
            passed on to the simulator. They become part of the task's name, so that a dataset
            knows them.

    Raises:
        ImportError: if PettingZoo or the module is not installed.
        ValueError: if there is no such parallel environment, or see :class:`PettingZooTeamEnv`.

    Examples:
        >>> build_env("mpe2:simple_spread_v3", local_ratio=0.0).task  # doctest: +SKIP
        'pettingzoo/mpe2:simple_spread_v3?local_ratio=0.0'
    """
    address, _, query = name.partition("?")
    module_name, _, env_name = address.partition(":")
    if not module_name or not env_name:
        raise ValueError(
            f"A PettingZoo task is named '{TASK_PREFIX}/<module>:<env>', found "
            f"'{TASK_PREFIX}/{name}'."
        )
    options = {**_read_options(query), **options}
    factory = _find_factory(module_name, env_name)
    own = {key: options[key] for key in ("team_reward", "state") if key in options}
    passed_on = {key: value for key, value in options.items() if key not in own}
    return PettingZooTeamEnv(
        lambda: factory(**passed_on),
        num_envs=num_envs,
        task=f"{TASK_PREFIX}/{address}" + (f"?{urlencode(options)}" if options else ""),
        seed=seed,
        device=device,
        **own,
    )
