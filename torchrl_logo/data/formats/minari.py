"""Minari datasets whose observations are a dictionary with the agents in it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_logo.data.dataset import OfflineDataset
from torchrl_logo.data.formats.missing_state import replace_state
from torchrl_logo.data.formats.reader import EpisodeReader
from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.data.validation import DatasetError
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
        self.file = _open(folder / _FILE)
        self.state = state
        self.names = sorted(
            (name for name in self.file if name.startswith("episode_")),
            key=lambda name: int(name.removeprefix("episode_")),
        )
        if not self.names:
            raise DatasetError(str(folder / _FILE), "groups episode_0, ...", f"{list(self.file)}")
        self.lengths = np.array([len(self.file[name]["rewards"]) for name in self.names])
        first = self.file[self.names[0]]
        if not hasattr(first["observations"], "keys"):
            raise DatasetError(
                "observations", "a dictionary with the agents in it", "an array of one agent"
            )
        keys = list(first["observations"])
        self.agents = [] if _OBSERVATION in keys else [k for k in keys if k != _STATE]
        if self.agents and list(first["actions"]) != self.agents:
            raise DatasetError("actions", f"agents {self.agents}", f"{list(first['actions'])}")
        space = _read_action_space(folder)
        self.n_actions = n_actions if n_actions is not None else space.get("n")
        self.spec = self._find_spec(first, action_bounds or space.get("bounds") or (-1.0, 1.0))

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """A folder with ``main_data.hdf5``, or with ``data/main_data.hdf5``."""
        return any((folder / _FILE).is_file() for folder in (path, path / "data"))

    def _find_spec(self, episode: Any, bounds: tuple[float, float]) -> TaskSpec:
        observation, sizes = self._observations(episode)
        action = self._actions(episode)
        self.discrete = action.dtype.kind in "iu"
        self.masked = _MASK in episode["observations"]
        if self.discrete:
            size = episode["observations"][_MASK].shape[-1] if self.masked else self.n_actions
            if size is None:
                expected = "an array (or n_actions=..., if all actions are always available)"
                raise DatasetError(f"observations/{_MASK}", expected, "no such key")
        else:
            size = action.shape[-1]
        low, high = ((), ()) if self.discrete else ((bound,) * size for bound in bounds)
        return TaskSpec(
            n_agents=observation.shape[1],
            observation_size=observation.shape[2],
            state_size=self._states(episode, observation, sizes).shape[-1],
            action_size=size,
            discrete=self.discrete,
            action_low=low,
            action_high=high,
            observation_sizes=sizes,
        )

    def read(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Reads these episodes."""
        parts: dict[str, list[np.ndarray]] = {}
        for name, length in zip(self.names[start:stop], self.lengths[start:stop], strict=True):
            for key, value in self._read_episode(self.file[name], int(length)).items():
                parts.setdefault(key, []).append(value)
        return {key: np.concatenate(values) for key, values in parts.items()}

    def _read_episode(self, episode: Any, length: int) -> dict[str, np.ndarray]:
        observation, sizes = self._observations(episode)
        state = self._states(episode, observation, sizes)
        if len(observation) != length + 1:
            expected = f"{length + 1} rows, one more than rewards"
            raise DatasetError("observations", expected, f"{len(observation)}")
        terminated = episode["terminations"][:].astype(bool)[:, None]
        truncated = episode["truncations"][:].astype(bool)[:, None]
        if not (terminated[-1] | truncated[-1]):
            raise DatasetError("terminations", "an end in the last step of an episode", "none")
        action = self._actions(episode)
        found = {
            "agents/observation": observation[:-1],
            "next/agents/observation": observation[1:],
            "state": state[:-1],
            "next/state": state[1:],
            "next/reward": episode["rewards"][:].astype(np.float32)[:, None],
            "next/done": terminated | truncated,
            "next/terminated": terminated,
            "next/truncated": truncated,
        }
        if not self.discrete:
            return {**found, "agents/action": action.astype(np.float32)}
        mask = np.ones((length + 1, self.spec.n_agents, self.spec.action_size), bool)
        if self.masked:
            mask = episode["observations"][_MASK][:].astype(bool)
        return {
            **found,
            "agents/action": action.astype(np.int64),
            "agents/action_mask": mask[:-1],
            "next/agents/action_mask": mask[1:],
        }

    def _observations(self, episode: Any) -> tuple[np.ndarray, tuple[int, ...]]:
        """Observations ``[T + 1, N, d_o]`` and their true sizes, ``[N]``."""
        observations = episode["observations"]
        if not self.agents:
            value = observations[_OBSERVATION][:].astype(np.float32)
            return value, (value.shape[-1],) * value.shape[1]
        values = [observations[name][:].astype(np.float32) for name in self.agents]
        sizes = tuple(value.shape[-1] for value in values)
        padded = np.zeros((len(values[0]), len(values), max(sizes)), np.float32)
        for index, value in enumerate(values):
            padded[:, index, : sizes[index]] = value
        return padded, sizes

    def _states(self, episode: Any, observation: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
        if _STATE in episode["observations"] and self.state is None:
            return episode["observations"][_STATE][:].astype(np.float32)
        return replace_state(observation, self.state, sizes=sizes, key="observations/state")

    def _actions(self, episode: Any) -> np.ndarray:
        actions = episode["actions"]
        if not self.agents:
            return actions[:]
        return np.stack([actions[name][:] for name in self.agents], 1)

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


def _read_action_space(folder: Path) -> dict[str, Any]:
    """Number of actions, or bounds, as far as the metadata tell one for all agents."""
    path = folder / "metadata.json"
    if not path.is_file():
        return {}
    space = json.loads(path.read_text()).get("action_space")
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
        low, high = np.unique(space["low"]), np.unique(space["high"])
        if len(low) == len(high) == 1:
            return {"bounds": (float(low[0]), float(high[0]))}
    return {}


def _open(path: Path) -> Any:
    h5py = require("h5py", "formats")
    if not path.is_file():
        raise DatasetError(str(path.parent), f"a folder with {_FILE}", "none")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DatasetError(str(path), "a whole HDF5 file", str(error)) from error
