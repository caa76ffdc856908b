"""Offline multi-agent reinforcement learning with actor rectification (OMAR)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from tensordict.utils import NestedKey
from torch.distributions import Normal
from torchrl.data import TensorSpec

from torchrl_logo.objectives.twin_delayed import TwinDelayedLoss

__all__ = ["OMARLoss"]


class OMARLoss(TwinDelayedLoss):
    r"""Decentralised conservative critics, and actors drawn to the best action of a search.

    Each agent has a deterministic policy :math:`\pi_i(o_i)` and critics :math:`Q_{i,k}(o_i, a_i)`
    of its own action, which learn from the team's reward. Policy gradients on conservative values
    stop at local optima; a search over actions, which needs no gradient, leads out of them:

    .. math::

        y_i &= r + \gamma (1 - d) \min_k \bar Q_{i,k}(o'_i, a'_i), \quad
            a'_i = \operatorname{clip}\Big(\bar \pi_i(o'_i)
            + \tfrac{h - l}{2} \epsilon,\, l,\, h\Big), \;
            \epsilon \sim \operatorname{clip}\big(N(0, \sigma^2), -c, c\big) \\
        L_{qvalue} &= \frac{1}{N} \sum_i \sum_k \ell\big(Q_{i,k}(o_i, a_i), y_i\big) \\
        L_{cql} &= \frac{\alpha}{N} \sum_i \sum_k \Big(T \log \operatorname{mean}_{a \in M_i}
            \exp\big(Q_{i,k}(o_i, a) / T - \log \mu_i(a)\big) - Q_{i,k}(o_i, a_i)\Big) \\
        L_{actor} &= \frac{1}{N} \sum_i \bigg(\tau
            \Big\| \frac{\pi_i(o_i) - \hat a_i}{(h - l) / 2} \Big\|^2
            - (1 - \tau) Q_{i,1}\big(o_i, \pi_i(o_i)\big)\bigg)

    The search draws ``K`` actions from a Gaussian, in units of half the action range, clips them
    to the bounds, and refines mean and deviation; it begins with :math:`\mu^1 = 0` (the middle of
    the range) and :math:`\sigma^1` ``= search_std``. After ``J`` iterations it takes the best of
    the last draws and the policy's own action:

    .. math::

        a^k &\sim N(\mu^j, (\sigma^j)^2), \quad
        \mu^{j+1} = \frac{\sum_k \exp(\beta Q_{i,1}(o_i, a^k))\, a^k}
            {\sum_k \exp(\beta Q_{i,1}(o_i, a^k))}, \quad
        \sigma^{j+1} = \sqrt{\operatorname{mean}_k (a^k - \mu^j)^2} \\
        \hat a_i &= \arg\max_{a \in \{a^1, \dots, a^K, \pi_i(o_i)\}} Q_{i,1}(o_i, a)

    All rows and agents are searched at once, and no gradient passes through the search.

    Source: OMAR (Pan et al. 2022, "Plan Better Amid Conservatism: Offline Multi-Agent
    Reinforcement Learning with Actor Rectification", arXiv 2111.11188), its section on actor
    rectification and algorithm 1, on independent TD3 (Fujimoto et al. 2018). The paper's formula
    for :math:`\sigma^{j+1}` has a sum where here is a mean: with a sum the deviation would grow
    with ``K``. Ours is that noise, distance and search are in units of half the action range (the
    paper's tasks have range :math:`[-1, 1]`, where it is the same).

    The penalty is CQL's (Kumar et al. 2020, equation 4 with the importance weights of its
    appendix F). :math:`M_i` are ``3 num_samples`` draws, a third each from the uniform
    distribution and from Gaussians of deviation ``proposal_std`` (half ranges), cut off at the
    bounds, around :math:`\pi_i(o_i)` and :math:`\pi_i(o'_i)`; :math:`\mu_i(a)` is the density of
    the proposal that :math:`a` was drawn from. The paper says "uniform or a policy"; a
    deterministic policy has no density of its own, hence the Gaussians, and cutting them off
    (not clipping) keeps the density exact. As in
    :class:`~torchrl_logo.objectives.MACQLLoss` the sum over draws is a mean, so that the penalty
    estimates :math:`T \log \int \exp(Q / T)` whatever the number of draws.

    All losses are computed at each call. TD3 updates the actor and all targets at every second
    update of the critics only, which is the training loop's to do: leave ``"loss_actor"`` out of
    the sum, and :class:`~torchrl.objectives.SoftUpdate` out of the step, at the others.

    With ``"priority_weight"`` in the batch, each loss is :math:`\sum w l / \sum w` under
    ``"mean"``, :math:`\sum w l` under ``"sum"`` and :math:`w l` under ``"none"``. Weights must not
    be negative, which is checked, and not all zero.

    Args:
        actor_network (TensorDictModule): reads observations, writes the action ``[*, N, d_a]``.
            Of a probabilistic one the deterministic action is taken. Actions should be within the
            bounds.
        qvalue_network (TensorDictModule or list of them): reads observations and actions, writes
            ``("agents", "state_action_value")`` ``[*, N, 1]``. Each agent's value must depend on
            its own action only, since agents are searched at once. A single network is copied
            ``num_qvalue_nets`` times onto one stacked axis, and each copy is initialised anew.

    Keyword Args:
        action_spec (TensorSpec): bounds of the joint action, ``[N, d_a]``, finite.
        rectification_coeff (float): :math:`\tau`, in ``[0, 1]``; the paper has 0.5 for the
            quality "random" and "medium-replay", 0.7 for "medium", 0.9 for "expert". Defaults to
            ``0.7``.
        search_iterations (int): ``J``. Defaults to ``3``.
        search_samples (int): ``K``. Defaults to ``10``.
        search_std (float): :math:`\sigma^1`. Defaults to ``2.0``.
        search_beta (float): :math:`\beta`. Defaults to ``1.0``.
        min_q_weight (float): the penalty's weight :math:`\alpha`; the paper chooses from 0.1,
            0.5, 1 and 5. Defaults to ``1.0``.
        temperature (float): the penalty's temperature :math:`T`. Defaults to ``1.0``.
        num_samples (int): draws from each of the three proposals. Defaults to ``10``.
        proposal_std (float): deviation of the proposals around the policy. Defaults to ``0.2``.
        num_qvalue_nets (int): number of critics of an agent. Defaults to ``2``.
        policy_noise (float): :math:`\sigma`. Defaults to ``0.2``.
        noise_clip (float): :math:`c`. Defaults to ``0.5``.
        gamma (float): discount. Defaults to ``0.99``.
        loss_function (str): :math:`\ell`, as :func:`torchrl.objectives.distance_loss` takes it.
            Defaults to ``"l2"``, the square.
        reduction (str): ``"none"``, ``"mean"`` or ``"sum"``. Defaults to ``"mean"``.
        deactivate_vmap (bool): whether to loop over critics instead of :func:`torch.vmap`.
            Defaults to ``False``.
        use_prioritized_weights (bool or str): whether ``"priority_weight"`` weighs transitions;
            ``"auto"`` and ``True`` use it where it is there. Defaults to ``"auto"``.

    Reads the actor's and critic's input keys at the root and under ``"next"``, the action, and
    ``("next", "reward")``, ``("next", "done")``, ``("next", "terminated")`` ``[*, 1]``;
    optionally ``"priority_weight"`` ``[*]``, and TorchRL's masks of padded steps
    (:attr:`loss_mask_key`). Writes ``"loss_qvalue"``, ``"loss_cql"``, ``"loss_actor"``, and the
    detached, unweighted ``"pred_value"``, ``"target_value"``, ``"conservative_gap"`` (the penalty
    of a critic without its weight), ``"search_distance"`` (the squared distance to
    :math:`\hat a`) and ``"search_gain"`` (what :math:`\hat a` is worth above the policy's action,
    never negative), which are means over agents.

    Raises:
        ValueError: for discrete or unbounded actions, or arguments out of range. In
            :meth:`forward`, for entries or network outputs of wrong shapes or types.
        KeyError: in :meth:`forward`, for missing entries.
        RuntimeError: in :meth:`forward`, for negative weights
            (:mod:`~torchrl_logo.objectives.value_checks`).

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl_logo.data import TaskSpec
        >>> from torchrl_logo.modules import make_gaussian_actor
        >>> from torchrl_logo.modules.decentralized_mlp import DecentralizedMLP
        >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=1,
        ...                 action_low=(-1.0,), action_high=(1.0,))
        >>> critic = TensorDictModule(
        ...     DecentralizedMLP(3 + 1, 1, n_agents=2, num_cells=(64, 64)),
        ...     in_keys=[("agents", "observation"), ("agents", "action")],
        ...     out_keys=[("agents", "state_action_value")])
        >>> loss = OMARLoss(make_gaussian_actor(spec), critic, action_spec=spec.action_spec())
        >>> batch = TensorDict({
        ...     "agents": {"observation": torch.randn(8, 2, 3), "action": torch.zeros(8, 2, 1)},
        ...     "next": {
        ...         "agents": {"observation": torch.randn(8, 2, 3)}, "reward": torch.ones(8, 1),
        ...         "done": torch.zeros(8, 1, dtype=torch.bool),
        ...         "terminated": torch.zeros(8, 1, dtype=torch.bool),
        ...     },
        ... }, [8])
        >>> [key for key in loss(batch).keys() if key.startswith("loss_")]
        ['loss_qvalue', 'loss_cql', 'loss_actor']
    """

    @dataclass
    class _AcceptedKeys(TwinDelayedLoss._AcceptedKeys):
        """Keys that can be renamed with ``set_keys``: the base's.

        Attributes:
            state_action_value: what the critic writes, ``[*, N, 1]``.
        """

        state_action_value: NestedKey = ("agents", "state_action_value")

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys = [
        "loss_qvalue",
        "loss_cql",
        "loss_actor",
        "pred_value",
        "target_value",
        "conservative_gap",
        "search_distance",
        "search_gain",
    ]

    def __init__(
        self,
        actor_network: TensorDictModuleBase,
        qvalue_network: TensorDictModule | list[TensorDictModule],
        *,
        action_spec: TensorSpec,
        rectification_coeff: float = 0.7,
        search_iterations: int = 3,
        search_samples: int = 10,
        search_std: float = 2.0,
        search_beta: float = 1.0,
        min_q_weight: float = 1.0,
        temperature: float = 1.0,
        num_samples: int = 10,
        proposal_std: float = 0.2,
        **kwargs: Any,
    ) -> None:
        if not 0 <= rectification_coeff <= 1:
            raise ValueError(
                f"OMARLoss: rectification_coeff must be in [0, 1], found {rectification_coeff}."
            )
        for name, value, low in (
            ("search_iterations", search_iterations, 1),
            ("search_samples", search_samples, 1),
            ("search_beta", search_beta, 0.0),
            ("min_q_weight", min_q_weight, 0.0),
            ("num_samples", num_samples, 1),
        ):
            if value < low:
                raise ValueError(f"OMARLoss: {name} must be at least {low}, found {value}.")
        for name, value in (
            ("search_std", search_std),
            ("temperature", temperature),
            ("proposal_std", proposal_std),
        ):
            if value <= 0:
                raise ValueError(f"OMARLoss: {name} must be positive, found {value}.")
        super().__init__(actor_network, qvalue_network, action_spec=action_spec, **kwargs)
        self.rectification_coeff = rectification_coeff
        self.search_iterations = search_iterations
        self.search_samples = search_samples
        self.search_std = search_std
        self.search_beta = search_beta
        self.min_q_weight = min_q_weight
        self.temperature = temperature
        self.num_samples = num_samples
        self.proposal_std = proposal_std

    @property
    def value_shape(self) -> tuple[int, ...]:
        """One value for each agent."""
        return (self.half_range.shape[0], 1)

    def _to_units(self, action: torch.Tensor) -> torch.Tensor:
        """Actions in half ranges from the middle of the range."""
        return (action - self.action_low) / self.half_range - 1

    def _from_units(self, unit: torch.Tensor) -> torch.Tensor:
        """The inverse of :meth:`_to_units`."""
        return self.action_low + (unit + 1) * self.half_range

    def _draw_uniform(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Actions ``[n, *batch, N, d_a]``, and their log-densities for each agent."""
        shape = (self.num_samples, *like.shape)
        share = torch.rand(shape, device=self.half_range.device, dtype=self.half_range.dtype)
        action = self._from_units(2 * share - 1)
        log_density = -(2 * self.half_range).log().sum(-1)  # [N]
        return action, log_density.expand(action.shape[:-1])

    def _draw_near(self, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Draws ``[n, *batch, N, d_a]`` around actions, and their log-densities for each agent.

        They are from a Gaussian that is cut off at the bounds.
        """
        std = self.proposal_std
        # a policy outside the bounds would leave no mass within them
        centre = self._to_units(action).clamp(-1, 1)
        below = torch.special.ndtr((-1 - centre) / std)
        mass = torch.special.ndtr((1 - centre) / std) - below
        shape = (self.num_samples, *action.shape)
        share = torch.rand(shape, device=centre.device, dtype=centre.dtype)
        unit = centre + std * torch.special.ndtri(below + share * mass)
        unit = unit.clamp(-1, 1)  # in the far tail the quantile is infinite
        log_density = (
            -0.5 * ((unit - centre) / std).square()
            - math.log(std * math.sqrt(2 * math.pi))
            - (mass * self.half_range).log()
        )
        return self._from_units(unit), log_density.sum(-1)

    def _gap(
        self, tensordict: TensorDictBase, pred_value: torch.Tensor, here: torch.Tensor
    ) -> torch.Tensor:
        """Soft maxima over actions above the values of the data's, ``[nets, *batch, N]``.

        Args:
            tensordict (TensorDictBase): the batch.
            pred_value (torch.Tensor): values of the data's actions, ``[nets, *batch, N]``.
            here (torch.Tensor): the policy's actions, ``[*batch, N, d_a]``.
        """
        with torch.no_grad():
            there = self._act(tensordict.get("next"), self.actor_network_params)
            draws = (self._draw_uniform(here), self._draw_near(here), self._draw_near(there))
            actions, log_density = (torch.cat(parts, 0) for parts in zip(*draws, strict=True))
        # [nets, 3n, B, N]
        values = self._value(tensordict, actions, self.qvalue_network_params)
        soft_maximum = self.temperature * (
            torch.logsumexp(values / self.temperature - log_density, 1)
            - math.log(3 * self.num_samples)
        )
        return soft_maximum - pred_value

    @torch.no_grad()
    def _search(
        self, tensordict: TensorDictBase, action: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The best actions that are found, ``[*batch, N, d_a]``, and their values.

        Args:
            tensordict (TensorDictBase): the batch.
            action (torch.Tensor): the policy's actions, ``[*batch, N, d_a]``.
            value (torch.Tensor): what they are worth, ``[*batch, N]``.
        """
        mean = torch.zeros_like(self._to_units(action))
        std = torch.full_like(mean, self.search_std)
        for _ in range(self.search_iterations):
            normal = Normal(mean, std, validate_args=False)
            unit = normal.rsample((self.search_samples,)).clamp(-1, 1)  # [K, B, N, d_a]
            candidates = self._from_units(unit)
            values = self._first_value(tensordict, candidates)  # [K, B, N]
            share = torch.softmax(self.search_beta * values, 0).unsqueeze(-1)
            std = (unit - mean).square().mean(0).sqrt()
            mean = (share * unit).sum(0)
        candidates = torch.cat([action.unsqueeze(0), candidates], 0)
        values = torch.cat([value.unsqueeze(0), values], 0)  # [1 + K, B, N]
        best = values.argmax(0, keepdim=True)
        chosen = candidates.take_along_dim(best.unsqueeze(-1), 0).squeeze(0)
        return chosen, values.take_along_dim(best, 0).squeeze(0)

    def _improve(
        self,
        tensordict: TensorDictBase,
        pred_value: torch.Tensor,
        weights: torch.Tensor | None,
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        action = self._act(tensordict, self.actor_network_params)  # [B, N, d_a]
        gap = self._gap(tensordict, pred_value, action.detach())  # [nets, B, N]
        value = self._first_value(tensordict, action)  # [B, N]
        best, best_value = self._search(tensordict, action.detach(), value.detach())
        distance = ((action - best) / self.half_range).square().sum(-1)  # [B, N]
        coeff = self.rectification_coeff
        losses = {
            "loss_cql": self.min_q_weight * gap.sum(0),
            "loss_actor": coeff * distance - (1 - coeff) * value,
        }
        statistics = {
            "conservative_gap": gap.mean(0),
            "search_distance": distance,
            "search_gain": best_value - value,
        }
        return losses, statistics
