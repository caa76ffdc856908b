"""One buffer whose batches have a fixed share of real and of imagined transitions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from torchrl.data import ReplayBufferEnsemble, TensorDictReplayBuffer

from torchrl_logo.argument_checks import MissingKeyError, require_type
from torchrl_logo.data.json_files import read_json
from torchrl_logo.data.mapped_files import count_bytes
from torchrl_logo.data.uncertainty_sampler import UncertaintySampler
from torchrl_logo.data.validation import DatasetError
from torchrl_logo.weight_files import load_weights, save_weights
from torchrl_logo.whole_files import explain_write_errors, require_room, write_file

__all__ = ["RealAndImaginedBuffer", "real_and_imagined_buffer"]

_REQUIRED_KEYS: tuple[NestedKey, ...] = (
    ("agents", "observation"),
    ("agents", "action"),
    "state",
    ("next", "agents", "observation"),
    ("next", "state"),
    ("next", "reward"),
    ("next", "done"),
    ("next", "terminated"),
    ("next", "truncated"),
)

# Required of one buffer as soon as the other has them.
_MASK_KEYS: tuple[NestedKey, ...] = (
    ("agents", "action_mask"),
    ("next", "agents", "action_mask"),
)


class RealAndImaginedBuffer(ReplayBufferEnsemble):
    """Two replay buffers as one, with an exact share of each in every batch.

    A batch is a flat TensorDict ``[B]``: first ``round(B * real_fraction)`` rows of ``real``,
    then rows of ``imagined``, each drawn by its buffer's own sampler (LOGO, arXiv 2601.07463:
    real ones uniformly, imagined ones by :class:`~torchrl_logo.data.UncertaintySampler`, half
    and half). Halves are rounded to even, as Python does; a share that would leave out one of
    the buffers by rounding is refused.

    It is a :class:`~torchrl.data.ReplayBufferEnsemble` (``buffer[0]`` is the real buffer,
    ``buffer[1]`` the imagined one), except that batches are flat and not stacked, that the shares
    need not be equal, and that writing goes to ``imagined``.

    Keys of a batch are those that both buffers have with the same shape and dtype, so real data's
    ``"episode"`` and ``"step"`` are dropped. The layout's keys, which no loss can do without, are
    never dropped: if one of the buffers lacks one of them, or they differ, an error says so.
    Added are:

    - ``"imagined"`` ``[B, 1]`` bool;
    - ``"uncertainty_weight"`` ``[B]`` f32, the number of times that a row is drawn more often
      than if its buffer were uniform; 1 for real rows. It is for logging and for losses that ask
      for it; do not multiply the loss by it as well, since that counts it twice;
    - ``"index"`` ``[B]`` i64, the row in its own buffer.

    Args:
        real (TensorDictReplayBuffer): for instance an :class:`~torchrl_logo.data.OfflineDataset`.
            Not empty.
        imagined (TensorDictReplayBuffer): takes what :meth:`extend` is given.

    Keyword Args:
        batch_size (int): rows of a batch, ``B``.
        real_fraction (float): share of real rows, from 0 to 1. Defaults to ``0.5``.
        required_keys (sequence of NestedKey, optional): keys that both must have. Defaults to
            the package's layout.

    Raises:
        ValueError: if ``real`` is empty, a storage has several dimensions, ``batch_size`` is not
            positive, or ``real_fraction`` is not within 0 and 1 or cannot be kept with
            ``batch_size``.
        KeyError: if ``real`` lacks a required key.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
        >>> from torchrl_logo.data.uncertainty_sampler import UncertaintySampler
        >>> real = TensorDictReplayBuffer(storage=LazyTensorStorage(10))
        >>> index = real.extend(TensorDict({"state": torch.zeros(10, 2)}, [10]))
        >>> imagined = TensorDictReplayBuffer(
        ...     storage=LazyTensorStorage(50),
        ...     sampler=UncertaintySampler(50, C=1.0),
        ...     priority_key="uncertainty",
        ... )
        >>> buffer = RealAndImaginedBuffer(real, imagined, batch_size=4, required_keys=["state"])
        >>> data = TensorDict({"state": torch.ones(5, 2), "uncertainty": torch.rand(5)}, [5])
        >>> index = buffer.extend(data)
        >>> batch = buffer.sample()
        >>> batch["imagined"].squeeze(-1), batch["state"][:, 0]
        (tensor([False, False,  True,  True]), tensor([0., 0., 1., 1.]))
    """

    def __init__(
        self,
        real: TensorDictReplayBuffer,
        imagined: TensorDictReplayBuffer,
        *,
        batch_size: int,
        real_fraction: float = 0.5,
        required_keys: Sequence[NestedKey] | None = None,
    ) -> None:
        if not 0.0 <= real_fraction <= 1.0:
            raise ValueError(f"real_fraction must be within 0 and 1, found {real_fraction!r}.")
        how = "TensorDictReplayBuffer(storage=..., sampler=UncertaintySampler(...))"
        require_type(real, TensorDictReplayBuffer, "real", "load_dataset")
        require_type(imagined, TensorDictReplayBuffer, "imagined", how)
        if not len(real):
            raise ValueError("The real buffer is empty, expected transitions: extend() it first.")
        for name, member in (("real", real), ("imagined", imagined)):
            if member.storage.ndim != 1:
                raise ValueError(
                    f"The {name} buffer's storage must have one dimension (flat transitions), "
                    f"found {member.storage.ndim}."
                )
        self.real_fraction = float(real_fraction)
        self._count_real(batch_size)
        self._required = tuple(
            unravel_key(key) for key in (_REQUIRED_KEYS if required_keys is None else required_keys)
        )
        self._real_shapes = _describe(real[:1])
        missing = [key for key in self._required if key not in self._real_shapes]
        if missing:
            raise MissingKeyError(
                f"The real buffer lacks {missing}; it has {list(self._real_shapes)}. Add "
                "the entries, or name other required_keys."
            )
        # Found when both buffers have data.
        self._shared_keys: list[NestedKey] | None = None
        super().__init__(real, imagined, sample_from_all=True, batch_size=batch_size)

    @property
    def real(self) -> TensorDictReplayBuffer:
        """The buffer of real transitions."""
        return self._rbs[0]

    @property
    def imagined(self) -> TensorDictReplayBuffer:
        """The buffer of imagined transitions."""
        return self._rbs[1]

    def set_rng(self, generator: torch.Generator | None) -> None:
        """Makes both buffers draw from a generator; ``None`` leaves them their own."""
        self._rng = generator
        if generator is not None:
            self.real.set_rng(generator)
            self.imagined.set_rng(generator)

    def extend(self, data: TensorDictBase, *, update_priority: bool | None = None) -> torch.Tensor:
        """Adds imagined transitions. Waits for the device, to check their uncertainties.

        Args:
            data (TensorDictBase): transitions of any batch shape, as collectors yield them; they
                are flattened. Only keys that the real data have, and the imagined buffer's
                ``priority_key``, are stored.

        Keyword Args:
            update_priority (bool, optional): as
                :meth:`torchrl.data.TensorDictReplayBuffer.extend` takes it.

        Returns:
            Indices in the imagined buffer.

        Raises:
            KeyError: if a required key is missing, or the uncertainty that the sampler needs.
            ValueError: if a required key has another shape or dtype than in the real data, or if
                uncertainties are negative, NaN or infinite. Nothing is stored then.
        """
        data = data.reshape(-1) if data.ndim != 1 else data
        shapes = _describe(data)
        self._check_required(shapes)
        keys: list[NestedKey] = [key for key in self._real_shapes if key in shapes]
        priority_key = unravel_key(self.imagined.priority_key)
        if isinstance(self.imagined.sampler, UncertaintySampler):
            if priority_key not in shapes:
                raise MissingKeyError(
                    f"Imagined transitions need their uncertainty, key {priority_key!r}; found "
                    f"{list(shapes)}."
                )
            value = data.get(priority_key)
            valid = torch.isfinite(value) & (value >= 0)
            if not bool(valid.all()):
                raise ValueError(
                    f"Key {priority_key!r}: expected finite uncertainties that are not negative, "
                    f"found {int((~valid).sum())} of {valid.numel()} that are not."
                )
        if priority_key in shapes and priority_key not in keys:
            keys.append(priority_key)
        # The buffer writes an index into what it is given: into this shallow copy.
        return self.imagined.extend(data.select(*keys), update_priority=update_priority)

    def add(self, data: TensorDictBase) -> torch.Tensor:
        """Adds one imagined transition, a TensorDict without batch dimension."""
        return self.extend(data.unsqueeze(0))[0]

    def update_priority(self, index: int | torch.Tensor, priority: float | torch.Tensor) -> None:
        """Sets the uncertainties of imagined transitions, by their index in that buffer."""
        self.imagined.update_priority(index, priority)

    def update_tensordict_priority(self, data: TensorDictBase) -> None:
        """Does nothing: training a policy does not change how certain the model was.

        TorchRL's :class:`~torchrl.trainers.ReplayBufferTrainer` calls this after each loss.
        After the world model has changed, call :meth:`update_priority`.
        """

    def can_sample(self, batch_size: int | None = None) -> bool:
        """Whether there are imagined transitions, or none are needed."""
        batch_size = self._batch_size if batch_size is None else batch_size
        return self._count_real(batch_size) == batch_size or len(self.imagined) > 0

    def empty(self, empty_write_count: bool = True) -> None:
        """Empties the imagined buffer; the real data stay."""
        self.imagined.empty(empty_write_count)

    def state_dict(self) -> dict[str, Any]:
        """The states of both buffers and of the transforms of this one."""
        return {
            "real": self.real.state_dict(),
            "imagined": self.imagined.state_dict(),
            "transforms": self._transform.state_dict(),
            "batch_size": self._batch_size,
            "real_fraction": self.real_fraction,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.real.load_state_dict(state_dict["real"])
        self.imagined.load_state_dict(state_dict["imagined"])
        self._transform.load_state_dict(state_dict["transforms"])
        self._batch_size = state_dict["batch_size"]
        self.real_fraction = state_dict["real_fraction"]
        self._shared_keys = None

    def dumps(self, path: str | Path) -> None:
        """Writes both buffers to folders below ``path``.

        Raises:
            OSError: if the disk is full or read-only.
        """
        path = Path(path).absolute()
        path.mkdir(exist_ok=True, parents=True)
        self.real.dumps(path / "real")
        storage = self.imagined._storage
        if storage.initialized:
            # TorchRL writes through mappings: on a full disk the system would end the process.
            require_room("the buffer", path, count_bytes(storage._storage))
        with explain_write_errors("the buffer", path):
            self.imagined.dumps(path / "imagined")
        save_weights(dict(self._transform.state_dict()), path / "transforms.pt")
        mix = {"batch_size": self._batch_size, "real_fraction": self.real_fraction}
        write_file("the buffer", path / "mix.json", json.dumps(mix).encode())

    def loads(self, path: str | Path) -> None:
        """Restores what :meth:`dumps` wrote."""
        path = Path(path).absolute()
        mix = read_json(path / "mix.json")
        size, fraction = mix.get("batch_size"), mix.get("real_fraction")
        if (size is not None and type(size) is not int) or not isinstance(fraction, int | float):
            raise DatasetError(str(path / "mix.json"), "a batch size and a fraction", f"{mix}")
        self.real.loads(path / "real")
        self.imagined.loads(path / "imagined")
        self._transform.load_state_dict(load_weights(path / "transforms.pt"))
        self._batch_size = size
        self.real_fraction = fraction
        self._shared_keys = None

    def __len__(self) -> int:
        """Transitions in both buffers."""
        return len(self.real) + len(self.imagined)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(real={len(self.real)}, imagined={len(self.imagined)}, "
            f"batch_size={self._batch_size}, real_fraction={self.real_fraction})"
        )

    def _count_real(self, batch_size: int) -> int:
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a positive integer, found {batch_size!r}.")
        count = round(batch_size * self.real_fraction)
        if 0.0 < self.real_fraction < 1.0 and count in (0, batch_size):
            raise ValueError(
                f"A batch of {batch_size} with real_fraction={self.real_fraction} would have "
                f"{count} real rows: choose a larger batch, or a fraction of 0 or 1."
            )
        return count

    def _sample(self, batch_size: int) -> tuple[TensorDictBase, dict[str, torch.Tensor]]:
        real_rows = self._count_real(batch_size)
        imagined_rows = batch_size - real_rows
        if imagined_rows and not len(self.imagined):
            raise RuntimeError(
                f"The batch needs {imagined_rows} imagined transitions, and there are none yet: "
                "extend() the buffer first, or set real_fraction=1."
            )
        parts, infos = [], []
        # The members' own sample() would warn that these sizes differ from their batch_size.
        if real_rows:
            part, info = self.real._sample(real_rows)
            parts.append(part)
            infos.append(info)
        if imagined_rows:
            part, info = self.imagined._sample(imagined_rows)
            if self._shared_keys is None:
                self._shared_keys = self._match(part)
            parts = [p.select(*self._shared_keys) for p in (*parts, part)]
            infos.append(info)
        data: Any = torch.cat(parts) if len(parts) > 1 else parts[0].copy()
        device = infos[0]["index"].device
        weights = [
            info.get("uncertainty_weight", torch.ones(len(info["index"]), device=device))
            for info in infos
        ]
        combined = {
            "imagined": (torch.arange(batch_size, device=device) >= real_rows).unsqueeze(-1),
            "uncertainty_weight": torch.cat(weights),
            "index": torch.cat([info["index"] for info in infos]),
        }
        data.update(combined)
        if self._transform is not None and len(self._transform):
            data = self._transform(data)
        return data, combined

    def _match(self, imagined: TensorDictBase) -> list[NestedKey]:
        """The keys that both buffers have alike."""
        shapes = _describe(imagined)
        self._check_required(shapes)
        shared = [key for key, shape in self._real_shapes.items() if shapes.get(key) == shape]
        devices = [self.real.storage.device, imagined.get(shared[0]).device]
        if torch.device(devices[0]).type != devices[1].type:
            raise ValueError(
                f"Both buffers must be on one device, found real ones on {devices[0]} and "
                f"imagined ones on {devices[1]}."
            )
        return shared

    def _check_required(self, shapes: Mapping[NestedKey, tuple[torch.Size, torch.dtype]]) -> None:
        """Refuses imagined transitions whose layout is not that of the real ones."""
        masks = [k for k in _MASK_KEYS if k in self._real_shapes or k in shapes]
        for key in (*self._required, *masks):
            expected, found = self._real_shapes.get(key), shapes.get(key)
            if expected is None or found is None:
                owner = "real" if expected is None else "imagined"
                raise MissingKeyError(
                    f"The {owner} transitions lack {key!r}, which the others have."
                )
            if expected != found:
                raise ValueError(
                    f"Imagined transitions, key {key!r}: expected {_show(expected)} as in the "
                    f"real ones, found {_show(found)}."
                )


def real_and_imagined_buffer(
    real: TensorDictReplayBuffer,
    imagined: TensorDictReplayBuffer,
    *,
    batch_size: int,
    real_fraction: float = 0.5,
) -> RealAndImaginedBuffer:
    """Combines a dataset and a buffer of imagined transitions into one buffer.

    Args:
        real (TensorDictReplayBuffer): the dataset.
        imagined (TensorDictReplayBuffer): with an
            :class:`~torchrl_logo.data.UncertaintySampler`; takes what the result's ``extend`` is
            given.

    Keyword Args:
        batch_size (int): rows of a batch.
        real_fraction (float): share of real rows in each batch. Defaults to ``0.5``.

    Returns:
        A :class:`RealAndImaginedBuffer`, where the batches and the errors are described.

    Examples:
        >>> import torch
        >>> from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
        >>> from torchrl_logo.data import collect
        >>> from torchrl_logo.data.uncertainty_sampler import UncertaintySampler
        >>> from torchrl_logo.envs import make_env
        >>> real = collect(make_env("vmas/transport", num_envs=2), None, 200, seed=0)
        >>> imagined = TensorDictReplayBuffer(
        ...     storage=LazyTensorStorage(1000),
        ...     sampler=UncertaintySampler(1000, C=1.0),
        ...     priority_key="uncertainty",
        ... )
        >>> buffer = real_and_imagined_buffer(real, imagined, batch_size=64)
        >>> data = real.sample(50)  # in place of a model's rollout
        >>> data["uncertainty"] = torch.rand(50)
        >>> index = buffer.extend(data)
        >>> buffer.sample()["imagined"].sum()
        tensor(32)
    """
    return RealAndImaginedBuffer(real, imagined, batch_size=batch_size, real_fraction=real_fraction)


def _describe(data: TensorDictBase) -> dict[NestedKey, tuple[torch.Size, torch.dtype]]:
    """Shape without the batch, and dtype, of each key."""
    return {
        key: (value.shape[1:], value.dtype)
        for key, value in data.items(include_nested=True, leaves_only=True)
    }


def _show(shape: tuple[torch.Size, torch.dtype]) -> str:
    return f"{list(shape[0])} {str(shape[1]).removeprefix('torch.')}"
