"""SMAX battles (SMAC's maps in JAX, without StarCraft II) in the package's layout."""

from __future__ import annotations

import difflib
import functools
import itertools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from torchrl_logo.optional_dependencies import require

__all__ = ["TASK_PREFIX", "SMAXTeamEnv", "available_tasks", "build_env"]

#: What the names of these tasks begin with.
TASK_PREFIX = "smax"

# The maps of JaxMARL 0.2; others that are registered with it are found once it is imported.
_MAPS = (
    "2s3z",
    "3s_vs_5z",
    "5m_vs_6m",
    "6h_vs_8z",
    "3m",
    "8m",
    "25m",
    "3s5z",
    "10m_vs_11m",
    "27m_vs_30m",
    "3s5z_vs_3s6z",
    "smacv2_5_units",
    "smacv2_10_units",
    "smacv2_20_units",
)

# Each map compiles for some seconds: the contract of environments is tested on one.
CONTRACT_TASKS = ("smax/2s3z",)

_unseeded = itertools.count()  # environments of this process that were made without a seed


class _Battle(NamedTuple):
    """A map's simulator and its compiled functions, shared by environments of the same size."""

    simulator: Any
    empty: Callable[..., Any]  # keys [E] -> current, before its first reset
    restart: Callable[..., Any]  # mask [E], current -> current, new where the mask is set
    step: Callable[..., Any]  # current, actions [E, N] -> current, reward [E]


