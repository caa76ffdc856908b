"""Memory-mapped TensorDicts, as TorchRL's own datasets and storages keep them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tensordict import NestedKey, TensorDictBase

from torchrl_logo.data.formats.arrays import LAYOUT_KEYS, MASKS, check_array_keys, find_spec
from torchrl_logo.data.formats.reader import EpisodeReader
from torchrl_logo.data.mapped_files import map_tensordict
from torchrl_logo.data.memory_limit import require_memory
from torchrl_logo.data.validation import DatasetError, find_episode_starts

__all__ = ["MemmapReader"]

_HASHED = 4096  # rows

_EPISODES: tuple[NestedKey, ...] = ("episode", ("collector", "traj_ids"))


class MemmapReader(EpisodeReader):
    """Reads a folder that ``TensorDict.memmap`` wrote, in the package's layout.

    The batch is ``[B]``, episodes one after the other, or ``[E, T]`` with one episode (or the
    beginning of one) in each row. Episodes are told by ``"episode"``, by TorchRL's
    ``("collector", "traj_ids")``, or by ``("next", "done")``. Keys beyond the layout's are left
    out.

    Args:
        path (Path): the folder.

    Keyword Args:
        n_actions (int, optional): for discrete actions without masks, how many there are.
        action_bounds (tuple of float): of continuous actions. Defaults to ``(-1, 1)``.

    Raises:
        DatasetError: if a key of the layout is missing.
    """

    format = "memmap"
    reads_columns = True

    def __init__(
        self,
        path: Path,
        *,
        n_actions: int | None = None,
        action_bounds: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        super().__init__(path)
        data = map_tensordict(path)
        episode = self._find_episode(data)
        self.data = data.reshape(-1)
        present = {"/".join((k,) if isinstance(k, str) else k) for k in self.data.keys(True, True)}
        self.names = [name for name in LAYOUT_KEYS if name in present]
        check_array_keys(self.names)
        self.n_actions = None if "agents/action_mask" in self.names else n_actions
        self.spec = find_spec(None, self._read_rows(0, 1), action_bounds)
        starts = find_episode_starts(episode)
        self.starts = torch.cat([starts, starts.new_tensor([len(episode)])]).numpy()
        self.lengths = np.diff(self.starts)
        self.provenance = {"left_out": sorted(present - set(self.names))}

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """A folder with ``meta.json`` and an observation of agents."""
        return (path / "meta.json").is_file() and (path / "agents" / "observation.memmap").is_file()

    @staticmethod
    def _find_episode(data: TensorDictBase) -> torch.Tensor:
        """A number for each row's episode, ``[B]``."""
        if data.ndim not in (1, 2):
            raise DatasetError("dataset", "a batch [B] or [E, T]", f"{list(data.batch_size)}")
        done = data.get(("next", "done"), None)
        if done is None:
            raise DatasetError(("next", "done"), "flags", "no such key")
        episode = next((data.get(k) for k in _EPISODES if data.get(k, None) is not None), None)
        rows = data.batch_size.numel()
        for key, value in ((("next", "done"), done), ("episode", episode)):
            if value is not None and (value.numel() != rows or value.is_floating_point()):
                found = f"{value.dtype} {list(value.shape)}"
                raise DatasetError(key, f"{rows} flags or whole numbers", found)
        require_memory("episode", 32 * rows)
        if episode is None:
            ends = done.reshape(-1).long()
            episode = ends.cumsum(0) - ends
        episode = episode.reshape(-1)
        if data.ndim == 2:  # no episode goes on in the next row of the batch
            row = torch.arange(data.shape[0]).repeat_interleave(data.shape[1])
            episode = torch.stack([row, episode], -1).unique(dim=0, return_inverse=True)[1]
        return episode

    def read(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Reads these episodes."""
        rows = self._read_rows(int(self.starts[start]), int(self.starts[stop]))
        return {k: v.numpy() for k, v in rows.items() if k not in ("episode", "step")}

    def read_column(self, key: str) -> Iterator[np.ndarray]:
        """Reads one key of all episodes."""
        rows = int(self.starts[-1])
        for start in range(0, rows, _HASHED):
            stop = min(start + _HASHED, rows)
            if key in MASKS and self.n_actions is not None:
                yield self._read_mask(start, stop).numpy()
            else:
                yield self.data.get(LAYOUT_KEYS[key])[start:stop].numpy()

    def _read_rows(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        found = {name: self.data.get(LAYOUT_KEYS[name])[start:stop].clone() for name in self.names}
        if self.n_actions is not None:
            found |= dict.fromkeys(MASKS, self._read_mask(start, stop))
        return found

    def _read_mask(self, start: int, stop: int) -> torch.Tensor:
        agents = self.data.get(LAYOUT_KEYS["agents/action"]).shape[1:]
        return torch.ones((stop - start, *agents, self.n_actions or 1), dtype=torch.bool)
