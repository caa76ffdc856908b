"""A team's value that is linear in its agents', with the mixer's weights of them."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey, unravel_key
from torchrl.objectives import LossModule

from torchrl_logo.objectives.required_keys import require_shape, require_written

__all__ = ["mix_linearly"]


def mix_linearly(
    loss_module: LossModule,
    local: torch.Tensor,
    tensordict: TensorDictBase,
    params: TensorDictBase,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs the loss's ``mixer_network`` on agents' values.

    Args:
        loss_module (LossModule): has a ``mixer_network``, and the keys ``local_value``,
            ``global_value`` and ``mixing_weight``.
        local (torch.Tensor): the agents' values, ``[*batch, N]``.
        tensordict (TensorDictBase): what else the mixer reads.
        params (TensorDictBase): the mixer's.

    Returns:
        The team's values ``[*batch]`` and the weights ``[*batch, N]``.

    Raises:
        KeyError: if the mixer does not write what it must.
        ValueError: if that has another shape.
    """
    keys, net, name = loss_module.tensor_keys, loss_module.mixer_network, type(loss_module).__name__
    inner = unravel_key(keys.local_value)
    context = [key for key in net.in_keys if key != inner]
    # TorchRL's mixers view what they are given, which needs to be in one piece
    inputs = tensordict.select(*context, strict=True).contiguous()
    inputs.set(keys.local_value, local.unsqueeze(-1).contiguous())
    with params.to_module(net, preserve_module_state=False):
        mixed = net(inputs)

    def read(key: NestedKey, *shape: int) -> torch.Tensor:
        value = mixed.get(key, None)
        value = require_written(value, key, net, "mixer_network", name)
        # a value for each agent would broadcast against the team's reward without an error
        return require_shape(value, (*tensordict.batch_size, *shape), key, name).squeeze(-1)

    return read(keys.global_value, 1), read(keys.mixing_weight, local.shape[-1], 1)
