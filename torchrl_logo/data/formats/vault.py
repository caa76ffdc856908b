"""OG-MARL's vaults: flashbax's stores on disk, read and written without JAX."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_logo.data.dataset import OfflineDataset
from torchrl_logo.data.formats.episode_ends import plan_episodes
from torchrl_logo.data.formats.missing_state import replace_state
from torchrl_logo.data.formats.reader import EpisodeReader, join_episodes
from torchrl_logo.data.formats.team_reward import reduce_rewards
from torchrl_logo.data.formats.whole_numbers import to_flags, to_integers
from torchrl_logo.data.json_files import read_json
from torchrl_logo.data.memory_limit import require_memory
from torchrl_logo.data.task_spec import LARGEST_SIZE, TaskSpec
from torchrl_logo.data.validation import DatasetError, require_size
from torchrl_logo.optional_dependencies import require

__all__ = ["VaultReader", "write_vault"]

_VERSION = 1.2
# flashbax declares the time axis this long; the store "vault_index" has the true length.
_TIME_AXIS = 10_000_000_000_000
_COMPRESSOR = {"id": "gzip", "level": 5}
_WRITTEN_AT_ONCE = 8192
_SHAPE = re.compile(r"\(\s*\d{1,15}\s*(,\s*\d{1,15}\s*){0,7},?\s*\)")
_KNOWN = (
    "observations.",
    "actions.",
    "rewards.",
    "terminals.",
    "truncations.",
    "infos.state.",
    "infos.legals.",
)


class VaultReader(EpisodeReader):
    """Reads a vault: ``<scenario>.vlt/<uid>``, or the ``.vlt`` folder if it holds one vault.

    The stores are ``[S, T, ...]``: ``S`` streams (often one) of ``T`` steps, episodes one after
    the other, with ``observations`` ``[S, T, N, d_o]``, ``actions``, ``rewards``, ``terminals``
    and ``truncations`` ``[S, T, N]``, and ``infos.state`` and ``infos.legals``. An episode ends
    where all agents' terminals or truncations are set.

    A vault does not hold the observations that an episode ends with, since the next row is the
    next episode's first: see :func:`~torchrl_logo.data.formats.episode_ends.plan_episodes` for
    what is made of an episode's last row.

    Args:
        path (Path): folder of the vault.

    Keyword Args:
        reward_rule (str, optional): as
            :func:`~torchrl_logo.data.formats.team_reward.reduce_rewards` takes it.
        state (str, optional): as
            :func:`~torchrl_logo.data.formats.missing_state.replace_state` takes it; needed where
            the vault has no state, or other ones for other agents.
        ends (str): ``"keep"`` or ``"drop"``. Defaults to ``"keep"``.
        n_actions (int, optional): for discrete actions without legals, how many there are.
        action_bounds (tuple of float): of continuous actions. Defaults to ``(-1, 1)``.
        padding (float, optional): the value that pads shorter observations, such as
            ``float("-inf")``, which becomes zero.

    Raises:
        DatasetError: if a store is missing or has another shape, or a choice is needed.
    """

    format = "vault"

    def __init__(
        self,
        path: Path,
        *,
        reward_rule: str | None = None,
        state: str | None = None,
        ends: str = "keep",
        n_actions: int | None = None,
        action_bounds: tuple[float, float] = (-1.0, 1.0),
        padding: float | None = None,
    ) -> None:
        super().__init__(path)
        self.reward_rule, self.state, self.padding = reward_rule, state, padding
        self.folder = _find_vault(path)
        metadata = read_json(self.folder / "metadata.json")
        shapes = _read_shapes(metadata.get("structure_shape"))
        for name in ("observations.", "actions.", "rewards.", "terminals."):
            if name not in shapes:
                raise DatasetError(name, f"a store in {self.folder}", f"{sorted(shapes)[:50]}")
        # The names that are known, and none that the metadata make up.
        shapes = {name: shapes[name] for name in _KNOWN if name in shapes}
        self.stores = {name: _open(self.folder, name) for name in shapes}
        for name, store in self.stores.items():
            found = tuple(int(size) for size in store.shape)
            kind = np.dtype(store.dtype.numpy_dtype).kind
            if kind not in "biuf":
                raise DatasetError(name, "numbers or flags", str(store.dtype))
            if len(found) < 2 or found[2:] != shapes[name][2:] or found[0] != shapes[name][0]:
                expected = f"shape {list(shapes[name])}, as metadata.json says"
                raise DatasetError(name, expected, f"{list(found)}")
        if len(shapes["observations."]) != 4:
            found_shape = f"{list(shapes['observations.'])}"
            raise DatasetError("observations.", "shape [S, T, N, d_o]", found_shape)
        self.streams = shapes["observations."][0]
        self.steps = self._count_steps()
        n_agents, observation_size = (
            require_size("observations.", size) for size in shapes["observations."][2:]
        )
        self._check_shapes(shapes, n_agents)
        self.discrete = np.dtype(self.stores["actions."].dtype.numpy_dtype).kind in "iu"
        self.legal = "infos.legals." in shapes
        if self.discrete and not self.legal and n_actions is None:
            expected = "a store (or n_actions=..., if all actions are always available)"
            raise DatasetError("infos.legals.", expected, f"{sorted(shapes)}")
        self._find_state(shapes)
        first = self._load("actions.", 0, 0, 1)
        size = n_actions or shapes["infos.legals."][-1] if self.discrete else first.shape[-1]
        size = require_size("actions.", size)
        low, high = ((), ()) if self.discrete else ((bound,) * size for bound in action_bounds)
        self.spec = TaskSpec(
            n_agents=n_agents,
            observation_size=observation_size,
            state_size=require_size("infos.state.", self._state(0, 0, 1).shape[-1]),
            action_size=size,
            discrete=self.discrete,
            action_low=low,
            action_high=high,
        )
        self._plan(ends)

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """A folder with OCDBT's manifest and flashbax's metadata, or one that holds such."""
        return path.is_dir() and bool(_vaults(path))

    def _count_steps(self) -> int:
        """The steps of each stream, which the stores' time axis does not tell."""
        index = _open(self.folder, "vault_index")
        if tuple(index.shape) != (1,) or np.dtype(index.dtype.numpy_dtype).kind not in "iu":
            raise DatasetError("vault_index", "one whole number", f"shape {list(index.shape)}")
        steps = int(_read(index, "vault_index")[0])
        most = min(int(store.shape[1]) for store in self.stores.values())
        if not 1 <= steps <= most:
            raise DatasetError("vault_index", f"1 to {most} steps", str(steps))
        if not 1 <= self.streams <= LARGEST_SIZE:
            raise DatasetError("observations.", f"1 to {LARGEST_SIZE} streams", str(self.streams))
        require_memory("vault_index", 8 * steps * self.streams)
        return steps

    def _check_shapes(self, shapes: dict[str, tuple[int, ...]], n_agents: int) -> None:
        allowed: dict[str, list[tuple[int | None, ...]]] = {
            "actions.": [(n_agents,), (n_agents, None)],
            "rewards.": [(), (1,), (n_agents,), (n_agents, 1)],
            "terminals.": [(), (1,), (n_agents,), (n_agents, 1)],
            "truncations.": [(), (1,), (n_agents,), (n_agents, 1)],
            "infos.state.": [(None,), (n_agents, None)],
            "infos.legals.": [(n_agents, None)],
        }
        for name, inner in allowed.items():
            found = shapes.get(name)
            if found is None:
                continue
            fits = any(
                len(found) == len(sizes) + 2
                and all(want in (None, size) for want, size in zip(sizes, found[2:], strict=True))
                for sizes in inner
            )
            if not fits or found[0] != self.streams or 0 in found:
                expected = f"shape [S={self.streams}, T, ...] for {n_agents} agents"
                raise DatasetError(name, expected, f"{list(found)}")

    def _find_state(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.state_dims = len(shapes["infos.state."]) if "infos.state." in shapes else 0
        if self.state_dims == 0 and self.state is None:
            replace_state(np.zeros((0, 1, 1)), None, key="infos.state.")

    def _plan(self, ends: str) -> None:
        self.plans = []
        for stream in range(self.streams):
            terminated = self._flags("terminals.", stream)
            truncated = self._flags("truncations.", stream)
            self.plans.append(plan_episodes(terminated, truncated & ~terminated, ends))
        self.lengths = np.concatenate([plan.lengths for plan in self.plans])
        self.stream_starts = np.cumsum([0, *(len(plan.lengths) for plan in self.plans)])
        self.provenance |= {
            "ends": ends,
            "ends_with_own_observations": sum(int(p.own_end.sum()) for p in self.plans),
            "rows_left_out": sum(p.left_out for p in self.plans),
        }

    def read(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Reads these episodes, from as many streams as they lie in."""
        parts = []
        for stream, plan in enumerate(self.plans):
            low = max(start - int(self.stream_starts[stream]), 0)
            high = min(stop - int(self.stream_starts[stream]), len(plan.lengths))
            if low < high:
                parts.append(self._read_stream(stream, low, high))
        return join_episodes(parts)

    def _read_stream(self, stream: int, start: int, stop: int) -> dict[str, np.ndarray]:
        plan = self.plans[stream]
        row, following, last = plan.rows(start, stop)
        begin, end = int(row.min()), int(following.max()) + 1
        row, following = row - begin, following - begin
        observation = self._load("observations.", stream, begin, end).astype(np.float32)
        if self.padding is not None:
            observation[observation == self.padding] = 0.0
        state = self._state(stream, begin, end)
        reward = self._load("rewards.", stream, begin, end)[row]
        reward = reward.reshape(len(row), -1)
        terminated = last & plan.own_end[start:stop].repeat(plan.lengths[start:stop])
        found = {
            "agents/observation": observation[row],
            "next/agents/observation": observation[following],
            "state": state[row],
            "next/state": state[following],
            "next/reward": reduce_rewards(reward, self.reward_rule),
            "next/done": last[:, None],
            "next/terminated": terminated[:, None],
            "next/truncated": (last & ~terminated)[:, None],
        }
        action = self._load("actions.", stream, begin, end)[row]
        if not self.discrete:
            return {**found, "agents/action": action.astype(np.float32)}
        shape = (end - begin, self.spec.n_agents, self.spec.action_size)
        mask = np.ones(shape, bool)
        if self.legal:
            mask = to_flags("infos.legals.", self._load("infos.legals.", stream, begin, end))
        return {
            **found,
            "agents/action": to_integers("actions.", action.reshape(len(row), -1)),
            "agents/action_mask": mask[row],
            "next/agents/action_mask": mask[following],
        }

    def _state(self, stream: int, start: int, stop: int) -> np.ndarray:
        if self.state is not None:
            observation = self._load("observations.", stream, start, stop).astype(np.float32)
            if self.padding is not None:
                observation[observation == self.padding] = 0.0
            return replace_state(observation, self.state)
        state = self._load("infos.state.", stream, start, stop).astype(np.float32)
        if self.state_dims == 3:
            return state
        if (state != state[:, :1]).any():
            raise DatasetError(
                "infos.state.",
                "one state for all agents (state='concatenate' takes the observations instead)",
                "other states for other agents",
            )
        return state[:, 0]

    def _flags(self, name: str, stream: int) -> np.ndarray:
        """Rows in which the flags of all agents are set, ``[T]``; none without such a store."""
        if name not in self.stores:
            return np.zeros(self.steps, bool)
        flags = self._load(name, stream, 0, self.steps).reshape(self.steps, -1)
        return np.asarray(to_flags(name, flags).all(-1))

    def _load(self, name: str, stream: int, start: int, stop: int) -> np.ndarray:
        part = self.stores[name][stream, start:stop]
        require_memory(name, math.prod(part.shape) * np.dtype(part.dtype.numpy_dtype).itemsize)
        return _read(part, name)


def write_vault(dataset: OfflineDataset, path: str | Path) -> None:
    """Writes a dataset as a vault of one stream, which flashbax and OG-MARL read.

    Every agent gets the team's reward and flags. A vault has no place for the observations that
    an episode ends with: reading it back gives them for no episode.

    Args:
        dataset (OfflineDataset): what is written.
        path (str or Path): folder ``<scenario>.vlt/<uid>``, which must not exist.

    Raises:
        FileExistsError: if the folder exists.
    """
    ts = require("tensorstore", "formats")
    path, spec = Path(path), dataset.spec
    if path.exists():
        raise FileExistsError(f"Cannot write {path}: it exists already.")
    n = spec.n_agents
    leaves: dict[str, tuple[tuple[int, ...], str]] = {
        "observations": ((n, spec.observation_size), "float32"),
        "actions": ((n,), "int32") if spec.discrete else ((n, spec.action_size), "float32"),
        "rewards": ((n,), "float32"),
        "terminals": ((n,), "float32"),
        "truncations": ((n,), "float32"),
        "infos.state": ((spec.state_size,), "float32"),
    }
    if spec.discrete:
        leaves["infos.legals"] = ((n, spec.action_size), "float32")
    steps = len(dataset)
    path.mkdir(parents=True)
    stores = {}
    for name, (shape, dtype) in leaves.items():
        rows = max(1, min(_WRITTEN_AT_ONCE, 2**20 // (4 * math.prod(shape))))
        description = {
            **_store(path, f"{name}."),
            "metadata": {"compressor": _COMPRESSOR, "chunks": [1, rows, *shape]},
        }
        stores[name] = ts.open(
            description, shape=(1, _TIME_AXIS, *shape), dtype=dtype, create=True
        ).result()
    for start in range(0, steps, _WRITTEN_AT_ONCE):
        stop = min(start + _WRITTEN_AT_ONCE, steps)
        for name, value in _vault_rows(dataset, start, stop).items():
            stores[name][0, start:stop].write(value).result()
    index = ts.open(_store(path, "vault_index"), dtype="int32", shape=(1,), create=True).result()
    index.write(np.array([steps], np.int32)).result()
    structure: dict[str, dict[str, Any]] = {"shape": {}, "dtype": {}}
    for name, (shape, dtype) in leaves.items():
        *folders, leaf = name.split(".")
        for kind, text in (("shape", str((1, steps + 1, *shape))), ("dtype", dtype)):
            place = structure[kind]
            for folder in folders:
                place = place.setdefault(folder, {})
            place[leaf] = text
    text = json.dumps(
        {
            "version": _VERSION,
            "structure_shape": structure["shape"],
            "structure_dtype": structure["dtype"],
            "task": spec.task,
            "hash": dataset.metadata.hash,
        }
    )
    # Last, so that a folder without it is known to be half-written.
    (path / "metadata.json").write_text(text)


def _vault_rows(dataset: OfflineDataset, start: int, stop: int) -> dict[str, np.ndarray]:
    data = dataset[start:stop].cpu()
    n = dataset.spec.n_agents

    def for_agents(key: str) -> np.ndarray:
        return data["next", key].expand(stop - start, n).float().numpy()

    rows = {
        "observations": data["agents", "observation"].numpy(),
        "actions": data["agents", "action"].numpy(),
        "rewards": for_agents("reward"),
        "terminals": for_agents("terminated"),
        "truncations": for_agents("truncated"),
        "infos.state": data["state"].numpy(),
    }
    if dataset.spec.discrete:
        rows["actions"] = rows["actions"].astype(np.int32)
        rows["infos.legals"] = data["agents", "action_mask"].float().numpy()
    return rows


def _vaults(path: Path) -> list[Path]:
    """The vaults that a folder is or holds."""

    def is_vault(folder: Path) -> bool:
        files = ("metadata.json", "manifest.ocdbt")
        return all((folder / name).is_file() for name in files)

    return [path] if is_vault(path) else [f for f in sorted(path.iterdir()) if is_vault(f)]


def _find_vault(path: Path) -> Path:
    found = _vaults(path) if path.is_dir() else []
    if len(found) != 1:
        names = [folder.name for folder in found]
        raise DatasetError(str(path), "one vault (give its folder)", f"{names or 'none'}")
    return found[0]


def _read_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Names of stores (each part ends in a dot) with the shapes that the metadata tell."""
    shapes: dict[str, tuple[int, ...]] = {}
    left = [("", tree)]
    while left:
        prefix, found = left.pop()
        if isinstance(found, dict):
            left += [(f"{prefix}{name}.", value) for name, value in found.items()]
        elif isinstance(found, str) and _SHAPE.fullmatch(found):
            shapes[prefix] = tuple(int(size) for size in re.findall(r"\d+", found))
        else:
            where = f"metadata.json/structure_shape/{prefix}"[:200]
            raise DatasetError(where, "shapes such as '(1, 10, 3)'", repr(found)[:200])
    return shapes


def _store(folder: Path, name: str) -> dict[str, Any]:
    return {
        "driver": "zarr",
        "kvstore": {"driver": "ocdbt", "base": f"file://{folder.resolve()}", "path": name},
    }


def _open(folder: Path, name: str) -> Any:
    ts = require("tensorstore", "formats")
    try:
        return ts.open(_store(folder, name)).result()
    # tensorstore's errors are of many classes.
    except Exception as error:
        raise DatasetError(name, f"a store in {folder}", str(error).split("\n")[0]) from error


def _read(store: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(store.read().result())
    except Exception as error:
        raise DatasetError(name, "a whole store", str(error).split("\n")[0]) from error
