"""VMAS scenarios as TorchRL environments in the package's layout."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Categorical, Composite, Unbounded
from torchrl.envs.libs.vmas import VmasEnv

__all__ = ["TASK_PREFIX", "VmasTeamEnv", "available_tasks", "build_env"]

#: What the names of these tasks begin with.
TASK_PREFIX = "vmas"

# What a scenario needs to be a team task; anything not named runs with VMAS' own defaults.
_SCENARIO_KWARGS: dict[str, dict[str, Any]] = {
    "discovery": {"shared_reward": True},
}

# Scenarios that are no team task in the package's layout, and why.
_COMPETITIVE = "its agents compete, so there is no one team reward"
_SPOKEN = "what its agents say to each other is no part of the entities' state"
_UNSUPPORTED = {
    "simple_adversary": _COMPETITIVE,
    "simple_crypto": _COMPETITIVE,
    "simple_push": _COMPETITIVE,
    "simple_reference": _SPOKEN,
    "simple_speaker_listener": _SPOKEN,
    "simple_tag": _COMPETITIVE,
    "simple_world_comm": _COMPETITIVE,
}

# The length at which an episode is truncated, in simulator steps. The package of transport is
# heavy: within 100 steps not even good teams bring it to the goal.
_MAX_STEPS = {"default": 100, "transport": 200}

# What the contract of environments is tested on: the scenarios that the field uses.
CONTRACT_TASKS = tuple(
    f"{TASK_PREFIX}/{name}"
    for name in (
        "balance transport navigation wheel discovery sampling reverse_transport give_way "
        "ball_passage"
    ).split()
)

_unseeded = itertools.count()  # environments of this process that were made without a seed


class VmasTeamEnv(VmasEnv):
    """A VMAS scenario with the simulator's own global state and one team reward.

    Differs from :class:`torchrl.envs.libs.vmas.VmasEnv`, which it subclasses, in what an offline
    multi-agent dataset needs:

    - ``"state"`` is the simulator's global state: position, velocity, rotation and angular
      velocity of every entity (landmarks, goals and packages among them, then agents), and
      never the concatenation of the observations. What a scenario keeps elsewhere is not in it:
      the food that was eaten in ``dispersion`` and ``dropout``, the cells that were visited in
      ``sampling``;
    - ``"reward"`` is one team reward at the root, the mean of the agents' rewards, which for
      scenarios with a shared reward is that reward;
    - ``"terminated"`` is the scenario's own end, ``"truncated"`` the time limit;
    - ``"step"`` counts the steps of the current episode;
    - the random state belongs to the instance: two environments with the same seed yield the
      same episodes, whatever runs between, and seeding leaves the process' random state alone.
      (VMAS keeps a single one for all environments of the process.)

    Observations of agents that see fewer features than others are padded with zeros at the end;
    ``observation_sizes`` holds the true sizes.

    Args:
        scenario (str): name of a VMAS scenario, for instance ``"balance"``.

    Keyword Args:
        num_envs (int): number of simulations that run as one batch.
        max_steps (int): episodes are truncated after this many steps. Defaults to ``100``.
        seed (int, optional): seed of the environment's own random state. Defaults to another one
            for each environment, made from :func:`torch.initial_seed`.
        device (torch.device, optional): where the simulation runs. Defaults to ``"cpu"``.
        **kwargs: passed on to the scenario.

    Raises:
        ValueError: if ``num_envs`` or ``max_steps`` is not positive, or if the scenario does not
            fit the layout: agents whose actions differ in size, that speak, or whose
            observations are not vectors.

    Examples:
        >>> env = VmasTeamEnv("balance", num_envs=2, seed=0)
        >>> rollout = env.rollout(3)
        >>> rollout["agents", "observation"].shape  # [envs, steps, agents, features]
        torch.Size([2, 3, 3, 16])
        >>> rollout["next", "reward"].shape, rollout["state"].shape
        (torch.Size([2, 3, 1]), torch.Size([2, 3, 42]))
    """

    def __init__(
        self,
        scenario: str,
        *,
        num_envs: int,
        max_steps: int = _MAX_STEPS["default"],
        seed: int | None = None,
        device: torch.device | str | None = "cpu",
        **kwargs: Any,
    ) -> None:
        for name, value in (("num_envs", num_envs), ("max_steps", max_steps)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, found {value}.")
        # VMAS reads its limit as a termination: it is kept from it and handled here.
        super().__init__(
            scenario, num_envs=num_envs, max_steps=None, seed=None, device=device, **kwargs
        )
        self.episode_length = int(max_steps)
        self.task = f"{TASK_PREFIX}/{scenario}"
        if seed is None:
            # Not VMAS' shared state, of which environments would take overlapping parts, and no
            # draw from the process' random state, which an environment should not disturb.
            seed = (torch.initial_seed() + 1_000_003 * next(_unseeded)) % 2**31
        self._set_seed(seed)

    @property
    def max_steps(self) -> int:
        """The number of steps after which an episode is truncated."""
        return self.episode_length

    def _get_default_group_map(self, agent_names: list[str]) -> dict[str, list[str]]:
        # The layout has one group, "agents", whatever the scenario calls its agents.
        return {"agents": agent_names}

    def _make_specs(self, env: Any) -> None:
        _require_layout(env)
        super()._make_specs(env)
        agents = self.agents
        sizes = [self.observation_space[i].shape[-1] for i in range(len(agents))]
        self.observation_sizes = sizes
        self.full_observation_spec_unbatched = Composite(
            {
                "agents": Composite(
                    observation=Unbounded(shape=(len(agents), max(sizes)), device=self.device),
                    shape=(len(agents),),
                    device=self.device,
                ),
                "state": Unbounded(shape=(6 * len(env.world.entities),), device=self.device),
                "step": Unbounded(shape=(1,), dtype=torch.int64, device=self.device),
            },
            device=self.device,
        )
        self.full_reward_spec_unbatched = Composite(
            {"reward": Unbounded(shape=(1,), device=self.device)}, device=self.device
        )
        flag = Categorical(2, shape=(1,), dtype=torch.bool, device=self.device)
        self.full_done_spec_unbatched = Composite(
            {name: flag.clone() for name in ("done", "terminated", "truncated")},
            device=self.device,
        )

    def _set_seed(self, seed: int | None) -> None:
        # As VMAS does it (None is 0), but without a detour over the process' random state.
        seed = 0 if seed is None else seed
        self._random_state: list[Any] = [
            torch.Generator().manual_seed(seed).get_state(),
            np.random.RandomState(seed).get_state(),
            random.Random(seed).getstate(),
        ]
        self._cuda_random_state: torch.Tensor | None = None
        self._last_seed = seed

    @contextlib.contextmanager
    def _own_random_state(self) -> Iterator[None]:
        """Lends VMAS this instance's random state for the length of a call."""
        shared = type(self._env).vmas_random_state
        others = list(shared)
        shared[:] = self._random_state
        device = self._env.device
        # VMAS looks after the CPU's generators only; on a GPU scenarios draw from the device's.
        on_cuda = device.type == "cuda"
        if on_cuda:
            others_cuda = torch.cuda.get_rng_state(device)
            own = self._cuda_random_state
            if own is None:
                own = torch.Generator(device).manual_seed(self._last_seed).get_state()
            torch.cuda.set_rng_state(own, device)
        try:
            yield
        finally:
            self._random_state = list(shared)
            shared[:] = others
            if on_cuda:
                self._cuda_random_state = torch.cuda.get_rng_state(device)
                torch.cuda.set_rng_state(others_cuda, device)

    def _read_state(self) -> torch.Tensor:
        """Reads the simulator's state of all entities: ``[num_envs, 6 * entities]``."""
        parts: list[torch.Tensor] = []
        for entity in self._env.world.entities:
            s = entity.state
            parts += [s.pos, s.vel, s.rot, s.ang_vel]
        return torch.cat(parts, dim=-1).to(torch.float32)  # [E, 6 * entities]

    def put_state(self, state: torch.Tensor) -> None:
        """Puts recorded states into the simulator, from where its next step goes on.

        A recorded state holds position, velocity, rotation and angular velocity of every entity.
        What else a scenario remembers from one step to the next is mostly how far from its goal
        it was, of which it rewards the difference: it is computed again from the state, by asking
        for the rewards of the state that was put in and throwing them away.

        Args:
            state (torch.Tensor): ``[num_envs, 6 * entities]``, as this environment gives it.

        Raises:
            ValueError: if the shape is another one.
        """
        world = self._env.world
        expected = (self._env.num_envs, 6 * len(world.entities))
        if tuple(state.shape) != expected:
            raise ValueError(
                f"states must be {list(expected)} (6 values for each of {len(world.entities)} "
                f"entities), found {list(state.shape)}."
            )
        for entity, values in zip(world.entities, state.to(self.device).split(6, -1), strict=True):
            position, velocity, rotation, angular = values.split([2, 2, 1, 1], -1)
            entity.state.pos, entity.state.vel = position.clone(), velocity.clone()
            entity.state.rot, entity.state.ang_vel = rotation.clone(), angular.clone()
        with self._own_random_state():
            for agent in self._env.agents:
                self._env.scenario.reward(agent)

    def _read(self, observations: list[torch.Tensor], terminated: torch.Tensor) -> TensorDict:
        width = max(self.observation_sizes)
        observation = torch.stack(
            [torch.nn.functional.pad(o, (0, width - o.shape[-1])) for o in observations], dim=1
        )  # [E, N, d_o]
        step = self._env.steps.to(torch.int64).unsqueeze(-1)  # [E, 1]
        terminated = terminated.unsqueeze(-1).bool()
        truncated = step >= self.episode_length
        return TensorDict(
            {
                "agents": TensorDict(
                    {"observation": observation},
                    batch_size=observation.shape[:2],
                    device=self.device,
                ),
                "state": self._read_state(),
                "step": step,
                "terminated": terminated,
                "truncated": truncated,
                "done": terminated | truncated,
            },
            batch_size=self.batch_size,
            device=self.device,
        )

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDict:
        reset = None if tensordict is None else tensordict.get("_reset", None)
        with self._own_random_state():
            if reset is None or bool(reset.all()):
                self._env.reset(return_observations=False)
            else:
                # VMAS resets either one simulation or all of them.
                for index in reset.squeeze(-1).nonzero().flatten().tolist():
                    self._env.reset_at(index, return_observations=False)
            observations, terminated = self._env.get_from_scenario(
                get_observations=True, get_infos=False, get_rewards=False, get_dones=True
            )
        return self._read(observations, terminated)

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        action = tensordict.get(("agents", "action"), None)
        size = self._env.get_agent_action_size(self.agents[0])
        expected = (*self.batch_size, len(self.agents), size)
        if action is None or tuple(action.shape) != expected:
            found = "none" if action is None else f"shape {tuple(action.shape)}"
            raise ValueError(
                f"{self.task} expected ('agents', 'action') of shape {expected}, found {found}. A "
                "policy of this task, or rand_action(), writes it."
            )
        actions = list(action.unbind(dim=1))
        with self._own_random_state():
            observations, rewards, terminated, _ = self._env.step(actions)
        out = self._read(observations, terminated)
        # Some scenarios return [E, 1] in place of [E].
        reward = torch.stack([r.reshape(self.batch_size) for r in rewards], dim=-1)  # [E, N]
        out.set("reward", reward.mean(-1, keepdim=True))  # [E, 1]
        return out


