"""Draws imagined transitions the more often, the more certain the world model was of them."""

from __future__ import annotations

import json
import math
from multiprocessing.context import get_spawning_popen
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torchrl.data.replay_buffers import Sampler, Storage, TensorStorage
from torchrl.data.replay_buffers.utils import unravel_index

from torchrl_logo.data.json_files import read_json
from torchrl_logo.data.mapped_files import map_tensordict, write_tensordict
from torchrl_logo.data.validation import DatasetError
from torchrl_logo.whole_files import explain_write_errors, write_file

__all__ = ["UncertaintySampler"]

# Transitions in a block. A draw searches the blocks' masses, then one block's; an update
# recomputes only the blocks it touches.
_BLOCK = 64

# Blocks recomputed at once, so that re-weighting 1e7 transitions needs no 1e7-sized temporaries.
_BLOCKS_AT_ONCE = 8192


class UncertaintySampler(Sampler):
    r"""Samples with replacement, with less weight on transitions of high uncertainty.

    A transition of uncertainty :math:`u` is drawn with probability

    .. math::
        P(i) \propto \exp\left(\max(C - u_i, 0) / T\right)

    which is the uncertainty-aware sampling of LOGO (arXiv 2601.07463, priority
    :math:`P_u = C - u`, clipped). The paper does not give the clip's bounds: here it is at 0 from
    below, so that no transition is ruled out.

    The uncertainties are the buffer's priorities: with
    ``TensorDictReplayBuffer(priority_key="uncertainty")``, :meth:`extend` of the buffer passes
    them on. A stored transition without one (the key was missing, ``add`` was used, or the values
    were refused) is an error when the buffer is sampled, since any default would be a guess; set
    it with ``buffer.update_priority(index, uncertainty)``.

    The weight of each sampled transition is returned as ``"uncertainty_weight"``,
    :math:`n P(i)` (its mean over the buffer is 1). The name is on purpose not
    ``"priority_weight"``, which TorchRL's losses would multiply by: LOGO *wants* the skewed
    distribution, and correcting for it would undo it.

    Cost, with :math:`n` transitions stored: a draw of a batch of :math:`B` takes
    :math:`O(B \log n)` and, on a GPU, never waits for the device. After an update of :math:`k`
    transitions the first draw recomputes the blocks of 64 that were touched,
    :math:`O(k + n / 64)` for a contiguous update and :math:`O(n)` at worst, and waits for the
    device. Changing ``C`` or ``temperature`` makes the next draw :math:`O(n)`. Masses are float64
    and scaled block by block, so that neither overflow nor a long sum loses a transition: weights
    may span any range, and only those 1e-308 times smaller than their block's greatest are zero.

    Plain torch: it needs no compiled extension of TorchRL. Everything is kept on the storage's
    device, in 12 bytes a transition.

    Args:
        max_capacity (int): the storage's capacity.

    Keyword Args:
        C (float): uncertainty, in the model's units, from which on a transition has the lowest
            weight. Positive.
        temperature (float): the higher, the closer to uniform. Positive. Defaults to ``1.0``.

    Raises:
        ValueError: if an argument is not positive and finite; by :meth:`update_priority`, if an
            uncertainty is negative, NaN or infinite (the buffer's ``extend`` raises it as the
            cause of a ``RuntimeError``).

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
        >>> buffer = TensorDictReplayBuffer(
        ...     storage=LazyTensorStorage(100),
        ...     sampler=UncertaintySampler(100, C=1.0),
        ...     priority_key="uncertainty",
        ...     batch_size=4,
        ...     generator=torch.Generator().manual_seed(0),
        ... )
        >>> data = TensorDict({"state": torch.arange(3.0), "uncertainty": [0.0, 0.5, 9.0]}, [3])
        >>> index = buffer.extend(data)
        >>> batch = buffer.sample()  # weights exp(1), exp(0.5), exp(0), divided by their mean
        >>> batch["uncertainty_weight"].shape
        torch.Size([4])
        >>> buffer.sampler.temperature = 0.1  # TorchRL's schedulers can do so, too
    """

    _mass: torch.Tensor
    _block_peak: torch.Tensor
    _dirty: torch.Tensor
    _peak: torch.Tensor
    _top: torch.Tensor

    def __init__(self, max_capacity: int, *, C: float, temperature: float = 1.0) -> None:
        if not isinstance(max_capacity, int) or max_capacity < 1:
            raise ValueError(f"max_capacity must be a positive integer, found {max_capacity!r}.")
        self._max_capacity = max_capacity
        # One slot more: writers mark items they did not store by the index -1, which goes there.
        self._blocks = -(-(max_capacity + 1) // _BLOCK)
        self._C = _require_positive("C", C)
        self._temperature = _require_positive("temperature", temperature)
        self._device: torch.device | None = None
        self._uncertainty: torch.Tensor | None = None
        self._empty()

    @property
    def max_size(self) -> int:
        """The number of transitions that the sampler has room for."""
        return self._max_capacity

    @property
    def C(self) -> float:
        """The uncertainty from which on the weight is lowest; setting it re-weights lazily."""
        return self._C

    @C.setter
    def C(self, value: float) -> None:
        self._C = _require_positive("C", value)
        self._mark_all()

    @property
    def temperature(self) -> float:
        """The temperature of the weights; setting it re-weights lazily."""
        return self._temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        self._temperature = _require_positive("temperature", value)
        self._mark_all()

    def set_threshold(self, C: float) -> None:
        """Sets ``C``, for instance to a quantile of the uncertainties on held-out data.

        Args:
            C (float): the new threshold, positive. All transitions are re-weighted by the next
                draw.
        """
        self.C = C

    def sample(
        self, storage: Storage, batch_size: int
    ) -> tuple[torch.Tensor | tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
        """Draws indices.

        Args:
            storage (Storage): the buffer's storage.
            batch_size (int): number of draws, ``B``.

        Returns:
            Indices ``[B]`` (a tuple of such for storages of several dimensions) and
            ``{"uncertainty_weight": [B]}``, both on the storage's device.

        Raises:
            RuntimeError: if the storage is empty, or holds transitions without uncertainty.
        """
        n = len(storage)
        if n == 0:
            raise RuntimeError("Cannot sample from an empty storage.")
        self._bind(storage)
        self._refresh(n)
        assert self._uncertainty is not None
        device = self._uncertainty.device
        # A generator draws on its own device only.
        source = device if self._rng is None else self._rng.device
        draw = torch.rand(2, batch_size, dtype=torch.float64, device=source, generator=self._rng)
        draw = draw.to(device, non_blocking=True)

        block = torch.searchsorted(self._top, draw[0] * self._top[-1], right=True)  # [B]
        first = block.clamp_(max=len(self._top) - 1) * _BLOCK
        mass = self._mass.view(-1)
        target = draw[1] * mass.take(first + (_BLOCK - 1))
        # Binary search within the block, for its last cumulative mass that is <= target: the
        # transition drawn is the one after it. (Rows gathered for searchsorted would take
        # _BLOCK times the memory.)
        last = first - 1
        step = _BLOCK // 2
        while step:
            last = last.add(mass.take(last + step) <= target, alpha=step)
            step //= 2
        index = (last + 1).clamp_(max=n - 1)

        probability = (self._exponent(self._uncertainty[index]) - self._peak).exp() / self._top[-1]
        info = {"uncertainty_weight": (probability * n).to(torch.float32)}
        if storage.ndim > 1:
            return unravel_index(index, storage.shape), info
        return index, info

    @torch.no_grad()
    def update_priority(
        self,
        index: int | torch.Tensor,
        priority: float | torch.Tensor,
        *,
        storage: Storage | None = None,
    ) -> None:
        """Sets the uncertainties of transitions. Waits for the device once, to check them.

        Args:
            index (int or torch.Tensor): ``[k]``, or ``[k, ndim]`` for a storage of ``ndim > 1``
                dimensions. ``-1`` marks what a writer did not store.
            priority (float or torch.Tensor): uncertainties, not negative: ``[k]``, ``[k, 1]`` or
                one number for all.

        Keyword Args:
            storage (Storage, optional): the buffer's storage; buffers pass it.

        Raises:
            ValueError: if an uncertainty is negative, NaN or infinite, if there are more or
                fewer than indices, or if the storage is larger than ``max_capacity``.
            IndexError: if an index is not one of a stored transition.
        """
        self._bind(storage)
        assert self._uncertainty is not None
        device = self._uncertainty.device
        flat = self._flatten_index(index, storage)
        value = torch.as_tensor(priority, device=device).detach()
        if value.ndim and value.numel() != flat.numel():
            raise ValueError(
                f"Expected one uncertainty for each of the {flat.numel()} transitions, of shape "
                f"[{flat.numel()}] or [{flat.numel()}, 1], found shape {list(value.shape)}."
            )
        value = value.reshape(-1).to(torch.float32)
        stored = self._max_capacity if storage is None else len(storage)
        valid = torch.isfinite(value) & (value >= 0)
        known = (flat >= -1) & (flat < stored)
        all_valid, all_known = torch.stack([valid.all(), known.all()]).tolist()
        if not all_valid:
            wrong = value[~valid]
            raise ValueError(
                f"Uncertainties must be finite and not negative, found {wrong.numel()} of "
                f"{value.numel()} that are not, for instance {wrong[0].item()}."
            )
        if not all_known:
            raise IndexError(
                f"Expected indices of the {stored} stored transitions, found "
                f"{flat[~known][0].item()}."
            )
        self._write(flat, value)

    def mark_update(self, index: int | torch.Tensor, *, storage: Storage | None = None) -> None:
        """Forgets the uncertainty of transitions whose content changed (writers call this)."""
        self._bind(storage)
        flat = self._flatten_index(index, storage)
        self._write(flat, torch.full_like(flat[:1], math.nan, dtype=torch.float32))

    def state_dict(self) -> dict[str, Any]:
        """``C``, ``temperature`` and the uncertainties ``[max_capacity]`` (NaN: none)."""
        self._bind(None)
        assert self._uncertainty is not None
        return {
            "C": self._C,
            "temperature": self._temperature,
            "uncertainty": self._uncertainty[: self._max_capacity].clone(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned.

        Raises:
            ValueError: if it is of a sampler of another capacity.
        """
        uncertainty = state_dict["uncertainty"]
        if uncertainty.shape != (self._max_capacity,):
            raise ValueError(
                f"State 'uncertainty': expected shape [{self._max_capacity}], the sampler's "
                f"max_capacity, found {list(uncertainty.shape)}."
            )
        C = _require_positive("C", float(state_dict["C"]))
        temperature = _require_positive("temperature", float(state_dict["temperature"]))
        self._C, self._temperature = C, temperature
        self._bind(None)
        assert self._uncertainty is not None
        self._uncertainty[: self._max_capacity] = uncertainty.to(self._uncertainty.device)
        self._mark_all()

    def dumps(self, path: str | Path) -> None:
        """Writes the state to a folder: a memory-mapped TensorDict and a JSON file."""
        path = Path(path).absolute()
        path.mkdir(exist_ok=True, parents=True)
        state = self.state_dict()
        tensors = TensorDict({"uncertainty": state.pop("uncertainty").cpu()})
        with explain_write_errors("the sampler", path):
            write_tensordict(tensors, path / "uncertainty")
        write_file("the sampler", path / "sampler.json", json.dumps(state).encode())

    def loads(self, path: str | Path) -> None:
        """Restores what :meth:`dumps` wrote.

        Raises:
            DatasetError: if the files are damaged or hold another sampler's state.
        """
        path = Path(path).absolute()
        state = read_json(path / "sampler.json")
        tensors = map_tensordict(path / "uncertainty")
        try:
            self.load_state_dict({**state, "uncertainty": tensors["uncertainty"]})
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise DatasetError(str(path), "a sampler's state", f"{error}") from error

    def _empty(self) -> None:
        self._length = 0
        self._stale = True
        if self._uncertainty is not None:
            self._uncertainty.fill_(math.nan)

    def _bind(self, storage: Storage | None) -> None:
        """Allocates the tensors on the storage's device, or moves them there."""
        device = getattr(storage, "device", None)
        if device is None or device == "auto":
            device = self._device or "cpu"
        device = torch.device(device)
        if storage is not None:
            needed = storage.max_size if isinstance(storage, TensorStorage) else len(storage)
            if needed > self._max_capacity:
                raise ValueError(
                    f"UncertaintySampler has max_capacity={self._max_capacity}, the storage "
                    f"needs {needed}."
                )
        if self._uncertainty is not None and device == self._device:
            return
        self._device = device
        slots = self._blocks * _BLOCK
        if self._uncertainty is None:
            self._uncertainty = torch.full((slots,), math.nan, device=device)
        else:
            self._uncertainty = self._uncertainty.to(device)
        # Cumulative masses within each block, in units of exp(the block's greatest exponent).
        self._mass = torch.zeros(self._blocks, _BLOCK, dtype=torch.float64, device=device)
        self._block_peak = torch.zeros(self._blocks, dtype=torch.float64, device=device)
        self._dirty = torch.ones(self._blocks, dtype=torch.bool, device=device)
        self._stale = True

    def _mark_all(self) -> None:
        if self._uncertainty is not None:
            self._dirty.fill_(True)
        self._stale = True

    def _write(self, index: torch.Tensor, value: torch.Tensor) -> None:
        assert self._uncertainty is not None
        index = torch.where(index < 0, self._max_capacity, index)
        self._uncertainty[index] = value
        self._dirty[index // _BLOCK] = True
        self._stale = True

    def _flatten_index(self, index: int | torch.Tensor, storage: Storage | None) -> torch.Tensor:
        """Indices as one dimension, ``[k]``, on the sampler's device."""
        assert self._uncertainty is not None
        index = torch.as_tensor(index, dtype=torch.long, device=self._uncertainty.device)
        if storage is not None and storage.ndim > 1 and index.ndim > 1:
            flat = index[..., 0]
            for dim, size in enumerate(storage.shape[1:], start=1):
                flat = flat * size + index[..., dim]
            index = flat
        return index.reshape(-1)

    def _exponent(self, uncertainty: torch.Tensor) -> torch.Tensor:
        """``max(C - u, 0) / temperature``, float64."""
        return (self._C - uncertainty.to(torch.float64)).clamp_min_(0.0).div_(self._temperature)

    @torch.no_grad()
    def _refresh(self, n: int) -> None:
        """Recomputes the masses of the blocks that changed, and the sums over blocks."""
        if not self._stale and n == self._length:
            return
        assert self._uncertainty is not None
        self._stale = True  # until all of this has succeeded
        used = -(-n // _BLOCK)
        low, high = min(n, self._length), max(n, self._length)
        self._dirty[low // _BLOCK : -(-high // _BLOCK)] = True
        rows = self._dirty[:used].nonzero().squeeze(-1)
        self._dirty.fill_(False)
        self._length = n
        uncertainty = self._uncertainty.view(-1, _BLOCK)
        column = torch.arange(_BLOCK, device=uncertainty.device)
        for chunk in rows.split(_BLOCKS_AT_ONCE):
            exponent = self._exponent(uncertainty[chunk])  # [R, _BLOCK]
            # The last block's slots beyond the stored transitions have no mass.
            exponent.masked_fill_(chunk.unsqueeze(-1) * _BLOCK + column >= n, -math.inf)
            peak = exponent.amax(-1, keepdim=True)
            self._mass[chunk] = exponent.sub_(peak).exp_().cumsum(-1)
            self._block_peak[chunk] = peak.squeeze(-1)
        peaks = self._block_peak[:used]
        self._peak = peaks.max()
        self._top = ((peaks - self._peak).exp() * self._mass[:used, -1]).cumsum(0)  # [used]
        if bool(self._top[-1].isnan()):
            missing = int(self._uncertainty[:n].isnan().sum())
            raise RuntimeError(
                f"{missing} of the {n} stored transitions have no uncertainty. Store them by "
                "extend() of a TensorDictReplayBuffer whose priority_key is in the data, or call "
                "update_priority(index, uncertainty)."
            )
        self._stale = False

    def __getstate__(self) -> dict[str, Any]:
        if get_spawning_popen() is not None:
            raise RuntimeError(
                "UncertaintySampler cannot be shared between processes: keep the buffer in the "
                "learner's process and send it the transitions."
            )
        return super().__getstate__()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(max_capacity={self._max_capacity}, C={self._C}, "
            f"temperature={self._temperature})"
        )


def _require_positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, found {value!r}.")
    return float(value)
