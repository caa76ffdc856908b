"""Multi-agent conservative Q-learning (MACQL) for discrete actions."""

from __future__ import annotations

import math
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule

from torchrl_logo.objectives.available_actions import fill_unavailable, sample_available_actions
from torchrl_logo.objectives.mixed_value import MixedValueLoss

__all__ = ["DiscreteMACQLLoss"]


class DiscreteMACQLLoss(MixedValueLoss):
    r"""Conservative Q-learning of a team value that is mixed from agents' discrete values.

    The team is one learner with the joint action :math:`a = (a_1, \dots, a_N)`. With
    :math:`\mathcal{A}` the joint actions whose parts are all available:

    .. math::

        L_{qvalue} &= \big(Q_{tot}(s, a) - r - \gamma (1 - d) \bar Q_{tot}(s', a')\big)^2 / 2,
            \quad a'_i = \arg\max_{a_i \text{ available}} Q_i(o'_i, a_i) \\
        L_{cql} &= \alpha \Big(T \log \sum_{a \in \mathcal{A}} \exp\big(Q_{tot}(s, a) / T\big)
            - Q_{tot}(s, a_{data})\Big)

    Sources: CQL (Kumar et al. 2020), equation 4, with the importance weights of its appendix F;
    QMIX (Rashid et al. 2018), section 4, for :math:`Q_{tot}`; double Q-learning (van Hasselt et
    al. 2016) for the target.

    The sum over joint actions has too many terms to be taken. The greedy joint action :math:`g`,
    its largest term, is always there, and ``num_samples`` uniform draws stand for the others:

    .. math::

        \sum_{a \in \mathcal{A}} e^{Q_{tot}(s, a) / T} \approx e^{Q_{tot}(s, g) / T}
            + \frac{1}{n} \sum_{j=1}^n 1[a^{(j)} \ne g] \, \prod_i |\mathcal{A}_i| \,
            e^{Q_{tot}(s, a^{(j)}) / T},
        \quad a^{(j)} \sim \mathcal{U}(\mathcal{A})

    which is unbiased, and never below the term of the greedy action. Under a sum as mixer
    (TorchRL's ``VDNMixer``) nothing is drawn, since the logarithm is
    :math:`\sum_i T \log \sum_{a_i} \exp(Q_i(o_i, a_i) / T)` exactly.

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
        num_samples (int): draws of joint actions, :math:`n`. Defaults to ``100``.
        min_q_weight (float): the penalty's weight :math:`\alpha`. Defaults to ``5.0``.
        temperature (float): the penalty's temperature :math:`T`. Defaults to ``1.0``.
        gamma (float): discount. Defaults to ``0.99``.
        loss_function (str): distance for the TD error, as :func:`torchrl.objectives.distance_loss`
            takes it. Defaults to ``"l2"``.
        reduction (str): ``"none"``, ``"mean"`` or ``"sum"``. Defaults to ``"mean"``.
        deactivate_vmap (bool): whether mixers see the draws as a batch dimension, with copies of
            the state, instead of :func:`torch.vmap`. Defaults to ``False``.
        use_prioritized_weights (bool or str): whether ``"priority_weight"`` weighs transitions;
            ``"auto"`` and ``True`` use it where it is there. Defaults to ``"auto"``.

    Reads both networks' input keys and ``("agents", "action_mask")`` ``[*, N, A]`` bool at the
    root and under ``"next"``, ``("agents", "action")`` ``[*, N]`` int64, and
    ``("next", "reward")``, ``("next", "done")``, ``("next", "terminated")`` ``[*, 1]``;
    optionally ``"priority_weight"`` ``[*]``, and TorchRL's masks of padded steps
    (:attr:`loss_mask_key`). Writes ``"loss_qvalue"``, ``"loss_cql"``, and the detached
    ``"pred_value"``, ``"target_value"``, ``"conservative_gap"`` (the penalty without its weight).

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
        >>> from torchrl_logo.modules import make_action_value_network, make_mixer
        >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=5,
        ...                 discrete=True)
        >>> loss = DiscreteMACQLLoss(make_action_value_network(spec), make_mixer(spec))
        >>> def observe():
        ...     agents = {"observation": torch.randn(8, 2, 3),
        ...               "action_mask": torch.ones(8, 2, 5, dtype=torch.bool)}
        ...     return {"agents": agents, "state": torch.randn(8, 4)}
        >>> end = torch.zeros(8, 1, dtype=torch.bool)
        >>> outcome = {"reward": torch.ones(8, 1), "done": end, "terminated": end}
        >>> batch = TensorDict({**observe(), "next": {**observe(), **outcome}}, [8])
        >>> batch["agents", "action"] = torch.zeros(8, 2, dtype=torch.int64)
        >>> sorted(key for key in loss(batch).keys() if key.startswith("loss_"))
        ['loss_cql', 'loss_qvalue']
    """

    def __init__(
        self,
        action_value_network: TensorDictModule,
        mixer_network: TensorDictModule,
        *,
        num_samples: int = 100,
        **kwargs: Any,
    ) -> None:
        if num_samples < 1:
            raise ValueError(
                f"DiscreteMACQLLoss: num_samples must be at least 1, found {num_samples}."
            )
        super().__init__(action_value_network, mixer_network, **kwargs)
        self.num_samples = num_samples

    def _soften(
        self,
        tensordict: TensorDictBase,
        utilities: torch.Tensor,
        chosen: torch.Tensor,
        pred_value: torch.Tensor,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        mask, temperature = tensordict.get(self.tensor_keys.action_mask), self.temperature
        if self.additive:
            open_values = fill_unavailable(utilities / temperature, mask)
            return temperature * open_values.logsumexp(-1).sum(-1), {}, {}
        greedy = fill_unavailable(utilities.detach(), mask).argmax(-1)  # [B, N]
        drawn, log_prob = sample_available_actions(mask, self.num_samples)  # [n, B, N], [B]
        actions = torch.cat([greedy.unsqueeze(0), drawn], 0).movedim(0, -1)  # [B, N, 1 + n]
        agents_values = utilities.gather(-1, actions).movedim(-1, 0)  # [1 + n, B, N]
        scaled = self._mix_each(agents_values, tensordict) / temperature  # [1 + n, B]
        others = scaled[1:] - log_prob.to(scaled.dtype) - math.log(self.num_samples)
        others = fill_unavailable(others, (drawn != greedy).any(-1))
        terms = torch.cat([scaled[:1], others], 0)
        return temperature * terms.logsumexp(0), {}, {}
