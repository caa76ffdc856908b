"""Updates whose batch is shared out among the processes that ``torchrun`` starts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import torch
from tensordict import TensorDictBase
from torch import distributed, nn

__all__ = ["average_gradients", "require_even_shares", "take_share"]

T = TypeVar("T", torch.Tensor, TensorDictBase)


def require_even_shares(
    data_parallel: bool, rows: int, checkpoint_dir: str | Path | None = None
) -> None:
    """Refuses a data-parallel training that cannot be, before any work starts.

    Args:
        data_parallel (bool): whether batches are shared at all.
        rows (int): what is shared of each batch: its transitions, or windows.
        checkpoint_dir (str or Path, optional): must be none, since processes would write over
            each other.

    Raises:
        RuntimeError: if there is no process group.
        ValueError: if the processes do not divide ``rows``, or there are checkpoints.

    Examples:
        >>> require_even_shares(False, 7)
    """
    if not data_parallel:
        return
    if not (distributed.is_available() and distributed.is_initialized()):
        raise RuntimeError(
            "data_parallel=True needs a process group: start the script with torchrun, and call "
            "torch.distributed.init_process_group() in it first."
        )
    processes = distributed.get_world_size()
    if rows % processes:
        raise ValueError(
            f"Expected a batch that {processes} processes share evenly, found {rows} rows."
        )
    if checkpoint_dir is not None:
        raise ValueError(
            f"Expected no checkpoint_dir with data_parallel=True, found {str(checkpoint_dir)!r}."
        )


def take_share(batch: T) -> T:
    """This process' rows of a batch that all processes have drawn alike.

    Args:
        batch (torch.Tensor or TensorDictBase): ``[B, *]``, the same in every process, of which
            the processes divide ``B``.

    Returns:
        ``B / processes`` consecutive rows.
    """
    rows = batch.shape[0] // distributed.get_world_size()
    start = distributed.get_rank() * rows
    return batch[start : start + rows]


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces each gradient by its mean over the processes, in one exchange.

    Where a loss is a mean over rows, that is the gradient of the whole batch. Parameters without
    a gradient are left out, and must be the same ones in every process.

    Args:
        parameters (iterable of Parameter): whose gradients are averaged, in the same order in
            every process.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    parts = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(
        gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)]
    )
