"""Counterfactual conservative Q-learning (CFCQL) for continuous actions."""

from __future__ import annotations

import math
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule, dispatch
from tensordict.utils import NestedKey
from torchrl.data import TensorSpec
from torchrl.envs import ExplorationType, set_exploration_type
from torchrl.modules.distributions.utils import rsample_and_log_prob
from torchrl.objectives import distance_loss

from torchrl_logo.objectives.imagined_rows import find_real_rows, restrict_rows, weigh_rows
from torchrl_logo.objectives.macql import MACQLLoss
from torchrl_logo.objectives.memory import refuse_memory
from torchrl_logo.objectives.required_keys import (
    match_batch_size,
    require_distribution,
    require_keys,
)
from torchrl_logo.objectives.shared_batch import mean_over_processes
from torchrl_logo.objectives.value_checks import read_weights

__all__ = ["CFCQLLoss"]


class CFCQLLoss(MACQLLoss):
    r"""Centralised twin critics whose penalty looks at one agent's deviations at a time.

    As :class:`~torchrl_logo.objectives.MACQLLoss`, with another penalty: each agent's
    alternatives are valued while the others keep to the data's actions :math:`a_{-i}`, so that
    the penalty does not grow with the number of agents. With :math:`M_i` the ``3 num_samples``
    draws of agent :math:`i`'s action, a third each from the proposals :math:`\mu_i` uniform,
    :math:`\pi_i(\cdot|o_i)` and :math:`\pi_i(\cdot|o'_i)`, and :math:`\mu_i(a_i)` the density of
    the proposal that :math:`a_i` was drawn from:

    .. math::

        L_{qvalue} &= \sum_k \big(Q_k(s, a) - r - \gamma (1 - d)
            \min_k \bar Q_k(s', a')\big)^2 / 2, \quad a' \sim \pi(\cdot|o') \\
        L_{cql} &= \alpha \sum_k \Big(\sum_i \lambda_i \, T \log \operatorname{mean}_{a_i \in M_i}
            \exp\big(Q_k(s, a_i, a_{-i}) / T - \log \mu_i(a_i)\big) - Q_k(s, a)\Big) \\
        L_{actor} &= \lambda\,\eta \sum_i \log \pi_i(a_i|o_i) - \lambda \min_k Q_k(s, a)
            - \beta \frac{1}{N} \sum_i \log \pi_i(a_{data,i}|o_i), \quad a \sim \pi(\cdot|o) \\
        L_{behaviour} &= - \frac{1}{N} \sum_i \log b_i(a_{data,i} | o_i)

    The agents' weights :math:`\lambda_i`, which sum to one, favour those whose policies lead away
    from the data:

    .. math::

        \lambda_i = \frac{\exp(\tau D_i)}{\sum_j \exp(\tau D_j)}, \quad
        D_i = \operatorname{mean}_{a_i \sim \pi_i(\cdot|o_i)}
            \big(\log \pi_i(a_i|o_i) - \log b_i(a_i|o_i)\big)
            \approx \mathrm{KL}\big(\pi_i \,\|\, b_i\big)

    over ``num_samples`` draws, with :math:`b_i` the behaviour network. No gradient passes through
    the weights. Without a behaviour network each is :math:`1 / N`.

    Source: CFCQL (Shao et al. 2023, arXiv 2309.12696), section 4, with CQL's importance weights
    (Kumar et al. 2020, appendix F). The form of the agents' weights was compared with the authors'
    code, not with the wording of the paper, and their code has both signs: for discrete actions it
    is the softmax of :math:`\tau D_i`, as here, and for continuous ones the softmin, which favours
    agents that stay near the data (their :math:`D_i` is of a deterministic policy's action, and
    their behaviour model a joint variational autoencoder). The actor's loss, with its coefficients
    :math:`\lambda` (the inverse of how much values vary over the draws of :math:`M_i`),
    :math:`\eta` and :math:`\beta`, is that of :class:`~torchrl_logo.objectives.MACQLLoss`, and so
    is what is said there of imagined and of weighted transitions. Unlike the reference code, the
    sum over draws is a mean, so that the penalty estimates :math:`T \log \int \exp(Q / T)` whatever
    the number of draws.

    The critics value all :math:`3 N` ``num_samples`` joint actions in one call. Each is of
    :math:`N` actions: the cost of the critics' first layer grows with :math:`N^2`, that of the
    others with :math:`N`.

    Args:
        actor_network (ProbabilisticTensorDictSequential): stochastic actor; reads observations,
            writes the action ``[*, N, d_a]``. Its distribution's ``log_prob`` is per agent,
            ``[*, N]``.
        qvalue_network (TensorDictModule or list of them): reads the state and the joint action,
            writes ``"state_action_value"`` ``[*, 1]``. A single network is copied
            ``num_qvalue_nets`` times onto one stacked axis, and each copy is initialised anew.

    Keyword Args:
        action_spec (TensorSpec): bounds of the joint action, ``[N, d_a]``, finite.
        behaviour_network (ProbabilisticTensorDictSequential, optional): as ``actor_network``;
            trained by ``"loss_behaviour"``.
        divergence_temperature (float): :math:`\tau`; zero gives equal weights, and a large one
            the whole weight to one agent. Defaults to ``1.0``.
        **kwargs: the other keyword arguments of :class:`~torchrl_logo.objectives.MACQLLoss`, with
            the same defaults. Actions are scored under the behaviour network with
            ``action_margin`` as well.

    Reads and writes what :class:`~torchrl_logo.objectives.MACQLLoss` does; with a behaviour
    network it also reads that network's input keys, and writes ``"loss_behaviour"`` and the
    detached ``"behaviour_divergence"``, the mean of :math:`D_i` over agents.

    Raises:
        ValueError: for discrete or unbounded actions, or arguments out of range. In
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
        >>> loss = CFCQLLoss(make_gaussian_actor(spec), make_centralized_critic(spec),
        ...                  action_spec=spec.action_spec(),
        ...                  behaviour_network=make_gaussian_actor(spec))
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
        >>> sorted(key for key in loss(batch).keys() if key.startswith("loss_"))
        ['loss_actor', 'loss_behaviour', 'loss_cql', 'loss_qvalue']
    """

    behaviour_network: ProbabilisticTensorDictSequential | None
    behaviour_network_params: TensorDictParams
    target_behaviour_network_params: TensorDictParams

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: TensorDictModule | list[TensorDictModule],
        *,
        action_spec: TensorSpec,
        behaviour_network: ProbabilisticTensorDictSequential | None = None,
        divergence_temperature: float = 1.0,
        **kwargs: Any,
    ) -> None:
        if divergence_temperature < 0:
            raise ValueError(
                "CFCQLLoss: divergence_temperature must not be negative, found "
                f"{divergence_temperature}."
            )
        refuse_memory(type(self).__name__, behaviour_network)
        super().__init__(actor_network, qvalue_network, action_spec=action_spec, **kwargs)
        if behaviour_network is None:
            self.behaviour_network = None
        else:
            self.convert_to_functional(
                behaviour_network, "behaviour_network", create_target_params=False
            )
        self.divergence_temperature = divergence_temperature
        # log density of each agent's action under the uniform distribution
        self._log_uniform_agent = self._log_uniform / action_spec.shape[0]

    @property
    def in_keys(self) -> list[NestedKey]:
        """What the loss reads; ``"imagined"`` and ``"priority_weight"`` are optional."""
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
                keys = ["loss_behaviour", *keys, "behaviour_divergence"]
            self._out_keys = keys
        return self._out_keys

    @out_keys.setter
    def out_keys(self, values: list[str]) -> None:
        self._out_keys = values

    def _per_agent(self, log_prob: torch.Tensor, batch_size: torch.Size) -> torch.Tensor:
        """Log-densities of the agents' actions, ``[*batch, N]``."""
        agents = len(batch_size)
        expected = (*batch_size, self.action_low.shape[0])
        if tuple(log_prob.shape[: agents + 1]) != expected:
            raise ValueError(
                "CFCQLLoss needs log_prob per agent, [*batch, N], of actors and behaviour "
                f"networks: expected {expected}, found {tuple(log_prob.shape)}."
            )
        further = log_prob.ndim > agents + 1
        return log_prob.flatten(agents + 1).sum(-1) if further else log_prob

    def _draw(
        self,
        dist: torch.distributions.Distribution,
        batch_size: torch.Size,
        num_samples: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Actions ``[num_samples, *batch, N, d_a]`` and log-densities of each agent's."""
        shape = torch.Size(() if num_samples is None else (num_samples,))
        action, log_prob = rsample_and_log_prob(dist, shape)
        return action, self._per_agent(log_prob, shape + batch_size)

    def _compare_with_behaviour(
        self,
        tensordict: TensorDictBase,
        policy: torch.distributions.Distribution,
        drawn: torch.Tensor,
        data_action: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores policies and data by the behaviour network.

        Args:
            tensordict (TensorDictBase): the batch.
            policy (Distribution): the agents' policies.
            drawn (torch.Tensor): draws of theirs, ``[n, *batch, N, d_a]``.
            data_action (torch.Tensor): ``[*batch, N, d_a]``, inside the bounds.

        Returns:
            The divergences ``[*batch, N]``, without gradient, and the data's log-density
            ``[*batch]``, the mean over agents.
        """
        net, batch_size = self.behaviour_network, tensordict.batch_size
        assert net is not None
        with self.behaviour_network_params.to_module(net, preserve_module_state=False):
            behaviour = net.get_dist(tensordict.select(*net.in_keys, strict=True))
            key = self.tensor_keys.action
            require_distribution(behaviour, data_action.shape, key, "CFCQLLoss")
            log_prob = self._per_agent(behaviour.log_prob(data_action), batch_size)
            with torch.no_grad():
                # both densities at the same place, so that those of the squashing cancel
                inside = torch.clamp(drawn, self.behaviour_low, self.behaviour_high)
                shape = inside.shape[:1] + batch_size
                ratio = self._per_agent(policy.log_prob(inside), shape)
                ratio = ratio - self._per_agent(behaviour.log_prob(inside), shape)
        return ratio.mean(0), log_prob.mean(-1)

    def _next_value(self, tensordict: TensorDictBase, next_action: torch.Tensor) -> torch.Tensor:
        """The target value ``[*batch]``, bootstrapped from actions at the next state."""
        keys = self.tensor_keys
        following, params = tensordict.get("next"), self.target_qvalue_network_params
        next_value = self._value(following, next_action, params).amin(0)
        outcome = following.select(keys.reward, keys.done, keys.terminated)
        outcome.set(keys.state_action_value, next_value.unsqueeze(-1))
        targets = TensorDict({"next": outcome}, batch_size=tensordict.batch_size)
        return self.value_estimator.value_estimate(targets).squeeze(-1)

    def _value_alternatives(
        self, tensordict: TensorDictBase, drawn: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Values of the data's joint action, and where one agent departs from it.

        Args:
            tensordict (TensorDictBase): the batch.
            drawn (torch.Tensor): draws of the agents' actions, ``[m, *batch, N, d_a]``.

        Returns:
            ``[nets, *batch]`` and ``[nets, m, *batch, N]``.
        """
        key, batch_size = self.tensor_keys.action, tensordict.batch_size
        action = tensordict.get(key)
        n_agents = action.shape[-2]
        departs = torch.eye(n_agents, dtype=torch.bool, device=action.device)
        departs = departs.view(n_agents, *[1] * len(batch_size), n_agents, 1)
        alternatives = torch.where(departs, drawn.unsqueeze(1), action)  # [m, N, B, N, d_a]
        actions = torch.cat([action.unsqueeze(0), alternatives.flatten(0, 1)], 0)
        # [nets, 1 + m * N, B]
        values = self._value(tensordict, actions, self.qvalue_network_params)
        alternative_values = values[:, 1:].unflatten(1, (-1, n_agents)).movedim(2, -1)
        return values[:, 0], alternative_values

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Computes all losses of a batch of transitions; see the class for keys and formulas."""
        keys = self.tensor_keys
        require_keys(tensordict, self.in_keys, "CFCQLLoss")
        tensordict = match_batch_size(tensordict, keys.action, self.action_low.ndim)
        self._check(tensordict)
        weights = read_weights(self, tensordict)
        real = find_real_rows(tensordict, keys.imagined, type(self).__name__)
        action = tensordict.get(keys.action)  # [B, N, d_a]
        inside = torch.clamp(action, self.behaviour_low, self.behaviour_high)
        batch_size, n = tensordict.batch_size, self.num_samples
        with (
            set_exploration_type(ExplorationType.RANDOM),
            self.actor_network_params.to_module(self.actor_network, preserve_module_state=False),
        ):
            dist = self._policy_dist(tensordict)
            policy_action, policy_log_prob = self._draw(dist, batch_size)
            bc_log_prob = self._per_agent(dist.log_prob(inside), batch_size).mean(-1)  # [B]
            with torch.no_grad():
                next_dist = self._policy_dist(tensordict.get("next"))
                here, log_here = self._draw(dist, batch_size, n)
                there, log_there = self._draw(next_dist, batch_size, n)

        losses: dict[str, torch.Tensor] = {}
        statistics: dict[str, torch.Tensor] = {}
        agent_weights = torch.full_like(log_here[0], 1 / action.shape[-2])  # [B, N]
        behaviour_log_prob = None
        if self.behaviour_network is not None:
            divergence, behaviour_log_prob = self._compare_with_behaviour(
                tensordict, dist, here, inside
            )
            agent_weights = (self.divergence_temperature * divergence).softmax(-1)
            statistics["behaviour_divergence"] = divergence.mean(-1)

        with torch.no_grad():
            # the first draw at the next state serves the bootstrap
            target_value = self._next_value(tensordict, there[0])  # [B]
            uniform = torch.rand((n, *action.shape), device=action.device, dtype=action.dtype)
            uniform = self.action_low + uniform * (self.action_high - self.action_low)
            log_uniform = torch.full_like(log_here, self._log_uniform_agent)
        drawn = torch.cat([uniform, here, there], 0)  # [3n, B, N, d_a]
        log_density = torch.cat([log_uniform, log_here, log_there], 0)  # [3n, B, N]
        pred_value, sampled = self._value_alternatives(tensordict, drawn)
        soft_maxima = self.temperature * (
            torch.logsumexp(sampled / self.temperature - log_density, dim=1) - math.log(3 * n)
        )  # [nets, B, N]
        soft_maximum = (agent_weights * soft_maxima).sum(-1)  # [nets, B]
        gap = soft_maximum - pred_value

        losses["loss_qvalue"] = 0.5 * distance_loss(
            pred_value, target_value.expand_as(pred_value), loss_function=self.loss_function
        ).sum(0)
        _, row_weights = weigh_rows(self, tensordict, weights, losses["loss_qvalue"])
        conservative = self._restrict_gap(soft_maximum, pred_value, real, row_weights)
        losses["loss_cql"] = self.min_q_weight.detach() * conservative
        if behaviour_log_prob is not None:
            losses["loss_behaviour"] = -restrict_rows(behaviour_log_prob, real, row_weights)

        detached = self._cached_detached_qvalue_params
        policy_value = self._value(tensordict, policy_action, detached).min(0)[0]
        joint_log_prob = policy_log_prob.sum(-1)  # [B]
        scale: torch.Tensor | float = 1.0
        if self.normalize_q:
            spread = sampled.detach().std(1).mean((0, -1))  # [B]
            spread = self._reduce_loss(spread, tensordict=tensordict, reduction="mean")
            scale = mean_over_processes(spread).clamp_min(1e-3)
        objective = (policy_value - self.entropy_coeff * joint_log_prob) / scale
        losses["loss_actor"] = -objective - self.bc_coeff * restrict_rows(
            bc_log_prob, real, row_weights
        )
        if self.lagrange_thresh is not None:
            losses["loss_min_q_weight"] = self._weigh_excess(conservative, real, row_weights)

        statistics |= {
            "pred_value": pred_value.mean(0),
            "target_value": target_value,
            "conservative_gap": gap.mean(0),
            "entropy": -joint_log_prob,
            "bc_log_prob": bc_log_prob,
        }
        out = {
            name: self._reduce_loss(loss, tensordict=tensordict, weights=weights)
            for name, loss in losses.items()
        }
        none = self.reduction == "none"
        for name, value in statistics.items():
            value = value.detach()
            if not none:
                # the mean over what is not padding, without weights
                value = self._reduce_loss(value, tensordict=tensordict, reduction="mean")
            out[name] = value
        weight = self.min_q_weight.detach()
        out["min_q_weight"] = weight.expand(batch_size) if none else weight.clone()
        result = TensorDict(out, batch_size=batch_size if none else [])
        self._clear_weakrefs(
            tensordict,
            result,
            "actor_network_params",
            "behaviour_network_params",
            "qvalue_network_params",
            "target_actor_network_params",
            "target_qvalue_network_params",
        )
        return result
