"""What losses share that value and imitate the data's actions only, the better ones more."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey, unravel_key
from torchrl.objectives import LossModule, ValueEstimators, distance_loss
from torchrl.objectives.utils import _cache_values, dispatch_value_estimator

from torchrl_logo.argument_checks import MissingKeyError, require_discount
from torchrl_logo.objectives.linear_mixing import mix_linearly
from torchrl_logo.objectives.memory import refuse_memory
from torchrl_logo.objectives.required_keys import (
    match_batch_size,
    require_keys,
    require_shape,
    require_written,
)
from torchrl_logo.objectives.value_checks import read_weights

__all__ = ["ImplicitConstraintLoss", "estimate_importance"]


def estimate_importance(scaled: torch.Tensor, row_weights: torch.Tensor) -> torch.Tensor:
    r"""How much likelier the improved policy takes the data's actions than the data do.

    With :math:`x = Q / \alpha` the improved policy is :math:`\mu e^x / Z`, whose normaliser
    :math:`Z = E_\mu[e^x]` is taken to be the same in all rows:

    .. math:: \rho_b = \frac{e^{x_b}}{\sum_j w_j e^{x_j} / \sum_j w_j}

    so that the weighted mean of :math:`\rho` is one. With equal weights it is the number of rows
    times the softmax over them.

    Args:
        scaled (torch.Tensor): :math:`x`, ``[*batch]``, or ``[*batch, N]`` with a normaliser for
            each agent.
        row_weights (torch.Tensor): :math:`w \ge 0`, ``[*batch]``.

    Returns:
        Importances of the shape of ``scaled``; zero in rows without weight.

    Examples:
        >>> estimate_importance(torch.tensor([1.0, 3.0, 9.0]).log(), torch.tensor([1.0, 1.0, 0.0]))
        tensor([0.5000, 1.5000, 0.0000])
    """
    rows = tuple(range(row_weights.ndim))
    row_weights = row_weights.reshape(*row_weights.shape, *[1] * (scaled.ndim - row_weights.ndim))
    counts, log_weights = row_weights > 0, row_weights.log()
    scaled = torch.where(counts, scaled, -torch.inf)
    scaled = scaled - scaled.amax(rows, True)  # large values would round the mean away
    terms = torch.where(counts, scaled + log_weights, -torch.inf)
    log_mean = terms.logsumexp(rows, True) - log_weights.logsumexp(rows, True)
    return torch.where(counts, (scaled - log_mean).exp(), 0.0)


class ImplicitConstraintLoss(LossModule):
    r"""Base of losses that trust the data's actions alone (ICQ).

    Each agent's value of its own action is mixed linearly into the team's,
    :math:`Q_{tot}(s, a) = \sum_i w_i(s) Q_i(o_i, a_i) + b(s)` with :math:`w_i \ge 0`:

    .. math::

        L_{qvalue} &= \big(Q_{tot}(s, a) - r - \gamma (1 - d) \rho' \bar Q_{tot}(s', a')\big)^2,
            \quad \rho' = e^{\bar Q_{tot}(s', a') / \alpha_c} / Z \\
        L_{actor} &= - \frac{1}{N} \sum_i \rho_i \log \pi_i(a_i | o_i),
            \quad \rho_i = e^{w_i(s) A_i(o_i, a_i) / \alpha_a} / Z_i

    with the data's actions :math:`a` and next actions :math:`a'`. Normalisers are estimated over
    the batch by :func:`estimate_importance`.

    Subclasses implement :meth:`_evaluate` and :meth:`_value_actions`, and describe their
    arguments and keys.
    """

    @dataclass
    class _AcceptedKeys:
        """Keys that can be renamed with ``set_keys``.

        Attributes:
            action: the joint action, ``[*, N, d_a]`` or ``[*, N]``, also under ``"next"``.
            action_recorded: whether the data have the next action, ``[*, 1]`` bool, under
                ``"next"``.
            local_value: value of each agent's action, which the mixer reads, ``[*, N, 1]``.
            global_value: what the mixer writes, ``[*, 1]``.
            mixing_weight: what the mixer writes besides, ``[*, N, 1]``.
            reward: the team reward, ``[*, 1]``, under ``"next"``.
            done: end of the episode, ``[*, 1]``, under ``"next"``.
            terminated: end that forbids bootstrapping, ``[*, 1]``, under ``"next"``.
            priority_weight: importance weight of a transition, ``[*]`` (optional).
        """

        action: NestedKey = ("agents", "action")
        action_recorded: NestedKey = "action_recorded"
        local_value: NestedKey = ("agents", "state_action_value")
        global_value: NestedKey = "state_action_value"
        mixing_weight: NestedKey = ("agents", "mixing_weight")
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"
        priority_weight: NestedKey = "priority_weight"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    default_value_estimator = ValueEstimators.TD0
    recurrent = False

    actor_network: TensorDictModuleBase
    critic_network: TensorDictModule
    mixer_network: TensorDictModule
    actor_network_params: TensorDictParams
    critic_network_params: TensorDictParams
    mixer_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams
    target_critic_network_params: TensorDictParams
    target_mixer_network_params: TensorDictParams

    def __init__(
        self,
        actor_network: TensorDictModuleBase,
        critic_network: TensorDictModule,
        mixer_network: TensorDictModule,
        *,
        actor_temperature: float = 0.1,
        critic_temperature: float = 1000.0,
        gamma: float = 0.99,
        loss_function: str = "l2",
        reduction: str | None = None,
        use_prioritized_weights: str | bool = "auto",
    ) -> None:
        name = type(self).__name__
        for argument, value in (
            ("actor_temperature", actor_temperature),
            ("critic_temperature", critic_temperature),
        ):
            if value <= 0:
                raise ValueError(f"{name}: {argument} must be positive, found {value}.")
        if reduction not in (None, "none", "mean", "sum"):
            raise ValueError(
                f"{name}: reduction must be 'none', 'mean' or 'sum', found {reduction!r}."
            )
        refuse_memory(type(self).__name__, actor_network, critic_network)
        super().__init__()
        self.use_prioritized_weights = use_prioritized_weights
        self.convert_to_functional(actor_network, "actor_network", create_target_params=False)
        self.convert_to_functional(critic_network, "critic_network", create_target_params=True)
        self.convert_to_functional(mixer_network, "mixer_network", create_target_params=True)
        self.actor_temperature = actor_temperature
        self.critic_temperature = critic_temperature
        self.loss_function = loss_function
        self.reduction = "mean" if reduction is None else reduction
        require_discount(gamma, type(self).__name__)
        self.make_value_estimator(self.default_value_estimator, gamma=gamma)

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
            "value": keys.global_value,
            "reward": keys.reward,
            "done": keys.done,
            "terminated": keys.terminated,
        }

    def _forward_value_estimator_keys(self, **kwargs: Any) -> None:
        if self._value_estimator is not None:
            self._value_estimator.set_keys(**self._estimator_keys())

    @property
    def _value_keys(self) -> list[NestedKey]:
        """What critics and mixer read besides actions and agents' values."""
        inner = {unravel_key(self.tensor_keys.action), unravel_key(self.tensor_keys.local_value)}
        keys = [*self.critic_network.in_keys, *self.mixer_network.in_keys]
        return [key for key in keys if key not in inner]

    @property
    def in_keys(self) -> list[NestedKey]:
        """What the loss reads; ``"priority_weight"`` is optional."""
        keys = self.tensor_keys
        following = [
            keys.action,
            keys.action_recorded,
            *self._value_keys,
            keys.reward,
            keys.done,
            keys.terminated,
        ]
        roots = [keys.action, *self._mask_keys, *self.actor_network.in_keys, *self._value_keys]
        # a key of several networks is listed once
        return list(dict.fromkeys([*roots, *[unravel_key(("next", key)) for key in following]]))

    @property
    def _mask_keys(self) -> list[NestedKey]:
        """What says which actions are available; nothing if all are."""
        return []

    @property
    @abstractmethod
    def _action_ndim(self) -> int:
        """Dimensions of a joint action."""

    @abstractmethod
    def _value_actions(self, tensordict: TensorDictBase, params: TensorDictBase) -> torch.Tensor:
        """Each agent's value of the action in ``tensordict``, ``[*batch, N]``."""

    @abstractmethod
    def _evaluate(
        self, tensordict: TensorDictBase
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the data's actions are worth to each agent, and how likely its policy takes them.

        Args:
            tensordict (TensorDictBase): the batch.

        Returns:
            Values, advantages over the policy (without a gradient) and log-probabilities,
            ``[*batch, N]`` each.
        """

    @property
    @_cache_values
    def _cached_detached_critic_params(self) -> TensorDictParams:
        return self.critic_network_params.detach()

    def _run_critic(
        self, inputs: TensorDictBase, params: TensorDictBase, key: NestedKey
    ) -> torch.Tensor:
        """What the critic writes to ``key``."""
        net = self.critic_network
        with params.to_module(net, preserve_module_state=False):
            value = net(inputs.select(*net.in_keys, strict=True)).get(key, None)
        value = require_written(value, key, net, "the critic", type(self).__name__)
        return value

    def _check(self, tensordict: TensorDictBase) -> None:
        """Refuses what would fail late, or not at all; waits for no values."""
        keys, batch_size, name = self.tensor_keys, tensordict.batch_size, type(self).__name__
        if unravel_key(keys.local_value) not in self.mixer_network.in_keys:
            raise ValueError(
                f"{name}: the mixer must read the agents' values {keys.local_value!r}; it reads "
                f"{list(self.mixer_network.in_keys)}."
            )
        action = tensordict.get(keys.action)
        if action.ndim - len(batch_size) != self._action_ndim:
            shape = (*batch_size, *("N", "d_a")[: self._action_ndim])
            raise ValueError(
                f"{name} expected {keys.action!r} of shape {shape}, found {tuple(action.shape)}."
            )
        following = unravel_key(("next", keys.action))
        for key in (keys.action, following):
            value = tensordict.get(key)
            require_shape(value, action.shape, key, name)
            if self.discrete and value.dtype is not torch.int64:
                raise ValueError(
                    f"{name} needs discrete actions of int64 in {key!r}, found {value.dtype}."
                )
            if not self.discrete and not value.is_floating_point():
                raise ValueError(
                    f"{name} needs continuous actions in {key!r}, found {value.dtype}."
                )
        for outcome in (keys.action_recorded, keys.reward, keys.done, keys.terminated):
            key = unravel_key(("next", outcome))
            require_shape(tensordict.get(key), (*batch_size, 1), key, name)
        key = unravel_key(("next", keys.action_recorded))
        if tensordict.get(key).dtype is not torch.bool:
            raise ValueError(
                f"{name} expected {key!r} of dtype bool, found {tensordict.get(key).dtype}."
            )

    def _weigh_rows(self, tensordict: TensorDictBase, weights: torch.Tensor | None) -> torch.Tensor:
        """How much each row counts in a mean over the batch, ``[*batch]``: zero if padded."""
        # as rewards, which stay in full precision where networks do not
        like = tensordict.get(unravel_key(("next", self.tensor_keys.reward))).squeeze(-1)
        rows = torch.ones_like(like) if weights is None else weights.to(like.dtype)
        for key in self._loss_mask_keys():
            mask = tensordict.get(key, None)
            if mask is not None:
                rows = torch.where(self._expand_loss_mask(mask, rows), rows, 0.0)
        return rows

    @torch.no_grad()
    def _target_value(self, tensordict: TensorDictBase, rows: torch.Tensor) -> torch.Tensor:
        """The target ``[*batch]``; the reward alone where nothing can be bootstrapped."""
        keys, following = self.tensor_keys, tensordict.get("next")
        local = self._value_actions(following, self.target_critic_network_params)
        next_value, _ = mix_linearly(
            self, local, following, self.target_mixer_network_params
        )  # [B]
        known = following.get(keys.action_recorded) & ~following.get(keys.terminated)
        known = known.squeeze(-1)
        importance = estimate_importance(next_value / self.critic_temperature, rows * known)
        # an action that was not recorded has a value that could be anything
        next_value = torch.where(known, importance * next_value, 0.0)
        outcome = following.select(keys.reward, keys.done, keys.terminated)
        outcome.set(keys.global_value, next_value.unsqueeze(-1))
        targets = TensorDict({"next": outcome}, batch_size=tensordict.batch_size)
        return self.value_estimator.value_estimate(targets).squeeze(-1)

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Computes both losses of a batch of transitions; see the class for keys and formulas."""
        keys, name = self.tensor_keys, type(self).__name__
        following = [unravel_key(("next", key)) for key in (keys.action, keys.action_recorded)]
        missing = [key for key in following if tensordict.get(key, None) is None]
        if missing:
            raise MissingKeyError(
                f"{name} bootstraps on the data's next actions and reads {missing}, which are "
                "missing; torchrl_logo.data.add_next_actions adds them to a dataset."
            )
        require_keys(tensordict, self.in_keys, name)
        tensordict = match_batch_size(tensordict, keys.action, self._action_ndim)
        self._check(tensordict)
        weights = read_weights(self, tensordict)
        local, advantage, log_prob = self._evaluate(tensordict)  # [B, N]
        pred_value, mixing = mix_linearly(self, local, tensordict, self.mixer_network_params)
        rows = self._weigh_rows(tensordict, weights)  # [B]
        target_value = self._target_value(tensordict, rows)  # [B]
        scaled = mixing.detach() * advantage / self.actor_temperature
        importance = estimate_importance(scaled, rows)  # [B, N]
        imitation = -(importance * log_prob).mean(-1)
        distance = distance_loss(pred_value, target_value, loss_function=self.loss_function)
        end = tensordict.get(unravel_key(("next", keys.terminated)))
        has_target = (end | tensordict.get(following[1])).squeeze(-1).to(distance.dtype)
        out = {
            "loss_qvalue": self._reduce_loss(
                distance,
                tensordict=tensordict,
                weights=has_target if weights is None else has_target * weights,
            ),
            "loss_actor": self._reduce_loss(imitation, tensordict=tensordict, weights=weights),
        }
        none = self.reduction == "none"
        statistics = {
            "pred_value": pred_value,
            "target_value": target_value,
            "advantage": advantage.mean(-1),
            "importance_variance": (importance - 1).square().mean(-1),
        }
        for key, value in statistics.items():
            value = value.detach()
            if not none:
                # the mean over what is not padding, without weights
                value = self._reduce_loss(value, tensordict=tensordict, reduction="mean")
            out[key] = value
        result = TensorDict(out, batch_size=tensordict.batch_size if none else [])
        self._clear_weakrefs(
            tensordict,
            result,
            "actor_network_params",
            "critic_network_params",
            "mixer_network_params",
            "target_critic_network_params",
            "target_mixer_network_params",
        )
        return result
