"""Offline multi-agent datasets as TorchRL replay buffers over memory-mapped TensorDicts."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torchrl.data import ImmutableDatasetWriter, TensorDictReplayBuffer

from torchrl_logo.argument_checks import find_device
from torchrl_logo.data.contained_files import require_contained
from torchrl_logo.data.content_hash import hash_content, hash_files
from torchrl_logo.data.episode_storage import EpisodeStorage
from torchrl_logo.data.json_files import read_json
from torchrl_logo.data.mapped_files import count_bytes, map_tensordict, write_tensordict
from torchrl_logo.data.metadata import DatasetMetadata, describe_values, record_versions
from torchrl_logo.data.reference_returns import ReferenceReturns
from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.data.validation import (
    DatasetError,
    find_episode_starts,
    layout_shapes,
    validate_layout,
)
from torchrl_logo.html_tables import make_html_table
from torchrl_logo.whole_files import explain_write_errors, publish_folder, require_room, write_file

__all__ = ["OfflineDataset", "write_metadata"]

# 2: metadata.json has a checksum of its own. 1 had none, and is still read.
_FORMAT = 2


class OfflineDataset(TensorDictReplayBuffer):
    """Episodes of a team as an immutable TorchRL replay buffer.

    The transitions are a flat TensorDict ``[B]`` in the package's layout, episodes contiguous:
    ``("agents", "observation")`` ``[B, N, d_o]``, ``("agents", "action")``, ``"state"``
    ``[B, d_s]``, ``("next", ...)`` with the true next step, ``("next", "reward")`` ``[B, 1]``,
    the flags ``[B, 1]``, and ``"episode"``, ``"step"`` ``[B]``. On CPU they are memory-mapped;
    on another device they are copied to it once, and indices are drawn there too.

    Samplers, transforms, ``prefetch`` and so on are TorchRL's. Checkpoints of the buffer
    (``state_dict``, ``dumps``) hold the data's hash, not the data.

    Datasets are made by :meth:`from_transitions`, :meth:`load`,
    :func:`~torchrl_logo.data.load_dataset`, :func:`~torchrl_logo.data.collect` and
    :func:`~torchrl_logo.data.from_arrays`; the constructor checks nothing.

    Args:
        data (TensorDictBase): transitions ``[B]``.
        metadata (DatasetMetadata): what is known of the rows shown.

    Keyword Args:
        rows (torch.Tensor, optional): ``[n]``, the rows shown. Defaults to all.
        path (Path, optional): where the dataset is saved.
        mapped (bool): whether the tensors are mapped from files already. Defaults to ``False``.
        batch_size (int, optional): transitions in a sample. Defaults to none, in which case
            ``sample`` needs one.
        device (torch.device or str): where the data lie and samples come from.
            Defaults to ``"cpu"``.
        **kwargs: as :class:`~torchrl.data.TensorDictReplayBuffer` takes them.

    Attributes:
        metadata: a :class:`~torchrl_logo.data.DatasetMetadata`.
        path: folder of the saved dataset, or ``None``.

    Examples:
        >>> from torchrl_logo.data import collect
        >>> from torchrl_logo.envs import make_env
        >>> dataset = collect(make_env("vmas/transport", num_envs=4), None, 1000, seed=0)
        >>> len(dataset), dataset.metadata.episodes
        (1000, 5)
        >>> dataset.sample(32)["agents", "observation"].shape
        torch.Size([32, 4, 11])
        >>> train, held_out = dataset.split(0.8)
        >>> len(train), len(held_out)
        (800, 200)
        >>> held_out.sample_sequences(8, length=15)["state"].shape
        torch.Size([8, 15, 36])
    """

    def __init__(
        self,
        data: TensorDictBase,
        metadata: DatasetMetadata,
        *,
        rows: torch.Tensor | None = None,
        path: Path | None = None,
        mapped: bool = False,
        batch_size: int | None = None,
        device: torch.device | str = "cpu",
        **kwargs: Any,
    ) -> None:
        device = find_device(device)
        if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
            raise ValueError(
                f"batch_size must be a positive integer, or None to pass one to sample(), found "
                f"{batch_size!r}."
            )
        if device.type == "cpu":
            data = data if mapped or data.is_memmap() else data.memmap()
        else:
            data = data.to(device)
            rows = None if rows is None else rows.to(device)
        super().__init__(
            storage=EpisodeStorage(data, content_hash=metadata.hash, rows=rows),
            writer=ImmutableDatasetWriter(),
            batch_size=batch_size,
            **kwargs,
        )
        self.metadata = metadata
        self.path = path
        self.device = device
        self._window_ends: dict[int, torch.Tensor] = {}

    @classmethod
    def from_transitions(
        cls,
        data: TensorDictBase,
        spec: TaskSpec,
        *,
        quality: str | None = None,
        reference_returns: ReferenceReturns | None = None,
        provenance: dict[str, Any] | None = None,
        root: str | Path | None = None,
        **kwargs: Any,
    ) -> OfflineDataset:
        """Validates transitions, describes them and makes (and saves) the dataset.

        Args:
            data (TensorDictBase): transitions ``[B]`` in the package's layout.
            spec (TaskSpec): the task's sizes and bounds.

        Keyword Args:
            quality (str, optional): how good the behaviour was.
            reference_returns (ReferenceReturns, optional): returns that scores are normalised
                by.
            provenance (dict, optional): where the data come from; versions are added.
            root (str or Path, optional): folder to save the dataset in, which must not exist.
                Defaults to temporary files that end with the process.
            **kwargs: passed on to the constructor (``batch_size``, ``device``, ...).

        Raises:
            DatasetError: if the data break the layout.
            FileExistsError: if ``root`` exists.
            OSError: if the disk is full or read-only.
        """
        if root is not None:
            require_absent(Path(root))
        validate_layout(data, spec)
        metadata = _describe(
            data,
            spec,
            quality=quality,
            reference_returns=reference_returns,
            provenance={"versions": record_versions(), **(provenance or {})},
        )
        if root is None:
            return cls(data, metadata, **kwargs)
        _write(Path(root), data, metadata)
        return cls.load(root, **kwargs)

    @property
    def spec(self) -> TaskSpec:
        """Sizes and bounds of the task."""
        return self.metadata.spec

    @property
    def data(self) -> TensorDictBase:
        """All transitions, ``[B]``: the memory-mapped TensorDict itself, or a copy for a split.

        Do not write into its tensors (nor into slices of the dataset): they are the data.
        """
        if self._storage.rows is None:
            return self._storage._storage
        return self._storage[:]

    @cached_property
    def episode_starts(self) -> torch.Tensor:
        """First row of each episode, ``[E]`` i64."""
        return find_episode_starts(self._storage.get_column("episode"))

    @cached_property
    def episode_lengths(self) -> torch.Tensor:
        """Number of transitions of each episode, ``[E]`` i64."""
        starts = self.episode_starts
        return torch.diff(starts, append=starts.new_tensor([len(self)]))

    @cached_property
    def episode_slices(self) -> list[slice]:
        """Rows of each episode: ``dataset[dataset.episode_slices[0]]`` is the first one."""
        starts, lengths = self.episode_starts.tolist(), self.episode_lengths.tolist()
        return [slice(a, a + n) for a, n in zip(starts, lengths, strict=True)]

    @cached_property
    def returns(self) -> torch.Tensor:
        """Undiscounted return of each episode, ``[E]`` f32."""
        reward = self._storage.get_column(("next", "reward"))
        return _sum_episodes(reward, self.episode_lengths).to(torch.float32)

    def split(self, fraction: float, seed: int = 0) -> tuple[OfflineDataset, OfflineDataset]:
        """Splits the dataset at random by episode, without copying the transitions.

        Both parts read their parent's tensors through a list of rows and keep the parent's
        ``batch_size`` and device; samplers and transforms are not taken over. Their metadata
        (statistics, hash, provenance) are their own.

        Args:
            fraction (float): share of the episodes in the first part, between 0 and 1. Each
                part gets at least one episode.
            seed (int): the same seed gives the same split. Defaults to ``0``.

        Returns:
            The training episodes (``fraction`` of all) and the held-out ones.

        Raises:
            ValueError: if ``fraction`` is not between 0 and 1, or there are fewer than two
                episodes.
        """
        if not 0.0 < fraction < 1.0:
            raise ValueError(f"split needs a fraction between 0 and 1, found {fraction!r}.")
        episodes = len(self.episode_starts)
        if episodes < 2:
            raise ValueError(
                f"split needs at least 2 episodes, found {episodes}: collect or load more of them."
            )
        first = min(max(round(fraction * episodes), 1), episodes - 1)
        order = torch.randperm(episodes, generator=torch.Generator().manual_seed(seed))
        in_first = torch.zeros(episodes, dtype=torch.bool)
        in_first[order[:first]] = True
        # [B]: whether a row's episode is in the first part
        in_first = in_first.to(self.device).repeat_interleave(self.episode_lengths)
        parent = self._storage.rows
        parts = []
        for name, chosen in (("train", in_first), ("held-out", ~in_first)):
            rows = chosen.nonzero().squeeze(-1)
            rows = rows if parent is None else parent[rows]
            record = {"part": name, "fraction": fraction, "seed": seed, "of": self.metadata.hash}
            splits = [*self.metadata.provenance.get("splits", []), record]
            metadata = _describe(
                self._storage._storage,
                self.spec,
                rows=rows,
                quality=self.metadata.quality,
                reference_returns=self.metadata.reference_returns,
                provenance={**self.metadata.provenance, "splits": splits},
            )
            parts.append(
                OfflineDataset(
                    self._storage._storage,
                    metadata,
                    rows=rows,
                    mapped=True,
                    batch_size=self._batch_size,
                    device=self.device,
                )
            )
        return parts[0], parts[1]

    def sample_sequences(self, batch_size: int, length: int) -> TensorDictBase:
        """Draws windows of consecutive steps that lie within one episode.

        Every window of the dataset is equally likely. Transforms are not applied.

        Args:
            batch_size (int): number of windows, ``S``.
            length (int): steps of a window, ``L``.

        Returns:
            A TensorDict ``[S, L]`` with the layout's keys.

        Raises:
            ValueError: if an argument is not positive, or no episode has ``length`` steps.
        """
        if batch_size < 1 or length < 1:
            raise ValueError(
                "sample_sequences needs a positive batch_size and length, found "
                f"{batch_size} and {length}."
            )
        if length not in self._window_ends:
            windows = (self.episode_lengths - length + 1).clamp_min(0)  # [E]
            if not windows.any():
                raise ValueError(
                    f"No episode has the {length} steps asked for; the longest has "
                    f"{int(self.episode_lengths.max())}: choose a smaller length."
                )
            self._window_ends[length] = windows.cumsum(0)
        ends = self._window_ends[length]
        # A draw in [0, 1) keeps the number of windows on the device; float64 keeps it exact.
        draw = torch.rand(batch_size, generator=self._rng, device=self.device, dtype=torch.float64)
        window = (draw * ends[-1]).long()  # [S]
        episode = torch.searchsorted(ends, window, right=True)
        # ends[episode] - window - 1 windows of the episode come after the one drawn
        last_start = self.episode_starts[episode] + self.episode_lengths[episode] - length
        start = last_start - (ends[episode] - window - 1)
        rows = start.unsqueeze(-1) + torch.arange(length, device=self.device)  # [S, L]
        return self._storage.get(rows)

    def read_evenly(self, most: int) -> TensorDictBase:
        """All transitions, or ``most`` of them at even distances.

        For statistics of data of any size, in bounded memory.

        Args:
            most (int): transitions, at most.

        Returns:
            A TensorDict ``[min(B, most)]``. Do not write into its tensors.
        """
        return self.data if len(self) <= most else self._storage.read_evenly(most)

    def select_rows(
        self, keys: Sequence[NestedKey], *, in_memory: bool, device: torch.device
    ) -> EpisodeStorage:
        """Some entries of the transitions, for training.

        Args:
            keys (sequence of NestedKey): the entries.

        Keyword Args:
            in_memory (bool): whether they are copied to the memory of ``device``; if not, rows are
                read where the dataset has them.
            device (torch.device): where a copy is made.

        Returns:
            A storage, whose ``get`` reads rows.
        """
        selected = self._storage._storage.select(*keys)
        storage = EpisodeStorage(selected, content_hash=self.metadata.hash, rows=self._storage.rows)
        if not in_memory:
            return storage
        data = storage.get(slice(None)).to(device)
        data = data.clone() if self._storage.rows is None else data
        return EpisodeStorage(data, content_hash=self.metadata.hash)

    def save(self, path: str | Path) -> None:
        """Saves the dataset as a folder with memory-mapped tensors and ``metadata.json``.

        The folder appears complete or not at all: it is written beside its place and renamed.

        Args:
            path (str or Path): the folder, which must not exist.

        Raises:
            FileExistsError: if it exists.
            OSError: if the disk is full or read-only.
        """
        require_absent(Path(path))
        _write(Path(path), self.data, self.metadata)

    @staticmethod
    def is_saved(path: str | Path) -> bool:
        """Whether a folder holds a dataset that :meth:`save` wrote."""
        return (Path(path) / "metadata.json").is_file() and (Path(path) / "data").is_dir()

    @classmethod
    def load(cls, path: str | Path, *, verify: bool = True, **kwargs: Any) -> OfflineDataset:
        """Opens a saved dataset; its tensors are mapped.

        Args:
            path (str or Path): folder written by :meth:`save`.

        Keyword Args:
            verify (bool): reads all data once and compares their hash, at the speed of the disk
                or about a gigabyte a second. Without it a damaged file can be read as other
                data. Keys, shapes, dtypes and sizes are always compared. Defaults to ``True``.
            **kwargs: passed on to the constructor (``batch_size``, ``device``, ...).

        Raises:
            FileNotFoundError: if there is no dataset.
            DatasetError: if the data do not fit their metadata.
        """
        path = Path(path)
        if not (path / "metadata.json").is_file():
            raise FileNotFoundError(
                f"No dataset in {path}: metadata.json is missing. OfflineDataset.save writes such "
                "a folder; load_dataset opens named datasets and other formats."
            )
        require_contained(path)
        metadata = _read_metadata(path / "metadata.json")
        data = map_tensordict(path / "data")
        if data.ndim != 1:
            raise DatasetError("dataset", "one batch dimension [B]", str(list(data.batch_size)))
        if len(data) != metadata.transitions:
            raise DatasetError("dataset", f"{metadata.transitions} transitions", str(len(data)))
        for key, (shape, dtype, _) in layout_shapes(metadata.spec).items():
            value = data.get(key, None)
            found = "no such key" if value is None else f"{value.dtype} {list(value.shape[1:])}"
            if found != f"{dtype} {list(shape)}":
                raise DatasetError(key, f"{dtype} {list(shape)}", found)
        if verify:
            found = hash_content(data)
            if found != metadata.hash:
                raise DatasetError("dataset", f"content with hash {metadata.hash}", found)
        return cls(data, metadata, path=path, mapped=True, **kwargs)

    def __repr__(self) -> str:
        m = self.metadata
        actions = "actions" if m.spec.discrete else "action components"
        lengths, returns = m.length_statistics, m.return_statistics
        lines = [f"task={m.task}, quality={m.quality}"]
        lines.append(
            f"{m.transitions:,} transitions in {m.episodes:,} episodes of "
            f"{lengths['min']:.0f} to {lengths['max']:.0f} steps"
        )
        lines.append(
            f"{m.spec.n_agents} agents, {m.spec.observation_size} observation features, "
            f"{m.spec.state_size} state features, {m.spec.action_size} {actions}"
        )
        score = ""
        if m.reference_returns is not None:
            score = f", normalised {m.reference_returns.normalize(returns['mean']):.1f}"
        lines.append(f"return {returns['mean']:.2f} ± {returns['std']:.2f}{score}")
        lines.append(f"batch_size={self._batch_size}, device={self.device}, path={self.path}")
        lines.append(f"hash={m.hash}")
        return f"{type(self).__name__}(\n    " + ",\n    ".join(lines) + ",\n)"

    def _repr_html_(self) -> str:
        m, returns = self.metadata, self.metadata.return_statistics
        shortest, longest = m.length_statistics["min"], m.length_statistics["max"]
        rows: dict[str, object] = {
            "task": m.task,
            "quality": m.quality,
            "size": f"{m.transitions:,} transitions in {m.episodes:,} episodes of "
            f"{shortest:.0f} to {longest:.0f} steps",
            "agents": m.spec.n_agents,
            "observation features": m.spec.observation_size,
            "state features": m.spec.state_size,
            "actions" if m.spec.discrete else "action components": m.spec.action_size,
            "return": f"{returns['mean']:.2f} ± {returns['std']:.2f}",
        }
        if m.reference_returns is not None:
            rows["normalised return"] = f"{m.reference_returns.normalize(returns['mean']):.1f}"
        rows |= {"batch size": self._batch_size, "device": self.device, "path": self.path}
        return make_html_table(type(self).__name__, {**rows, "hash": m.hash})


def write_metadata(
    folder: Path,
    spec: TaskSpec,
    *,
    quality: str | None,
    reference_returns: ReferenceReturns | None,
    provenance: dict[str, Any],
    content_hash: str | None = None,
) -> None:
    """Describes the valid transitions that were written to ``folder / "data"``.

    The files are read a block at a time, not mapped, so that the memory in use stays small.

    Args:
        folder (Path): where ``metadata.json`` is written.
        spec (TaskSpec): sizes of the task.

    Keyword Args:
        quality (str, optional): how good the behaviour was.
        reference_returns (ReferenceReturns, optional): what scores are normalised by.
        provenance (dict): where the data come from.
        content_hash (str, optional): their hash. Defaults to that of what the files hold.
    """
    metadata = _describe(
        map_tensordict(folder / "data"),
        spec,
        quality=quality,
        reference_returns=reference_returns,
        provenance=provenance,
        content_hash=hash_files(folder / "data") if content_hash is None else content_hash,
    )
    _dump_metadata(folder, metadata)


def _sum_episodes(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Sums ``[B, 1]`` values by episode, in float64: ``[E]``."""
    episode = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    sums = torch.zeros(len(lengths), dtype=torch.float64, device=values.device)
    return sums.index_add(0, episode, values.squeeze(-1).to(torch.float64))