def _require_layout(env: Any) -> None:
    """Raises if a VMAS environment's agents do not fit the package's layout."""
    sizes = {agent.name: env.get_agent_action_size(agent) for agent in env.agents}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"All agents' actions must have one size, found {sizes}.")
    speakers = [agent.name for agent in env.agents if env.world.dim_c and not agent.silent]
    if speakers:
        raise ValueError(f"Agents that speak are not supported, found {speakers}: {_SPOKEN}.")
    for agent, space in zip(env.agents, env.observation_space, strict=True):
        if space.shape is None or len(space.shape) != 1:
            raise ValueError(f"Agent {agent.name!r} must observe a vector, found {space}.")


def _supported() -> list[str]:
    """The scenarios that are team tasks; VMAS' own debugging scenarios are not."""
    import vmas

    return sorted({*vmas.scenarios, *vmas.mpe_scenarios} - set(_UNSUPPORTED))


def available_tasks() -> list[str]:
    """Names of all VMAS team tasks, as :func:`torchrl_logo.envs.make_env` takes them."""
    return [f"{TASK_PREFIX}/{name}" for name in _supported()]


def build_env(
    name: str,
    *,
    num_envs: int = 1,
    device: torch.device | str = "cpu",
    seed: int | None = None,
) -> VmasTeamEnv:
    """Builds the environment of a VMAS scenario.

    Args:
        name (str): the scenario, without the ``vmas/`` prefix.

    Keyword Args:
        num_envs (int): number of simulations that run as one batch.
        device (torch.device or str): where the simulation runs.
        seed (int, optional): seed of the environment's own random state.

    Raises:
        ValueError: if VMAS has no such scenario, and then names the nearest ones; or if it is no
            team task, and then says why.

    Examples:
        >>> build_env("transport", num_envs=4, seed=1).batch_size
        torch.Size([4])
    """
    if name in _UNSUPPORTED:
        raise ValueError(f"{TASK_PREFIX}/{name} is no team task: {_UNSUPPORTED[name]}.")
    known = _supported()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.3)
        hint = ", ".join(f"{TASK_PREFIX}/{n}" for n in near) or ", ".join(available_tasks())
        raise ValueError(f"VMAS has no team scenario {name!r}. Nearest: {hint}.")
    return VmasTeamEnv(
        name,
        num_envs=num_envs,
        max_steps=_MAX_STEPS.get(name, _MAX_STEPS["default"]),
        seed=seed,
        device=device,
        **_SCENARIO_KWARGS.get(name, {}),
    )
