"""Terms of a loss that hold for the data's transitions alone, where a batch has imagined ones."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torchrl.objectives import LossModule

from torchrl_logo.objectives.required_keys import require_shape

__all__ = ["find_real_rows", "restrict_rows", "weigh_rows"]


def find_real_rows(tensordict: TensorDictBase, key: NestedKey, reader: str) -> torch.Tensor | None:
    """Mask ``[*batch]`` of the transitions that come from the dataset, if the batch says.

    Args:
        tensordict (TensorDictBase): the batch.
        key (NestedKey): which transitions are imagined, ``[*batch, 1]`` bool.
        reader (str): how errors name who reads it.

    Raises:
        ValueError: for another shape or dtype.

    Examples:
        >>> from tensordict import TensorDict
        >>> batch = TensorDict({"imagined": torch.tensor([[False], [True]])}, [2])
        >>> find_real_rows(batch, "imagined", "MyLoss")
        tensor([ True, False])
    """
    imagined = tensordict.get(key, None)
    if imagined is None:
        return None
    require_shape(imagined, (*tensordict.batch_size, 1), key, reader)
    if imagined.dtype is not torch.bool:
        raise ValueError(f"{reader} expected {key!r} of dtype bool, found {imagined.dtype}.")
    return ~imagined.squeeze(-1)


def weigh_rows(
    loss_module: LossModule,
    tensordict: TensorDictBase,
    weights: torch.Tensor | None,
    like: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What rows count for in a loss, ``[*batch]``.

    Args:
        loss_module (LossModule): whose masks of padded steps count.
        tensordict (TensorDictBase): the batch.
        weights (torch.Tensor, optional): importance weights, ``[*batch]``.
        like (torch.Tensor): a loss ``[*batch]``, whose dtype and device are taken.

    Returns:
        0 or 1 by the masks, and the same weighted.
    """
    valid = torch.ones_like(like)
    for key in loss_module._loss_mask_keys():
        mask = tensordict.get(key, None)
        if mask is not None:
            valid = valid * loss_module._expand_loss_mask(mask, like)
    return valid, valid if weights is None else valid * weights


def restrict_rows(
    loss: torch.Tensor, kept: torch.Tensor | None, row_weights: torch.Tensor
) -> torch.Tensor:
    """Drops rows and scales the rest so that the weighted mean is that over kept rows.

    Args:
        loss (torch.Tensor): ``[*batch]``.
        kept (torch.Tensor, optional): ``[*batch]`` bool; all rows without it.
        row_weights (torch.Tensor): ``[*batch]``, see :func:`weigh_rows`.

    Examples:
        >>> loss = torch.tensor([1.0, 3.0, 7.0, 9.0])
        >>> kept = torch.tensor([True, True, False, False])
        >>> restrict_rows(loss, kept, torch.ones(4))
        tensor([2., 6., 0., 0.])
    """
    if kept is None:
        return loss
    kept_weight = torch.where(kept, row_weights, 0.0).sum()
    # without any row to keep, all are zero, and so is their mean
    scale = row_weights.sum() / torch.where(kept_weight > 0, kept_weight, 1.0)
    return torch.where(kept, loss, 0.0) * scale