def _describe(
    data: TensorDictBase,
    spec: TaskSpec,
    *,
    rows: torch.Tensor | None = None,
    quality: str | None,
    reference_returns: ReferenceReturns | None,
    provenance: dict[str, Any],
    content_hash: str | None = None,
) -> DatasetMetadata:
    """Describes the (given) rows of valid transitions."""
    episode, reward = data.get("episode"), data.get(("next", "reward"))
    if rows is not None:
        episode, reward = episode[rows], reward[rows]
    starts = find_episode_starts(episode)
    lengths = torch.diff(starts, append=starts.new_tensor([len(episode)]))
    return DatasetMetadata(
        task=spec.task,
        quality=quality,
        spec=spec,
        episodes=len(starts),
        transitions=len(episode),
        return_statistics=describe_values(_sum_episodes(reward, lengths)),
        length_statistics=describe_values(lengths),
        reference_returns=reference_returns,
        hash=hash_content(data, rows) if content_hash is None else content_hash,
        provenance=provenance,
    )


def require_absent(path: Path) -> None:
    """Refuses to write a dataset where something is already."""
    if path.exists():
        raise FileExistsError(
            f"Cannot save a dataset to {path}: it exists already. Choose another folder, or "
            "remove it."
        )


def _dump_metadata(folder: Path, metadata: DatasetMetadata) -> None:
    content = {"format": _FORMAT, **metadata.to_dict()}
    text = json.dumps({**content, "checksum": _checksum(content)}, indent=2, sort_keys=True)
    write_file("the metadata", folder / "metadata.json", f"{text}\n".encode())


