"""OMAR's folders of ``.npy`` files, one an agent and array."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from torchrl_logo.data.formats.missing_state import replace_state
from torchrl_logo.data.formats.npy_files import HeldArray, StoredArray, open_npy
from torchrl_logo.data.formats.reader import EpisodeReader
from torchrl_logo.data.formats.team_reward import reduce_rewards
from torchrl_logo.data.formats.whole_numbers import to_flags
from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.data.validation import DatasetError, require_size

__all__ = ["OMARReader"]

_REQUIRED = ("obs", "acs", "rews", "next_obs", "dones")


class OMARReader(EpisodeReader):
    """Reads OMAR's ``<env>/<type>/seed_k_data`` with continuous actions.

    Each agent ``i`` has the files ``obs_i``, ``acs_i``, ``rews_i``, ``next_obs_i`` and
    ``dones_i``, and with multi-agent MuJoCo ``states_i`` and ``next_states_i`` (one for all).
    Rows are flat, with true next observations. Files hold arrays of numbers; those that hold
    Python objects are pickles and are refused.

    Args:
        path (Path): folder of the files.

    Keyword Args:
        time_limit (int, optional): steps after which an episode was cut. An end at this step
            (counted from 1) is a truncation, and rows that go on without one are cut there: the
            particle tasks' files mark no ends at all (their episodes have 25 steps).
        reward_rule (str, optional): as
            :func:`~torchrl_logo.data.formats.team_reward.reduce_rewards` takes it.
        state (str, optional): as
            :func:`~torchrl_logo.data.formats.missing_state.replace_state` takes it; needed where
            there are no states.
        action_bounds (tuple of float): of actions. Defaults to ``(-1, 1)``.

    Raises:
        DatasetError: if a file is missing or has another shape, or a choice is needed.
    """

    format = "omar-npy"

    def __init__(
        self,
        path: Path,
        *,
        time_limit: int | None = None,
        reward_rule: str | None = None,
        state: str | None = None,
        action_bounds: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        super().__init__(path)
        if time_limit is not None and time_limit < 1:
            raise ValueError(f"time_limit must be positive, found {time_limit}.")
        self.reward_rule, self.state = reward_rule, state
        self.n_agents = len(list(path.glob("obs_*.npy")))
        names = [f"{key}_{agent}" for key in _REQUIRED for agent in range(self.n_agents)]
        if state is None:
            if not (path / "states_0.npy").is_file():
                replace_state(np.zeros((0, 1, 1)), None, key="states_0.npy")
            names += ["states_0", "next_states_0"]
        self.arrays = {name: _open(path / f"{name}.npy") for name in names}
        rows = len(self.arrays["obs_0"])
        for name, array in self.arrays.items():
            if len(array) != rows:
                expected = f"{rows} rows, as obs_0.npy has"
                raise DatasetError(f"{name}.npy", expected, f"{len(array)}")
            if name.startswith(("rews", "dones")):
                if math.prod(array.shape[1:]) != 1:
                    raise DatasetError(f"{name}.npy", "a number a row", f"{list(array.shape)}")
            elif len(array.shape) != 2 or 0 in array.shape:
                raise DatasetError(f"{name}.npy", "shape [rows, size]", f"{list(array.shape)}")
        for agent in range(self.n_agents):
            first, after = (self.arrays[f"{key}_{agent}"].shape for key in ("obs", "next_obs"))
            if first != after:
                expected = f"shape {list(first)}, as obs_{agent}.npy has"
                raise DatasetError(f"next_obs_{agent}.npy", expected, f"{list(after)}")
        self.sizes = tuple(self.arrays[f"obs_{a}"].shape[-1] for a in range(self.n_agents))
        widths = {self.arrays[f"acs_{a}"].shape[-1] for a in range(self.n_agents)}
        if len(widths) != 1:
            raise DatasetError("acs_*.npy", "as many action components for each agent", f"{widths}")
        action_size = require_size("acs_*.npy", widths.pop())
        self.spec = TaskSpec(
            n_agents=self.n_agents,
            observation_size=require_size("obs_*.npy", max(self.sizes)),
            state_size=require_size(
                "states_0.npy", sum(self.sizes) if state else self.arrays["states_0"].shape[-1]
            ),
            action_size=action_size,
            action_low=(action_bounds[0],) * action_size,
            action_high=(action_bounds[1],) * action_size,
            observation_sizes=self.sizes,
            max_steps=time_limit,
        )
        self._find_episodes(rows, time_limit)

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """A folder with ``obs_0.npy`` and ``acs_0.npy``."""
        return all((path / f"{name}_0.npy").is_file() for name in ("obs", "acs"))

    def _find_episodes(self, rows: int, time_limit: int | None) -> None:
        over = np.ones(rows, bool)
        for agent in range(self.n_agents):
            name = f"dones_{agent}"
            over &= to_flags(f"{name}.npy", self.arrays[name].read(0, rows).reshape(rows))
        stops = np.flatnonzero(over) + 1
        if time_limit is not None:
            # Within a run of rows without an end, every time_limit-th row is one.
            edges = np.concatenate([[0], stops, [rows]])
            cuts = [np.arange(a, b, time_limit)[1:] for a, b in zip(edges, edges[1:], strict=False)]
            stops = np.unique(np.concatenate([stops, *cuts, [rows]]))
        if not len(stops) or stops[-1] != rows:
            found = "no end" if not len(stops) else f"the last one in row {stops[-1] - 1}"
            expected = f"an end in the last row, {rows - 1} (or time_limit=...)"
            raise DatasetError("dones_0.npy", expected, found)
        self.starts = np.concatenate([[0], stops])
        self.lengths = np.diff(self.starts)
        self.terminated = over[stops - 1] & (self.lengths != (time_limit or 0))
        self.provenance = {"time_limit": time_limit, "marked_ends": int(over.sum())}

    def read(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Reads these episodes."""
        rows = slice(int(self.starts[start]), int(self.starts[stop]))
        count = rows.stop - rows.start
        last = np.zeros((count, 1), bool)
        last[self.starts[start + 1 : stop + 1] - rows.start - 1] = True
        terminated = last & self.terminated[start:stop].repeat(self.lengths[start:stop])[:, None]
        agents = range(self.n_agents)

        def load(name: str) -> np.ndarray:
            return self.arrays[name].read(rows.start, rows.stop)

        reward = np.stack([load(f"rews_{a}").reshape(-1) for a in agents], -1)
        observation = self._pad("obs", rows)
        following = self._pad("next_obs", rows)
        if self.state is None:
            state, next_state = (
                load(name).astype(np.float32) for name in ("states_0", "next_states_0")
            )
        else:
            state, next_state = (
                replace_state(value, self.state, sizes=self.sizes)
                for value in (observation, following)
            )
        return {
            "agents/observation": observation,
            "next/agents/observation": following,
            "agents/action": np.stack([load(f"acs_{a}").astype(np.float32) for a in agents], 1),
            "state": state,
            "next/state": next_state,
            "next/reward": reduce_rewards(reward, self.reward_rule, key="rews_*.npy"),
            "next/done": last,
            "next/terminated": terminated,
            "next/truncated": last & ~terminated,
        }

    def _pad(self, name: str, rows: slice) -> np.ndarray:
        """Agents' arrays as one, shorter ones padded with zeros: ``[B, N, d_o]``."""
        count = rows.stop - rows.start
        padded = np.zeros((count, self.n_agents, max(self.sizes)), np.float32)
        for agent, size in enumerate(self.sizes):
            padded[:, agent, :size] = self.arrays[f"{name}_{agent}"].read(rows.start, rows.stop)
        return padded


def _open(path: Path) -> StoredArray | HeldArray:
    if not path.is_file():
        raise DatasetError(path.name, f"a file in {path.parent}", "none")
    return open_npy(path)
