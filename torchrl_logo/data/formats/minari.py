"""Minari datasets whose observations are a dictionary with the agents in it."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_logo.data.dataset import OfflineDataset
from torchrl_logo.data.formats.hdf5_files import HDF5Group, open_hdf5
from torchrl_logo.data.formats.missing_state import replace_state
from torchrl_logo.data.formats.reader import EpisodeReader, join_episodes
from torchrl_logo.data.formats.whole_numbers import to_flags, to_integers
from torchrl_logo.data.json_files import read_json
from torchrl_logo.data.memory_limit import require_memory
from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.data.validation import DatasetError, require_size
from torchrl_logo.optional_dependencies import require

__all__ = ["MinariReader", "write_minari"]

_FILE = "main_data.hdf5"
_STATE, _OBSERVATION, _MASK = "state", "observation", "action_mask"


class MinariReader(EpisodeReader):
    """Reads the HDF5 files of Minari datasets; Minari itself is not needed.

    Minari has no convention for teams. Two are read, ``[T + 1, ...]`` for an episode of ``T``
    steps:

    - stacked, as :func:`write_minari` writes it: ``observations`` has ``"observation"``
      ``[T + 1, N, d_o]``, ``"state"`` and for discrete actions ``"action_mask"``; ``actions`` is
      ``[T, N, d_a]`` or ``[T, N]``;
    - by agent: ``observations`` and ``actions`` have an entry for each agent, in one order, and
      ``observations`` may have ``"state"``. Shorter observations are padded with zeros.

    Args:
        path (Path): folder with ``main_data.hdf5``, or the dataset's folder above it.

    Keyword Args:
        state (str, optional): as
            :func:`~torchrl_logo.data.formats.missing_state.replace_state` takes it; needed where
            there is no ``"state"``.
        n_actions (int, optional): for discrete actions without masks, how many there are.
            Defaults to what the dataset's action space says.
        action_bounds (tuple of float, optional): of continuous actions. Defaults to what the
            action space says, or else ``(-1, 1)``.

    Raises:
        DatasetError: if the file holds something else, or a choice is needed.
    """

    format = "minari"

    def __init__(
        self,
        path: Path,
        *,
        state: str | None = None,
        n_actions: int | None = None,
        action_bounds: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(path)
        folder = path if (path / _FILE).is_file() else path / "data"
        self.file = open_hdf5(folder / _FILE)
        self.state = state
        for name in self.file.keys:
            if not re.fullmatch(r"episode_(0|[1-9][0-9]{0,17})", name):
                expected = "groups episode_0, ... alone"
                raise DatasetError(str(folder / _FILE), expected, repr(name))
        self.names = sorted(self.file.keys, key=lambda name: int(name.removeprefix("episode_")))
        if not self.names:
            raise DatasetError(str(folder / _FILE), "groups episode_0, ...", "none")
        self.lengths = np.array(
            [len(self.file.group(name).array("rewards", 1)) for name in self.names]
        )
        metadata = _read_metadata(folder)
        for key, count in (
            ("total_episodes", len(self.names)),
            ("total_steps", int(self.lengths.sum())),
        ):
            told = metadata.get(key, count)
            if told != count:
                raise DatasetError(f"metadata.json/{key}", f"{count}, as there are", repr(told))
        first = self.file.group(self.names[0])
        if not first.holds_group("observations"):
            raise DatasetError(
                "observations", "a dictionary with the agents in it", "an array of one agent"
            )
        keys = first.group("observations").keys
        self.agents = [] if _OBSERVATION in keys else [k for k in keys if k != _STATE]
        if not self.agents and _OBSERVATION not in keys:
            raise DatasetError("observations", "agents, or 'observation'", f"{keys}")
        if self.agents and first.group("actions").keys != self.agents:
            found = f"{first.group('actions').keys}"
            raise DatasetError("actions", f"agents {self.agents}", found)
        space = _find_action_space(metadata)
        self.n_actions = n_actions if n_actions is not None else space.get("n")
        self.spec = self._find_spec(first, action_bounds or space.get("bounds") or (-1.0, 1.0))

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """A folder with ``main_data.hdf5``, or with ``data/main_data.hdf5``."""
        return any((folder / _FILE).is_file() for folder in (path, path / "data"))

    def _find_spec(self, episode: HDF5Group, bounds: tuple[float, float]) -> TaskSpec:
        observation, sizes = self._observations(episode)
        action = self._actions(episode)
        self.discrete = action.dtype.kind in "iu"
        if action.ndim != (2 if self.discrete else 3):
            raise DatasetError(
                "actions", "[T, N] integers, or [T, N, d_a]", f"{list(action.shape)}"
            )
        self.masked = _MASK in episode.group("observations")
        size = action.shape[-1]
        if self.discrete and self.masked:
            size = episode.group("observations").array(_MASK, 3).shape[-1]
        elif self.discrete:
            if self.n_actions is None:
                expected = "an array (or n_actions=..., if all actions are always available)"
                raise DatasetError(f"observations/{_MASK}", expected, "no such key")
            size = self.n_actions
        require_size("actions", size)
        low, high = ((), ()) if self.discrete else ((bound,) * size for bound in bounds)
        return TaskSpec(
            n_agents=require_size("observations", observation.shape[1]),
            observation_size=require_size("observations", observation.shape[2]),
            state_size=require_size(_STATE, self._states(episode, observation, sizes).shape[-1]),
            action_size=size,
            discrete=self.discrete,
            action_low=low,
            action_high=high,
            observation_sizes=sizes,
        )

    def read(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Reads these episodes."""
        names = zip(self.names[start:stop], self.lengths[start:stop], strict=True)
        return join_episodes([self._read_episode(self.file.group(n), int(t)) for n, t in names])

    def _read_episode(self, episode: HDF5Group, length: int) -> dict[str, np.ndarray]:
        observation, sizes = self._observations(episode)
        if sizes != self.spec.observation_sizes:
            expected = f"sizes {self.spec.observation_sizes} of agents' observations"
            raise DatasetError(episode.path, expected, f"{sizes}")
        state = self._states(episode, observation, sizes)
        terminated, truncated = (
            to_flags(key, episode.array(key, 1).read())[:, None]
            for key in ("terminations", "truncations")
        )
        action = self._actions(episode)
        mask = None
        if self.masked:
            stored = episode.group("observations").array(_MASK, 3).read()
            mask = to_flags(f"observations/{_MASK}", stored)
        elif self.discrete:
            mask = np.ones((length + 1, self.spec.n_agents, self.spec.action_size), bool)
        for key, value, rows in (
            ("observations", observation, length + 1),
            (f"observations/{_STATE}", state, length + 1),
            (f"observations/{_MASK}", mask, length + 1),
            ("terminations", terminated, length),
            ("truncations", truncated, length),
            ("actions", action, length),
        ):
            if value is not None and len(value) != rows:
                expected = f"{rows} rows (rewards have {length})"
                raise DatasetError(f"{episode.path}/{key}", expected, f"{len(value)}")
        if not length or not (terminated[-1] | truncated[-1]):
            raise DatasetError("terminations", "an end in the last step of an episode", "none")
        found = {
            "agents/observation": observation[:-1],
            "next/agents/observation": observation[1:],
            "state": state[:-1],
            "next/state": state[1:],
            "next/reward": episode.array("rewards", 1).read().astype(np.float32)[:, None],
            "next/done": terminated | truncated,
            "next/terminated": terminated,
            "next/truncated": truncated,
        }
        if mask is None:
            return {**found, "agents/action": action.astype(np.float32)}
        return {
            **found,
            "agents/action": to_integers("actions", action),
            "agents/action_mask": mask[:-1],
            "next/agents/action_mask": mask[1:],
        }

    def _observations(self, episode: HDF5Group) -> tuple[np.ndarray, tuple[int, ...]]:
        """Observations ``[T + 1, N, d_o]`` and their true sizes, ``[N]``."""
        observations = episode.group("observations")
        if not self.agents:
            value = observations.array(_OBSERVATION, 3).read().astype(np.float32)
            return value, (value.shape[-1],) * value.shape[1]
        arrays = [observations.array(name, 2) for name in self.agents]
        if len({len(array) for array in arrays}) != 1:
            found = f"{[len(array) for array in arrays]}"
            raise DatasetError(observations.path, "as many rows for each agent", found)
        sizes = tuple(array.shape[-1] for array in arrays)
        require_memory(observations.path, 4 * len(arrays[0]) * len(arrays) * max(sizes))
        padded = np.zeros((len(arrays[0]), len(arrays), max(sizes)), np.float32)
        for index, array in enumerate(arrays):
            padded[:, index, : sizes[index]] = array.read()
        return padded, sizes

    def _states(
        self, episode: HDF5Group, observation: np.ndarray, sizes: tuple[int, ...]
    ) -> np.ndarray:
        observations = episode.group("observations")
        if _STATE in observations and self.state is None:
            return observations.array(_STATE, 2).read().astype(np.float32)
        return replace_state(observation, self.state, sizes=sizes, key="observations/state")

    def _actions(self, episode: HDF5Group) -> np.ndarray:
        if not self.agents:
            return episode.array("actions").read()
        actions = episode.group("actions")
        found = [actions.array(name).read() for name in self.agents]
        if len({(value.shape, value.dtype.kind) for value in found}) != 1:
            shapes = f"{[value.shape for value in found]}"
            raise DatasetError(actions.path, "actions of one kind and shape", shapes)
        return np.stack(found, 1)

    def close(self) -> None:
        """Closes the file."""
        self.file.close()


