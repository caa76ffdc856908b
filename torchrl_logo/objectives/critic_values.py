"""What several critics on one stacked axis say of one or of many actions in each state."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from tensordict.utils import NestedKey, unravel_key
from torchrl.objectives import LossModule

from torchrl_logo.objectives.required_keys import require_shape, require_written

__all__ = ["value_actions"]


def value_actions(
    loss_module: LossModule,
    tensordict: TensorDictBase,
    action: torch.Tensor,
    params: TensorDictBase,
    *,
    action_dims: int,
    value_shape: tuple[int, ...] = (1,),
) -> torch.Tensor:
    """Values of all critics ``qvalue_network``.

    Critics that can value several actions in each state at once
    (:meth:`~torchrl_logo.modules.CentralizedCritic.value_stacked`) are given each state once.
    Others are called through :func:`torch.vmap` (or a loop) over critics, with the state repeated
    for each action.

    Args:
        loss_module (LossModule): whose critics and key names count.
        tensordict (TensorDictBase): what critics read besides actions, with the batch dimensions.
        action (torch.Tensor): ``[*draws, *batch, N, d_a]``.
        params (TensorDictBase): ``[nets]``, the critics' parameters.

    Keyword Args:
        action_dims (int): dimensions of a joint action, two for ``[N, d_a]``.
        value_shape (tuple of int): what a critic writes after the batch dimensions. Defaults to
            ``(1,)``, the team's value.

    Returns:
        ``[nets, *draws, *batch, *value_shape]``, without the last dimension.

    Raises:
        KeyError: if the critic does not write the value.
        ValueError: if it writes one of another shape: a value for each agent would broadcast
            against the team's reward without an error.
    """
    keys, name = loss_module.tensor_keys, type(loss_module).__name__
    network, key = loss_module.qvalue_network, keys.state_action_value
    leading = action.shape[: action.ndim - action_dims]
    if _can_value_stacked(network, keys.action, key):
        inputs = [tensordict.get(each) for each in network.in_keys[:-1]]
        value = network.module.value_stacked(params.get("module"), *inputs, action)
    else:
        inputs = tensordict.select(*network.in_keys, strict=False).expand(leading)
        out = loss_module._vmap_qvalue_network(inputs.set(keys.action, action), params)
        value = require_written(out.get(key, None), key, network, "qvalue_network", name)
    shape = (*params.batch_size, *leading, *value_shape)
    return require_shape(value, shape, key, name).squeeze(-1)


def _can_value_stacked(
    network: TensorDictModuleBase, action_key: NestedKey, value_key: NestedKey
) -> bool:
    """Whether calling its module's ``value_stacked`` is the same as calling the network."""
    if type(network) is not TensorDictModule:
        return False
    if network.in_keys[-1:] != [unravel_key(action_key)]:
        return False
    if network.out_keys != [unravel_key(value_key)]:
        return False
    module = network.module
    if not getattr(module, "can_value_stacked", False):
        return False
    # What replaces the call, or listens to it, counts for both.
    for called in (network, module):
        if "forward" in vars(called) or called._forward_hooks or called._forward_pre_hooks:
            return False
    definer = next(cls for cls in type(module).__mro__ if "forward" in vars(cls))
    return "value_stacked" in vars(definer)
