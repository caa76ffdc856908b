"""A dataset format of your own: a folder of CSV files, one an episode.

Copy this file to ``torchrl_logo/data/formats/``: ``load_dataset("path/of/folder")`` recognises,
checks and converts such folders then, a few episodes at a time. The columns of ``episode_*.csv``
are ``reward``, ``terminated``, ``state_<k>``, ``observation_<i>_<k>`` and ``action_<i>_<k>`` of
agent ``i`` and feature ``k``; the last row is what the episode ended with, whose action and reward
are not read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from torchrl_logo.data.formats.reader import EpisodeReader, join_episodes
from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.data.validation import DatasetError

__all__ = ["CSVReader"]


class CSVReader(EpisodeReader):
    """Reads folders of CSV files with continuous actions.

    Args:
        path (Path): the folder.

    Keyword Args:
        action_bounds (tuple of float): of actions, which the files do not say. Defaults to
            ``(-1, 1)``. Keywords are what ``load_dataset(path, ...)`` passes on.

    Raises:
        DatasetError: if files differ in their columns, or one of them has no transition.
    """

    # 1. The name that load_dataset(path, format=...) knows.
    format = "csv"

    def __init__(self, path: Path, *, action_bounds: tuple[float, float] = (-1.0, 1.0)) -> None:
        super().__init__(path)
        # 2. Opening reads sizes only.
        self.files = sorted(path.glob("episode_*.csv"))
        self.columns = self._read_columns(self.files[0])
        rows = []
        for file in self.files:
            if self._read_columns(file) != self.columns:
                raise DatasetError(file.name, f"the columns of {self.files[0].name}", "others")
            with file.open() as lines:
                rows.append(sum(1 for _ in lines) - 1)
        self.lengths = np.array(rows) - 1  # the last row begins no transition
        if (self.lengths < 1).any():
            name = self.files[int((self.lengths < 1).argmax())].name
            raise DatasetError(name, "two rows or more", "an episode without a transition")
        agents = {name.split("_")[1] for name in self.columns if name.startswith("observation_")}
        action_size = len(self._find("action_0_"))
        self.spec = TaskSpec(
            n_agents=len(agents),
            observation_size=len(self._find("observation_0_")),
            state_size=len(self._find("state_")),
            action_size=action_size,
            action_low=(action_bounds[0],) * action_size,
            action_high=(action_bounds[1],) * action_size,
        )
        # 3. Choices and derived facts become part of the dataset's metadata.
        self.provenance = {"action_bounds": list(action_bounds)}

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """A folder with ``episode_*.csv``; no other format may recognise the same folder."""
        return path.is_dir() and any(path.glob("episode_*.csv"))

    def read(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Reads the episodes ``start`` to ``stop`` (exclusive)."""
        # 4. Only as many files as asked for are in memory. What is read is checked by the caller:
        #    finite numbers, bounds, and that each step follows on the last.
        return join_episodes([self._read_episode(file) for file in self.files[start:stop]])

    def _read_episode(self, file: Path) -> dict[str, np.ndarray]:
        try:
            table = np.loadtxt(file, np.float32, delimiter=",", skiprows=1, ndmin=2)  # [T + 1, C]
        except ValueError as error:
            raise DatasetError(file.name, "numbers in all columns", str(error)) from error
        agents = range(self.spec.n_agents)
        state = table[:, self._find("state_")]
        observation = np.stack([table[:, self._find(f"observation_{i}_")] for i in agents], 1)
        action = np.stack([table[:, self._find(f"action_{i}_")] for i in agents], 1)
        # 5. An episode that does not end by itself was cut: it is truncated, and values go on.
        last = np.arange(len(table) - 1)[:, None] == len(table) - 2  # [T, 1]
        terminated = table[:-1, self._find("terminated")] > 0
        return {
            "agents/observation": observation[:-1],
            "next/agents/observation": observation[1:],
            "agents/action": action[:-1],
            "state": state[:-1],
            "next/state": state[1:],
            "next/reward": table[:-1, self._find("reward")],
            "next/done": last,
            "next/terminated": terminated,
            "next/truncated": last & ~terminated,
        }

    def _find(self, prefix: str) -> list[int]:
        """The columns whose names begin so."""
        return [index for index, name in enumerate(self.columns) if name.startswith(prefix)]

    @staticmethod
    def _read_columns(file: Path) -> list[str]:
        with file.open() as lines:
            return lines.readline().strip().split(",")
