"""HDF5 files of padded episodes as PyMARL's runners record them (CFCQL's and ICQ's SMAC data)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from torchrl_logo.data.dataset import OfflineDataset
from torchrl_logo.data.formats.hdf5_files import open_hdf5
from torchrl_logo.data.formats.reader import EpisodeReader
from torchrl_logo.data.formats.whole_numbers import to_flags, to_integers
from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.data.validation import DatasetError, require_size
from torchrl_logo.optional_dependencies import require

__all__ = ["PymarlHDF5Reader", "write_pymarl_hdf5"]

_REQUIRED = ("state", "obs", "actions", "avail_actions", "reward", "terminated", "filled")
_WRITTEN_AT_ONCE = 256


class PymarlHDF5Reader(EpisodeReader):
    """Reads the HDF5 files of CFCQL (and of ICQ) with discrete actions.

    Arrays are episode-major, ``[E, L + 1, ...]`` for a limit of ``L`` steps: ``state``, ``obs``,
    ``actions`` ``[..., N, 1]``, ``avail_actions``, ``reward``, ``terminated`` and ``filled``.
    Steps past an episode's end are not filled. An episode of ``T`` steps fills ``T + 1`` entries,
    the last with observations only; where a terminated episode fills just ``T``, the entry after
    it is read all the same, since nothing is bootstrapped from it, and the provenance counts
    these. PyMARL does not mark the time limit as a termination: episodes that end without one
    are truncated.

    Args:
        path (Path): the ``.h5`` or ``.hdf5`` file.

    Raises:
        DatasetError: if an array is missing or has another shape, if the filled steps of an
            episode are not its first ones, or if it goes on after its termination.
    """

    format = "pymarl-hdf5"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.file = open_hdf5(path)
        for key in _REQUIRED:
            if key not in self.file:
                raise DatasetError(key, f"an array in {path.name}", f"{self.file.keys}")
        self.arrays = {key: self.file.array(key) for key in _REQUIRED}
        for key, array in self.arrays.items():
            if array.ndim < 2 or 0 in array.shape:
                raise DatasetError(key, "shape [E, T, ...]", f"shape {list(array.shape)}")
        episodes, steps = self.arrays["filled"].shape[:2]
        agents, actions = (self.arrays[key].shape[2:] for key in ("obs", "avail_actions"))
        state = self.arrays["state"].shape[2:]
        if (len(agents), len(actions), len(state)) != (2, 2, 1):
            found = f"shapes {list(agents)}, {list(actions)} and {list(state)} a step"
            raise DatasetError("obs", "[N, d_o], avail_actions [N, A] and state [d_s]", found)
        n, size = agents[0], actions[1]
        wanted = {
            "obs": agents,
            "avail_actions": (n, size),
            "state": state,
            "actions": (n, 1),
            "reward": (1,),
            "terminated": (1,),
            "filled": (1,),
        }
        for key, inner in wanted.items():
            shape = self.arrays[key].shape
            if shape != (episodes, steps, *inner) and not (inner == (1,) and len(shape) == 2):
                expected = f"shape {[episodes, steps, *inner]}, as 'filled' and 'obs' have"
                raise DatasetError(key, expected, f"shape {list(shape)}")
            if shape[:2] != (episodes, steps):
                expected = f"shape [{episodes}, {steps}, ...], as 'filled' has"
                raise DatasetError(key, expected, f"shape {list(shape)}")
        self.spec = TaskSpec(
            n_agents=require_size("obs", n),
            observation_size=require_size("obs", agents[1]),
            state_size=require_size("state", state[0]),
            action_size=require_size("avail_actions", size),
            discrete=True,
            max_steps=max(int(steps) - 1, 1),
        )
        self.lengths, self.terminated = self._find_lengths(episodes, steps)

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """An HDF5 file with ``obs``, ``avail_actions`` and ``filled`` at its root."""
        if not path.is_file() or path.suffix not in (".h5", ".hdf5"):
            return False
        try:
            file = open_hdf5(path)
            file.close()
            return {"obs", "avail_actions", "filled"} <= set(file.keys)
        except DatasetError:
            return False

    def _find_lengths(self, episodes: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
        filled, over = (
            to_flags(key, self.arrays[key].read()).reshape(episodes, steps)
            for key in ("filled", "terminated")
        )
        over &= filled
        count = filled.sum(-1)
        gaps = (filled != (np.arange(steps) < count[:, None])).any(-1)
        if gaps.any():
            where = f"a gap in episode {int(gaps.argmax())}"
            raise DatasetError("filled", "an episode's first steps", where)
        terminated = over.any(-1)
        lengths = np.where(terminated, over.argmax(-1) + 1, count - 1).astype(np.int64)
        late = terminated & (count > lengths + 1)
        if late.any():
            episode = int(late.argmax())
            found = (
                f"episode {episode} terminates at step {int(lengths[episode]) - 1} of "
                f"{int(count[episode])} filled ones"
            )
            raise DatasetError("terminated", "the end of an episode", found)
        # A last step in the array's last entry has no entry after it.
        beyond = lengths >= steps
        if beyond.any():
            found = f"none after the last step of episode {int(beyond.argmax())}"
            raise DatasetError("obs", "the observations that an episode ends with", found)
        self.provenance["last_observations_not_filled"] = int(
            (terminated & (count == lengths)).sum()
        )
        return lengths, np.asarray(terminated)

    def read(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Reads these episodes and leaves out what pads them."""
        lengths = self.lengths[start:stop]
        longest = int(lengths.max()) + 1
        taken = np.arange(longest) < lengths[:, None]  # [E, T + 1], steps with an action
        following = np.zeros_like(taken)
        following[:, 1:] = taken[:, :-1]
        last = taken & (np.arange(longest) == lengths[:, None] - 1)
        terminated = (last & self.terminated[start:stop, None])[taken][:, None]
        done = last[taken][:, None]

        def load(key: str) -> np.ndarray:
            return self.arrays[key].read(slice(start, stop), slice(0, longest))

        state = load("state").astype(np.float32, copy=False)
        observation = load("obs").astype(np.float32, copy=False)
        mask = to_flags("avail_actions", load("avail_actions"))
        reward = load("reward").reshape(len(lengths), longest, 1).astype(np.float32)
        return {
            "agents/observation": observation[taken],
            "next/agents/observation": observation[following],
            "agents/action": to_integers("actions", load("actions")[..., 0][taken]),
            "agents/action_mask": mask[taken],
            "next/agents/action_mask": mask[following],
            "state": state[taken],
            "next/state": state[following],
            "next/reward": reward[taken],
            "next/done": done,
            "next/terminated": terminated,
            "next/truncated": done & ~terminated,
        }

    def close(self) -> None:
        """Closes the file."""
        self.file.close()


