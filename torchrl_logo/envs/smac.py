"""StarCraft II micro-management (SMAC) in the package's layout, through TorchRL's wrapper."""

from __future__ import annotations

import difflib
import importlib
import itertools
import os
import sys
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Categorical, Composite, Unbounded
from torchrl.envs import EnvBase
from torchrl.envs.libs.smacv2 import SMACv2Env

__all__ = ["TASK_PREFIX", "SmacTeamEnv", "available_tasks", "build_env"]

#: What the names of these tasks begin with.
TASK_PREFIX = "smac"

# SMAC's own maps. SMACv2's (10gen_terran, ...) draw teams from a distribution that is part of the
# task and not of the map's name.
_MAPS = (
    "3m 8m 25m 5m_vs_6m 8m_vs_9m 10m_vs_11m 27m_vs_30m MMM MMM2 2s3z 3s5z 3s5z_vs_3s6z 3s_vs_3z "
    "3s_vs_4z 3s_vs_5z 1c3s5z 2m_vs_1z corridor 6h_vs_8z 2s_vs_1sc so_many_baneling bane_vs_bane "
    "2c_vs_64zg"
).split()

_INSTALL = (
    "Run: pip install git+https://github.com/oxwhirl/smacv2.git, install StarCraft II and the "
    "SMAC maps as its README says, and set the environment variable SC2PATH to the folder of the "
    "game."
)

_unseeded = itertools.count()  # environments of this process that were made without a seed


