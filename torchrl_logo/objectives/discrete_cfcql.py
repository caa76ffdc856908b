"""Counterfactual conservative Q-learning (CFCQL) for discrete actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from tensordict.utils import NestedKey
from torchrl.modules import QMixer

from torchrl_logo.objectives.available_actions import fill_unavailable
from torchrl_logo.objectives.mixed_value import MixedValueLoss
from torchrl_logo.objectives.required_keys import require_shape, require_written
from torchrl_logo.objectives.single_deviations import mix_single_deviations

__all__ = ["DiscreteCFCQLLoss"]


class DiscreteCFCQLLoss(MixedValueLoss):
    r"""Conservative Q-learning that penalises one agent's deviations at a time.

    Each agent's alternatives are valued while the others keep to the data's actions
    :math:`a_{-i}`. Unlike the penalty over joint actions
    (:class:`~torchrl_logo.objectives.DiscreteMACQLLoss`), which grows with the number of joint
    actions, this one does not grow with the number of agents:

    .. math::

        L_{qvalue} &= \big(Q_{tot}(s, a) - r - \gamma (1 - d) \bar Q_{tot}(s', a')\big)^2 / 2,
            \quad a'_i = \arg\max_{a_i \text{ available}} Q_i(o'_i, a_i) \\
        L_{cql} &= \alpha \Big(\sum_i \lambda_i \, T \log \sum_{a_i \text{ available}}
            \exp\big(Q_{tot}(s, a_i, a_{-i}) / T\big) - Q_{tot}(s, a)\Big) \\
        L_{behaviour} &= - \frac{1}{N} \sum_i \log \beta_i(a_i | o_i)

    The weights :math:`\lambda_i`, which sum to one, favour the agents whose values lead away from
    the data:

    .. math::

        \lambda_i = \frac{\exp(\tau D_i)}{\sum_j \exp(\tau D_j)}, \quad
        D_i = \mathrm{KL}\big(\mu_i \,\|\, \beta_i(\cdot | o_i)\big), \quad
        \mu_i(a_i) \propto \exp\big(Q_{tot}(s, a_i, a_{-i}) / T\big)

    with :math:`\mu_i` the distribution whose values the soft maximum pushes down, and
    :math:`\beta_i` the behaviour network, both over available actions. No gradient passes through
    the weights. Without a behaviour network each is :math:`1 / N`.

    Source: CFCQL (Shao et al. 2023, arXiv 2309.12696), section 4. QMIX (Rashid et al. 2018),
    section 4, for :math:`Q_{tot}`; double Q-learning (van Hasselt et al. 2016) for the target. The
    form of :math:`\lambda_i` and its sign, the direction of the divergence and :math:`\mu_i` were
    compared with the authors' code for discrete actions, which has the same; they were not compared
    with the wording of the paper. Unlike that code, masked actions have no part in a sum, and the
    divergence has no constants added to probabilities.

    There are :math:`N A` alternatives. Under a sum as mixer (TorchRL's ``VDNMixer``) their values
    follow from the utilities alone, and under TorchRL's ``QMixer`` each takes a multiple of its
    hidden units (:func:`~torchrl_logo.objectives.single_deviations.mix_single_deviations`): the
    cost is linear in :math:`N`. Any other mixer values all of them in one call, of :math:`N` values
    each, at a cost of :math:`N^2 A`.

    With ``"priority_weight"`` in the batch, each loss is :math:`\sum w l / \sum w` under
    ``"mean"``, :math:`\sum w l` under ``"sum"`` and :math:`w l` under ``"none"``; what is written
    besides the losses is not weighted. Weights must not be negative, and not all zero. Each agent
    must have an available action, but for steps after a termination, and the data's action must
    be one (the last of which is not checked).

    Args:
        action_value_network (TensorDictModule): reads observations, writes
            ``("agents", "action_value")`` ``[*, N, A]``.
        mixer_network (TensorDictModule): reads ``("agents", "chosen_action_value")``
            ``[*, N, 1]`` and usually ``"state"``, writes ``"chosen_action_value"`` ``[*, 1]``;
            must not fall in any agent's value.

    Keyword Args:
        behaviour_network (TensorDictModule, optional): reads observations, writes
            ``("agents", "logits")`` ``[*, N, A]``; or a categorical actor, whose logits are taken
            as they are before the mask. Trained by ``"loss_behaviour"``.
        divergence_temperature (float): :math:`\tau`; zero gives equal weights, and a large one
            the whole weight to one agent. Defaults to ``1.0``.
        min_q_weight (float): the penalty's weight :math:`\alpha`. Defaults to ``5.0``.
        temperature (float): the penalty's temperature :math:`T`. Defaults to ``1.0``.
        gamma (float): discount. Defaults to ``0.99``.
        loss_function (str): distance for the TD error, as :func:`torchrl.objectives.distance_loss`
            takes it. Defaults to ``"l2"``.
        reduction (str): ``"none"``, ``"mean"`` or ``"sum"``. Defaults to ``"mean"``.
        deactivate_vmap (bool): whether mixers see the alternatives as a batch dimension, with
            copies of the state, instead of :func:`torch.vmap`. Defaults to ``False``.
        use_prioritized_weights (bool or str): whether ``"priority_weight"`` weighs transitions;
            ``"auto"`` and ``True`` use it where it is there. Defaults to ``"auto"``.

    Reads the networks' input keys and ``("agents", "action_mask")`` ``[*, N, A]`` bool at the
    root and (but for the behaviour network's) under ``"next"``, ``("agents", "action")``
    ``[*, N]`` int64, and ``("next", "reward")``, ``("next", "done")``, ``("next", "terminated")``
    ``[*, 1]``; optionally ``"priority_weight"`` ``[*]``, and TorchRL's masks of padded steps
    (:attr:`loss_mask_key`). Writes ``"loss_qvalue"``, ``"loss_cql"``, and the detached
    ``"pred_value"``, ``"target_value"``, ``"conservative_gap"`` (the penalty without its weight);
    with a behaviour network also ``"loss_behaviour"`` and the detached
    ``"behaviour_divergence"``, the mean of :math:`D_i` over agents.

    Raises:
        ValueError: for arguments out of range. In :meth:`forward`, for entries or network outputs
            of wrong shapes or types.
        KeyError: in :meth:`forward`, for missing entries.
        RuntimeError: in :meth:`forward`, for negative weights, or an agent without available
            actions (:mod:`~torchrl_logo.objectives.value_checks`).

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_logo.data import TaskSpec
        >>> from torchrl_logo.modules import (
        ...     make_action_value_network, make_categorical_actor, make_mixer)
        >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=5,
        ...                 discrete=True)
        >>> loss = DiscreteCFCQLLoss(make_action_value_network(spec), make_mixer(spec),
        ...                          behaviour_network=make_categorical_actor(spec))
        >>> def observe():
        ...     agents = {"observation": torch.randn(8, 2, 3),
        ...               "action_mask": torch.ones(8, 2, 5, dtype=torch.bool)}
        ...     return {"agents": agents, "state": torch.randn(8, 4)}
        >>> end = torch.zeros(8, 1, dtype=torch.bool)
        >>> outcome = {"reward": torch.ones(8, 1), "done": end, "terminated": end}
        >>> batch = TensorDict({**observe(), "next": {**observe(), **outcome}}, [8])
        >>> batch["agents", "action"] = torch.zeros(8, 2, dtype=torch.int64)
        >>> sorted(key for key in loss(batch).keys() if key.startswith("loss_"))
        ['loss_behaviour', 'loss_cql', 'loss_qvalue']
    """

    @dataclass
    class _AcceptedKeys(MixedValueLoss._AcceptedKeys):
        """Keys that can be renamed with ``set_keys``: the base's, and the behaviour network's.

        Attributes:
            logits: what the behaviour network writes, ``[*, N, A]``.
        """

        logits: NestedKey = ("agents", "logits")

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys

    behaviour_network: TensorDictModule | None
    behaviour_network_params: TensorDictParams
    target_behaviour_network_params: TensorDictParams

    def __init__(
        self,
        action_value_network: TensorDictModule,
        mixer_network: TensorDictModule,
        *,
        behaviour_network: TensorDictModule | None = None,
        divergence_temperature: float = 1.0,
        **kwargs: Any,
    ) -> None:
        if divergence_temperature < 0:
            raise ValueError(
                "DiscreteCFCQLLoss: divergence_temperature must not be negative, found "
                f"{divergence_temperature}."
            )
        super().__init__(action_value_network, mixer_network, **kwargs)
        if behaviour_network is None:
            self.behaviour_network = None
        else:
            self.convert_to_functional(
                behaviour_network, "behaviour_network", create_target_params=False
            )
        self.divergence_temperature = divergence_temperature

    @property
    def in_keys(self) -> list[NestedKey]:
        """What the loss reads; ``"priority_weight"`` is optional."""
        if self._in_keys is None:
            keys = super().in_keys
            more = [] if self.behaviour_network is None else self.behaviour_network.in_keys
            self._in_keys = list(dict.fromkeys([*keys, *more]))
        return self._in_keys

    @in_keys.setter
    def in_keys(self, values: list[NestedKey]) -> None:
        self._in_keys = values

    @property
    def out_keys(self) -> list[str]:
        """What the loss writes."""
        if self._out_keys is None:
            keys = super().out_keys
            if self.behaviour_network is not None:
                keys = [*keys[:2], "loss_behaviour", *keys[2:], "behaviour_divergence"]
            self._out_keys = keys
        return self._out_keys

    @out_keys.setter
    def out_keys(self, values: list[str]) -> None:
        self._out_keys = values

    def _behaviour_log_prob(self, tensordict: TensorDictBase) -> torch.Tensor:
        """Log-probabilities of all actions under the behaviour network, ``[*batch, N, A]``."""
        key, net = self.tensor_keys.logits, self.behaviour_network
        assert net is not None
        inputs = tensordict.select(*net.in_keys, strict=True)
        with self.behaviour_network_params.to_module(net, preserve_module_state=False):
            if isinstance(net, ProbabilisticTensorDictSequential):
                logits = net.get_dist_params(inputs).get(key, None)
            else:
                logits = net(inputs).get(key, None)
        logits = require_written(logits, key, net, "the behaviour network", "DiscreteCFCQLLoss")
        mask = tensordict.get(self.tensor_keys.action_mask)
        require_shape(logits, mask.shape, key, "DiscreteCFCQLLoss")
        return fill_unavailable(logits, mask).log_softmax(-1)

    def _value_alternatives(
        self,
        tensordict: TensorDictBase,
        utilities: torch.Tensor,
        chosen: torch.Tensor,
        pred_value: torch.Tensor,
    ) -> torch.Tensor:
        """The team's values ``[*batch, N, A]`` where one agent departs from the data's actions."""
        if self.additive:
            return pred_value[..., None, None] - chosen.unsqueeze(-1) + utilities
        mask, net = tensordict.get(self.tensor_keys.action_mask), self.mixer_network
        if type(getattr(net, "module", None)) is QMixer and net.in_keys[1:] == self._context_keys:
            own = torch.where(mask, utilities, chosen.unsqueeze(-1))
            state = tensordict.get(self._context_keys[0])
            with self.mixer_network_params.to_module(net, preserve_module_state=False):
                return mix_single_deviations(net.module, chosen, own, state)
        n_agents, n_actions = mask.shape[-2:]
        # the mixer never sees what is not available
        own = torch.where(mask, utilities, chosen.unsqueeze(-1)).unsqueeze(-1)  # [B, N, A, 1]
        others = chosen[..., None, None, :]  # [B, 1, 1, N]
        departs = torch.eye(n_agents, dtype=torch.bool, device=mask.device).unsqueeze(1)
        alternatives = torch.where(departs, own, others)  # [B, N, A, N]
        alternatives = alternatives.flatten(-3, -2).movedim(-2, 0)  # [N * A, B, N]
        values = self._mix_each(alternatives, tensordict)  # [N * A, B]
        return values.movedim(0, -1).unflatten(-1, (n_agents, n_actions))

    def _soften(
        self,
        tensordict: TensorDictBase,
        utilities: torch.Tensor,
        chosen: torch.Tensor,
        pred_value: torch.Tensor,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        mask = tensordict.get(self.tensor_keys.action_mask)
        values = self._value_alternatives(tensordict, utilities, chosen, pred_value)  # [B, N, A]
        scaled = fill_unavailable(values / self.temperature, mask)
        soft_maxima = self.temperature * scaled.logsumexp(-1)  # [B, N]
        if self.behaviour_network is None:
            return soft_maxima.mean(-1), {}, {}
        log_behaviour = self._behaviour_log_prob(tensordict)  # [B, N, A]
        with torch.no_grad():
            log_pushed = scaled.log_softmax(-1)
            terms = log_pushed.exp() * (log_pushed - log_behaviour)
            divergence = torch.where(mask, terms, 0.0).sum(-1)  # [B, N]
            agent_weights = (self.divergence_temperature * divergence).softmax(-1)
        action = tensordict.get(self.tensor_keys.action).unsqueeze(-1)
        likelihood = log_behaviour.gather(-1, action).squeeze(-1).mean(-1)
        return (
            (agent_weights * soft_maxima).sum(-1),
            {"loss_behaviour": -likelihood},
            {"behaviour_divergence": divergence.mean(-1)},
        )
