"""Behaviour cloning (BC) of a team."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictSequential, dispatch
from tensordict.utils import NestedKey
from torchrl.objectives import LossModule

__all__ = ["BCLoss"]


class BCLoss(LossModule):
    r"""Maximum likelihood of the dataset's actions, each agent from its own observation.

    .. math:: L_{actor} = - \frac{1}{N} \sum_i \log \pi_i(a_i | o_i)

    Args:
        actor_network (ProbabilisticTensorDictSequential): stochastic actor; continuous (density)
            or discrete (log-probability, with the mask it reads itself). Its distribution's
            ``log_prob`` is per agent, ``[*, N]``, or joint, ``[*]``.

    Keyword Args:
        action_margin (float): continuous actions closer than this to the bounds are moved that
            far inside before they are scored, since the density of a squashed Gaussian has no
            finite maximum at the bound. Needs ``action_spec``. Defaults to ``1e-3``.
        action_spec (TensorSpec, optional): bounds of the joint action, ``[N, d_a]``. Without it
            actions are scored as they are.
        reduction (str): ``"none"``, ``"mean"`` or ``"sum"``. Defaults to ``"mean"``.

    Reads the actor's input keys, the action, and optionally ``"priority_weight"`` ``[*]``.
    Writes ``"loss_actor"`` and the detached ``"bc_log_prob"``.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_logo.data import TaskSpec
        >>> from torchrl_logo.modules import make_gaussian_actor
        >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=1,
        ...                 action_low=(-1.0,), action_high=(1.0,))
        >>> loss = BCLoss(make_gaussian_actor(spec), action_spec=spec.action_spec())
        >>> batch = TensorDict({"agents": {"observation": torch.zeros(8, 2, 3),
        ...                                "action": torch.zeros(8, 2, 1)}}, [8])
        >>> loss(batch)["loss_actor"].shape
        torch.Size([])
    """

    @dataclass
    class _AcceptedKeys:
        """Keys that can be renamed with ``set_keys``.

        Attributes:
            action: the joint action, ``[*, N, d_a]`` or ``[*, N]``.
            priority_weight: importance weight of a transition, ``[*]`` (optional).
        """

        action: NestedKey = ("agents", "action")
        priority_weight: NestedKey = "priority_weight"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    discrete = True
    continuous = True
    out_keys = ["loss_actor", "bc_log_prob"]

    actor_network: ProbabilisticTensorDictSequential
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        *,
        action_spec: torch.nn.Module | None = None,
        action_margin: float = 1e-3,
        reduction: str | None = None,
        use_prioritized_weights: str | bool = "auto",
    ) -> None:
        if action_margin < 0:
            raise ValueError(f"BCLoss: action_margin must not be negative, found {action_margin}.")
        super().__init__()
        self.use_prioritized_weights = use_prioritized_weights
        self.convert_to_functional(actor_network, "actor_network", create_target_params=False)
        self.reduction = "mean" if reduction is None else reduction
        device = next(self.parameters()).device
        self.bounded = getattr(getattr(action_spec, "space", None), "low", None) is not None
        if self.bounded:
            margin = action_margin * (action_spec.space.high - action_spec.space.low) / 2
            self.register_buffer("action_low", (action_spec.space.low + margin).to(device))
            self.register_buffer("action_high", (action_spec.space.high - margin).to(device))

    def _forward_value_estimator_keys(self, **kwargs: NestedKey) -> None:
        """Nothing to forward: behaviour cloning has no values."""

    @property
    def in_keys(self) -> list[NestedKey]:
        """What the loss reads; ``"priority_weight"`` is optional."""
        return [*self.actor_network.in_keys, self.tensor_keys.action]

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Computes the negative log-likelihood of a batch of transitions."""
        action = tensordict.get(self.tensor_keys.action)
        if self.bounded:
            action = torch.clamp(action, self.action_low, self.action_high)
        weights = self._maybe_get_priority_weight(tensordict)
        with self.actor_network_params.to_module(self.actor_network, preserve_module_state=False):
            inputs = tensordict.select(*self.actor_network.in_keys, strict=True)
            log_prob = self.actor_network.get_dist(inputs).log_prob(action)
        agents = action.shape[tensordict.ndim]
        log_prob = log_prob.reshape(*tensordict.batch_size, -1).sum(-1) / agents  # [B]
        loss = self._reduce_loss(-log_prob, tensordict=tensordict, weights=weights)
        detached = log_prob.detach()
        none = self.reduction == "none"
        result = TensorDict(
            {"loss_actor": loss, "bc_log_prob": detached if none else detached.mean()},
            batch_size=tensordict.batch_size if none else [],
        )
        self._clear_weakrefs(
            tensordict, result, "actor_network_params", "target_actor_network_params"
        )
        return result