def write_minari(
    dataset: OfflineDataset, dataset_id: str, *, root: str | Path | None = None
) -> Path:
    """Writes a dataset with Minari, stacked as :class:`MinariReader` describes.

    Args:
        dataset (OfflineDataset): what is written.
        dataset_id (str): Minari's name, such as ``"vmas/balance/medium-v0"``.

    Keyword Args:
        root (str or Path, optional): Minari's folder of datasets. Defaults to Minari's own.

    Returns:
        The folder of the dataset.

    Raises:
        ValueError: if Minari has a dataset of that name.
    """
    minari = require("minari", "formats")
    spaces = require("gymnasium.spaces", "formats")
    spec = dataset.spec
    shape = (spec.n_agents, spec.observation_size)
    limits = {"low": -np.inf, "high": np.inf, "dtype": np.float32}
    observation = {
        _OBSERVATION: spaces.Box(shape=shape, **limits),
        _STATE: spaces.Box(shape=(spec.state_size,), **limits),
    }
    if spec.discrete:
        observation[_MASK] = spaces.MultiBinary((spec.n_agents, spec.action_size))
        action = spaces.MultiDiscrete([spec.action_size] * spec.n_agents)
    else:
        low, high = (
            np.broadcast_to(np.asarray(bound, np.float32), (spec.n_agents, spec.action_size)).copy()
            for bound in (spec.action_low, spec.action_high)
        )
        action = spaces.Box(low, high, dtype=np.float32)
    episodes = [_episode(dataset, rows) for rows in dataset.episode_slices]
    with _minari_root(root):
        made = minari.create_dataset_from_buffers(
            dataset_id,
            [minari.data_collector.EpisodeBuffer(id=i, **e) for i, e in enumerate(episodes)],
            observation_space=spaces.Dict(observation),
            action_space=action,
            algorithm_name=str(dataset.metadata.quality),
            description=f"task {spec.task}, content {dataset.metadata.hash}",
            data_format="hdf5",
        )
        return Path(made.storage.data_path).parent


