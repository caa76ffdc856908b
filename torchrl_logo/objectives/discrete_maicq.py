"""Multi-agent implicit constraint Q-learning (MAICQ) for discrete actions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential
from tensordict.utils import NestedKey, unravel_key

from torchrl_logo.objectives.available_actions import fill_unavailable
from torchrl_logo.objectives.implicit_constraint import ImplicitConstraintLoss
from torchrl_logo.objectives.required_keys import require_shape, require_written
from torchrl_logo.objectives.value_checks import require_available_actions

__all__ = ["DiscreteMAICQLoss"]


class DiscreteMAICQLoss(ImplicitConstraintLoss):
    r"""Agents imitate the data's discrete actions, the better ones more (MAICQ).

    As :class:`~torchrl_logo.objectives.MAICQLoss`, whose description of the source, of the
    differences to it, of normalisers, of weights and of unrecorded next actions holds here as
    well, with the policy's expectation as a sum over the available actions
    :math:`\mathcal{A}_i`:

    .. math::

        L_{qvalue} &= \big(Q_{tot}(s, a) - r - \gamma (1 - d) \rho' \bar Q_{tot}(s', a')\big)^2,
            \quad \rho' = e^{\bar Q_{tot}(s', a') / \alpha_c} / Z \\
        L_{actor} &= - \frac{1}{N} \sum_i \rho_i \log \pi_i(a_i | o_i),
            \quad \rho_i = e^{w_i(s) A_i(o_i, a_i) / \alpha_a} / Z_i \\
        A_i(o_i, a_i) &= Q_i(o_i, a_i)
            - \sum_{\tilde a_i \in \mathcal{A}_i} \pi_i(\tilde a_i | o_i) Q_i(o_i, \tilde a_i)

    Unavailable actions have no probability and no part in anything. The data's actions must be
    available, which is not checked; that each agent has an available action is.

    Args:
        actor_network (TensorDictModuleBase): writes ``("agents", "logits")`` ``[*, N, A]``; of a
            :class:`~tensordict.nn.ProbabilisticTensorDictSequential`, the part before the
            distribution is used, and the mask is the loss's.
        critic_network (TensorDictModule): reads observations, writes
            ``("agents", "action_value")`` ``[*, N, A]``.
        mixer_network (TensorDictModule): reads ``("agents", "state_action_value")`` ``[*, N, 1]``
            and usually ``"state"``; writes ``"state_action_value"`` ``[*, 1]`` and the weights
            :math:`w_i` in ``("agents", "mixing_weight")`` ``[*, N, 1]``.

    Keyword Args:
        actor_temperature (float): :math:`\alpha_a`, in units of value. Defaults to ``0.1``.
        critic_temperature (float): :math:`\alpha_c`, in units of value. Defaults to ``1000.0``.
        gamma (float): discount. Defaults to ``0.99``.
        loss_function (str): distance for the TD error, as :func:`torchrl.objectives.distance_loss`
            takes it. Defaults to ``"l2"``.
        reduction (str): ``"none"``, ``"mean"`` or ``"sum"``. Defaults to ``"mean"``.
        use_prioritized_weights (bool or str): whether ``"priority_weight"`` weighs transitions;
            ``"auto"`` and ``True`` use it where it is there. Defaults to ``"auto"``.

    Reads the networks' input keys (the critic's and the mixer's under ``"next"`` as well),
    ``("agents", "action_mask")`` ``[*, N, A]`` bool, ``("agents", "action")`` ``[*, N]`` int64 and
    ``("next", "agents", "action")``, ``("next", "action_recorded")``, ``("next", "reward")``,
    ``("next", "done")``, ``("next", "terminated")`` ``[*, 1]``; optionally ``"priority_weight"``
    ``[*]``, and TorchRL's masks of padded steps (:attr:`loss_mask_key`). Writes
    ``"loss_qvalue"``, ``"loss_actor"``, and the detached ``"pred_value"``, ``"target_value"``,
    ``"advantage"`` and ``"importance_variance"``.

    Raises:
        ValueError: for arguments out of range. In :meth:`forward`, for entries or network outputs
            of wrong shapes or types.
        KeyError: in :meth:`forward`, for missing entries.
        RuntimeError: in :meth:`forward`, for negative weights, or an agent without available
            actions (:mod:`~torchrl_logo.objectives.value_checks`).

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_logo.data import TaskSpec, add_next_actions
        >>> from torchrl_logo.modules import (
        ...     make_action_value_network, make_categorical_actor, make_linear_mixer)
        >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=5,
        ...                 discrete=True)
        >>> loss = DiscreteMAICQLoss(make_categorical_actor(spec), make_action_value_network(spec),
        ...                          make_linear_mixer(spec))
        >>> def observe():
        ...     agents = {"observation": torch.randn(8, 2, 3),
        ...               "action_mask": torch.ones(8, 2, 5, dtype=torch.bool)}
        ...     return {"agents": agents, "state": torch.randn(8, 4)}
        >>> end = torch.zeros(8, 1, dtype=torch.bool)
        >>> outcome = {"reward": torch.ones(8, 1), "done": end, "terminated": end}
        >>> data = TensorDict({**observe(), "next": {**observe(), **outcome}}, [8])
        >>> data["agents", "action"] = torch.zeros(8, 2, dtype=torch.int64)
        >>> data["episode"], data["step"] = torch.zeros(8, dtype=torch.int64), torch.arange(8)
        >>> batch = add_next_actions(data)
        >>> [key for key in loss(batch).keys() if key.startswith("loss_")]
        ['loss_qvalue', 'loss_actor']
    """

    @dataclass
    class _AcceptedKeys(ImplicitConstraintLoss._AcceptedKeys):
        """Keys that can be renamed with ``set_keys``: the base's, and those of discrete actions.

        Attributes:
            action_mask: available actions, ``[*, N, A]`` bool.
            action_value: what the critic writes, ``[*, N, A]``.
            logits: what the actor writes, ``[*, N, A]``.
        """

        action_mask: NestedKey = ("agents", "action_mask")
        action_value: NestedKey = ("agents", "action_value")
        logits: NestedKey = ("agents", "logits")

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    discrete = True
    continuous = False
    out_keys = [
        "loss_qvalue",
        "loss_actor",
        "pred_value",
        "target_value",
        "advantage",
        "importance_variance",
    ]

    @property
    def _mask_keys(self) -> list[NestedKey]:
        return [unravel_key(self.tensor_keys.action_mask)]

    @property
    def _action_ndim(self) -> int:
        return 1

    def _check(self, tensordict: TensorDictBase) -> None:
        super()._check(tensordict)
        key, action = self.tensor_keys.action_mask, tensordict.get(self.tensor_keys.action)
        mask = tensordict.get(key)
        require_shape(mask, (*action.shape, *mask.shape[-1:]), key, "DiscreteMAICQLoss")
        if mask.dtype is not torch.bool:
            raise ValueError(
                f"DiscreteMAICQLoss expected {key!r} of dtype bool, found {mask.dtype}."
            )
        require_available_actions(self, tensordict, key)

    def _utilities(self, tensordict: TensorDictBase, params: TensorDictBase) -> torch.Tensor:
        """Values of all actions of each agent, ``[*batch, N, A]``, available or not."""
        return self._run_critic(tensordict, params, self.tensor_keys.action_value)

    def _value_actions(self, tensordict: TensorDictBase, params: TensorDictBase) -> torch.Tensor:
        action = tensordict.get(self.tensor_keys.action).unsqueeze(-1)
        return self._utilities(tensordict, params).gather(-1, action).squeeze(-1)

    def _log_policy(self, tensordict: TensorDictBase) -> torch.Tensor:
        """Log-probabilities of all actions, ``[*batch, N, A]``."""
        key, net = self.tensor_keys.logits, self.actor_network
        inputs = tensordict.select(*net.in_keys, strict=True)
        with self.actor_network_params.to_module(net, preserve_module_state=False):
            if isinstance(net, ProbabilisticTensorDictSequential):
                logits = net.get_dist_params(inputs).get(key, None)
            else:
                logits = net(inputs).get(key, None)
        logits = require_written(logits, key, net, "the actor", "DiscreteMAICQLoss")
        mask = tensordict.get(self.tensor_keys.action_mask)
        require_shape(logits, mask.shape, key, "DiscreteMAICQLoss")
        return fill_unavailable(logits, mask).log_softmax(-1)

    def _evaluate(
        self, tensordict: TensorDictBase
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        keys = self.tensor_keys
        mask, action = tensordict.get(keys.action_mask), tensordict.get(keys.action).unsqueeze(-1)
        utilities = self._utilities(tensordict, self.critic_network_params)  # [B, N, A]
        require_shape(utilities, mask.shape, keys.action_value, "DiscreteMAICQLoss")
        log_policy = self._log_policy(tensordict)  # [B, N, A]
        value = utilities.gather(-1, action).squeeze(-1)
        with torch.no_grad():
            baseline = torch.where(mask, log_policy.exp() * utilities, 0.0).sum(-1)
        return value, value.detach() - baseline, log_policy.gather(-1, action).squeeze(-1)
