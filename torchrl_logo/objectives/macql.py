"""Multi-agent conservative Q-learning (MACQL) for continuous actions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule, dispatch
from tensordict.utils import NestedKey, unravel_key
from torch import nn
from torchrl.data import Bounded, Categorical, TensorSpec
from torchrl.envs import ExplorationType, set_exploration_type
from torchrl.objectives import LossModule, ValueEstimators, distance_loss
from torchrl.objectives.utils import _cache_values, _vmap_func, dispatch_value_estimator

from torchrl_logo.argument_checks import require_discount
from torchrl_logo.objectives.critic_values import value_actions
from torchrl_logo.objectives.imagined_rows import find_real_rows, restrict_rows, weigh_rows
from torchrl_logo.objectives.joint_density import sample_with_joint_density, sum_over_agents
from torchrl_logo.objectives.memory import refuse_memory
from torchrl_logo.objectives.required_keys import (
    match_batch_size,
    require_distribution,
    require_keys,
    require_shape,
)
from torchrl_logo.objectives.shared_batch import mean_over_processes
from torchrl_logo.objectives.value_checks import read_weights

__all__ = ["MACQLLoss"]


class MACQLLoss(LossModule):
    r"""Conservative Q-learning with centralised twin critics and decentralised actors.

    The team is one learner with the joint action :math:`a = (a_1, \dots, a_N)`; its policy
    factorises over agents that each see their own observation. With :math:`M` the
    ``3 num_samples`` draws of joint actions, a third each from the proposals :math:`\mu` uniform,
    :math:`\pi(\cdot|o)` and :math:`\pi(\cdot|o')`, and :math:`\mu(a)` the density of the proposal
    that ``a`` was drawn from:

    .. math::

        L_{qvalue} &= \sum_k \big(Q_k(s, a) - r - \gamma (1 - d)
            \min_k \bar Q_k(s', a')\big)^2 / 2, \quad a' \sim \pi(\cdot|o') \\
        L_{cql} &= \alpha \sum_k \Big(T \log \operatorname{mean}_{a \in M}
            \exp\big(Q_k(s, a) / T - \log \mu(a)\big) - Q_k(s, a_{data})\Big) \\
        L_{actor} &= \lambda\,\eta \sum_i \log \pi_i(a_i|o_i) - \lambda \min_k Q_k(s, a)
            - \beta \frac{1}{N} \sum_i \log \pi_i(a_{data,i}|o_i), \quad a \sim \pi(\cdot|o) \\
        L_{min\_q\_weight} &= -\alpha \sum_k \Big(T \log \operatorname{mean}_{a \in M}
            \exp\big(Q_k(s, a) / T - \log \mu(a)\big) - Q_k(s, a_{data}) - \tau\Big)

    Sources: CQL (Kumar et al. 2020), section 3 and equation 4 with the importance weights of its
    appendix F; LOGO (arXiv 2601.07463) takes its multi-agent form as the policy learner. The
    behaviour term :math:`\beta` is TD3+BC's (Fujimoto and Gu 2021), and so is the idea of the scale
    :math:`\lambda`; here it is the inverse of how much values vary over the draws of :math:`M`
    (standard deviation, mean over batch and critics) and not of their size. Both are this
    package's addition; ``bc_coeff=0`` and ``normalize_q=False`` take them away. Unlike the
    reference code, the sum over draws is a mean, so that the penalty estimates
    :math:`T \log \int \exp(Q / T)` whatever the number of draws.

    Where a batch says which transitions are ``"imagined"``, the behaviour term leaves those out
    (their actions are the policy's own), and so does the penalty. With
    ``penalize_imagined=True`` the penalty is COMBO's (Yu et al. 2021, equation 2): values are
    pushed down in all rows, and up at the actions of the real ones alone. The rows that remain
    are scaled up, so that the mean over the batch is the mean (weighted, with weights) over the
    remaining rows, whatever their share.

    With ``"priority_weight"`` in the batch, each loss is :math:`\sum w l / \sum w` under
    ``"mean"``, :math:`\sum w l` under ``"sum"`` and :math:`w l` under ``"none"``: scaling all
    weights changes nothing under ``"mean"``. Weights must not be negative, which is
    checked, and not all zero. What is written besides the losses, and the scale :math:`\lambda`,
    are not weighted.

    Args:
        actor_network (ProbabilisticTensorDictSequential): stochastic actor; reads observations,
            writes the action ``[*, N, d_a]``. Its distribution's ``log_prob`` is per agent,
            ``[*, N]``, or joint, ``[*]``.
        qvalue_network (TensorDictModule or list of them): reads the state and the joint action,
            writes ``"state_action_value"`` ``[*, 1]``. A single network is copied
            ``num_qvalue_nets`` times onto one stacked axis, and each copy is initialised anew.

    Keyword Args:
        action_spec (TensorSpec): bounds of the joint action, ``[N, d_a]``, finite.
        num_qvalue_nets (int): number of critics. Defaults to ``2``.
        num_samples (int): draws from each of the three proposals. Defaults to ``4``.
        min_q_weight (float): the penalty's weight :math:`\alpha`. Defaults to ``5.0``.
        temperature (float): the penalty's temperature :math:`T`. Defaults to ``1.0``.
        lagrange_thresh (float, optional): if given, :math:`\alpha` is learned so that the gap
            between the soft maximum and the data's value stays near this threshold
            (CQL, appendix F); ``min_q_weight`` is where it starts.
        entropy_coeff (float): :math:`\eta`. Defaults to ``0.0``.
        bc_coeff (float): the behaviour term's weight :math:`\beta`. Defaults to ``0.0``.
        action_margin (float): the behaviour term scores actions closer than this share of the
            half range to a bound as if they were that far inside, since the density of a squashed
            Gaussian has no finite maximum at the bound. Defaults to ``1e-3``.
        normalize_q (bool): whether values are scaled by :math:`\lambda` in the actor's loss.
            Defaults to ``True``.
        penalize_imagined (bool): whether the penalty pushes values down in imagined transitions
            too. Defaults to ``False``.
        gamma (float): discount. Defaults to ``0.99``.
        loss_function (str): distance for the TD error, as :func:`torchrl.objectives.distance_loss`
            takes it. Defaults to ``"l2"``.
        reduction (str): ``"none"``, ``"mean"`` or ``"sum"``. Defaults to ``"mean"``.
        deactivate_vmap (bool): whether to loop over critics instead of :func:`torch.vmap`, where
            they are not this package's, which need neither
            (:func:`~torchrl_logo.objectives.critic_values.value_actions`). Defaults to ``False``.
        use_prioritized_weights (bool or str): whether ``"priority_weight"`` weighs transitions;
            ``"auto"`` and ``True`` use it where it is there. Defaults to ``"auto"``.

    Reads the actor's and critic's input keys at the root and under ``"next"``, the action, and
    ``("next", "reward")``, ``("next", "done")``, ``("next", "terminated")`` ``[*, 1]``;
    optionally ``"imagined"`` ``[*, 1]`` bool and ``"priority_weight"`` ``[*]``, and TorchRL's
    masks of padded steps (:attr:`loss_mask_key`). Writes
    ``"loss_qvalue"``, ``"loss_cql"``, ``"loss_actor"`` (and ``"loss_min_q_weight"`` with a
    threshold), and the detached ``"pred_value"``, ``"target_value"``, ``"conservative_gap"``,
    ``"entropy"``, ``"bc_log_prob"``, ``"min_q_weight"``.

    Raises:
        ValueError: for discrete or unbounded actions, or weights out of range. In
            :meth:`forward`, for entries or network outputs of wrong shapes or types.
        KeyError: in :meth:`forward`, for missing entries.
        RuntimeError: in :meth:`forward`, for negative weights
            (:mod:`~torchrl_logo.objectives.value_checks`).

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_logo.data import TaskSpec
        >>> from torchrl_logo.modules import make_centralized_critic, make_gaussian_actor
        >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=1,
        ...                 action_low=(-1.0,), action_high=(1.0,))
        >>> loss = MACQLLoss(make_gaussian_actor(spec), make_centralized_critic(spec),
        ...                  action_spec=spec.action_spec())
        >>> batch = TensorDict({
        ...     "agents": {"observation": torch.randn(8, 2, 3), "action": torch.zeros(8, 2, 1)},
        ...     "state": torch.randn(8, 4),
        ...     "next": {
        ...         "agents": {"observation": torch.randn(8, 2, 3)},
        ...         "state": torch.randn(8, 4), "reward": torch.ones(8, 1),
        ...         "done": torch.zeros(8, 1, dtype=torch.bool),
        ...         "terminated": torch.zeros(8, 1, dtype=torch.bool),
        ...     },
        ... }, [8])
        >>> losses = loss(batch)
        >>> sorted(k for k in losses.keys() if k.startswith("loss_"))
        ['loss_actor', 'loss_cql', 'loss_qvalue']
    """

    @dataclass
    class _AcceptedKeys:
        """Keys that can be renamed with ``set_keys``.

        Attributes:
            action: the joint action, ``[*, N, d_a]``.
            state_action_value: what the critic writes, ``[*, 1]``.
            reward: the team reward, ``[*, 1]``, under ``"next"``.
            done: end of the episode, ``[*, 1]``, under ``"next"``.
            terminated: end that forbids bootstrapping, ``[*, 1]``, under ``"next"``.
            imagined: whether a transition comes from a world model, ``[*, 1]`` (optional).
            priority_weight: importance weight of a transition, ``[*]`` (optional).
        """

        action: NestedKey = ("agents", "action")
        state_action_value: NestedKey = "state_action_value"
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"
        imagined: NestedKey = "imagined"
        priority_weight: NestedKey = "priority_weight"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    default_value_estimator = ValueEstimators.TD0
    discrete = False
    continuous = True
    recurrent = False

    actor_network: ProbabilisticTensorDictSequential
    qvalue_network: TensorDictModule
    actor_network_params: TensorDictParams
    qvalue_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams
    target_qvalue_network_params: TensorDictParams

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: TensorDictModule | list[TensorDictModule],
        *,
        action_spec: TensorSpec,
        num_qvalue_nets: int = 2,
        num_samples: int = 4,
        min_q_weight: float = 5.0,
        temperature: float = 1.0,
        lagrange_thresh: float | None = None,
        entropy_coeff: float = 0.0,
        bc_coeff: float = 0.0,
        action_margin: float = 1e-3,
        normalize_q: bool = True,
        penalize_imagined: bool = False,
        gamma: float = 0.99,
        loss_function: str = "l2",
        reduction: str | None = None,
        deactivate_vmap: bool = False,
        use_prioritized_weights: str | bool = "auto",
    ) -> None:
        loss = type(self).__name__
        for name, value, low in (
            ("min_q_weight", min_q_weight, 0.0),
            ("bc_coeff", bc_coeff, 0.0),
            ("entropy_coeff", entropy_coeff, 0.0),
            ("action_margin", action_margin, 0.0),
            ("num_samples", num_samples, 1),
        ):
            if value < low:
                raise ValueError(f"{loss}: {name} must be at least {low}, found {value}.")
        if temperature <= 0:
            raise ValueError(f"{loss}: temperature must be positive, found {temperature}.")
        if lagrange_thresh is not None and min_q_weight <= 0:
            raise ValueError(f"{loss}: lagrange_thresh needs a positive min_q_weight to start.")
        if isinstance(action_spec, Categorical) or not isinstance(action_spec, Bounded):
            raise ValueError(
                f"{loss} needs a Bounded action_spec of shape [N, d_a] (continuous actions), "
                f"found {type(action_spec).__name__}."
            )
        if len(action_spec.shape) != 2:
            raise ValueError(
                f"{loss} needs an action_spec of shape [N, d_a], without batch dimensions, found "
                f"{tuple(action_spec.shape)}."
            )
        if reduction not in (None, "none", "mean", "sum"):
            raise ValueError(
                f"{loss}: reduction must be 'none', 'mean' or 'sum', found {reduction!r}."
            )
        low, high = action_spec.space.low, action_spec.space.high
        sides = (high - low).flatten().tolist()
        if not all(0 < side < math.inf for side in sides):
            raise ValueError(
                f"{loss} needs finite action bounds, low below high: it draws uniform actions; "
                f"found low={low.tolist()}, high={high.tolist()}."
            )
        refuse_memory(type(self).__name__, actor_network, qvalue_network)
        super().__init__()
        self.use_prioritized_weights = use_prioritized_weights
        self._in_keys = None
        self.deactivate_vmap = deactivate_vmap
        self.convert_to_functional(actor_network, "actor_network", create_target_params=False)
        self.convert_to_functional(
            qvalue_network, "qvalue_network", num_qvalue_nets, create_target_params=True
        )
        device = next(self.parameters()).device
        self.num_qvalue_nets = num_qvalue_nets
        self.num_samples = num_samples
        self.temperature = temperature
        self.lagrange_thresh = lagrange_thresh
        self.entropy_coeff = entropy_coeff
        self.bc_coeff = bc_coeff
        self.normalize_q = normalize_q
        self.penalize_imagined = penalize_imagined
        self.loss_function = loss_function
        self.reduction = "mean" if reduction is None else reduction
        self.register_buffer("action_low", low.to(device).clone())
        self.register_buffer("action_high", high.to(device).clone())
        margin = action_margin * (high - low) / 2
        self.register_buffer("behaviour_low", (low + margin).to(device))
        self.register_buffer("behaviour_high", (high - margin).to(device))
        # log density of a joint action under the uniform distribution
        self._log_uniform = -sum(map(math.log, sides))
        if lagrange_thresh is None:
            self.register_buffer(
                "log_min_q_weight", torch.tensor(_log(min_q_weight), device=device)
            )
        else:
            self.log_min_q_weight = nn.Parameter(
                torch.tensor(math.log(min_q_weight), device=device)
            )
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
            tensor_keys={
                "value": self.tensor_keys.state_action_value,
                "reward": self.tensor_keys.reward,
                "done": self.tensor_keys.done,
                "terminated": self.tensor_keys.terminated,
            },
            value_network=None,
            **hyperparams,
        )

    def _forward_value_estimator_keys(self, **kwargs: Any) -> None:
        if self._value_estimator is not None:
            self._value_estimator.set_keys(
                value=self.tensor_keys.state_action_value,
                reward=self.tensor_keys.reward,
                done=self.tensor_keys.done,
                terminated=self.tensor_keys.terminated,
            )
        self._in_keys = None

    @property
    def in_keys(self) -> list[NestedKey]:
        """What the loss reads; ``"imagined"`` and ``"priority_weight"`` are optional."""
        if self._in_keys is None:
            keys = self.tensor_keys
            critic = [k for k in self.qvalue_network.in_keys if k != keys.action]
            roots = [*self.actor_network.in_keys, *critic]
            self._in_keys = list(
                dict.fromkeys(
                    [
                        keys.action,
                        *roots,
                        *[("next", *((k,) if isinstance(k, str) else k)) for k in roots],
                        ("next", keys.reward),
                        ("next", keys.done),
                        ("next", keys.terminated),
                    ]
                )
            )
        return self._in_keys

    @in_keys.setter
    def in_keys(self, values: list[NestedKey]) -> None:
        self._in_keys = values

    @property
    def out_keys(self) -> list[str]:
        """What the loss writes."""
        if self._out_keys is None:
            losses = ["loss_qvalue", "loss_cql", "loss_actor"]
            if self.lagrange_thresh is not None:
                losses.append("loss_min_q_weight")
            self._out_keys = [
                *losses,
                "pred_value",
                "target_value",
                "conservative_gap",
                "entropy",
                "bc_log_prob",
                "min_q_weight",
            ]
        return self._out_keys

    @out_keys.setter
    def out_keys(self, values: list[str]) -> None:
        self._out_keys = values

    _in_keys: list[NestedKey] | None = None
    _out_keys: list[str] | None = None

    @property
    @_cache_values
    def _cached_detached_qvalue_params(self) -> TensorDictParams:
        return self.qvalue_network_params.detach()

    @property
    def min_q_weight(self) -> torch.Tensor:
        """The penalty's weight, learned or fixed."""
        return self.log_min_q_weight.exp()

    def _value(
        self, tensordict: TensorDictBase, action: torch.Tensor, params: TensorDictBase
    ) -> torch.Tensor:
        """Values ``[nets, *draws, *batch]`` of joint actions ``[*draws, *batch, N, d_a]``."""
        return value_actions(self, tensordict, action, params, action_dims=self.action_low.ndim)

    def _policy_dist(self, tensordict: TensorDictBase) -> torch.distributions.Distribution:
        inputs = tensordict.select(*self.actor_network.in_keys, strict=True)
        shape = (*tensordict.batch_size, *self.action_low.shape)
        key, dist = self.tensor_keys.action, self.actor_network.get_dist(inputs)
        return require_distribution(dist, shape, key, type(self).__name__)

    def _check(self, tensordict: TensorDictBase) -> None:
        """Refuses what would fail late, or not at all; waits for no values."""
        keys, batch_size, loss = self.tensor_keys, tensordict.batch_size, type(self).__name__
        if unravel_key(keys.action) not in self.qvalue_network.in_keys:
            raise ValueError(
                f"{loss}: the critic must read the action {keys.action!r}; it reads "
                f"{list(self.qvalue_network.in_keys)}."
            )
        action = tensordict.get(keys.action)
        require_shape(action, (*batch_size, *self.action_low.shape), keys.action, loss)
        if not action.is_floating_point():
            raise ValueError(
                f"{loss} needs continuous actions in {keys.action!r}, found {action.dtype}."
            )
        for name in (keys.reward, keys.done, keys.terminated):
            key = ("next", name)
            require_shape(tensordict.get(key), (*batch_size, 1), key, loss)

    def _restrict_gap(
        self,
        soft_maximum: torch.Tensor,
        pred_value: torch.Tensor,
        real: torch.Tensor | None,
        row_weights: torch.Tensor,
    ) -> torch.Tensor:
        """The penalty ``[B]``, of ``[nets, B]``: what it pushes down, less the data's actions."""
        if self.penalize_imagined:
            # An imagined action is the policy's own: only real ones are pushed up.
            data_value = restrict_rows(pred_value.sum(0), real, row_weights)
            return soft_maximum.sum(0) - data_value
        return restrict_rows((soft_maximum - pred_value).sum(0), real, row_weights)

    def _weigh_excess(
        self, conservative: torch.Tensor, real: torch.Tensor | None, row_weights: torch.Tensor
    ) -> torch.Tensor:
        """The multiplier's loss ``[B]``: how far the penalty is over its threshold."""
        assert self.lagrange_thresh is not None
        allowed = torch.full_like(conservative, self.lagrange_thresh * self.num_qvalue_nets)
        if not self.penalize_imagined:
            allowed = restrict_rows(allowed, real, row_weights)
        return -self.min_q_weight * (conservative.detach() - allowed)

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Computes all losses of a batch of transitions; see the class for keys and formulas."""
        keys = self.tensor_keys
        require_keys(tensordict, self.in_keys, type(self).__name__)
        tensordict = match_batch_size(tensordict, keys.action, self.action_low.ndim)
        self._check(tensordict)
        weights = read_weights(self, tensordict)
        real = find_real_rows(tensordict, keys.imagined, type(self).__name__)
        action = tensordict.get(keys.action)  # [B, N, d_a]
        batch_size = tensordict.batch_size
        following = tensordict.get("next")
        n = self.num_samples
        with (
            set_exploration_type(ExplorationType.RANDOM),
            self.actor_network_params.to_module(self.actor_network, preserve_module_state=False),
        ):
            dist = self._policy_dist(tensordict)
            policy_action, policy_log_prob = sample_with_joint_density(dist, batch_size)
            inside = torch.clamp(action, self.behaviour_low, self.behaviour_high)
            behaviour_log_prob = sum_over_agents(dist.log_prob(inside), batch_size)
            behaviour_log_prob = behaviour_log_prob / action.shape[-2]  # [B]
            with torch.no_grad():
                next_dist = self._policy_dist(following)
                here, log_here = sample_with_joint_density(dist, batch_size, n)
                there, log_there = sample_with_joint_density(next_dist, batch_size, n)

        with torch.no_grad():
            # the first draw at the next state serves the bootstrap
            next_value = self._value(following, there[0], self.target_qvalue_network_params).amin(0)
            outcome = following.select(keys.reward, keys.done, keys.terminated)
            outcome.set(keys.state_action_value, next_value.unsqueeze(-1))
            targets = TensorDict({"next": outcome}, batch_size=batch_size)
            target_value = self.value_estimator.value_estimate(targets).squeeze(-1)  # [B]
            uniform = torch.rand((n, *action.shape), device=action.device, dtype=action.dtype)
            uniform = self.action_low + uniform * (self.action_high - self.action_low)
            log_uniform = torch.full_like(log_here, self._log_uniform)

        # One critic call for the data's action and all draws: [1 + 3n, B, N, d_a]
        actions = torch.cat([action.unsqueeze(0), uniform, here, there], 0)
        values = self._value(tensordict, actions, self.qvalue_network_params)  # [nets, 1 + 3n, B]
        pred_value, sampled = values[:, 0], values[:, 1:]
        log_density = torch.cat([log_uniform, log_here, log_there], 0)  # [3n, B]
        soft_maximum = self.temperature * (
            torch.logsumexp(sampled / self.temperature - log_density, dim=1) - math.log(3 * n)
        )  # [nets, B]
        gap = soft_maximum - pred_value  # [nets, B]

        loss_qvalue = 0.5 * distance_loss(
            pred_value, target_value.expand_as(pred_value), loss_function=self.loss_function
        ).sum(0)
        valid, row_weights = weigh_rows(self, tensordict, weights, loss_qvalue)
        conservative = self._restrict_gap(soft_maximum, pred_value, real, row_weights)
        loss_cql = self.min_q_weight.detach() * conservative

        detached = self._cached_detached_qvalue_params
        policy_value = self._value(tensordict, policy_action, detached).min(0)[0]
        # How much the choice of the action matters, not how large values are: returns that
        # differ by state would otherwise drown the actor's gradient as values grow.
        spread = mean_over_processes(_mean(sampled.detach().std(1).mean(0), valid))
        scale = spread.clamp_min(1e-3) if self.normalize_q else 1.0
        objective = (policy_value - self.entropy_coeff * policy_log_prob) / scale
        loss_actor = -objective - self.bc_coeff * restrict_rows(
            behaviour_log_prob, real, row_weights
        )

        losses = {"loss_qvalue": loss_qvalue, "loss_cql": loss_cql, "loss_actor": loss_actor}
        if self.lagrange_thresh is not None:
            losses["loss_min_q_weight"] = self._weigh_excess(conservative, real, row_weights)
        out = {
            name: self._reduce_loss(loss, tensordict=tensordict, weights=weights)
            for name, loss in losses.items()
        }
        statistics = {
            "pred_value": pred_value.mean(0),
            "target_value": target_value,
            "conservative_gap": gap.mean(0),
            "entropy": -policy_log_prob,
            "bc_log_prob": behaviour_log_prob,
        }
        with torch.no_grad():
            for name, value in statistics.items():
                value = value.detach()
                out[name] = value if self.reduction == "none" else _mean(value, valid)
            weight = self.min_q_weight.detach()
            out["min_q_weight"] = (
                weight.expand(batch_size) if self.reduction == "none" else weight.clone()
            )
        result = TensorDict(out, batch_size=batch_size if self.reduction == "none" else [])
        self._clear_weakrefs(
            tensordict,
            result,
            "actor_network_params",
            "qvalue_network_params",
            "target_actor_network_params",
            "target_qvalue_network_params",
        )
        return result


def _mean(value: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean over the rows that are not padding; what those hold may not be finite."""
    return torch.where(valid > 0, value, 0.0).sum() / valid.sum().clamp_min(1)


def _log(value: float) -> float:
    """Logarithm that maps a weight of zero to one that vanishes in float32."""
    return math.log(value) if value > 0 else -float("inf")