def _episode(dataset: OfflineDataset, rows: slice) -> dict[str, Any]:
    data = dataset[rows].cpu()

    def join(*key: str) -> np.ndarray:
        """All steps and what the last one leads to: ``[T + 1, ...]``."""
        following = data.get(("next", *key))[-1:]
        return np.concatenate([data.get(key).numpy(), following.numpy()])

    observations = {_OBSERVATION: join("agents", "observation"), _STATE: join("state")}
    if dataset.spec.discrete:
        observations[_MASK] = join("agents", "action_mask").astype(np.int8)
    return {
        "observations": observations,
        "actions": data["agents", "action"].numpy(),
        "rewards": data["next", "reward"].squeeze(-1).numpy(),
        "terminations": data["next", "terminated"].squeeze(-1).numpy(),
        "truncations": data["next", "truncated"].squeeze(-1).numpy(),
    }


@contextlib.contextmanager
def _minari_root(root: str | Path | None) -> Iterator[None]:
    """Minari knows its folder from the environment alone."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    if root is not None:
        os.environ["MINARI_DATASETS_PATH"] = str(Path(root).resolve())
    try:
        yield
    finally:
        if root is not None:
            if before is None:
                del os.environ["MINARI_DATASETS_PATH"]
            else:
                os.environ["MINARI_DATASETS_PATH"] = before


def _read_metadata(folder: Path) -> dict[str, Any]:
    path = folder / "metadata.json"
    return read_json(path) if path.is_file() else {}


def _find_action_space(metadata: dict[str, Any]) -> dict[str, Any]:
    """Number of actions, or bounds, as far as the metadata tell one for all agents."""
    try:
        space = metadata.get("action_space")
        space = json.loads(space) if isinstance(space, str) else space
        if isinstance(space, dict) and space.get("type") == "Dict":
            spaces = list(space["subspaces"].values())
            space = spaces[0] if all(s == spaces[0] for s in spaces) else None
        if not isinstance(space, dict):
            return {}
        if space.get("type") == "Discrete":
            return {"n": int(space["n"])}
        if space.get("type") == "MultiDiscrete" and len(set(space["nvec"])) == 1:
            return {"n": int(space["nvec"][0])}
        if space.get("type") == "Box":
            low, high = (np.unique(np.asarray(space[key], float)) for key in ("low", "high"))
            if len(low) == len(high) == 1:
                if not low[0] <= high[0]:  # also of NaN
                    raise ValueError(f"a lower bound of {low[0]} and an upper one of {high[0]}")
                return {"bounds": (float(low[0]), float(high[0]))}
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        RecursionError,
        OverflowError,
    ) as error:
        found = f"{type(error).__name__}: {error}"
        raise DatasetError("metadata.json/action_space", "a space of actions", found) from error
    return {}
