"""Networks whose parameters are stacked, called one after the other on plain tensors."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import nn
from torch.nn import functional as F

from torchrl_logo.modules.normalizer import Normalizer

__all__ = ["call_layers", "have_stackable_layers", "standardize", "unstack"]

# torch.vmap over critics adds biases in operations of their own, and TorchRL's loop puts parameters
# into a module and takes them out again, which at small batches costs more than the arithmetic.

Weights = dict[str, torch.Tensor]


def unstack(params: TensorDictBase) -> list[Weights]:
    """Each network's parameters and buffers, by the names that its ``state_dict`` has.

    Args:
        params (TensorDictBase): ``[nets]``, parameters and buffers of one module, stacked.

    Examples:
        >>> from tensordict import TensorDict
        >>> params = TensorDict({"0": {"weight": torch.zeros(2, 4, 3)}}, [2])
        >>> [{name: tuple(value.shape) for name, value in each.items()} for each in unstack(params)]
        [{'0.weight': (4, 3)}, {'0.weight': (4, 3)}]
    """
    names, values = [], []
    for key, value in params.items(True, True):
        names.append(key if isinstance(key, str) else ".".join(key))
        values.append(value.unbind(0))
    return [dict(zip(names, each, strict=True)) for each in zip(*values, strict=True)]


def have_stackable_layers(layers: nn.Module) -> bool:
    """Whether :func:`call_layers` can call them: linear layers, and others without parameters.

    Args:
        layers (nn.Module): the layers, in the order of their calls, the first of them linear.
    """
    children = list(layers.children())
    others = [child for child in children if not isinstance(child, nn.Linear)]
    return isinstance(children[0], nn.Linear) and not any(child.state_dict() for child in others)


def standardize(
    normalizer: nn.Module, weights: Weights, prefix: str, x: torch.Tensor
) -> torch.Tensor:
    """Standardises ``x`` with constants that were unstacked.

    Args:
        normalizer (nn.Module): a :class:`~torchrl_logo.modules.Normalizer`; for any other module
            ``x`` is left as it is.
        weights (dict of torch.Tensor): where its constants are, see :func:`unstack`.
        prefix (str): what their names begin with.
        x (torch.Tensor): ``[*, size]``.

    Raises:
        ValueError: if ``x`` has another number of features.
    """
    if not isinstance(normalizer, Normalizer):
        return x
    mean, inverse_scale = weights[f"{prefix}mean"], weights[f"{prefix}inverse_scale"]
    return normalizer.normalize(x, mean=mean, inverse_scale=inverse_scale)


def call_layers(
    layers: nn.Module,
    weights: Weights,
    prefix: str,
    repeated: torch.Tensor,
    varied: torch.Tensor,
) -> torch.Tensor:
    """Calls an MLP on rows of which one part is the same in several of them.

    That part goes through the first layer once. All layers see matrices, not batches of them:
    compiled code then takes a ReLU's gradient from its output, and does not write down on which
    side of zero each number was, which on a CPU takes longer than the products.

    Args:
        layers (nn.Module): see :func:`have_stackable_layers`.
        weights (dict of torch.Tensor): their parameters, see :func:`unstack`.
        prefix (str): what the parameters' names begin with.
        repeated (torch.Tensor): the first features of all draws, ``[R, d]``.
        varied (torch.Tensor): the last features of each draw, ``[M, R, e]``.

    Returns:
        ``[M, R, out]``.

    Examples:
        >>> layers = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> repeated, varied = torch.randn(5, 2), torch.randn(6, 5, 1)
        >>> rows = torch.cat([repeated.expand(6, 5, 2), varied], -1)
        >>> found = call_layers(layers, dict(layers.named_parameters()), "", repeated, varied)
        >>> torch.allclose(found, layers(rows), atol=1e-6)
        True
    """
    x: torch.Tensor | None = None
    for name, layer in layers.named_children():
        if isinstance(layer, nn.Linear):
            weight = weights[f"{prefix}{name}.weight"]
            bias = weights.get(f"{prefix}{name}.bias")
            if x is None:
                x = _call_first_layer(weight, bias, repeated, varied)
            else:
                x = F.linear(x, weight, bias)
        else:
            x = layer(x)
    assert x is not None
    return x.view(*varied.shape[:2], -1)


def _call_first_layer(
    weight: torch.Tensor, bias: torch.Tensor | None, repeated: torch.Tensor, varied: torch.Tensor
) -> torch.Tensor:
    """``[M * R, hidden]``."""
    draws, rows, features = varied.shape
    if draws == 1:
        return F.linear(torch.cat([repeated, varied[0]], -1), weight, bias)
    of_repeated, of_varied = weight.split([repeated.shape[-1], features], -1)
    once = F.linear(repeated, of_repeated, bias)  # [R, hidden]
    # Row by row, since the gradient of the few columns is then several times faster on a CPU.
    each = varied.reshape(-1, features) @ of_varied.t().contiguous()
    return (each.view(draws, rows, -1) + once).view(draws * rows, -1)
