"""LOGO-MPC: a trained policy, its critic and its world model as a planner."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.objectives import LossModule

from torchrl_logo.data import OfflineDataset
from torchrl_logo.envs import ImaginedEnv
from torchrl_logo.modules.world_model import WorldModel
from torchrl_logo.planning import LOGOMPC

__all__ = ["PLANNING", "make_planner"]

# The planner's settings, the same on all datasets: small, since it plans at each step of each
# episode.
PLANNING = {"planning_horizon": 4, "num_candidates": 32, "num_elites": 4, "iterations": 2}


class _LowerValue(TensorDictModuleBase):
    """The least of a loss' critics, which its targets are made of as well."""

    def __init__(self, loss: LossModule) -> None:
        super().__init__()
        self.in_keys = list(loss.qvalue_network.in_keys)
        self.out_keys = ["state_action_value"]
        # a loss is no part of the planner: nothing here is trained
        self._critic = [loss.qvalue_network]
        self._parameters_of_critics = loss.qvalue_network_params.data.unbind(0)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        inputs = tensordict.select(*self.in_keys)
        values = []
        for parameters in self._parameters_of_critics:
            with parameters.to_module(self._critic[0]):
                values.append(self._critic[0](inputs.copy()).get(self.out_keys[0]))
        return tensordict.set(self.out_keys[0], torch.stack(values).amin(0))


def make_planner(
    loss: LossModule,
    policy: TensorDictModuleBase,
    world_model: WorldModel,
    dataset: OfflineDataset,
    *,
    gamma: float,
    reward_scale: float,
) -> LOGOMPC:
    """Makes the planner of a trained loss, with :data:`PLANNING`.

    Args:
        loss (LossModule): MACQL's, of either kind of actions.
        policy (TensorDictModuleBase): the policy that it trained.
        world_model (WorldModel): imagines.
        dataset (OfflineDataset): of the task.

    Keyword Args:
        gamma (float): the critic's discount.
        reward_scale (float): what rewards were multiplied by when it was trained.
    """
    env = ImaginedEnv(
        world_model, dataset, batch_size=(), horizon=int(PLANNING["planning_horizon"])
    )
    networks: dict[str, TensorDictModuleBase] = {}
    if dataset.spec.discrete:
        networks["value_network"] = loss.action_value_network
        networks["mixer_network"] = loss.mixer_network
    else:
        networks["value_network"] = _LowerValue(loss)
    return LOGOMPC(env, policy, gamma=gamma, reward_scale=reward_scale, **networks, **PLANNING)
