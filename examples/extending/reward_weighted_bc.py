"""A loss of your own: behaviour cloning that imitates well-rewarded actions more.

Copy this file to ``torchrl_logo/objectives/`` and export the class there, or keep it in a project
of your own: ``OfflineTrainer(RewardWeightedBCLoss(actor), dataset, steps=...)`` trains it as it is.
In the folder it needs a file in ``tests/objectives/loss_cases/``, and is held to the contract of
all losses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictSequential, dispatch
from tensordict.utils import NestedKey
from torchrl.objectives import LossModule

from torchrl_logo.objectives.joint_density import sum_over_agents
from torchrl_logo.objectives.required_keys import match_batch_size, require_keys
from torchrl_logo.objectives.value_checks import read_weights

__all__ = ["RewardWeightedBCLoss"]

LARGEST_WEIGHT = 20.0


class RewardWeightedBCLoss(LossModule):
    r"""Log-likelihood of the data's actions, weighted by their reward.

    .. math:: L_{actor} = - \min(e^{r / \beta}, 20) \frac{1}{N} \sum_i \log \pi_i(a_i | o_i)

    Args:
        actor_network (ProbabilisticTensorDictSequential): stochastic actor, with a density of each
            agent's action ``[*, N]``.

    Keyword Args:
        temperature (float): :math:`\beta`. Defaults to ``1.0``.
        reduction (str): ``"none"``, ``"mean"`` or ``"sum"``. Defaults to ``"mean"``.
    """

    # 1. Which keys can be renamed with set_keys(), and what they are called otherwise.
    @dataclass
    class _AcceptedKeys:
        action: NestedKey = ("agents", "action")  # [*, N, d_a]
        reward: NestedKey = "reward"  # under "next", [*, 1]
        priority_weight: NestedKey = "priority_weight"  # [*], optional

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys = ["loss_actor", "reward_weight"]

    # 2. What it can do; documentation and trainers ask.
    continuous, discrete, recurrent = True, False, False

    actor_network: ProbabilisticTensorDictSequential
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        *,
        temperature: float = 1.0,
        reduction: str = "mean",
    ) -> None:
        # 3. Wrong arguments are refused here, and not by what they lead to.
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, found {temperature}.")
        super().__init__()
        self.temperature = temperature
        self.reduction = reduction
        self.use_prioritized_weights = "auto"
        # 4. The network is called with parameters that are held apart from it. With
        #    create_target_params=True there are target parameters for SoftUpdate, too.
        self.convert_to_functional(actor_network, "actor_network")

    def _forward_value_estimator_keys(self, **kwargs: NestedKey) -> None:
        """Nothing to forward: there are no values."""

    @property
    def in_keys(self) -> list[NestedKey]:
        """What is read, by the names of the moment."""
        keys = self.tensor_keys
        return [*self.actor_network.in_keys, keys.action, ("next", keys.reward)]

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Computes the loss of a batch of transitions ``[*]``."""
        require_keys(tensordict, self.in_keys, "RewardWeightedBCLoss")
        tensordict = match_batch_size(tensordict, self.tensor_keys.action, action_ndim=2)
        action = tensordict.get(self.tensor_keys.action)
        reward = tensordict.get(("next", self.tensor_keys.reward)).squeeze(-1)  # [*]
        weight = (reward / self.temperature).exp().clamp_max(LARGEST_WEIGHT)
        with self.actor_network_params.to_module(self.actor_network):
            inputs = tensordict.select(*self.actor_network.in_keys)
            log_prob = self.actor_network.get_dist(inputs).log_prob(action)  # [*, N]
        agents = action.shape[tensordict.ndim]
        loss = -weight * sum_over_agents(log_prob, tensordict.batch_size) / agents  # [*]
        # 5. TorchRL's reduction heeds masks of padded steps; weights are those of prioritised
        #    buffers. Entries that start with "loss_" are summed by trainers, others are logged.
        loss = self._reduce_loss(
            loss, tensordict=tensordict, weights=read_weights(self, tensordict)
        )
        if self.reduction != "none":
            weight = self._reduce_loss(weight, tensordict=tensordict, reduction="mean")
        out = {"loss_actor": loss, "reward_weight": weight}
        return TensorDict(
            out, tensordict.batch_size if self.reduction == "none" else torch.Size([])
        )
