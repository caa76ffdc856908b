"""What losses of a share of a batch need to be those of the whole batch, which others have too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed
from torch.overrides import TorchFunctionMode

__all__ = ["SharedBatch", "mean_over_processes"]


class SharedBatch(TorchFunctionMode):
    """Within it, a loss draws what it would draw for the whole batch, and keeps its share of it.

    Every process of the default process group has the same state of its random numbers, and as many
    consecutive rows of one batch. Each then makes the draws of all, so that a row has the same
    draws whoever has it, and all end in the same state. That holds for :func:`torch.rand` and
    normal draws of distributions (:meth:`torch.Tensor.normal_`) whose last dimensions are the
    batch's, the agents and a last one, ``[*, *batch, N, d]``; draws of other shapes are left alone.

    Args:
        batch_size (sequence of int): of the share; the first dimension is shared.

    Examples:
        >>> with SharedBatch([4]):  # no other process: nothing changes
        ...     draws = torch.rand(8, 4, 2, 1)
        >>> draws.shape
        torch.Size([8, 4, 2, 1])
    """

    _active: SharedBatch | None = None

    def __init__(self, batch_size: Sequence[int]) -> None:
        super().__init__()
        self.rows = batch_size[0]
        self.dim = -2 - len(batch_size)

    def __enter__(self) -> SharedBatch:
        SharedBatch._active = self
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        SharedBatch._active = None
        super().__exit__(*error)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> torch.Tensor:
        """Makes the call, with all rows in place of the share's where it draws for rows."""
        kwargs = kwargs or {}
        if func is torch.rand:
            shape = args[0] if isinstance(args[0], Sequence) else args
            if self._has_rows(shape):
                return self._take(torch.rand(self._widen(shape), **kwargs))
        elif func is torch.Tensor.normal_ and self._has_rows(args[0].shape):
            drawn = args[0].new_empty(self._widen(args[0].shape)).normal_(*args[1:], **kwargs)
            return args[0].copy_(self._take(drawn))
        return func(*args, **kwargs)

    def _has_rows(self, shape: Sequence[int]) -> bool:
        return len(shape) >= -self.dim and shape[self.dim] == self.rows

    def _widen(self, shape: Sequence[int]) -> list[int]:
        wide = list(shape)
        wide[self.dim] *= _count_processes()
        return wide

    def _take(self, drawn: torch.Tensor) -> torch.Tensor:
        rank = distributed.get_rank() if _count_processes() > 1 else 0
        return drawn.narrow(self.dim, rank * self.rows, self.rows)


def mean_over_processes(value: torch.Tensor) -> torch.Tensor:
    """The mean of the shares' values within :class:`SharedBatch`; elsewhere the value itself.

    Losses call it on what they compute of the whole batch, such as a spread, where the value is a
    mean over rows. No gradient passes.

    Args:
        value (torch.Tensor): of any shape, the same in all processes.
    """
    if SharedBatch._active is None or _count_processes() == 1:
        return value
    total = value.detach().clone()
    distributed.all_reduce(total)
    return total / _count_processes()


def _count_processes() -> int:
    together = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if together else 1
