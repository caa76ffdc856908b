"""OMIGA's HDF5 files of multi-agent MuJoCo."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from torchrl_logo.data.formats.episode_ends import plan_episodes
from torchrl_logo.data.formats.hdf5_files import open_hdf5
from torchrl_logo.data.formats.missing_state import replace_state
from torchrl_logo.data.formats.reader import EpisodeReader
from torchrl_logo.data.formats.team_reward import reduce_rewards
from torchrl_logo.data.formats.whole_numbers import to_flags
from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.data.validation import DatasetError, require_size

__all__ = ["OMIGAHDF5Reader"]

_REQUIRED = ("s", "o", "a", "r", "d")


class OMIGAHDF5Reader(EpisodeReader):
    """Reads OMIGA's ``<Scenario>-<conf>-<quality>.hdf5`` with continuous actions.

    Arrays are flat, episodes one after the other: states ``s`` ``[R, d_s]`` (or the same one for
    each agent, ``[R, N, d_s]``), observations ``o`` ``[R, N, d_o]``, actions ``a``
    ``[R, N, d_a]``, rewards ``r`` ``[R]`` (or ``[R, 1]``, ``[R, N]`` or ``[R, N, 1]``) and ends
    ``d`` likewise. Next observations are the following row's, so a row that ends an episode has
    none: OMIGA's own loader leaves it out, as ``ends="drop"`` does (see
    :func:`~torchrl_logo.data.formats.episode_ends.plan_episodes`).

    The observations of these files are the standardised full state with the agent's number: they
    say nothing of what an agent sees by itself.

    Args:
        path (Path): the file.

    Keyword Args:
        ends (str): ``"keep"`` or ``"drop"``. Defaults to ``"drop"``.
        time_limit (int, optional): an end at this step of an episode (counted from 1) is a
            truncation, since the files do not tell these apart.
        reward_rule (str, optional): as
            :func:`~torchrl_logo.data.formats.team_reward.reduce_rewards` takes it.
        state (str, optional): as
            :func:`~torchrl_logo.data.formats.missing_state.replace_state` takes it; needed where
            agents have other states.
        action_bounds (tuple of float): of actions. Defaults to ``(-1, 1)``.

    Raises:
        DatasetError: if an array is missing or has another shape, or a choice is needed.
    """

    format = "omiga-hdf5"

    def __init__(
        self,
        path: Path,
        *,
        ends: str = "drop",
        time_limit: int | None = None,
        reward_rule: str | None = None,
        state: str | None = None,
        action_bounds: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        super().__init__(path)
        self.reward_rule, self.state = reward_rule, state
        self.file = open_hdf5(path)
        for key in _REQUIRED:
            if key not in self.file:
                raise DatasetError(key, f"an array in {path.name}", f"{self.file.keys}")
        self.arrays = {key: self.file.array(key) for key in _REQUIRED}
        rows = len(self.arrays["o"])
        for key, array in self.arrays.items():
            if len(array) != rows or not rows:
                raise DatasetError(key, f"{rows or 1} rows, as 'o' has", f"{len(array)}")
        for key in ("o", "a"):
            shape = self.arrays[key].shape
            if len(shape) != 3 or 0 in shape:
                raise DatasetError(key, "shape [rows, N, ...]", f"{list(shape)}")
        _, n_agents, observation_size = self.arrays["o"].shape
        action_size = require_size("a", self.arrays["a"].shape[-1])
        for key in ("r", "d"):
            shape = self.arrays[key].shape
            if math.prod(shape[1:]) not in (1, n_agents):
                raise DatasetError(key, f"a number a row, or {n_agents}", f"shape {list(shape)}")
        shape = self.arrays["s"].shape
        if 0 in shape or len(shape) not in (2, 3) or (len(shape) == 3 and shape[1] != n_agents):
            expected = f"shape [rows, d_s] or [rows, {n_agents}, d_s]"
            raise DatasetError("s", expected, f"{list(shape)}")
        self.spec = TaskSpec(
            n_agents=require_size("o", n_agents),
            observation_size=require_size("o", observation_size),
            state_size=require_size("s", self._states(0, 1).shape[-1]),
            action_size=action_size,
            action_low=(action_bounds[0],) * action_size,
            action_high=(action_bounds[1],) * action_size,
        )
        over = np.asarray(to_flags("d", self.arrays["d"].read()).reshape(rows, -1).all(-1))
        stops = np.flatnonzero(over)
        length = np.diff(stops, prepend=-1)
        at_limit = np.zeros(rows, bool)
        if time_limit is not None:
            at_limit[stops[length == time_limit]] = True
        self.plan = plan_episodes(over & ~at_limit, at_limit, ends)
        self.lengths = self.plan.lengths
        self.provenance = {
            "ends": ends,
            "ends_with_own_observations": int(self.plan.own_end.sum()),
            "rows_left_out": self.plan.left_out,
        }

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """An HDF5 file with ``s``, ``o``, ``a``, ``r`` and ``d`` at its root."""
        if not path.is_file() or path.suffix not in (".h5", ".hdf5"):
            return False
        try:
            file = open_hdf5(path)
            file.close()
            return set(_REQUIRED) <= set(file.keys)
        except DatasetError:
            return False

    def read(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Reads these episodes."""
        row, following, last = self.plan.rows(start, stop)
        begin, end = int(row.min()), int(following.max()) + 1
        row, following = row - begin, following - begin
        rows = slice(begin, end)
        observation = self.arrays["o"].read(rows).astype(np.float32, copy=False)
        state = self._states(begin, end)
        reward = self.arrays["r"].read(rows).reshape(end - begin, -1)[row]
        own_end = self.plan.own_end[start:stop].repeat(self.lengths[start:stop])
        terminated = (last & own_end)[:, None]
        return {
            "agents/observation": observation[row],
            "next/agents/observation": observation[following],
            "agents/action": self.arrays["a"].read(rows).astype(np.float32, copy=False)[row],
            "state": state[row],
            "next/state": state[following],
            "next/reward": reduce_rewards(reward, self.reward_rule, key="r"),
            "next/done": last[:, None],
            "next/terminated": terminated,
            "next/truncated": last[:, None] & ~terminated,
        }

    def _states(self, begin: int, end: int) -> np.ndarray:
        if self.state is not None:
            return replace_state(self.arrays["o"].read(slice(begin, end)), self.state)
        state = self.arrays["s"].read(slice(begin, end)).astype(np.float32, copy=False)
        if state.ndim == 2:
            return state
        if (state != state[:, :1]).any():
            raise DatasetError(
                "s",
                "one state for all agents (state='concatenate' takes the observations instead)",
                "other states for other agents",
            )
        return state[:, 0]

    def close(self) -> None:
        """Closes the file."""
        self.file.close()
