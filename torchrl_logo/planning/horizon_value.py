"""What a team's future is worth beyond the last step of a plan."""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import nn

from torchrl_logo.modules.world_model import WorldModel
from torchrl_logo.objectives.available_actions import fill_unavailable

__all__ = ["HorizonValue"]


class HorizonValue(nn.Module):
    """The value of the state in which a plan ends, by a trained critic.

    A centralised critic values the policy's own deterministic action there; a state-value network
    reads no action and is asked as it is. With a mixer, the critic is a network of the agents'
    utilities, and the value is the mixed value of each agent's best available action.

    Args:
        value_network (TensorDictModuleBase): reads what the world model predicts and, if it
            wants, the joint action, and writes ``value_key``; with a mixer, reads local
            observations and writes ``action_value_key`` ``[*, N, A]``.
        world_model (WorldModel): names the keys.

    Keyword Args:
        mixer_network (TensorDictModuleBase, optional): reads ``local_value_key`` ``[*, N, 1]`` and
            writes ``value_key`` (:func:`~torchrl_logo.modules.make_mixer`).
        value_key (NestedKey, optional): the team's value, ``[*, 1]``. Defaults to
            ``"state_action_value"``, or to ``"chosen_action_value"`` with a mixer.
        reward_scale (float): what rewards were multiplied by when the critic was trained: values
            are divided by it. Defaults to ``1.0``.
        action_value_key (NestedKey): the agents' utilities of each action.
        local_value_key (NestedKey): the agents' utilities of the chosen action.

    Raises:
        ValueError: if a network does not write its key, or a mixer is given for continuous
            actions, or ``reward_scale`` is not positive.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl_logo.data import TaskSpec
        >>> from torchrl_logo.modules import (
        ...     JointWorldModel, make_action_value_network, make_mixer)
        >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=5,
        ...                 discrete=True)
        >>> value = HorizonValue(make_action_value_network(spec), JointWorldModel(spec),
        ...                      mixer_network=make_mixer(spec, "vdn"))
        >>> data = TensorDict({"agents": {"observation": torch.zeros(7, 2, 3),
        ...                    "action_mask": torch.ones(7, 2, 5, dtype=torch.bool)}}, [7])
        >>> value(data, torch.zeros(7, 2, dtype=torch.int64)).shape
        torch.Size([7, 1])
    """

    def __init__(
        self,
        value_network: TensorDictModuleBase,
        world_model: WorldModel,
        *,
        mixer_network: TensorDictModuleBase | None = None,
        value_key: NestedKey | None = None,
        reward_scale: float = 1.0,
        action_value_key: NestedKey = ("agents", "action_value"),
        local_value_key: NestedKey = ("agents", "chosen_action_value"),
    ) -> None:
        super().__init__()
        if mixer_network is not None and not world_model.spec.discrete:
            raise ValueError("mixer_network needs discrete actions; the task's are continuous.")
        if not reward_scale > 0:
            raise ValueError(f"reward_scale must be positive, found {reward_scale}.")
        if value_key is None:
            value_key = "state_action_value" if mixer_network is None else "chosen_action_value"
        written = {
            "value_network": (value_network, value_key if mixer_network is None else None),
            "mixer_network": (mixer_network, value_key),
        }
        if mixer_network is not None:
            written["value_network"] = (value_network, action_value_key)
        for name, (network, key) in written.items():
            if network is not None and key not in list(network.out_keys):
                raise ValueError(f"{name} must write {key!r}, found {list(network.out_keys)}.")
        self.value_network = value_network
        self.mixer_network = mixer_network
        self.keys = world_model.tensor_keys
        self.value_key = value_key
        self.reward_scale = reward_scale
        self.action_value_key = action_value_key
        self.local_value_key = local_value_key

    def forward(self, tensordict: TensorDictBase, action: torch.Tensor) -> torch.Tensor:
        """Values the states in ``tensordict``.

        Args:
            tensordict (TensorDictBase): states, observations and masks ``[*]``; not written to.
            action (torch.Tensor): the policy's joint action in them, ``[*, N, d_a]`` or
                ``[*, N]``.

        Returns:
            Values ``[*, 1]``.
        """
        inputs = tensordict.copy()
        inputs.set(self.keys.action, action)
        self.value_network(inputs)
        if self.mixer_network is not None:
            utilities = inputs.get(self.action_value_key)  # [*, N, A]
            utilities = fill_unavailable(utilities, inputs.get(self.keys.action_mask))
            inputs.set(self.local_value_key, utilities.amax(-1, keepdim=True))
            self.mixer_network(inputs)
        return inputs.get(self.value_key) / self.reward_scale