class SmacTeamEnv(EnvBase):
    """Several games of one SMAC map as one batched team task.

    Each game is a :class:`torchrl.envs.libs.smacv2.SMACv2Env`, and a process of StarCraft II.
    What the environment adds is the package's layout:

    - ``"truncated"`` is the map's time limit (and a game that crashed and was started again),
      ``"terminated"`` any other end: TorchRL's wrapper calls both a termination;
    - ``"battle_won"`` ``[num_envs, 1]`` is true at the end of a game that was won;
    - ``"step"`` counts the steps of the current episode;
    - the games can be seeded, which starts them anew: StarCraft II takes a seed at its start only.

    A dead agent observes zeros and has action 0 alone available.

    Args:
        map_name (str): one of SMAC's maps, for instance ``"5m_vs_6m"``.

    Keyword Args:
        num_envs (int): number of games that run as one batch. Defaults to ``1``.
        seed (int, optional): seed of the first game; the others' follow. Defaults to another one
            for each environment, made from :func:`torch.initial_seed`.
        device (torch.device, optional): where tensors are written.
        **kwargs: passed on to ``smacv2.env.StarCraft2Env``.

    Raises:
        ValueError: if ``num_envs`` is not positive.
        ImportError: if ``smacv2`` is not installed.
        FileNotFoundError: if StarCraft II is not where it is looked for.

    .. note:: The games themselves need StarCraft II. This class was tested against a stand-in
        with the interface of ``smacv2``, never with the game.
    """

    batch_locked = True

    def __init__(
        self,
        map_name: str,
        *,
        num_envs: int = 1,
        seed: int | None = None,
        device: torch.device | str | None = "cpu",
        **kwargs: Any,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, found {num_envs}.")
        _require_starcraft()
        super().__init__(device=device, batch_size=torch.Size([num_envs]))
        self.task = f"{TASK_PREFIX}/{map_name}"
        self._map_name = map_name
        self._kwargs = kwargs
        self.games: list[SMACv2Env] = []
        if seed is None:
            seed = (torch.initial_seed() + 1_000_003 * next(_unseeded)) % 2**31
        self._set_seed(seed)
        self._make_specs()

    @property
    def n_agents(self) -> int:
        """Number of agents, ``N``."""
        return int(self.games[0].n_agents)

    @property
    def max_steps(self) -> int:
        """The number of steps after which the map truncates an episode."""
        return int(self.games[0].episode_limit)

    def _set_seed(self, seed: int | None) -> None:
        first = 0 if seed is None else seed
        for game in self.games:
            game.close()
        self.games = [
            SMACv2Env(
                map_name=self._map_name,
                seed=(first + index) % 2**31,
                device=self.device,
                **self._kwargs,
            )
            for index in range(self.batch_size[0])
        ]
        self._current: list[TensorDictBase | None] = [None] * len(self.games)

    def _make_specs(self) -> None:
        game, device = self.games[0], self.device
        agents, actions = self.n_agents, int(game.n_actions)
        self.group_map = {"agents": [str(i) for i in range(agents)]}
        self.observation_spec = Composite(
            agents=Composite(
                observation=Unbounded((agents, int(game.get_obs_size())), device=device),
                action_mask=Categorical(
                    2, shape=(agents, actions), dtype=torch.bool, device=device
                ),
                shape=(agents,),
                device=device,
            ),
            state=Unbounded((int(game.get_state_size()),), device=device),
            step=Unbounded((1,), dtype=torch.int64, device=device),
            battle_won=Categorical(2, shape=(1,), dtype=torch.bool, device=device),
            device=device,
        ).expand(self.batch_size)
        action = Categorical(actions, shape=(agents,), dtype=torch.int64, device=device)
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

    def _read(
        self,
        found: TensorDictBase,
        step: torch.Tensor,
        terminated: torch.Tensor,
        truncated: torch.Tensor,
    ) -> TensorDict:
        return TensorDict(
            {
                "agents": found.get("agents").select("observation", "action_mask"),
                "state": found.get("state"),
                "step": step,
                "battle_won": found.get(("info", "battle_won")).reshape(1),
                "terminated": terminated,
                "truncated": truncated,
                "done": terminated | truncated,
            },
            device=self.device,
        )

    def _write(self) -> TensorDictBase:
        rows = [row for row in self._current if row is not None]
        out = TensorDict.stack(rows).contiguous()
        mask = out.get(("agents", "action_mask"))
        self.full_action_spec["agents", "action"].update_mask(mask)
        return out

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        reset = None if tensordict is None else tensordict.get("_reset", None)
        for index, game in enumerate(self.games):
            if reset is None or bool(reset[index].any()) or self._current[index] is None:
                no = torch.zeros(1, dtype=torch.bool, device=self.device)
                step = torch.zeros(1, dtype=torch.int64, device=self.device)
                self._current[index] = self._read(game.reset(), step, no, no)
        return self._write().exclude("reward")

    def _advance(self, index: int, action: torch.Tensor) -> TensorDict:
        """Steps one game; one whose episode has ended stays where it is."""
        game, current = self.games[index], self._current[index]
        if current is None:
            raise RuntimeError(f"{self.task}: game {index} was not reset before its first step.")
        if bool(current["done"]):
            return current.copy().set("reward", torch.zeros(1, device=self.device))
        restarts = game.get_stats()["restarts"]
        inputs = TensorDict({"agents": {"action": action}}, device=self.device)
        found = game.step(inputs).get("next")
        ended = found.get("done").reshape(1)
        crashed = game.get_stats()["restarts"] > restarts
        truncated = ended & (found.get(("info", "episode_limit")).reshape(1) | crashed)
        terminated = ended & ~truncated
        out = self._read(found, current["step"] + 1, terminated, truncated)
        return out.set("reward", found.get("reward").reshape(1))

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict.get(("agents", "action"))
        stepped = [self._advance(index, action[index]) for index in range(len(self.games))]
        reward = torch.stack([row.get("reward") for row in stepped])
        self._current = [row.exclude("reward") for row in stepped]
        return self._write().set("reward", reward)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Ends all games."""
        for game in self.games:
            game.close()
        super().close(raise_if_closed=raise_if_closed)


def _require_starcraft() -> None:
    """Raises, and says what to install, where SMAC or the game is missing."""
    try:
        importlib.import_module("smacv2.env")
    except ModuleNotFoundError as error:
        missing = error.name or "smacv2"
        raise ImportError(f"{missing} is not installed. {_INSTALL}", name=missing) from error
    # Where the game is looked for without SC2PATH depends on the system; on Linux it is at home.
    found = os.environ.get("SC2PATH")
    if found is None and sys.platform.startswith("linux"):
        found = "~/StarCraftII"
    if found is not None and not Path(found).expanduser().is_dir():
        raise FileNotFoundError(f"StarCraft II is not in {found!r} (SC2PATH). {_INSTALL}")


def available_tasks() -> list[str]:
    """Names of SMAC's maps, as :func:`torchrl_logo.envs.make_env` takes them.

    Examples:
        >>> "smac/5m_vs_6m" in available_tasks()
        True
    """
    return [f"{TASK_PREFIX}/{name}" for name in _MAPS]


def build_env(
    name: str,
    *,
    num_envs: int = 1,
    device: torch.device | str = "cpu",
    seed: int | None = None,
) -> SmacTeamEnv:
    """Builds the environment of a SMAC map.

    Args:
        name (str): the map, without the ``smac/`` prefix.

    Keyword Args:
        num_envs (int): number of games that run as one batch.
        device (torch.device or str): where tensors are written.
        seed (int, optional): seed of the first game; the others' follow.

    Raises:
        ValueError: if SMAC has no such map, and then names the nearest ones.
        ImportError: if ``smacv2`` is not installed.
        FileNotFoundError: if StarCraft II is not where it is looked for.
    """
    if name not in _MAPS:
        near = difflib.get_close_matches(name, _MAPS, n=3, cutoff=0.3) or _MAPS
        hint = ", ".join(f"{TASK_PREFIX}/{n}" for n in near)
        raise ValueError(f"SMAC has no map {name!r}. Nearest: {hint}.")
    return SmacTeamEnv(name, num_envs=num_envs, seed=seed, device=device)