class SMAXTeamEnv(EnvBase):
    """A battle of JaxMARL's SMAX against its heuristic enemy, as a batch of simulations.

    The simulator's state stays in JAX, on the CPU, and a step of the whole batch is one compiled
    call. What TorchRL sees are copies:

    - ``("agents", "observation")`` is each ally's; an ally that is dead observes zeros;
    - ``("agents", "action_mask")`` is the simulator's own: an ally that is dead can only stop,
      and an enemy can be shot while it is in range. An action that is not available is refused;
    - ``"state"`` is the simulator's ``world_state``;
    - ``"reward"`` is the team's: the share of the enemies' health that was taken in this step,
      plus one for the battle won;
    - ``"terminated"`` is a side that is dead, ``"truncated"`` the time limit, which in SMAX is
      reached after one step more than its ``max_steps``;
    - ``"battle_won"`` ``[num_envs, 1]`` bool is whether all enemies are dead and an ally alive, so
      that ``next["battle_won"]`` at the ends of episodes has the win rate as its mean;
    - simulation ``i`` draws from random keys of its own, made from the seed and ``i``: its
      episodes do not depend on how many others there are, or on when those are reset.

    Args:
        map_name (str): name of the map, for instance ``"2s3z"``.

    Keyword Args:
        num_envs (int): number of simulations that run as one batch. Defaults to ``1``.
        seed (int, optional): seed of the simulations' random keys. Defaults to another one for
            each environment, made from :func:`torch.initial_seed`.
        device (torch.device, optional): where tensors are written; the simulation runs on the CPU.

    Raises:
        ImportError: if JaxMARL is not installed.
        KeyError: if JaxMARL has no such map.
        ValueError: if ``num_envs`` is not positive.

    Examples:
        >>> env = SMAXTeamEnv("2s3z", num_envs=2, seed=0)  # doctest: +SKIP
        >>> rollout = env.rollout(3)  # doctest: +SKIP
        >>> rollout["agents", "action_mask"].shape, rollout["state"].shape  # doctest: +SKIP
        (torch.Size([2, 3, 5, 10]), torch.Size([2, 3, 120]))
    """

    batch_locked = True

    def __init__(
        self,
        map_name: str,
        *,
        num_envs: int = 1,
        seed: int | None = None,
        device: torch.device | str | None = "cpu",
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, found {num_envs}.")
        self._battle = _compile(map_name, num_envs)
        super().__init__(device=device, batch_size=torch.Size([num_envs]))
        self.task = f"{TASK_PREFIX}/{map_name}"
        simulator = self._battle.simulator
        self.group_map = {"agents": list(simulator.agents)}
        self.n_actions = int(simulator.num_ally_actions)
        self.observation_sizes = [int(simulator.obs_size)] * self.n_agents
        self._make_specs()
        if seed is None:
            seed = (torch.initial_seed() + 1_000_003 * next(_unseeded)) % 2**31
        self._set_seed(seed)

    @property
    def n_agents(self) -> int:
        """Number of allies, ``N``."""
        return int(self._battle.simulator.num_allies)

    @property
    def max_steps(self) -> int:
        """The number of steps after which an episode is truncated."""
        # The simulator compares the count from before the step.
        return int(self._battle.simulator.max_steps) + 1

    def _make_specs(self) -> None:
        device, agents = self.device, self.n_agents
        flag = Categorical(2, shape=(1,), dtype=torch.bool, device=device)
        mask_shape = (agents, self.n_actions)
        self.observation_spec = Composite(
            agents=Composite(
                observation=Unbounded((agents, self.observation_sizes[0]), device=device),
                action_mask=Categorical(2, shape=mask_shape, dtype=torch.bool, device=device),
                shape=(agents,),
                device=device,
            ),
            state=Unbounded((int(self._battle.simulator.state_size),), device=device),
            step=Unbounded((1,), dtype=torch.int64, device=device),
            battle_won=flag.clone(),
            device=device,
        ).expand(self.batch_size)
        action = Categorical(self.n_actions, shape=(agents,), dtype=torch.int64, device=device)
        self.action_spec = Composite(
            agents=Composite(action=action, shape=(agents,), device=device), device=device
        ).expand(self.batch_size)
        self.reward_spec = Composite(reward=Unbounded((1,), device=device), device=device).expand(
            self.batch_size
        )
        self.done_spec = Composite(
            {name: flag.clone() for name in ("done", "terminated", "truncated")}, device=device
        ).expand(self.batch_size)

    def _set_seed(self, seed: int | None) -> None:
        import jax

        with jax.default_device(jax.devices("cpu")[0]):
            key = jax.random.PRNGKey(0 if seed is None else seed)
            indices = jax.numpy.arange(self.batch_size.numel())
            keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices)
            self._current = self._battle.empty(keys)
        self._mask = _copy(self._current["action_mask"])
        # What the simulations that ended in the last step are after their reset, if begun already.
        self._restarted: tuple[np.ndarray, dict[str, Any]] | None = None
        self._restarts_ahead = True

    def _write(self) -> TensorDict:
        """The current step, in tensors of their own."""
        current, device = self._current, self.device
        self._mask = _copy(current["action_mask"])
        agents = TensorDict(
            {"observation": _copy(current["observation"]), "action_mask": self._mask},
            batch_size=self._mask.shape[:2],
        )
        out = TensorDict(
            {
                "agents": agents,
                "state": _copy(current["state"]),
                "step": _copy(current["step"]).to(torch.int64).unsqueeze(-1),
            },
            batch_size=self.batch_size,
        )
        for name in ("battle_won", "done", "terminated", "truncated"):
            out.set(name, _copy(current[name]).unsqueeze(-1))
        if device is not None and device.type != "cpu":
            out = out.to(device)
        # Random actions are drawn from the spec: only available ones, as in TorchRL's SMAC.
        mask = out.get(("agents", "action_mask"))
        self.full_action_spec["agents", "action"].update_mask(mask)
        return out

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDict:
        reset = None if tensordict is None else tensordict.get("_reset", None)
        if reset is None:
            reset = torch.ones(self.batch_size, dtype=torch.bool)
        mask = reset.reshape(-1).cpu().numpy().copy()
        ahead, self._restarted = self._restarted, None
        if ahead is not None and np.array_equal(mask, ahead[0]):
            self._current = ahead[1]
        else:
            self._restarts_ahead = np.array_equal(mask, np.asarray(self._current["done"]))
            self._current = self._battle.restart(mask, self._current)
        return self._write()

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        action = tensordict.get(("agents", "action")).cpu()  # [E, N]
        self._require_available(action)
        # Nobody reset what was restarted ahead.
        if self._restarted is not None:
            self._restarts_ahead, self._restarted = False, None
        actions = action.to(torch.int32, copy=True).numpy()
        self._current, reward = self._battle.step(self._current, actions)
        done = np.array(self._current["done"])
        if self._restarts_ahead and done.any():
            # JAX computes it while TorchRL handles the step, and mostly it is what is asked next.
            self._restarted = (done, self._battle.restart(done, self._current))
        out = self._write()
        return out.set("reward", _copy(reward).unsqueeze(-1).to(out.device or "cpu"))

    def _require_available(self, action: torch.Tensor) -> None:
        chosen = action.clamp(0, self.n_actions - 1).unsqueeze(-1)
        allowed = self._mask.gather(-1, chosen).squeeze(-1) & (chosen.squeeze(-1) == action)
        if not allowed.all():
            index, agent = (~allowed).nonzero()[0].tolist()
            raise ValueError(
                f"{self.task}: ('agents', 'action') of agent {agent} in simulation {index} is "
                f"{int(action[index, agent])}; available are "
                f"{self._mask[index, agent].nonzero().flatten().tolist()}."
            )


def _copy(array: Any) -> torch.Tensor:
    """A tensor of its own: JAX takes its arrays to be constant."""
    return torch.from_numpy(np.array(array))


