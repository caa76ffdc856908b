"""Behaviour cloning (BC) of a team."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictSequential, dispatch
from tensordict.utils import NestedKey
from torchrl.data import TensorSpec
from torchrl.objectives import LossModule

from torchrl_logo.objectives.joint_density import sum_over_agents
from torchrl_logo.objectives.required_keys import (
    match_batch_size,
    require_distribution,
    require_keys,
    require_shape,
)
from torchrl_logo.objectives.value_checks import (
    find_mask_key,
    read_weights,
    require_available_actions,
)

__all__ = ["BCLoss"]


class BCLoss(LossModule):
    r"""Maximum likelihood of the dataset's actions, each agent from its own observation.

    .. math:: L_{actor} = - \frac{1}{N} \sum_i \log \pi_i(a_i | o_i)

    Args:
        actor_network (ProbabilisticTensorDictSequential): stochastic actor; continuous (density)
            or discrete (log-probability, with the mask it reads itself). Its distribution's
            ``log_prob`` is per agent, ``[*, N]``, or joint, ``[*]``.

    Keyword Args:
        action_margin (float): continuous actions closer than this share of the half range to a
            bound are scored as if they were that far inside, since the density of a squashed
            Gaussian has no finite maximum at the bound. Needs ``action_spec``, and is below one.
            Defaults to ``1e-3``.
        action_spec (TensorSpec, optional): the joint action's, ``[N, d_a]`` or, for categorical
            actions, ``[N]``. Without it actions are scored as they are, and the loss takes no
            plain tensors, whose batch dimensions would be unknown.
        delay_actor (bool): whether there are target parameters of the actor, of which
            :class:`~torchrl.objectives.SoftUpdate` makes a moving average of the policy. The loss
            does not use them. Defaults to ``False``.
        reduction (str): ``"none"``, ``"mean"`` or ``"sum"``. Defaults to ``"mean"``.
        use_prioritized_weights (bool or str): whether ``"priority_weight"`` weighs transitions;
            ``"auto"`` and ``True`` use it where it is there. Defaults to ``"auto"``.

    Reads the actor's input keys, the action, and optionally ``"priority_weight"`` ``[*]``.
    Writes ``"loss_actor"`` and the detached, unweighted ``"bc_log_prob"``.

    With weights the loss is :math:`\sum w l / \sum w` under ``"mean"``, :math:`\sum w l` under
    ``"sum"`` and :math:`w l` under ``"none"``. They must not be negative, which is checked,
    and not all zero. Of categorical actions each agent must have one available; a dataset's
    action that was not has an infinite loss.

    Raises:
        ValueError: for an unknown reduction or a margin out of range. In :meth:`forward`, for
            actions of another shape or kind than ``action_spec``'s.
        KeyError: in :meth:`forward`, for missing entries.
        RuntimeError: in :meth:`forward`, for negative weights, or an agent without available
            actions (:mod:`~torchrl_logo.objectives.value_checks`).

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_logo.data import TaskSpec
        >>> from torchrl_logo.modules import make_gaussian_actor
        >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=1,
        ...                 action_low=(-1.0,), action_high=(1.0,))
        >>> loss = BCLoss(make_gaussian_actor(spec), action_spec=spec.action_spec())
        >>> batch = TensorDict({"agents": {"observation": torch.zeros(8, 2, 3),
        ...                                "action": torch.zeros(8, 2, 1)}}, [8])
        >>> loss(batch)["loss_actor"].shape
        torch.Size([])
    """

    @dataclass
    class _AcceptedKeys:
        """Keys that can be renamed with ``set_keys``.

        Attributes:
            action: the joint action, ``[*, N, d_a]`` or ``[*, N]``.
            priority_weight: importance weight of a transition, ``[*]`` (optional).
        """

        action: NestedKey = ("agents", "action")
        priority_weight: NestedKey = "priority_weight"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    discrete = True
    continuous = True
    recurrent = True
    out_keys = ["loss_actor", "bc_log_prob"]

    actor_network: ProbabilisticTensorDictSequential
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        *,
        action_spec: TensorSpec | None = None,
        action_margin: float = 1e-3,
        delay_actor: bool = False,
        reduction: str | None = None,
        use_prioritized_weights: str | bool = "auto",
    ) -> None:
        if not 0 <= action_margin < 1:
            raise ValueError(f"BCLoss: action_margin must be in [0, 1), found {action_margin}.")
        if reduction not in (None, "none", "mean", "sum"):
            raise ValueError(
                f"BCLoss: reduction must be 'none', 'mean' or 'sum', found {reduction!r}."
            )
        super().__init__()
        self.use_prioritized_weights = use_prioritized_weights
        self.convert_to_functional(actor_network, "actor_network", create_target_params=delay_actor)
        self.reduction = "mean" if reduction is None else reduction
        self.mask_key = find_mask_key(actor_network)
        self.action_shape = None if action_spec is None else action_spec.shape
        device = next(self.parameters()).device
        self.bounded = getattr(getattr(action_spec, "space", None), "low", None) is not None
        if action_spec is not None and self.bounded:
            low, high = action_spec.space.low, action_spec.space.high
            margin = action_margin * (high - low) / 2
            self.register_buffer("action_low", (low + margin).to(device))
            self.register_buffer("action_high", (high - margin).to(device))

    def _forward_value_estimator_keys(self, **kwargs: NestedKey) -> None:
        """Nothing to forward: behaviour cloning has no values."""

    @property
    def in_keys(self) -> list[NestedKey]:
        """What the loss reads; ``"priority_weight"`` is optional."""
        return [*self.actor_network.in_keys, self.tensor_keys.action]

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Computes the negative log-likelihood of a batch of transitions."""
        require_keys(tensordict, self.in_keys, "BCLoss")
        action = tensordict.get(self.tensor_keys.action)
        if self.action_shape is not None:
            key, ndim = self.tensor_keys.action, len(self.action_shape)
            tensordict = match_batch_size(tensordict, key, ndim)
            shape = (*tensordict.batch_size, *self.action_shape)
            require_shape(action, shape, self.tensor_keys.action, "BCLoss")
            if action.is_floating_point() is not self.bounded:
                kind = "continuous" if self.bounded else "categorical"
                raise ValueError(
                    f"BCLoss expected {kind} actions in {self.tensor_keys.action!r}, found "
                    f"{action.dtype}."
                )
        if self.bounded:
            action = torch.clamp(action, self.action_low, self.action_high)
        if self.mask_key is not None:
            require_available_actions(self, tensordict, self.mask_key)
        weights = read_weights(self, tensordict)
        with self.actor_network_params.to_module(self.actor_network, preserve_module_state=False):
            inputs = tensordict.select(*self.actor_network.in_keys, strict=True)
            dist = self.actor_network.get_dist(inputs)
            key = self.tensor_keys.action
            log_prob = require_distribution(dist, action.shape, key, "BCLoss").log_prob(action)
        agents = action.shape[tensordict.ndim]
        log_prob = sum_over_agents(log_prob, tensordict.batch_size) / agents  # [B]
        loss = self._reduce_loss(-log_prob, tensordict=tensordict, weights=weights)
        none = self.reduction == "none"
        detached = log_prob.detach()
        if not none:
            # the mean over what is not padding, without weights
            detached = self._reduce_loss(detached, tensordict=tensordict, reduction="mean")
        result = TensorDict(
            {"loss_actor": loss, "bc_log_prob": detached},
            batch_size=tensordict.batch_size if none else [],
        )
        self._clear_weakrefs(
            tensordict, result, "actor_network_params", "target_actor_network_params"
        )
        return result
