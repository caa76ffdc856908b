"""A Gaussian squashed into action bounds that never waits for the device."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictModule
from tensordict.utils import NestedKey
from torch import distributions as D
from torchrl.modules import TanhNormal
from torchrl.modules.distributions.continuous import (
    SafeTanhTransform,
    _PatchedAffineTransform,
    _PatchedComposeTransform,
)
from torchrl.modules.distributions.utils import FasterTransformedDistribution

__all__ = ["SquashedNormal", "SquashedNormalModule"]


class SquashedNormal(TanhNormal):
    r"""TorchRL's ``TanhNormal`` without looks at the values of its arguments.

    :math:`a = (h + l) / 2 + (h - l) / 2 \cdot \tanh(x)` with :math:`x \sim N(loc, scale^2)`.
    ``TanhNormal`` compares bounds and validates parameters each time that it is made, which
    makes the host wait for an accelerator and cannot run on meta or fake tensors. The numbers
    are the same.

    Args:
        loc (torch.Tensor): ``[*, d_a]``.
        scale (torch.Tensor): ``[*, d_a]``, positive; not checked.

    Keyword Args:
        low (torch.Tensor): lower bounds ``[d_a]``, on the device of ``loc``.
        high (torch.Tensor): upper bounds ``[d_a]``, each above ``low``; not checked.

    Examples:
        >>> low, high = torch.tensor([0.0]), torch.tensor([4.0])
        >>> dist = SquashedNormal(torch.zeros(5, 1), torch.ones(5, 1), low=low, high=high)
        >>> dist.deterministic_sample[0], dist.log_prob(torch.full((5, 1), 2.0)).shape
        (tensor([2.]), torch.Size([5]))
    """

    def __init__(
        self, loc: torch.Tensor, scale: torch.Tensor, *, low: torch.Tensor, high: torch.Tensor
    ) -> None:
        self.low, self.high = low, high
        self.device = loc.device
        self._t = _PatchedComposeTransform(
            [
                SafeTanhTransform(),
                _PatchedAffineTransform(loc=(high + low) / 2, scale=(high - low) / 2),
            ]
        )
        self.update(loc, scale)

    def update(self, loc: torch.Tensor, scale: torch.Tensor) -> None:
        """Replaces the parameters."""
        self.loc, self.scale = loc, scale
        normal = D.Normal(loc, scale, validate_args=False)
        base = D.Independent(normal, 1, validate_args=False)
        FasterTransformedDistribution.__init__(self, base, self._t, validate_args=False)

    def get_mode(self) -> torch.Tensor:
        """The density's mode is not known; there is ``deterministic_sample``."""
        return self.mode


class SquashedNormalModule(ProbabilisticTensorDictModule):
    """Draws actions from a :class:`SquashedNormal` whose bounds move with the module.

    The bounds are buffers and not arguments of the distribution, which would stay where they
    were made and be copied to the device at each call. They are not saved: they are the task's.

    Args:
        low (torch.Tensor): lower bounds ``[d_a]``.
        high (torch.Tensor): upper bounds ``[d_a]``.

    Keyword Args:
        in_keys (list of NestedKey): where location and scale are, ``[*, N, d_a]``.
        out_keys (list of NestedKey): where the action is written, ``[*, N, d_a]``.
        log_prob_key (NestedKey): where its log-density is written, ``[*, N]``.

    Examples:
        >>> from tensordict import TensorDict
        >>> module = SquashedNormalModule(-torch.ones(1), torch.ones(1), in_keys=["loc", "scale"],
        ...                               out_keys=["action"], log_prob_key="log_prob")
        >>> data = TensorDict({"loc": torch.zeros(5, 2, 1), "scale": torch.ones(5, 2, 1)}, [5])
        >>> module(data)["log_prob"].shape
        torch.Size([5, 2])
    """

    low: torch.Tensor
    high: torch.Tensor

    def __init__(
        self,
        low: torch.Tensor,
        high: torch.Tensor,
        *,
        in_keys: list[NestedKey],
        out_keys: list[NestedKey],
        log_prob_key: NestedKey,
    ) -> None:
        super().__init__(
            in_keys=in_keys,
            out_keys=out_keys,
            distribution_class=SquashedNormal,
            return_log_prob=True,
            log_prob_key=log_prob_key,
        )
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)

    def get_dist(self, tensordict: TensorDictBase) -> SquashedNormal:
        """The distribution of the actions, from the parameters in ``tensordict``."""
        loc, scale = (tensordict.get(key) for key in self.in_keys)
        return SquashedNormal(loc, scale, low=self.low, high=self.high)

    build_dist_from_params = get_dist