@functools.cache
def build_simulator(map_name: str) -> Any:
    """JaxMARL's simulator of a map, one for all who ask."""
    maps = require("jaxmarl.environments.smax.smax_env", extra="smax")
    import jax
    from jaxmarl.environments.smax import HeuristicEnemySMAX

    with jax.default_device(jax.devices("cpu")[0]):
        return HeuristicEnemySMAX(scenario=maps.map_name_to_scenario(map_name))


@functools.lru_cache(maxsize=32)
def _compile(map_name: str, num_envs: int) -> _Battle:
    """A map's functions for so many simulations, which compile when they are first called.

    They are what is shared: JAX compiles anew for each function that it is given, and for each
    number of simulations.
    """
    simulator = build_simulator(map_name)
    import jax
    import jax.numpy as jnp

    allies = simulator.num_allies
    names = simulator.agents

    def describe(key: Any, observations: Any, state: Any) -> dict[str, Any]:
        available = simulator.get_avail_actions(state)
        alive = state.state.unit_alive
        ally, enemy = alive[:allies].any(), alive[allies:].any()
        terminated = ~(ally & enemy)
        current = {
            "key": key,
            "simulation": state,
            "observation": jnp.stack([observations[name] for name in names]),
            "action_mask": jnp.stack([available[name] for name in names]).astype(bool),
            "state": observations["world_state"],
            "step": state.state.step,
            "done": state.state.done,
            "terminated": terminated,
            "truncated": state.state.done & ~terminated,
            "battle_won": ally & ~enemy,
        }
        # A reset's weakly typed numbers would make the step compile once more.
        return jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(leaf.dtype), current)

    def start(key: Any) -> dict[str, Any]:
        key, own = jax.random.split(key)
        return describe(key, *simulator.reset(own))

    def empty(keys: Any) -> dict[str, Any]:
        # Shapes alone: there is nothing to compile, and on one device as all that follows.
        shapes = jax.eval_shape(jax.vmap(start), keys)
        blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.device_put(blank | {"key": keys}, jax.devices("cpu")[0])

    def step(current: dict[str, Any], action: Any) -> tuple[dict[str, Any], Any]:
        key, own = jax.random.split(current["key"])
        # step_env, since step resets by itself and the last observation would be lost.
        observations, state, rewards, _, _ = simulator.step_env(
            own, current["simulation"], {name: action[i] for i, name in enumerate(names)}
        )
        return describe(key, observations, state), rewards[names[0]]

    def restart(mask: Any, current: dict[str, Any]) -> dict[str, Any]:
        new = jax.vmap(start)(current["key"])

        def choose(fresh: Any, old: Any) -> Any:
            return jnp.where(mask.reshape(-1, *[1] * (fresh.ndim - 1)), fresh, old)

        return jax.tree.map(choose, new, current)

    return _Battle(simulator, empty, jax.jit(restart), jax.jit(jax.vmap(step)))


def available_tasks() -> list[str]:
    """Names of the SMAX maps, as :func:`torchrl_logo.envs.make_env` takes them.

    Maps that were registered with JaxMARL are among them.

    Examples:
        >>> available_tasks()[:2]
        ['smax/2s3z', 'smax/3s_vs_5z']
    """
    maps = list(_MAPS)
    loaded = sys.modules.get("jaxmarl.environments.smax.smax_env")
    if loaded is not None:
        maps += [name for name in loaded.MAP_NAME_TO_SCENARIO if name not in _MAPS]
    return [f"{TASK_PREFIX}/{name}" for name in maps]


def build_env(
    name: str,
    *,
    num_envs: int = 1,
    device: torch.device | str = "cpu",
    seed: int | None = None,
) -> SMAXTeamEnv:
    """Builds the environment of an SMAX map.

    Args:
        name (str): the map, without the ``smax/`` prefix, for instance ``"5m_vs_6m"``.

    Keyword Args:
        num_envs (int): number of simulations that run as one batch. What was compiled for a map
            and a number is used again by later environments of the process.
        device (torch.device or str): where tensors are written; the simulation runs on the CPU.
        seed (int, optional): seed of the simulations' random keys.

    Raises:
        ValueError: if there is no such map; names the nearest ones and all there are.
        ImportError: if JaxMARL is not installed; names the extra.

    Examples:
        >>> build_env("5m_vs_6m", num_envs=4, seed=1).batch_size  # doctest: +SKIP
        torch.Size([4])
    """
    task, tasks = f"{TASK_PREFIX}/{name}", available_tasks()
    if task not in tasks:
        near = difflib.get_close_matches(task, tasks, n=3, cutoff=0.3)
        raise ValueError(
            f"SMAX has no map {name!r}. Nearest: {', '.join(near)}. All: {', '.join(tasks)}."
        )
    return SMAXTeamEnv(name, num_envs=num_envs, seed=seed, device=device)
