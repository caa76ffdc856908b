"""Checks of what a batch's entries hold, which do not make the host wait for the device."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey, unravel_key
from torchrl.objectives import LossModule

__all__ = ["find_mask_key", "read_weights", "require_available_actions"]

# torch._assert_async raises at once on CPUs, also in compiled graphs. On an accelerator the check
# is queued like any other kernel: it is a device-side assertion, of which later calls fail, and
# after which the process cannot use the device again. Meta and fake tensors, which hold nothing,
# pass.


def read_weights(loss_module: LossModule, tensordict: TensorDictBase) -> torch.Tensor | None:
    """The batch's priority weights, if there are any and the loss uses them.

    Args:
        loss_module (LossModule): whose key and ``use_prioritized_weights`` count.
        tensordict (TensorDictBase): the batch.

    Raises:
        RuntimeError: for weights that are negative or not a number.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl_logo.data import TaskSpec
        >>> from torchrl_logo.modules import make_gaussian_actor
        >>> from torchrl_logo.objectives import BCLoss
        >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=1,
        ...                 action_low=(-1.0,), action_high=(1.0,))
        >>> loss = BCLoss(make_gaussian_actor(spec))
        >>> read_weights(loss, TensorDict({"priority_weight": torch.tensor([0.5, -2.0])}, [2]))
        Traceback (most recent call last):
        ...
        RuntimeError: BCLoss expected no negative weights in 'priority_weight', found some (or \
NaN). Weigh down by weights below one.
    """
    weights = loss_module._maybe_get_priority_weight(tensordict)
    if weights is not None:
        torch._assert_async(
            (weights >= 0).all(),
            f"{type(loss_module).__name__} expected no negative weights in "
            f"{loss_module.tensor_keys.priority_weight!r}, found some (or NaN). Weigh down by "
            "weights below one.",
        )
    return weights


def require_available_actions(
    loss_module: LossModule,
    tensordict: TensorDictBase,
    key: NestedKey,
    *,
    terminated: NestedKey | None = None,
) -> None:
    """Refuses a batch in which an agent has no available action; padded rows may have none.

    Args:
        loss_module (LossModule): who reads the mask, and whose masks of padded steps count.
        tensordict (TensorDictBase): the batch.
        key (NestedKey): the mask ``[*batch, N, A]`` bool.

    Keyword Args:
        terminated (NestedKey, optional): rows ``[*batch, 1]`` bool that may have none either:
            after the task has ended nobody acts.

    Raises:
        RuntimeError: names the mask's key.

    Examples:
        >>> from tensordict import TensorDict
        >>> batch = TensorDict({"mask": torch.tensor([[[True, False], [False, False]]])}, [1])
        >>> require_available_actions(LossModule(), batch, "mask")
        Traceback (most recent call last):
        ...
        RuntimeError: LossModule expected an available action for each agent in 'mask', found an \
agent without one. Let it do nothing by an action of its own, or leave the row out.
    """
    passes = tensordict.get(key).any(-1).all(-1)  # [*batch]
    if terminated is not None:
        passes = passes | tensordict.get(terminated).squeeze(-1)
    for mask_key in loss_module._loss_mask_keys():
        valid = tensordict.get(mask_key, None)
        if valid is not None:
            passes = passes | ~loss_module._expand_loss_mask(valid, passes).bool()
    torch._assert_async(
        passes.all(),
        f"{type(loss_module).__name__} expected an available action for each agent in "
        f"{unravel_key(key)!r}, found an agent without one. Let it do nothing by an action of its "
        "own, or leave the row out.",
    )


def find_mask_key(actor: TensorDictModuleBase) -> NestedKey | None:
    """Where an actor's distribution reads which actions are available, if it does.

    Args:
        actor (TensorDictModuleBase): the actor.

    Examples:
        >>> from torchrl_logo.data import TaskSpec
        >>> from torchrl_logo.modules import make_categorical_actor
        >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=5,
        ...                 discrete=True)
        >>> find_mask_key(make_categorical_actor(spec))
        ('agents', 'action_mask')
    """
    for module in actor.modules():
        names = getattr(module, "dist_keys", None)
        if names is not None and "mask" in names:
            return module.in_keys[list(names).index("mask")]
    return None
