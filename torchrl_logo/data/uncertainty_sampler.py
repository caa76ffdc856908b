"""Draws imagined transitions the more often, the more certain the world model was of them."""

from __future__ import annotations

import json
import math
import numbers
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
from torchrl_logo.data.weight_classes import WeightClasses
from torchrl_logo.whole_files import explain_write_errors, write_file

__all__ = ["UncertaintySampler"]

# Draws made ahead, at most, while nothing changes: batches share the fixed cost of operations, that
# is most of a small one's.
_AHEAD = 16_384

# All are re-weighted, in place of the k that changed, if these are as many as this part of all or
# if all are few: each takes a thirtieth of the time then, and few less than a millisecond.
_PART = 32
_FEW = 65_536

# Places among the classes are int32.
_MOST = 2**30

# Stands for the generator that is met next: a buffer makes a new one when its state is loaded.
_ANY = object()


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

    Cost, with :math:`n` transitions stored: a draw takes :math:`O(1)`, whatever the weights, and
    never waits for a GPU (:class:`~torchrl_logo.data.weight_classes.WeightClasses`). Storing or
    updating :math:`k` transitions takes :math:`O(k)`. The next draw classifies all of them anew,
    which is :math:`O(n)`, after a change of ``C`` or ``temperature``, if :math:`k > n / 32`, if
    :math:`n \le 65{,}536`, and when one of the 256 classes is full: each has room for a quarter
    more than it had and :math:`n / 1024 + 16` beside, so that at least as many have come since.
    Both may wait for the device. No weight is lost in a sum over others, and weights may span any
    range.

    While neither weights nor generator change, draws are made ahead, twice as many each time and
    up to 16,384, and handed out batch by batch. They are part of the state. Seeding the buffer's
    generator anew takes effect when they are used up; ``buffer.set_rng`` drops them.

    Plain torch: it needs no compiled extension of TorchRL. Everything is kept on the storage's
    device, in 18 bytes a transition.

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

    _uncertainty: torch.Tensor
    _classes: WeightClasses
    # From a loaded state: the order and the room of the classes, until they are needed.
    _order: tuple[torch.Tensor, torch.Tensor] | None

    def __init__(self, max_capacity: int, *, C: float, temperature: float = 1.0) -> None:
        if not isinstance(max_capacity, int) or not 1 <= max_capacity <= _MOST:
            raise ValueError(
                f"max_capacity must be a positive integer of at most {_MOST}, found "
                f"{max_capacity!r}."
            )
        self._max_capacity = max_capacity
        self._C = _require_positive("C", C)
        self._temperature = _require_positive("temperature", temperature)
        self._device: torch.device | None = None
        self._ahead_rng: object = _ANY  # the generator of the draws made ahead
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
        self._forget_order()

    @property
    def temperature(self) -> float:
        """The temperature of the weights; setting it re-weights lazily."""
        return self._temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        before, self._temperature = self._temperature, _require_positive("temperature", value)
        self._forget_draws()
        if WeightClasses.spans(self._C, before) and WeightClasses.spans(self._C, value):
            self._reheated = True
        else:
            self._forget_order()

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
        if self._stale or self._reheated or n != self._length or n != len(self._classes):
            self._refresh(n)
        index, weight = self._take(batch_size)
        info = {"uncertainty_weight": weight}
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
        """Sets the uncertainties of transitions. Waits for the device, to check them.

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
        flat = self._flatten_index(index, storage)
        value = torch.as_tensor(priority, device=self._uncertainty.device).detach()
        if value.ndim and value.numel() != flat.numel():
            raise ValueError(
                f"Expected one uncertainty for each of the {flat.numel()} transitions, of shape "
                f"[{flat.numel()}] or [{flat.numel()}, 1], found shape {list(value.shape)}."
            )
        if not flat.numel():
            return
        value = value.reshape(-1).to(torch.float32)
        stored = self._max_capacity if storage is None else len(storage)
        # Two passes, which also find NaN: it is the least and the greatest of all.
        ends = torch.stack([x.double() for x in (*value.aminmax(), *flat.aminmax())]).tolist()
        if not (0 <= ends[0] and ends[1] < math.inf):
            wrong = value[~(torch.isfinite(value) & (value >= 0))]
            raise ValueError(
                f"Uncertainties must be finite and not negative, found {wrong.numel()} of "
                f"{value.numel()} that are not, for instance {wrong[0].item()}."
            )
        if not (ends[2] >= -1 and ends[3] < stored):
            unknown = flat[(flat < -1) | (flat >= stored)]
            raise IndexError(
                f"Expected indices of the {stored} stored transitions, found {unknown[0].item()}."
            )
        self._write(flat, value, ends[2] < 0)

    def mark_update(self, index: int | torch.Tensor, *, storage: Storage | None = None) -> None:
        """Forgets the uncertainty of transitions whose content changed (writers call this)."""
        self._bind(storage)
        flat = self._flatten_index(index, storage)
        self._write(flat, torch.full_like(flat[:1], math.nan, dtype=torch.float32), True)

    def state_dict(self) -> dict[str, Any]:
        """All that the next draws depend on, but for the generator.

        Returns:
            ``"C"``, ``"temperature"`` and ``"uncertainty"`` ``[max_capacity]`` (NaN: none);
            ``"length"``, the transitions that were stored at the last draw; ``"ahead"``, how many
            draws are made next; if there are draws made ahead, ``"ahead_index"`` and
            ``"ahead_weight"`` ``[A]``; if transitions were updated one by one, the order in which
            they lie, ``"order"`` ``[length]`` and ``"room"`` ``[256]``.
        """
        self._bind(None)
        state: dict[str, Any] = {
            "C": self._C,
            "temperature": self._temperature,
            "length": self._length,
            "ahead": self._ahead,
            "uncertainty": self._uncertainty[: self._max_capacity].clone(),
        }
        if len(self._ahead_index) > self._taken:
            state["ahead_index"] = self._ahead_index[self._taken :].clone()
            state["ahead_weight"] = self._ahead_weight[self._taken :].clone()
        if self._order is not None:
            state["order"], state["room"] = self._order
        elif self._classes.rearranged and not self._stale:
            state["order"], state["room"] = self._classes.order, self._classes.room.clone()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned.

        Raises:
            ValueError: if it is of a sampler of another capacity, or contradicts itself.
        """
        uncertainty = state_dict["uncertainty"]
        if uncertainty.shape != (self._max_capacity,):
            raise ValueError(
                f"State 'uncertainty': expected shape [{self._max_capacity}], the sampler's "
                f"max_capacity, found {list(uncertainty.shape)}."
            )
        C = _require_positive("C", float(state_dict["C"]))
        temperature = _require_positive("temperature", float(state_dict["temperature"]))
        # What was saved by earlier versions lacks the rest.
        length = _require_number("length", state_dict.get("length", 0), self._max_capacity)
        ahead = _require_number("ahead", state_dict.get("ahead", 0), _AHEAD)
        order, room = state_dict.get("order"), state_dict.get("room")
        index, weight = state_dict.get("ahead_index"), state_dict.get("ahead_weight")
        if index is not None:
            _require_indices("ahead_index", index, length)
            if weight is None or weight.shape != index.shape or weight.dtype != torch.float32:
                raise ValueError("State 'ahead_weight': expected a float32 weight for each draw.")
        if order is not None:
            _require_indices("order", order, length)
            known = torch.zeros_like(uncertainty, dtype=torch.bool)
            known[order.long()] = True
            if int(known.sum()) != len(order) or bool(uncertainty[known].isnan().any()):
                raise ValueError(
                    "State 'order': expected different transitions that have an uncertainty."
                )
            most = WeightClasses.most_places(self._max_capacity)
            if room is None or room.shape != (256,) or room.dtype != torch.int64:
                raise ValueError("State 'room': expected int64 [256].")
            if bool((room < 0).any() | (room > most).any()) or int(room.sum()) > most:
                raise ValueError(f"State 'room': expected numbers of at most {most} in all.")
        self._C, self._temperature = C, temperature
        self._bind(None)
        device = self._uncertainty.device
        self._uncertainty[: self._max_capacity] = uncertainty.to(device)
        self._forget_order()
        self._length, self._ahead = length, ahead
        if order is not None and room is not None:
            self._order = order.to(device), room.to(device)
        if index is not None and weight is not None:
            self._ahead_index, self._ahead_weight = index.to(device), weight.to(device)
            self._ahead_rng = _ANY

    def dumps(self, path: str | Path) -> None:
        """Writes the state to a folder: a memory-mapped TensorDict and a JSON file."""
        path = Path(path).absolute()
        path.mkdir(exist_ok=True, parents=True)
        state = self.state_dict()
        names = [name for name, value in state.items() if isinstance(value, torch.Tensor)]
        tensors = TensorDict({name: state.pop(name).cpu() for name in names})
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
            self.load_state_dict({**state, **tensors.clone().to_dict()})
        except (ValueError, TypeError, KeyError, OverflowError, AttributeError) as error:
            raise DatasetError(str(path), "a sampler's state", f"{error}") from error

    def _empty(self) -> None:
        self._length = 0
        self._forget_order()
        if self._device is not None:
            self._uncertainty.fill_(math.nan)

    def _forget_order(self) -> None:
        """Has the next draw classify all transitions anew."""
        self._stale = True
        self._reheated = False
        self._order = None
        self._forget_draws()

    def _forget_draws(self) -> None:
        """Drops what was drawn ahead."""
        self._ahead = self._taken = 0
        self._ahead_index = torch.empty(0, dtype=torch.int64, device=self._device)
        self._ahead_weight = torch.empty(0, device=self._device)

    def _bind(self, storage: Storage | None) -> None:
        """Allocates the tensors on the storage's device, or moves them there."""
        device = getattr(storage, "device", None)
        if device is None or device == "auto":
            device = self._device or "cpu"
        if storage is not None:
            needed = storage.max_size if isinstance(storage, TensorStorage) else len(storage)
            if needed > self._max_capacity:
                raise ValueError(
                    f"UncertaintySampler has max_capacity={self._max_capacity}, the storage "
                    f"needs {needed}."
                )
        if device == self._device:
            return
        device = torch.device(device)
        if self._device is None:
            # One more: writers mark items they did not store by the index -1, which goes there.
            self._uncertainty = torch.full((self._max_capacity + 1,), math.nan, device=device)
        elif device == self._device:
            return
        else:
            self._uncertainty = self._uncertainty.to(device)
            self._ahead_index = self._ahead_index.to(device)
            self._ahead_weight = self._ahead_weight.to(device)
            if self._order is not None:
                self._order = self._order[0].to(device), self._order[1].to(device)
            self._stale = True
        self._device = device
        self._classes = WeightClasses(self._max_capacity, device)

    def _write(self, index: torch.Tensor, value: torch.Tensor, unstored: bool) -> None:
        if unstored:
            index = torch.where(index < 0, self._max_capacity, index)
        self._uncertainty.scatter_(0, index, value.expand_as(index))
        if self._order is not None:
            self._restore_order()
        self._forget_draws()
        self._stale |= not self._is_little(len(index))
        if self._stale:
            return
        item = index[index < self._length].unique()
        self._stale = not self._classes.replace(item, self._uncertainty[item])

    def _is_little(self, number: int) -> bool:
        """Whether to re-weight this number of transitions only, and not all."""
        return self._length > _FEW and number * _PART <= self._length

    def _flatten_index(self, index: int | torch.Tensor, storage: Storage | None) -> torch.Tensor:
        """Indices as one dimension, ``[k]``, on the sampler's device."""
        index = torch.as_tensor(index, dtype=torch.long, device=self._uncertainty.device)
        if storage is not None and storage.ndim > 1 and index.ndim > 1:
            flat = index[..., 0]
            for dim, size in enumerate(storage.shape[1:], start=1):
                flat = flat * size + index[..., dim]
            index = flat
        return index.reshape(-1)

    def _restore_order(self) -> None:
        assert self._order is not None
        order, room = self._order
        self._order = None
        self._classes.build(
            self._uncertainty, self._C, self._temperature, order=order.long(), room=room
        )
        self._stale = False

    def _refresh(self, n: int) -> None:
        """Takes in what was stored since the last draw, or re-weights everything."""
        if n != self._length:
            self._forget_draws()
        if n < self._length:
            self._forget_order()
        if self._order is not None:
            self._restore_order()
        if not self._stale and n > self._length:
            new = torch.arange(self._length, n, device=self._uncertainty.device)
            self._stale = not (
                self._is_little(len(new)) and self._classes.replace(new, self._uncertainty[new])
            )
        self._length = n
        if self._stale and not bool(self._uncertainty[:n].isnan().any()):
            self._classes.build(self._uncertainty[:n], self._C, self._temperature)
            self._stale = self._reheated = False
        if self._stale or len(self._classes) != n:
            missing = int(self._uncertainty[:n].isnan().sum())
            raise RuntimeError(
                f"{missing} of the {n} stored transitions have no uncertainty. Store them by "
                "extend() of a TensorDictReplayBuffer whose priority_key is in the data, or call "
                "update_priority(index, uncertainty)."
            )
        if self._reheated:
            self._classes.reweigh(self._uncertainty[:n], self._temperature)
            self._reheated = False
        if not self._classes.fits():
            self._classes.build(self._uncertainty[:n], self._C, self._temperature)

    def _take(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The next draws, indices and weights ``[count]``."""
        if self._rng is not self._ahead_rng:
            if self._ahead_rng is not _ANY:
                self._forget_draws()
            self._ahead_rng = self._rng
        first, self._taken = self._taken, self._taken + count
        if self._taken > len(self._ahead_index):
            index, weight = self._ahead_index[first:], self._ahead_weight[first:]
            number = max(count - len(index), self._ahead)
            more_index, more_weight = self._classes.draw(number, self._rng)
            if len(index):
                more_index = torch.cat([index, more_index])
                more_weight = torch.cat([weight, more_weight])
            self._ahead_index, self._ahead_weight = more_index, more_weight
            self._ahead = min(2 * number, _AHEAD)
            first, self._taken = 0, count
        taken = slice(first, self._taken)
        return self._ahead_index[taken], self._ahead_weight[taken]

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
    if not isinstance(value, numbers.Real) or not 0 < value < math.inf:
        raise ValueError(
            f"{name} must be positive and finite, found {value!r}. "
            "torchrl_logo.trainers.find_uncertainty_threshold measures a C on data; a temperature "
            "to begin with is a third of it."
        )
    return float(value)


def _require_number(name: str, value: Any, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"State {name!r}: expected an integer from 0 to {most}, found {value!r}.")
    return value


def _require_indices(name: str, index: torch.Tensor, length: int) -> None:
    whole = index.dtype in (torch.int32, torch.int64)
    if not whole or index.ndim != 1 or bool(((index < 0) | (index >= length)).any()):
        raise ValueError(f"State {name!r}: expected indices below {length}, of shape [n].")
