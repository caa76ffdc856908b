"""Gathers rows of a TensorDict, on a processor faster than by indexing it."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase

__all__ = ["gather_rows"]


def gather_rows(data: TensorDictBase, index: torch.Tensor) -> TensorDict:
    """What ``data[index]`` is, for a list of rows on the CPU.

    ``index_select`` copies whole rows, where indexing computes the place of each number: it takes
    a half to a third of the time, from memory and from mapped files (docs/speed.md).

    Args:
        data (TensorDictBase): ``[B, *]``.
        index (torch.Tensor): int64 ``[n]``, from 0 to ``B - 1``.

    Returns:
        A TensorDict ``[n, *]``, whose tensors are copies.

    Raises:
        IndexError: if there is no such row.

    Examples:
        >>> data = TensorDict({"a": {"b": torch.arange(12).view(4, 3)}}, [4])
        >>> data["a"].batch_size = [4, 3]
        >>> rows = gather_rows(data, torch.tensor([3, 0]))
        >>> rows["a", "b"], rows["a"].batch_size
        (tensor([[ 9, 10, 11],
                [ 0,  1,  2]]), torch.Size([2, 3]))
    """
    found: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, TensorDictBase):
            found[key] = gather_rows(value, index)
        elif isinstance(value, torch.Tensor):
            found[key] = value.index_select(0, index)
        else:
            found[key] = value[index]
    return TensorDict(found, batch_size=[len(index), *data.batch_size[1:]], device=data.device)
