"""What losses share that learn a deterministic policy from twin critics, as TD3 does."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey, unravel_key
from torch.distributions import Normal
from torchrl.data import Bounded, TensorSpec
from torchrl.envs import ExplorationType, set_exploration_type
from torchrl.objectives import LossModule, ValueEstimators, distance_loss
from torchrl.objectives.utils import _cache_values, _vmap_func, dispatch_value_estimator

from torchrl_logo.argument_checks import require_discount
from torchrl_logo.objectives.critic_values import value_actions
from torchrl_logo.objectives.memory import refuse_memory
from torchrl_logo.objectives.required_keys import (
    match_batch_size,
    require_keys,
    require_shape,
    require_written,
)
from torchrl_logo.objectives.value_checks import read_weights

__all__ = ["TwinDelayedLoss"]


class TwinDelayedLoss(LossModule):
    r"""Base of losses of a deterministic policy :math:`\pi_i(o_i)` and stacked critics.

    .. math::

        L_{qvalue} = \sum_k \ell\big(Q_k(s, a),\; r + \gamma (1 - d) \min_k \bar Q_k(s', a')\big),
            \quad a' = \operatorname{clip}\big(\bar \pi(o') + \epsilon,\, l,\, h\big), \;
            \epsilon \sim \operatorname{clip}\big(N(0, \sigma^2), -c, c\big)

    with the noise :math:`\epsilon` in units of half the action range: clipped double Q-learning
    and target policy smoothing (TD3, Fujimoto et al. 2018, sections 4.2 and 5.3). Actor and
    critics have target networks. Where there is a critic for each agent, the loss is the mean
    over agents.

    Subclasses say in :attr:`value_shape` what the critics write, implement :meth:`_improve`, and
    describe their arguments and keys.
    """

    @dataclass
    class _AcceptedKeys:
        """Keys that can be renamed with ``set_keys``.

        Attributes:
            action: the joint action, ``[*, N, d_a]``.
            state_action_value: what the critic writes, ``[*, 1]`` or ``[*, N, 1]``.
            reward: the team reward, ``[*, 1]``, under ``"next"``.
            done: end of the episode, ``[*, 1]``, under ``"next"``.
            terminated: end that forbids bootstrapping, ``[*, 1]``, under ``"next"``.
            priority_weight: importance weight of a transition, ``[*]`` (optional).
        """

        action: NestedKey = ("agents", "action")
        state_action_value: NestedKey = "state_action_value"
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"
        priority_weight: NestedKey = "priority_weight"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    default_value_estimator = ValueEstimators.TD0
    discrete = False
    continuous = True
    recurrent = False

    actor_network: TensorDictModuleBase
    qvalue_network: TensorDictModule
    actor_network_params: TensorDictParams
    qvalue_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams
    target_qvalue_network_params: TensorDictParams

    def __init__(
        self,
        actor_network: TensorDictModuleBase,
        qvalue_network: TensorDictModule | list[TensorDictModule],
        *,
        action_spec: TensorSpec,
        num_qvalue_nets: int = 2,
        policy_noise: float = 0.2,
        noise_clip: float = 0.5,
        gamma: float = 0.99,
        loss_function: str = "l2",
        reduction: str | None = None,
        deactivate_vmap: bool = False,
        use_prioritized_weights: str | bool = "auto",
    ) -> None:
        name = type(self).__name__
        for argument, value in (("policy_noise", policy_noise), ("noise_clip", noise_clip)):
            if value < 0:
                raise ValueError(f"{name}: {argument} must not be negative, found {value}.")
        if reduction not in (None, "none", "mean", "sum"):
            raise ValueError(
                f"{name}: reduction must be 'none', 'mean' or 'sum', found {reduction!r}."
            )
        if not isinstance(action_spec, Bounded) or len(action_spec.shape) != 2:
            raise ValueError(
                f"{name} needs a Bounded action_spec of shape [N, d_a] (continuous actions, "
                f"without batch dimensions), found {type(action_spec).__name__} of shape "
                f"{tuple(action_spec.shape)}."
            )
        low, high = action_spec.space.low, action_spec.space.high
        if not all(0 < side < math.inf for side in (high - low).flatten().tolist()):
            raise ValueError(
                f"{name} needs finite action bounds, low below high; found low={low.tolist()}, "
                f"high={high.tolist()}."
            )
        refuse_memory(type(self).__name__, actor_network, qvalue_network)
        super().__init__()
        self.use_prioritized_weights = use_prioritized_weights
        self.deactivate_vmap = deactivate_vmap
        self.convert_to_functional(actor_network, "actor_network", create_target_params=True)
        self.convert_to_functional(
            qvalue_network, "qvalue_network", num_qvalue_nets, create_target_params=True
        )
        device = next(self.parameters()).device
        self.policy_noise = policy_noise
        self.noise_clip = noise_clip
        self.loss_function = loss_function
        self.reduction = "mean" if reduction is None else reduction
        self.register_buffer("action_low", low.to(device).clone())
        self.register_buffer("action_high", high.to(device).clone())
        self.register_buffer("half_range", ((high - low) / 2).to(device))
        self._make_vmap()
        require_discount(gamma, type(self).__name__)
        self.make_value_estimator(self.default_value_estimator, gamma=gamma)

    def _make_vmap(self) -> None:
        self._vmap_qvalue_network = _vmap_func(
            self.qvalue_network, (None, 0), randomness=self.vmap_randomness,
            pseudo_vmap=self.deactivate_vmap,
        )  # fmt: skip

    def make_value_estimator(
        self, value_type: ValueEstimators | None = None, **hyperparams: Any
    ) -> None:
        """Chooses how targets are made; TD(0) by default. ``gamma`` is the discount."""
        dispatch_value_estimator(
            self,
            self.default_value_estimator if value_type is None else value_type,
            supported=(ValueEstimators.TD0,),
            tensor_keys=self._estimator_keys(),
            value_network=None,
            **hyperparams,
        )

    def _estimator_keys(self) -> dict[str, NestedKey]:
        keys = self.tensor_keys
        return {
            "value": keys.state_action_value,
            "reward": keys.reward,
            "done": keys.done,
            "terminated": keys.terminated,
        }

    def _forward_value_estimator_keys(self, **kwargs: Any) -> None:
        if self._value_estimator is not None:
            self._value_estimator.set_keys(**self._estimator_keys())

    @property
    def in_keys(self) -> list[NestedKey]:
        """What the loss reads, without what is optional."""
        keys = self.tensor_keys
        critic = [key for key in self.qvalue_network.in_keys if key != unravel_key(keys.action)]
        roots = [*self.actor_network.in_keys, *critic]
        following = [*roots, keys.reward, keys.done, keys.terminated]
        # a key of several networks is listed once
        return list(
            dict.fromkeys([keys.action, *roots, *[unravel_key(("next", key)) for key in following]])
        )

    @property
    @abstractmethod
    def value_shape(self) -> tuple[int, ...]:
        """What the critic writes after the batch dimensions: ``(1,)``, or ``(N, 1)``."""

    @property
    @_cache_values
    def _cached_detached_qvalue_params(self) -> TensorDictParams:
        return self.qvalue_network_params.detach()

    def _act(self, tensordict: TensorDictBase, params: TensorDictParams) -> torch.Tensor:
        """The policy's deterministic action, ``[*batch, N, d_a]``."""
        key, net, name = self.tensor_keys.action, self.actor_network, type(self).__name__
        inputs = tensordict.select(*net.in_keys, strict=True)
        with (
            set_exploration_type(ExplorationType.DETERMINISTIC),
            params.to_module(net, preserve_module_state=False),
        ):
            action = net(inputs).get(key, None)
        action = require_written(action, key, net, "actor_network", name)
        return require_shape(action, (*tensordict.batch_size, *self.half_range.shape), key, name)

    def _value(
        self, tensordict: TensorDictBase, action: torch.Tensor, params: TensorDictBase
    ) -> torch.Tensor:
        """Values of actions ``[*draws, *batch, N, d_a]``.

        Returns:
            ``[nets, *draws, *batch]``, or ``[nets, *draws, *batch, N]``.
        """
        return value_actions(
            self,
            tensordict,
            action,
            params,
            action_dims=self.half_range.ndim,
            value_shape=self.value_shape,
        )

    def _first_value(self, tensordict: TensorDictBase, action: torch.Tensor) -> torch.Tensor:
        """What the first critic alone says (:meth:`_value`), its parameters detached."""
        return self._value(tensordict, action, self._cached_detached_qvalue_params[:1])[0]

    def _smooth(self, action: torch.Tensor) -> torch.Tensor:
        """Actions with clipped noise, within the bounds."""
        scale = torch.full_like(action, self.policy_noise)
        noise = Normal(torch.zeros_like(action), scale, validate_args=False).rsample()
        noise = noise.clamp(-self.noise_clip, self.noise_clip)
        return torch.clamp(action + noise * self.half_range, self.action_low, self.action_high)

    def _check(self, tensordict: TensorDictBase) -> None:
        """Refuses what would fail late, or not at all; waits for no values."""
        keys, batch_size, name = self.tensor_keys, tensordict.batch_size, type(self).__name__
        if unravel_key(keys.action) not in self.qvalue_network.in_keys:
            raise ValueError(
                f"{name}: qvalue_network must read the action {keys.action!r}; it reads "
                f"{list(self.qvalue_network.in_keys)}."
            )
        action = tensordict.get(keys.action)
        require_shape(action, (*batch_size, *self.half_range.shape), keys.action, name)
        if not action.is_floating_point():
            raise ValueError(
                f"{name} needs continuous actions in {keys.action!r}, found {action.dtype}."
            )
        for outcome in (keys.reward, keys.done, keys.terminated):
            key = unravel_key(("next", outcome))
            require_shape(tensordict.get(key), (*batch_size, 1), key, name)

    @torch.no_grad()
    def _target_value(self, tensordict: TensorDictBase) -> torch.Tensor:
        """The target, ``[*batch]`` or ``[*batch, N]``: the least of the target critics."""
        keys, following, batch_size = (
            self.tensor_keys,
            tensordict.get("next"),
            tensordict.batch_size,
        )
        action = self._smooth(self._act(following, self.target_actor_network_params))
        value = self._value(following, action, self.target_qvalue_network_params).amin(0)
        # each agent's critic is given the team's outcome
        outcome = following.select(keys.reward, keys.done, keys.terminated).apply(
            lambda entry: entry.reshape(*batch_size, *[1] * len(self.value_shape)).expand(
                *batch_size, *self.value_shape
            ),
            batch_size=batch_size,
        )
        outcome.set(keys.state_action_value, value.unsqueeze(-1))
        targets = TensorDict({"next": outcome}, batch_size=batch_size)
        return self.value_estimator.value_estimate(targets).squeeze(-1)

    @abstractmethod
    def _improve(
        self,
        tensordict: TensorDictBase,
        pred_value: torch.Tensor,
        weights: torch.Tensor | None,
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The actor's loss, and what else a subclass has.

        Args:
            tensordict (TensorDictBase): the batch.
            pred_value (torch.Tensor): the critics' values of the data's actions,
                ``[nets, *batch]`` or ``[nets, *batch, N]``.
            weights (torch.Tensor, optional): the transitions' weights, ``[*batch]``.

        Returns:
            Losses and statistics by their names, of the shape ``[*batch]`` or ``[*batch, N]``.
        """

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Computes all losses of a batch of transitions; see the class for keys and formulas."""
        keys = self.tensor_keys
        require_keys(tensordict, self.in_keys, type(self).__name__)
        tensordict = match_batch_size(tensordict, keys.action, self.half_range.ndim)
        self._check(tensordict)
        weights = read_weights(self, tensordict)
        action = tensordict.get(keys.action)  # [B, N, d_a]
        target_value = self._target_value(tensordict)  # [B] or [B, N]
        pred_value = self._value(tensordict, action, self.qvalue_network_params)  # [nets, B, ...]
        loss_qvalue = distance_loss(
            pred_value, target_value.expand_as(pred_value), loss_function=self.loss_function
        ).sum(0)
        more_losses, more_statistics = self._improve(tensordict, pred_value, weights)
        losses = {"loss_qvalue": loss_qvalue, **more_losses}
        statistics = {
            "pred_value": pred_value.mean(0),
            "target_value": target_value,
            **more_statistics,
        }
        none, batch_dims = self.reduction == "none", tensordict.batch_dims
        out = {}
        for name, loss in losses.items():
            row = _mean_over_agents(loss, batch_dims)
            out[name] = self._reduce_loss(row, tensordict=tensordict, weights=weights)
        for name, value in statistics.items():
            row = _mean_over_agents(value.detach(), batch_dims)
            if not none:
                # the mean over what is not padding, without weights
                row = self._reduce_loss(row, tensordict=tensordict, reduction="mean")
            out[name] = row
        result = TensorDict(out, batch_size=tensordict.batch_size if none else [])
        self._clear_weakrefs(
            tensordict,
            result,
            "actor_network_params",
            "qvalue_network_params",
            "target_actor_network_params",
            "target_qvalue_network_params",
        )
        return result


def _mean_over_agents(value: torch.Tensor, batch_dims: int) -> torch.Tensor:
    """``[*batch]`` of ``[*batch]`` or ``[*batch, N]``."""
    return value.mean(-1) if value.ndim > batch_dims else value