def write_pymarl_hdf5(dataset: OfflineDataset, path: str | Path) -> None:
    """Writes a discrete dataset in the layout that :class:`PymarlHDF5Reader` reads.

    Args:
        dataset (OfflineDataset): with discrete actions.
        path (str or Path): the file, which must not exist.

    Raises:
        ValueError: if actions are continuous, for which PyMARL's layout has no place.
        FileExistsError: if the file exists.
    """
    h5py = require("h5py", "formats")
    path, spec = Path(path), dataset.spec
    if not spec.discrete:
        raise ValueError(
            "PyMARL's HDF5 layout holds discrete actions; the dataset's are continuous."
        )
    if path.exists():
        raise FileExistsError(f"Cannot write {path}: it exists already.")
    episodes, steps = len(dataset.episode_lengths), int(dataset.episode_lengths.max()) + 1
    n, actions = spec.n_agents, spec.action_size
    shapes: dict[str, tuple[tuple[int, ...], str]] = {
        "state": ((spec.state_size,), "f4"),
        "obs": ((n, spec.observation_size), "f4"),
        "actions": ((n, 1), "i8"),
        "actions_onehot": ((n, actions), "f4"),
        "avail_actions": ((n, actions), "i4"),
        "reward": ((1,), "f4"),
        "terminated": ((1,), "u1"),
        "filled": ((1,), "i8"),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with h5py.File(unfinished, "w") as file:
            for key, (shape, dtype) in shapes.items():
                file.create_dataset(key, (episodes, steps, *shape), dtype, compression="gzip")
            for start in range(0, episodes, _WRITTEN_AT_ONCE):
                stop = min(start + _WRITTEN_AT_ONCE, episodes)
                for key, value in _pad_episodes(dataset, start, stop, steps).items():
                    file[key][start:stop] = value
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _pad_episodes(
    dataset: OfflineDataset, start: int, stop: int, steps: int
) -> dict[str, np.ndarray]:
    lengths = dataset.episode_lengths[start:stop].cpu()
    first = int(dataset.episode_starts[start])
    data = dataset[first : first + int(lengths.sum())].cpu()
    taken = torch.arange(steps) < lengths.unsqueeze(-1)  # [E, L + 1]
    last = torch.arange(steps) == lengths.unsqueeze(-1)  # the entry after the last step
    ends = lengths.cumsum(0) - 1

    def pad(value: torch.Tensor, final: torch.Tensor | None = None) -> torch.Tensor:
        padded = value.new_zeros(*taken.shape, *value.shape[1:])
        padded[taken] = value
        if final is not None:
            padded[last] = final[ends]
        return padded

    action = data["agents", "action"].unsqueeze(-1)  # [B, N, 1]
    mask = data["agents", "action_mask"]
    one_hot = torch.zeros(mask.shape).scatter_(-1, action, 1.0)
    made = {
        "state": pad(data["state"], data["next", "state"]),
        "obs": pad(data["agents", "observation"], data["next", "agents", "observation"]),
        "actions": pad(action),
        "actions_onehot": pad(one_hot),
        "avail_actions": pad(mask, data["next", "agents", "action_mask"]).int(),
        "reward": pad(data["next", "reward"]),
        "terminated": pad(data["next", "terminated"]).to(torch.uint8),
        "filled": (taken | last).unsqueeze(-1).long(),
    }
    return {key: value.numpy() for key, value in made.items()}
