"""Multi-agent TD3 with behaviour cloning (MATD3+BC)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from tensordict.utils import NestedKey
from torchrl.data import TensorSpec

from torchrl_logo.objectives.imagined_rows import find_real_rows, restrict_rows, weigh_rows
from torchrl_logo.objectives.shared_batch import mean_over_processes
from torchrl_logo.objectives.twin_delayed import TwinDelayedLoss

__all__ = ["MATD3BCLoss"]


class MATD3BCLoss(TwinDelayedLoss):
    r"""TD3+BC with centralised twin critics and decentralised deterministic actors.

    The team is one learner with the joint action :math:`a = (a_1, \dots, a_N)`; its policy
    :math:`\pi(o) = (\pi_1(o_1), \dots, \pi_N(o_N))` is deterministic, and each agent sees its own
    observation. With the bounds :math:`l, h` of actions:

    .. math::

        y &= r + \gamma (1 - d) \min_k \bar Q_k(s', a'), \quad
            a' = \operatorname{clip}\Big(\bar \pi(o') + \tfrac{h - l}{2} \epsilon,\, l,\, h\Big), \;
            \epsilon \sim \operatorname{clip}\big(N(0, \sigma^2), -c, c\big) \\
        L_{qvalue} &= \sum_k \ell\big(Q_k(s, a), y\big) \\
        L_{actor} &= -\lambda\, Q_1\big(s, \pi(o)\big) + \frac{1}{N d_a} \sum_{i, m}
            \Big(\frac{\pi_i(o_i) - a_i}{(h - l) / 2}\Big)_m^2, \quad
            \lambda = \frac{\alpha}{\operatorname{mean} |Q_1(s, a)|}

    Sources: TD3+BC (Fujimoto and Gu 2021, "A Minimalist Approach to Offline Reinforcement
    Learning", arXiv 2106.06860, section 5) on TD3 (Fujimoto et al. 2018, sections 4.2 and 5.3). As
    in the paper's formula, :math:`\lambda` is made from the values of the data's actions, over the
    batch and without a gradient; reference code takes those of the policy's. Ours is that noise
    and distance are measured in units of half the action range (the paper's tasks have range
    :math:`[-1, 1]`, where it is the same). The paper standardises observations: give the networks
    a normaliser.

    All losses are computed at each call. TD3 updates the actor and all targets at every second
    update of the critics only, which is the training loop's to do: leave ``"loss_actor"`` out of
    the sum, and :class:`~torchrl.objectives.SoftUpdate` out of the step, at the others.

    Where a batch says which transitions are ``"imagined"``, the distance to the data's action
    leaves those out (their actions are the policy's own). The rows that remain are scaled up, so
    that its mean over the batch is the mean (weighted, with weights) over the remaining rows,
    whatever their share.

    With ``"priority_weight"`` in the batch, each loss is :math:`\sum w l / \sum w` under
    ``"mean"``, :math:`\sum w l` under ``"sum"`` and :math:`w l` under ``"none"``. Weights must not
    be negative, which is checked, and not all zero. :math:`\lambda` is not weighted.

    Args:
        actor_network (TensorDictModule): reads observations, writes the action ``[*, N, d_a]``.
            Of a probabilistic one the deterministic action is taken. Actions should be within the
            bounds; only those of the target are clipped.
        qvalue_network (TensorDictModule or list of them): reads the state and the joint action,
            writes ``"state_action_value"`` ``[*, 1]``. A single network is copied
            ``num_qvalue_nets`` times onto one stacked axis, and each copy is initialised anew.

    Keyword Args:
        action_spec (TensorSpec): bounds of the joint action, ``[N, d_a]``, finite.
        alpha (float): :math:`\alpha`, what values count for against the data's actions; zero
            clones behaviour. Defaults to ``2.5``.
        num_qvalue_nets (int): number of critics. Defaults to ``2``.
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
    optionally ``"imagined"`` ``[*, 1]`` bool and ``"priority_weight"`` ``[*]``, and TorchRL's
    masks of padded steps (:attr:`loss_mask_key`). Writes ``"loss_qvalue"``, ``"loss_actor"``, and
    the detached, unweighted ``"pred_value"``, ``"target_value"``, ``"bc_error"`` (the distance to
    the data's action, in all rows) and ``"q_scale"`` (:math:`\lambda`).

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
        >>> loss = MATD3BCLoss(make_gaussian_actor(spec), make_centralized_critic(spec),
        ...                    action_spec=spec.action_spec())
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
        >>> [key for key in loss(batch).keys() if key.startswith("loss_")]
        ['loss_qvalue', 'loss_actor']
    """

    @dataclass
    class _AcceptedKeys(TwinDelayedLoss._AcceptedKeys):
        """Keys that can be renamed with ``set_keys``: the base's, and what is imagined.

        Attributes:
            imagined: whether a transition comes from a world model, ``[*, 1]`` (optional).
        """

        imagined: NestedKey = "imagined"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys = ["loss_qvalue", "loss_actor", "pred_value", "target_value", "bc_error", "q_scale"]

    def __init__(
        self,
        actor_network: TensorDictModuleBase,
        qvalue_network: TensorDictModule | list[TensorDictModule],
        *,
        action_spec: TensorSpec,
        alpha: float = 2.5,
        **kwargs: Any,
    ) -> None:
        if alpha < 0:
            raise ValueError(f"MATD3BCLoss: alpha must not be negative, found {alpha}.")
        super().__init__(actor_network, qvalue_network, action_spec=action_spec, **kwargs)
        self.alpha = alpha

    @property
    def value_shape(self) -> tuple[int, ...]:
        """One value for the team."""
        return (1,)

    def _improve(
        self,
        tensordict: TensorDictBase,
        pred_value: torch.Tensor,
        weights: torch.Tensor | None,
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        action = self._act(tensordict, self.actor_network_params)  # [B, N, d_a]
        value = self._first_value(tensordict, action)  # [B]
        size = self._reduce_loss(
            pred_value[0].detach().abs(), tensordict=tensordict, reduction="mean"
        )
        scale = self.alpha / mean_over_processes(size).clamp_min(1e-6)
        error = (action - tensordict.get(self.tensor_keys.action)) / self.half_range
        error = error.square().mean((-2, -1))  # [B]
        real = find_real_rows(tensordict, self.tensor_keys.imagined, "MATD3BCLoss")
        row_weights = weigh_rows(self, tensordict, weights, error)[1]
        loss_actor = -scale * value + restrict_rows(error, real, row_weights)
        statistics = {"bc_error": error, "q_scale": scale.expand(tensordict.batch_size)}
        return {"loss_actor": loss_actor}, statistics
