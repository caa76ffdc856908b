"""VMAS scenarios as TorchRL environments in the package's layout."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Categorical, Composite, Unbounded
from torchrl.envs.libs.vmas import VmasEnv

__all__ = ["TASK_PREFIX", "VmasTeamEnv", "available_tasks", "build_env"]

TASK_PREFIX = "vmas"

# What a scenario needs to be a team task; anything not named runs with VMAS' own defaults.
_SCENARIO_KWARGS: dict[str, dict[str, Any]] = {
    "discovery": {"shared_reward": True},
}

# The length at which an episode is truncated, in simulator steps. The package of transport is
# heavy: within 100 steps not even good teams bring it to the goal.
_MAX_STEPS = {"default": 100, "transport": 200}


class VmasTeamEnv(VmasEnv):
    """A VMAS scenario with the simulator's own global state and one team reward.

    Differs from :class:`torchrl.envs.libs.vmas.VmasEnv`, which it subclasses, in what an offline
    multi-agent dataset needs:

    - ``"state"`` is the simulator's global state: position, velocity, rotation and angular
      velocity of every entity (agents, then landmarks, goals among them), and never the
      concatenation of the observations;
    - ``"reward"`` is one team reward at the root, the mean of the agents' rewards, which for
      scenarios with a shared reward is that reward;
    - ``"terminated"`` is the scenario's own end, ``"truncated"`` the time limit;
    - ``"step"`` counts the steps of the current episode;
    - the random state belongs to the instance: two environments with the same seed yield the
      same episodes, whatever runs between. (VMAS keeps a single one for the whole process.)

    Observations of agents that see fewer features than others are padded with zeros at the end;
    ``observation_sizes`` holds the true sizes.

    Args:
        scenario (str): name of a VMAS scenario, for instance ``"balance"``.

    Keyword Args:
        num_envs (int): number of simulations that run as one batch.
        max_steps (int): episodes are truncated after this many steps. Defaults to ``100``.
        seed (int, optional): seed of the environment's own random state.
        device (torch.device, optional): where the simulation runs. Defaults to ``"cpu"``.
        **kwargs: passed on to the scenario.

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
        if max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, found {max_steps}.")
        # VMAS reads its limit as a termination: it is kept from it and handled here.
        super().__init__(
            scenario, num_envs=num_envs, max_steps=None, seed=None, device=device, **kwargs
        )
        self.episode_length = int(max_steps)
        self.task = f"{TASK_PREFIX}/{scenario}"
        self._random_state: list[Any] = list(type(self._env).vmas_random_state)
        if seed is not None:
            self.set_seed(seed)

    @property
    def max_steps(self) -> int:
        """The number of steps after which an episode is truncated."""
        return self.episode_length

    def _get_default_group_map(self, agent_names: list[str]) -> dict[str, list[str]]:
        # The layout has one group, "agents", whatever the scenario calls its agents.
        return {"agents": agent_names}

    def _make_specs(self, env: Any) -> None:
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

    @contextlib.contextmanager
    def _own_random_state(self) -> Iterator[None]:
        """Lends VMAS this instance's random state for the length of a call."""
        shared = type(self._env).vmas_random_state
        others = list(shared)
        shared[:] = self._random_state
        try:
            yield
        finally:
            self._random_state = list(shared)
            shared[:] = others

    def _set_seed(self, seed: int | None) -> None:
        with self._own_random_state():
            self._env.seed(seed)

    def _read_state(self) -> torch.Tensor:
        """Reads the simulator's state of all entities: ``[num_envs, 6 * entities]``."""
        parts: list[torch.Tensor] = []
        for entity in self._env.world.entities:
            s = entity.state
            parts += [s.pos, s.vel, s.rot, s.ang_vel]
        return torch.cat(parts, dim=-1).to(torch.float32)  # [E, 6 * entities]

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
        actions = list(tensordict.get(("agents", "action")).unbind(dim=1))
        with self._own_random_state():
            observations, rewards, terminated, _ = self._env.step(actions)
        out = self._read(observations, terminated)
        out.set("reward", torch.stack(rewards, dim=-1).mean(-1, keepdim=True))  # [E, 1]
        return out


def available_tasks() -> list[str]:
    """Names of all VMAS tasks, as :func:`torchrl_logo.envs.make_env` takes them."""
    return [f"{TASK_PREFIX}/{name}" for name in sorted(VmasEnv.available_envs)]


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
        ValueError: if VMAS has no such scenario; names the nearest ones.

    Examples:
        >>> build_env("transport", num_envs=4, seed=1).batch_size
        torch.Size([4])
    """
    known = list(VmasEnv.available_envs)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.3)
        hint = ", ".join(f"{TASK_PREFIX}/{n}" for n in near) or ", ".join(available_tasks())
        raise ValueError(f"VMAS has no scenario {name!r}. Nearest: {hint}.")
    return VmasTeamEnv(
        name,
        num_envs=num_envs,
        max_steps=_MAX_STEPS.get(name, _MAX_STEPS["default"]),
        seed=seed,
        device=device,
        **_SCENARIO_KWARGS.get(name, {}),
    )
