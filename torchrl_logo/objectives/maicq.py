"""Multi-agent implicit constraint Q-learning (MAICQ) for continuous actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from tensordict.utils import NestedKey, unravel_key
from torchrl.data import TensorSpec

from torchrl_logo.objectives.implicit_constraint import ImplicitConstraintLoss
from torchrl_logo.objectives.required_keys import require_distribution, require_shape

__all__ = ["MAICQLoss"]


class MAICQLoss(ImplicitConstraintLoss):
    r"""Agents imitate the data's actions, the better ones more, and value nothing else (MAICQ).

    Each agent's value of its own action is mixed linearly into the team's,
    :math:`Q_{tot}(s, a) = \sum_i w_i(s) Q_i(o_i, a_i) + b(s)` with :math:`w_i \ge 0`:

    .. math::

        L_{qvalue} &= \big(Q_{tot}(s, a) - r - \gamma (1 - d) \rho' \bar Q_{tot}(s', a')\big)^2,
            \quad \rho' = e^{\bar Q_{tot}(s', a') / \alpha_c} / Z \\
        L_{actor} &= - \frac{1}{N} \sum_i \rho_i \log \pi_i(a_i | o_i),
            \quad \rho_i = e^{w_i(s) A_i(o_i, a_i) / \alpha_a} / Z_i \\
        A_i(o_i, a_i) &= Q_i(o_i, a_i) - E_{\tilde a_i \sim \pi_i(\cdot|o_i)} Q_i(o_i, \tilde a_i)

    with the data's actions :math:`a` and the data's next actions :math:`a'`, so that no value of
    another action is ever a target. :math:`\rho` is the ratio of the improved policy to the
    behaviour, and carries no gradient. The expectation in :math:`A_i` is the mean of
    ``num_samples`` draws.

    Source: Yang et al. 2021 ("Believe What You See"): implicit constraint Q-learning and the
    decomposed policy of its extension to teams. Where this differs:

    - Normalisers :math:`Z` are means of the exponentials over the whole batch (the paper's
      estimate by a softmax over the mini-batch): over all of its dimensions, each agent's
      separately. The values of a loss therefore depend on the batch that a transition is in, and
      batches should be large.
    - The paper has :math:`Q_i` in place of :math:`A_i`. Under a normaliser of each observation's
      own that is the same; under one of the batch, observations of high value would take all the
      weight. The reference code takes advantages as well, but leaves :math:`w_i` out of the
      exponential and multiplies the loss by it.
    - Targets are TD(0). The paper's experiments take TD(:math:`\lambda`) with
      :math:`\lambda = 0.8` over whole episodes.
    - The actor's loss is a mean over agents, not a sum.

    The reference code learns values at a rate of ``1e-4`` and policies at ``5e-4``.

    Transitions whose next action the data do not have (the end of a truncated episode) take no
    part in ``"loss_qvalue"`` unless they are terminated; with them a mean is over the others, of
    which there must be some. :func:`~torchrl_logo.data.add_next_actions` says which they are.

    With ``"priority_weight"`` in the batch, each loss is :math:`\sum w l / \sum w` under
    ``"mean"``, :math:`\sum w l` under ``"sum"`` and :math:`w l` under ``"none"``, and
    normalisers are weighted means :math:`\sum w e^x / \sum w`: what the mean over the data that
    the weights stand for would give. What is written besides the losses is not weighted. Weights
    must not be negative, which is checked, and not all zero.

    Args:
        actor_network (ProbabilisticTensorDictSequential): stochastic actor whose distribution's
            ``log_prob`` is per agent, ``[*, N]``.
        critic_network (TensorDictModule): reads observations and ``("agents", "action")``
            ``[*, N, d_a]``, writes ``("agents", "state_action_value")`` ``[*, N, 1]``.
        mixer_network (TensorDictModule): reads ``("agents", "state_action_value")`` and usually
            ``"state"``; writes ``"state_action_value"`` ``[*, 1]`` and the weights
            :math:`w_i` in ``("agents", "mixing_weight")`` ``[*, N, 1]``.

    Keyword Args:
        action_spec (TensorSpec): the joint action's, ``[N, d_a]``.
        action_margin (float): actions closer than this share of the half range to a bound are
            scored as if they were that far inside, since the density of a squashed Gaussian has
            no finite maximum at the bound. Defaults to ``1e-3``.
        num_samples (int): draws of each agent's action for :math:`A_i`. Defaults to ``10``.
        actor_temperature (float): :math:`\alpha_a`, in units of value. Defaults to ``0.1``.
        critic_temperature (float): :math:`\alpha_c`, in units of value. Defaults to ``1000.0``.
        gamma (float): discount. Defaults to ``0.99``.
        loss_function (str): distance for the TD error, as :func:`torchrl.objectives.distance_loss`
            takes it. Defaults to ``"l2"``.
        reduction (str): ``"none"``, ``"mean"`` or ``"sum"``. Defaults to ``"mean"``.
        use_prioritized_weights (bool or str): whether ``"priority_weight"`` weighs transitions;
            ``"auto"`` and ``True`` use it where it is there. Defaults to ``"auto"``.

    Reads the networks' input keys (the critic's and the mixer's under ``"next"`` as well),
    ``("agents", "action")`` ``[*, N, d_a]`` and ``("next", "agents", "action")``,
    ``("next", "action_recorded")``, ``("next", "reward")``, ``("next", "done")``,
    ``("next", "terminated")`` ``[*, 1]``; optionally ``"priority_weight"`` ``[*]``, and TorchRL's
    masks of padded steps (:attr:`loss_mask_key`). Writes ``"loss_qvalue"``, ``"loss_actor"``, and
    the detached ``"pred_value"``, ``"target_value"``, and, of all agents on average,
    ``"advantage"`` and ``"importance_variance"``, :math:`(\rho_i - 1)^2`: where it is :math:`v`
    on average, policies learn from as many transitions as a share of :math:`1 / (1 + v)` of the
    batch, which says whether :math:`\alpha_a` suits the scale of values.

    Raises:
        ValueError: for arguments out of range. In :meth:`forward`, for entries or network outputs
            of wrong shapes or types.
        KeyError: in :meth:`forward`, for missing entries.
        RuntimeError: in :meth:`forward`, for negative weights
            (:mod:`~torchrl_logo.objectives.value_checks`).

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_logo.data import TaskSpec, add_next_actions
        >>> from torchrl_logo.modules import (
        ...     make_agent_critic, make_gaussian_actor, make_linear_mixer)
        >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=1,
        ...                 action_low=(-1.0,), action_high=(1.0,))
        >>> loss = MAICQLoss(make_gaussian_actor(spec), make_agent_critic(spec),
        ...                  make_linear_mixer(spec), action_spec=spec.action_spec())
        >>> def observe():
        ...     return {"agents": {"observation": torch.randn(8, 2, 3)},
        ...             "state": torch.randn(8, 4)}
        >>> end = torch.zeros(8, 1, dtype=torch.bool)
        >>> outcome = {"reward": torch.ones(8, 1), "done": end, "terminated": end}
        >>> data = TensorDict({**observe(), "next": {**observe(), **outcome}}, [8])
        >>> data["agents", "action"] = torch.zeros(8, 2, 1)
        >>> data["episode"], data["step"] = torch.zeros(8, dtype=torch.int64), torch.arange(8)
        >>> batch = add_next_actions(data)
        >>> [key for key in loss(batch).keys() if key.startswith("loss_")]
        ['loss_qvalue', 'loss_actor']
    """

    @dataclass
    class _AcceptedKeys(ImplicitConstraintLoss._AcceptedKeys):
        """Keys that can be renamed with ``set_keys``: the base's, and the critic's.

        Attributes:
            state_action_value: what the critic writes, ``[*, N, 1]``.
        """

        state_action_value: NestedKey = ("agents", "state_action_value")

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    discrete = False
    continuous = True
    out_keys = [
        "loss_qvalue",
        "loss_actor",
        "pred_value",
        "target_value",
        "advantage",
        "importance_variance",
    ]

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        critic_network: TensorDictModule,
        mixer_network: TensorDictModule,
        *,
        action_spec: TensorSpec,
        action_margin: float = 1e-3,
        num_samples: int = 10,
        **kwargs: Any,
    ) -> None:
        if not 0 <= action_margin < 1:
            raise ValueError(f"MAICQLoss: action_margin must be in [0, 1), found {action_margin}.")
        if num_samples < 1:
            raise ValueError(f"MAICQLoss: num_samples must be at least 1, found {num_samples}.")
        if len(action_spec.shape) != 2 or not action_spec.dtype.is_floating_point:
            raise ValueError(
                "MAICQLoss needs an action_spec of shape [N, d_a] for continuous actions, without "
                f"batch dimensions, found {type(action_spec).__name__} of shape "
                f"{tuple(action_spec.shape)}."
            )
        super().__init__(actor_network, critic_network, mixer_network, **kwargs)
        self.num_samples = num_samples
        self.action_shape = action_spec.shape
        self.bounded = getattr(action_spec.space, "low", None) is not None
        if self.bounded:
            low, high = action_spec.space.low, action_spec.space.high
            device = next(self.parameters()).device
            margin = action_margin * (high - low) / 2
            self.register_buffer("action_low", (low + margin).to(device))
            self.register_buffer("action_high", (high - margin).to(device))

    @property
    def _action_ndim(self) -> int:
        return 2

    def _check(self, tensordict: TensorDictBase) -> None:
        super()._check(tensordict)
        key = self.tensor_keys.action
        shape = (*tensordict.batch_size, *self.action_shape)
        require_shape(tensordict.get(key), shape, key, "MAICQLoss")

    def _value_actions(self, tensordict: TensorDictBase, params: TensorDictBase) -> torch.Tensor:
        return self._value(tensordict, tensordict.get(self.tensor_keys.action), params)

    def _value(
        self, tensordict: TensorDictBase, action: torch.Tensor, params: TensorDictBase
    ) -> torch.Tensor:
        """Each agent's value ``[*batch, N]`` of its action in ``[*batch, N, d_a]``."""
        key = self.tensor_keys.state_action_value
        own = unravel_key(self.tensor_keys.action)
        context = [k for k in self.critic_network.in_keys if k != own]
        inputs = tensordict.select(*context, strict=True).set(own, action)
        value = self._run_critic(inputs, params, key)
        return require_shape(value, (*action.shape[:-1], 1), key, "MAICQLoss").squeeze(-1)

    def _evaluate(
        self, tensordict: TensorDictBase
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        action = tensordict.get(self.tensor_keys.action)
        value = self._value(tensordict, action, self.critic_network_params)  # [B, N]
        inputs = tensordict.select(*self.actor_network.in_keys, strict=True)
        with self.actor_network_params.to_module(self.actor_network, preserve_module_state=False):
            dist = self.actor_network.get_dist(inputs)
        require_distribution(dist, action.shape, self.tensor_keys.action, "MAICQLoss")
        scored = action
        if self.bounded:
            scored = torch.clamp(action, self.action_low, self.action_high)
        log_prob = dist.log_prob(scored)
        key = "log_prob of the actor's distribution"
        require_shape(log_prob, action.shape[:-1], key, "MAICQLoss")
        with torch.no_grad():
            draws = dist.rsample(torch.Size([self.num_samples]))  # [n, B, N, d_a]
            many = tensordict.select(*self.critic_network.in_keys, strict=True)
            many = many.expand(self.num_samples, *tensordict.batch_size)
            baseline = self._value(many, draws, self._cached_detached_critic_params).mean(0)
        return value, value.detach() - baseline, log_prob
