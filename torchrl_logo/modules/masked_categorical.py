"""A categorical distribution over available actions that never waits for the device."""

from __future__ import annotations

import torch
from torch import distributions as D

__all__ = ["MaskedCategorical"]


class MaskedCategorical(D.Categorical):
    r"""TorchRL's ``MaskedCategorical`` with a boolean mask, without looks at values.

    :math:`p(a) \propto 1[a \text{ available}] \exp(l_a)`. TorchRL's class validates its
    parameters each time that it is made, which makes the host wait for an accelerator and cannot
    run on meta or fake tensors. The numbers are the same.

    Logits of actions that are not available are replaced by the least number of their dtype: they
    have probability zero and no gradient, and the entropy stays finite, its gradient too. The
    log-probability of an action that is not available is :math:`-\infty`, with gradient zero.
    Where no action is available, draws are uniform over all of them and each log-probability is
    :math:`-\infty`; refusing that would take a look at the mask.

    Args:
        logits (torch.Tensor): ``[*, A]``, unnormalised, finite where available.
        mask (torch.Tensor): ``[*, A]`` bool, true where available.

    Raises:
        ValueError: if the mask is not boolean or of another shape than the logits.

    Examples:
        >>> mask = torch.tensor([True, False, True])
        >>> dist = MaskedCategorical(torch.tensor([0.0, 9.0, 0.0]), mask)
        >>> dist.probs
        tensor([0.5000, 0.0000, 0.5000])
        >>> dist.log_prob(torch.arange(3))
        tensor([-0.6931,    -inf, -0.6931])
    """

    def __init__(self, logits: torch.Tensor, mask: torch.Tensor) -> None:
        if mask is None:
            raise ValueError(
                "MaskedCategorical expected a mask of available actions, found none: policies for "
                "discrete actions read ('agents', 'action_mask'), true everywhere if all are."
            )
        if mask.dtype is not torch.bool:
            raise ValueError(f"MaskedCategorical expected a mask of bool, found {mask.dtype}.")
        if mask.shape != logits.shape:
            raise ValueError(
                f"MaskedCategorical expected a mask of the logits' shape {tuple(logits.shape)}, "
                f"found {tuple(mask.shape)}."
            )
        self.mask = mask
        lowest = torch.finfo(logits.dtype).min
        super().__init__(logits=torch.where(mask, logits, lowest), validate_args=False)

    @property
    def deterministic_sample(self) -> torch.Tensor:
        """The likeliest available action, ``[*]``; the first of those that tie."""
        return self.logits.argmax(-1)

    @property
    def mode(self) -> torch.Tensor:
        """The likeliest available action, ``[*]``."""
        return self.deterministic_sample

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log-probability of actions ``[*]``; minus infinity for those not available."""
        log_probs = torch.where(self.mask, self.logits, -float("inf"))
        value, log_probs = torch.broadcast_tensors(value.long().unsqueeze(-1), log_probs)
        return log_probs.gather(-1, value[..., :1]).squeeze(-1)

    def entropy(self) -> torch.Tensor:
        """Entropy over the available actions, ``[*]``."""
        # masked logits may have overflown when they were normalised, and 0 times infinity is nan
        log_probs = torch.where(self.mask, self.logits, 0.0)
        return -(log_probs * torch.where(self.mask, self.probs, 0.0)).sum(-1)

    def expand(
        self,
        batch_shape: torch.Size | list[int] | tuple[int, ...],
        _instance: D.Distribution | None = None,
    ) -> MaskedCategorical:
        """The same distribution, expanded to other batch dimensions."""
        shape = (*batch_shape, self.logits.shape[-1])
        return MaskedCategorical(self.logits.expand(shape), self.mask.expand(shape))