def _read_metadata(path: Path) -> DatasetMetadata:
    content = read_json(path)
    checksum = content.pop("checksum", None)
    version = content.get("format")
    if type(version) is not int or version not in (1, _FORMAT):
        raise DatasetError(f"{path}/format", f"1 or {_FORMAT}", repr(version))
    found = _checksum(content) if version > 1 else None
    if checksum != found:
        expected = f"content with checksum {checksum}" if found else "no checksum in format 1"
        raise DatasetError(str(path), expected, str(found or checksum))
    del content["format"]
    try:
        return DatasetMetadata.from_dict(content)
    except (ValueError, TypeError) as error:
        raise DatasetError(str(path), "a dataset's metadata", str(error)) from error


def _checksum(content: dict[str, Any]) -> str:
    """The sha256 of what JSON makes of the content (keys become strings, for instance)."""
    plain = json.loads(json.dumps(content))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _write(path: Path, data: TensorDictBase, metadata: DatasetMetadata) -> None:
    """Writes a dataset beside its place, flushes it to the disk and renames it."""
    require_room("the dataset", path, count_bytes(data))
    unfinished = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.unfinished"
    try:
        with explain_write_errors("the dataset", path):
            unfinished.mkdir(parents=True)
            write_tensordict(data, unfinished / "data")
            _dump_metadata(unfinished, metadata)
            publish_folder(unfinished, path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
