"""Standardisation with constants that live inside the model."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["Normalizer"]

# Spread below which a feature counts as constant, relative to the size of its values: the
# rounding of float32 numbers, and of differences of such numbers, stays below it.
_RELATIVE_FLOOR = 1e-6


class Normalizer(nn.Module):
    """Standardises features with a mean and a scale that are kept as buffers.

    ``normalize`` computes ``(x - mean) / std``; ``denormalize`` inverts it. A feature that is
    constant in the data carries no information, and dividing by its spread would only magnify
    rounding: it is normalised to 0 and denormalised to its constant, whatever a network says.

    Until :meth:`fit` is called the module is the identity. The constants travel with
    ``state_dict``, and move with the module between devices.

    Args:
        size (int): number of features, the last dimension of what is normalised.

    Keyword Args:
        device (torch.device, optional): where the buffers are made.

    Examples:
        >>> normalizer = Normalizer(2)
        >>> data = torch.tensor([[0.0, 5.0], [2.0, 5.0]])
        >>> normalizer.fit(data)
        >>> normalizer.normalize(data)
        tensor([[-1.,  0.],
                [ 1.,  0.]])
        >>> normalizer.denormalize(torch.tensor([3.0, 3.0]))
        tensor([4., 5.])
    """

    mean: torch.Tensor
    scale: torch.Tensor
    inverse_scale: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    fitted: torch.Tensor

    def __init__(self, size: int, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size, device=device))
        self.register_buffer("scale", torch.ones(size, device=device))
        self.register_buffer("inverse_scale", torch.ones(size, device=device))
        self.register_buffer("low", torch.full((size,), -float("inf"), device=device))
        self.register_buffer("high", torch.full((size,), float("inf"), device=device))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool, device=device))

    @torch.no_grad()
    def fit(self, data: torch.Tensor, *, magnitude: torch.Tensor | None = None) -> None:
        """Computes the constants from data.

        Args:
            data (torch.Tensor): ``[*, size]``, finite.

        Keyword Args:
            magnitude (torch.Tensor, optional): ``[size]``, the size of the numbers that ``data``
                was computed from, where it is larger than that of ``data``: differences of large
                numbers are rounded as these numbers are.

        Raises:
            ValueError: if ``data`` has another number of features, fewer than two rows, or
                numbers that are not finite.
        """
        size = self.mean.shape[0]
        if data.shape[-1] != size:
            raise ValueError(f"Normalizer expected {size} features, found {data.shape[-1]}.")
        rows = data.detach().reshape(-1, size).to(torch.float64)
        if rows.shape[0] < 2:
            raise ValueError(f"Normalizer needs two rows or more, found {rows.shape[0]}.")
        if not rows.isfinite().all():
            raise ValueError("Normalizer needs finite data, found NaN or infinity.")
        mean = rows.mean(0)
        std = rows.std(0, correction=0)
        largest = rows.abs().amax(0)
        if magnitude is not None:
            largest = torch.maximum(largest, magnitude.to(largest))
        varies = std > _RELATIVE_FLOOR * largest
        zero = torch.zeros_like(std)
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(varies, std, zero))
        self.inverse_scale.copy_(torch.where(varies, 1.0 / std, zero))
        self.low.copy_(rows.amin(0))
        self.high.copy_(rows.amax(0))
        self.fitted.fill_(True)

    def normalize(
        self,
        x: torch.Tensor,
        *,
        mean: torch.Tensor | None = None,
        inverse_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Standardises ``x`` ``[*, size]``.

        Args:
            x (torch.Tensor): values in the data's units.

        Keyword Args:
            mean (torch.Tensor, optional): ``[size]``, in place of the module's own constant.
            inverse_scale (torch.Tensor, optional): ``[size]``, likewise.

        Raises:
            ValueError: if ``x`` has another number of features.
        """
        if x.shape[-1] != self.mean.shape[0]:
            raise ValueError(
                f"The network was made for {self.mean.shape[0]} features, found {x.shape[-1]} "
                f"(shape {tuple(x.shape)}): it belongs to another task. Load or make one for this."
            )
        mean = self.mean if mean is None else mean
        return (x - mean) * (self.inverse_scale if inverse_scale is None else inverse_scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """:meth:`normalize`, so that the module can be a layer."""
        return self.normalize(x)

    def denormalize(self, x: torch.Tensor) -> torch.Tensor:
        """Brings standardised ``x`` ``[*, size]`` back to the data's units."""
        return x * self.scale + self.mean

    def clamp(self, x: torch.Tensor, margin: float) -> torch.Tensor:
        """Clamps ``x`` ``[*, size]`` to the data's range, widened on both sides.

        Args:
            x (torch.Tensor): values in the data's units; NaN and infinities stay what they are.
            margin (float): the widening, as a share of the range.
        """
        # An unfitted range is infinite, and clamps nothing: 0 times infinity is no widening.
        widening = (margin * (self.high - self.low)).nan_to_num(nan=0.0, posinf=float("inf"))
        clamped = x.clamp(self.low - widening, self.high + widening)
        # x - x is 0 where x is finite and NaN elsewhere: half as many passes as isfinite().
        return torch.where(x - x == 0, clamped, x)
