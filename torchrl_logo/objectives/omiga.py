"""Offline multi-agent RL with implicit global-to-local value regularisation (OMIGA)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule, dispatch
from tensordict.utils import NestedKey, unravel_key
from torchrl.data import TensorSpec
from torchrl.objectives import LossModule, ValueEstimators, distance_loss
from torchrl.objectives.utils import dispatch_value_estimator

from torchrl_logo.argument_checks import require_discount
from torchrl_logo.objectives.linear_mixing import mix_linearly
from torchrl_logo.objectives.memory import refuse_memory
from torchrl_logo.objectives.required_keys import (
    match_batch_size,
    require_distribution,
    require_keys,
    require_shape,
    require_written,
)
from torchrl_logo.objectives.value_checks import (
    find_mask_key,
    read_weights,
    require_available_actions,
)

__all__ = ["OMIGALoss"]


class OMIGALoss(LossModule):
    r"""Local values whose regularisation follows from the team's, learnt on the data's actions.

    The team's policy may depart from the data's at a price, :math:`\alpha` times the reverse KL
    divergence. The team's values are linear in the agents', with the same weights for values of
    actions and of states:

    .. math::

        Q_{tot}(s, a) = \sum_i w_i(s) Q_i(o_i, a_i) + b(s), \quad
        V_{tot}(s) = \sum_i w_i(s) V_i(o_i) + b(s), \quad w_i(s) \ge 0

    and the price then splits into one for each agent. No action that is not in the data is ever
    valued:

    .. math::

        z_i &= \bar w_i(s) \big(\bar Q_i(o_i, a_i) - V_i(o_i)\big) / \alpha \\
        L_{value} &= \frac{1}{N} \sum_i \Big(\exp(z_i) + \bar w_i(s) V_i(o_i) / \alpha\Big) \\
        L_{qvalue} &= \ell\big(Q_{tot}(s, a),\, r + \gamma (1 - d) \bar V_{tot}(s')\big) \\
        L_{actor} &= - \frac{1}{N} \sum_i \exp(z_i) \log \pi_i(a_i | o_i)

    A bar is for target networks; :math:`\bar V_{tot}` is of the targets of the local values and of
    the mixer. Only the local values learn from the first loss, critic and mixer from the second,
    the policies from the third. At the first one's minimum :math:`E_\mu[\exp(z_i)] = 1`: the
    policy's weights are likelihood ratios.

    Source: OMIGA (Wang et al. 2023, arXiv 2307.11620), its practical algorithm. As in the authors'
    code exponents are clipped, in the actors' loss to :math:`[-c, c]`. In the values' loss the
    exponential goes on linearly, with the slope that it has at :math:`c`. A clipped one would be
    constant there, and the remaining term would take a value that is too small further down
    without end.

    Actions may be continuous or discrete, which ``action_spec`` says.

    With ``"priority_weight"`` in the batch, each loss is :math:`\sum w l / \sum w` under
    ``"mean"``, :math:`\sum w l` under ``"sum"`` and :math:`w l` under ``"none"``; what is written
    besides the losses is not weighted. Weights must not be negative, and not all zero. Of
    discrete actions each agent must have one available; that the data's were is not checked.

    Args:
        actor_network (ProbabilisticTensorDictSequential): stochastic actor, with the mask it reads
            itself if actions are discrete. Its distribution's ``log_prob`` is per agent,
            ``[*, N]``.
        qvalue_network (TensorDictModule): reads observations. For continuous actions it reads
            ``("agents", "action")`` as well and writes ``("agents", "state_action_value")``
            ``[*, N, 1]`` (:func:`~torchrl_logo.modules.make_agent_critic`); for discrete ones it
            writes ``("agents", "action_value")`` ``[*, N, A]``
            (:func:`~torchrl_logo.modules.make_action_value_network`).
        value_network (TensorDictModule): reads observations, writes
            ``("agents", "state_value")`` ``[*, N, 1]``
            (:func:`~torchrl_logo.modules.make_agent_value`).
        mixer_network (TensorDictModule): reads ``("agents", "state_action_value")`` ``[*, N, 1]``,
            where the loss puts values of actions or of states, and usually ``"state"``; writes
            ``"state_action_value"`` ``[*, 1]`` and the weights in ``("agents", "mixing_weight")``
            ``[*, N, 1]``, which do not depend on the values and are not negative
            (:func:`~torchrl_logo.modules.make_linear_mixer`).

    Keyword Args:
        action_spec (TensorSpec): the joint action's: ``[N, d_a]`` floats, or ``[N]`` categorical.
        alpha (float): :math:`\alpha`, in units of the team's return; the less, the further the
            policy goes from the data. Defaults to ``10.0``, the paper's.
        exponent_clip (float): :math:`c`. Defaults to ``10.0``, the authors'.
        action_margin (float): continuous actions closer than this share of the half range to a
            bound are scored as if they were that far inside, since the density of a squashed
            Gaussian has no finite maximum at the bound. Defaults to ``1e-3``.
        gamma (float): discount. Defaults to ``0.99``.
        loss_function (str): :math:`\ell`, as :func:`torchrl.objectives.distance_loss` takes it.
            Defaults to ``"l2"``, the square.
        reduction (str): ``"none"``, ``"mean"`` or ``"sum"``. Defaults to ``"mean"``.
        use_prioritized_weights (bool or str): whether ``"priority_weight"`` weighs transitions;
            ``"auto"`` and ``True`` use it where it is there. Defaults to ``"auto"``.

    Reads the networks' input keys (those of values and mixer under ``"next"`` as well), the
    action, and ``("next", "reward")``, ``("next", "done")``, ``("next", "terminated")``
    ``[*, 1]``; optionally ``"priority_weight"`` ``[*]``, and TorchRL's masks of padded steps
    (:attr:`loss_mask_key`). Writes ``"loss_value"``, ``"loss_qvalue"``, ``"loss_actor"``, and the
    detached ``"pred_value"`` (:math:`Q_{tot}`), ``"target_value"``, ``"advantage"``
    (:math:`\bar Q_i - V_i`, the mean over agents) and ``"clip_fraction"``, the share of agents
    whose exponent is clipped.

    Raises:
        ValueError: for arguments out of range, or an ``action_spec`` of another kind. In
            :meth:`forward`, for entries or network outputs of wrong shapes or types.
        KeyError: in :meth:`forward`, for missing entries.
        RuntimeError: in :meth:`forward`, for negative weights, or an agent without available
            actions (:mod:`~torchrl_logo.objectives.value_checks`).

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_logo.data import TaskSpec
        >>> from torchrl_logo.modules import (
        ...     make_agent_critic, make_agent_value, make_gaussian_actor, make_linear_mixer)
        >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=1,
        ...                 action_low=(-1.0,), action_high=(1.0,))
        >>> loss = OMIGALoss(make_gaussian_actor(spec), make_agent_critic(spec),
        ...                  make_agent_value(spec), make_linear_mixer(spec),
        ...                  action_spec=spec.action_spec())
        >>> def observe():
        ...     return {"agents": {"observation": torch.randn(8, 2, 3)},
        ...             "state": torch.randn(8, 4)}
        >>> end = torch.zeros(8, 1, dtype=torch.bool)
        >>> outcome = {"reward": torch.ones(8, 1), "done": end, "terminated": end}
        >>> batch = TensorDict({**observe(), "next": {**observe(), **outcome}}, [8])
        >>> batch["agents", "action"] = torch.zeros(8, 2, 1)
        >>> [key for key in loss(batch).keys() if key.startswith("loss_")]
        ['loss_value', 'loss_qvalue', 'loss_actor']
    """

    @dataclass
    class _AcceptedKeys:
        """Keys that can be renamed with ``set_keys``.

        Attributes:
            action: the joint action, ``[*, N, d_a]`` or ``[*, N]``.
            local_value: what the mixer reads, and the critic of continuous actions writes,
                ``[*, N, 1]``.
            action_value: what the critic of discrete actions writes, ``[*, N, A]``.
            state_value: what the value network writes, ``[*, N, 1]``.
            global_value: what the mixer writes, ``[*, 1]``.
            mixing_weight: what the mixer writes besides, ``[*, N, 1]``.
            reward: the team reward, ``[*, 1]``, under ``"next"``.
            done: end of the episode, ``[*, 1]``, under ``"next"``.
            terminated: end that forbids bootstrapping, ``[*, 1]``, under ``"next"``.
            priority_weight: importance weight of a transition, ``[*]`` (optional).
        """

        action: NestedKey = ("agents", "action")
        local_value: NestedKey = ("agents", "state_action_value")
        action_value: NestedKey = ("agents", "action_value")
        state_value: NestedKey = ("agents", "state_value")
        global_value: NestedKey = "state_action_value"
        mixing_weight: NestedKey = ("agents", "mixing_weight")
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"
        priority_weight: NestedKey = "priority_weight"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    default_value_estimator = ValueEstimators.TD0
    discrete = True
    continuous = True
    recurrent = False
    out_keys = [
        "loss_value",
        "loss_qvalue",
        "loss_actor",
        "pred_value",
        "target_value",
        "advantage",
        "clip_fraction",
    ]

    actor_network: ProbabilisticTensorDictSequential
    qvalue_network: TensorDictModule
    value_network: TensorDictModule
    mixer_network: TensorDictModule
    actor_network_params: TensorDictParams
    qvalue_network_params: TensorDictParams
    value_network_params: TensorDictParams
    mixer_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams
    target_qvalue_network_params: TensorDictParams
    target_value_network_params: TensorDictParams
    target_mixer_network_params: TensorDictParams

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: TensorDictModule,
        value_network: TensorDictModule,
        mixer_network: TensorDictModule,
        *,
        action_spec: TensorSpec,
        alpha: float = 10.0,
        exponent_clip: float = 10.0,
        action_margin: float = 1e-3,
        gamma: float = 0.99,
        loss_function: str = "l2",
        reduction: str | None = None,
        use_prioritized_weights: str | bool = "auto",
    ) -> None:
        for name, value in (("alpha", alpha), ("exponent_clip", exponent_clip)):
            if value <= 0:
                raise ValueError(f"OMIGALoss: {name} must be positive, found {value}.")
        if not 0 <= action_margin < 1:
            raise ValueError(f"OMIGALoss: action_margin must be in [0, 1), found {action_margin}.")
        if reduction not in (None, "none", "mean", "sum"):
            raise ValueError(
                f"OMIGALoss: reduction must be 'none', 'mean' or 'sum', found {reduction!r}."
            )
        is_discrete = action_spec.dtype is torch.int64
        if len(action_spec.shape) != (1 if is_discrete else 2) or not (
            is_discrete or action_spec.dtype.is_floating_point
        ):
            raise ValueError(
                "OMIGALoss needs an action_spec of shape [N, d_a] for continuous actions or of "
                "shape [N] and int64 for categorical ones, without batch dimensions; found "
                f"{type(action_spec).__name__} of shape {tuple(action_spec.shape)} and "
                f"{action_spec.dtype}."
            )
        refuse_memory(type(self).__name__, actor_network, qvalue_network, value_network)
        super().__init__()
        self.use_prioritized_weights = use_prioritized_weights
        self.convert_to_functional(actor_network, "actor_network", create_target_params=False)
        self.convert_to_functional(qvalue_network, "qvalue_network", create_target_params=True)
        self.convert_to_functional(value_network, "value_network", create_target_params=True)
        self.convert_to_functional(mixer_network, "mixer_network", create_target_params=True)
        self.alpha = alpha
        self.exponent_clip = exponent_clip
        self.loss_function = loss_function
        self.reduction = "mean" if reduction is None else reduction
        self.action_shape = action_spec.shape
        self.has_discrete_actions = is_discrete
        self.mask_key = find_mask_key(actor_network)
        space: Any = getattr(action_spec, "space", None)
        self.n_actions = space.n if is_discrete else 0
        self.bounded = not is_discrete and getattr(space, "low", None) is not None
        if self.bounded:
            device = next(self.parameters()).device
            margin = action_margin * (space.high - space.low) / 2
            self.register_buffer("action_low", (space.low + margin).to(device))
            self.register_buffer("action_high", (space.high - margin).to(device))
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
    def _context_keys(self) -> list[NestedKey]:
        """What the mixer reads besides the agents' values."""
        local = unravel_key(self.tensor_keys.local_value)
        return [key for key in self.mixer_network.in_keys if key != local]

    @property
    def in_keys(self) -> list[NestedKey]:
        """What the loss reads; ``"priority_weight"`` is optional."""
        keys = self.tensor_keys
        following = [*self.value_network.in_keys, *self._context_keys]
        roots = [
            unravel_key(keys.action),
            *self.actor_network.in_keys,
            *self.qvalue_network.in_keys,
            *following,
        ]
        following += [keys.reward, keys.done, keys.terminated]
        # a key of several networks is listed once
        return list(dict.fromkeys([*roots, *[unravel_key(("next", key)) for key in following]]))

    def _run(
        self,
        name: str,
        tensordict: TensorDictBase,
        params: TensorDictBase,
        key: NestedKey,
        size: int = 1,
    ) -> torch.Tensor:
        """What a network writes for each agent, ``[*batch, N, size]``."""
        net = getattr(self, name)
        with params.to_module(net, preserve_module_state=False):
            value = net(tensordict.select(*net.in_keys, strict=True)).get(key, None)
        value = require_written(value, key, net, name, "OMIGALoss")
        expected = (*tensordict.batch_size, self.action_shape[0], size)
        return require_shape(value, expected, key, "OMIGALoss")

    def _value_actions(self, tensordict: TensorDictBase, params: TensorDictBase) -> torch.Tensor:
        """Each agent's value of its action in the data, ``[*batch, N]``."""
        keys, name = self.tensor_keys, "qvalue_network"
        if not self.has_discrete_actions:
            return self._run(name, tensordict, params, keys.local_value).squeeze(-1)
        utilities = self._run(name, tensordict, params, keys.action_value, self.n_actions)
        action = tensordict.get(keys.action).unsqueeze(-1)
        return utilities.gather(-1, action).squeeze(-1)

    def _value_states(self, tensordict: TensorDictBase, params: TensorDictBase) -> torch.Tensor:
        """Each agent's value of its observation, ``[*batch, N]``."""
        key = self.tensor_keys.state_value
        return self._run("value_network", tensordict, params, key).squeeze(-1)

    def _log_prob(self, tensordict: TensorDictBase) -> torch.Tensor:
        """Log-probabilities of the data's actions under each agent's policy, ``[*batch, N]``."""
        net, action = self.actor_network, tensordict.get(self.tensor_keys.action)
        if self.bounded:
            action = torch.clamp(action, self.action_low, self.action_high)
        inputs = tensordict.select(*net.in_keys, strict=True)
        with self.actor_network_params.to_module(net, preserve_module_state=False):
            dist = net.get_dist(inputs)
            key = self.tensor_keys.action
            log_prob = require_distribution(dist, action.shape, key, "OMIGALoss").log_prob(action)
        expected = (*tensordict.batch_size, self.action_shape[0])
        return require_shape(log_prob, expected, "log_prob of the actor", "OMIGALoss")

    def _check(self, tensordict: TensorDictBase) -> None:
        """Refuses what would fail late, or not at all; waits for no values."""
        keys, batch_size = self.tensor_keys, tensordict.batch_size
        if unravel_key(keys.local_value) not in self.mixer_network.in_keys:
            raise ValueError(
                f"OMIGALoss: mixer_network must read the agents' values {keys.local_value!r}; it "
                f"reads {list(self.mixer_network.in_keys)}."
            )
        reads_action = unravel_key(keys.action) in self.qvalue_network.in_keys
        if reads_action is self.has_discrete_actions:
            kind, verb = ("discrete", "not") if reads_action else ("continuous", "itself")
            raise ValueError(
                f"OMIGALoss: qvalue_network must {verb} read {kind} actions {keys.action!r}; it "
                f"reads {list(self.qvalue_network.in_keys)}."
            )
        action = tensordict.get(keys.action)
        require_shape(action, (*batch_size, *self.action_shape), keys.action, "OMIGALoss")
        is_right = (
            action.dtype is torch.int64 if self.has_discrete_actions else action.is_floating_point()
        )
        if not is_right:
            kind = "int64 (categorical)" if self.has_discrete_actions else "float (continuous)"
            raise ValueError(
                f"OMIGALoss expected {kind} actions in {keys.action!r}, found {action.dtype}."
            )
        for outcome in (keys.reward, keys.done, keys.terminated):
            key = unravel_key(("next", outcome))
            require_shape(tensordict.get(key), (*batch_size, 1), key, "OMIGALoss")
        if self.mask_key is not None:
            require_available_actions(self, tensordict, self.mask_key)

    @torch.no_grad()
    def _target_value(self, tensordict: TensorDictBase) -> torch.Tensor:
        """The target of the team's value of actions, ``[*batch]``."""
        keys, following = self.tensor_keys, tensordict.get("next")
        local = self._value_states(following, self.target_value_network_params)
        next_value, _ = mix_linearly(self, local, following, self.target_mixer_network_params)
        outcome = following.select(keys.reward, keys.done, keys.terminated)
        outcome.set(keys.global_value, next_value.unsqueeze(-1))
        targets = TensorDict({"next": outcome}, batch_size=tensordict.batch_size)
        return self.value_estimator.value_estimate(targets).squeeze(-1)

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Computes all losses of a batch of transitions; see the class for keys and formulas."""
        require_keys(tensordict, self.in_keys, "OMIGALoss")
        tensordict = match_batch_size(tensordict, self.tensor_keys.action, len(self.action_shape))
        self._check(tensordict)
        weights = read_weights(self, tensordict)
        with torch.no_grad():
            delayed = self._value_actions(tensordict, self.target_qvalue_network_params)  # [B, N]
            _, share = mix_linearly(
                self, delayed, tensordict, self.target_mixer_network_params
            )  # [B, N]
        value = self._value_states(tensordict, self.value_network_params)  # [B, N]
        clip = self.exponent_clip
        exponent = share * (delayed - value) / self.alpha
        exponential = exponent.clamp_max(clip).exp() * (1 + (exponent - clip).relu())
        ratio = exponent.detach().clamp(-clip, clip).exp()
        local = self._value_actions(tensordict, self.qvalue_network_params)  # [B, N]
        pred_value, _ = mix_linearly(self, local, tensordict, self.mixer_network_params)  # [B]
        target_value = self._target_value(tensordict)  # [B]
        losses = {
            "loss_value": (exponential + share * value / self.alpha).mean(-1),
            "loss_qvalue": distance_loss(
                pred_value, target_value, loss_function=self.loss_function
            ),
            "loss_actor": -(ratio * self._log_prob(tensordict)).mean(-1),
        }
        statistics = {
            "pred_value": pred_value,
            "target_value": target_value,
            "advantage": (delayed - value).mean(-1),
            "clip_fraction": (exponent.abs() > clip).to(value.dtype).mean(-1),
        }
        none = self.reduction == "none"
        out = {
            name: self._reduce_loss(loss, tensordict=tensordict, weights=weights)
            for name, loss in losses.items()
        }
        for name, statistic in statistics.items():
            out[name] = statistic.detach()
            if not none:
                # the mean over what is not padding, without weights
                out[name] = self._reduce_loss(out[name], tensordict=tensordict, reduction="mean")
        result = TensorDict(out, batch_size=tensordict.batch_size if none else [])
        self._clear_weakrefs(
            tensordict,
            result,
            "actor_network_params",
            "qvalue_network_params",
            "value_network_params",
            "mixer_network_params",
            "target_actor_network_params",
            "target_qvalue_network_params",
            "target_value_network_params",
            "target_mixer_network_params",
        )
        return result
