"""The joint world model: the comparison that local-to-global models are held against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from torchrl.modules import MLP

from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.modules.input_scales import read_on_scales
from torchrl_logo.modules.world_model import Prediction, WorldModel

__all__ = ["JointHeads", "JointWorldModel"]


class JointHeads(NamedTuple):
    """What the joint network says, in standardised units.

    Attributes:
        state_delta: change of the global state, ``[*, d_s]``.
        observation_delta: change of the local observations, ``[*, N, d_o]``.
        reward: team reward, ``[*, 1]``.
        termination_logit: ``[*, 1]``.
        action_mask_logit: ``[*, N, A]``, or ``None`` for continuous actions.
    """

    state_delta: torch.Tensor
    observation_delta: torch.Tensor
    reward: torch.Tensor
    termination_logit: torch.Tensor
    action_mask_logit: torch.Tensor | None


class JointWorldModel(WorldModel):
    """One network from the state and the joint action to everything that comes next.

    Works on standardised values and changes, as :class:`LOGOWorldModel` does, and follows the
    same contract. It has no estimate of its uncertainty: ``"uncertainty"`` is written as zeros
    and :attr:`has_uncertainty` is ``False``.

    Args:
        spec (TaskSpec): the task's sizes.

    Keyword Args:
        hidden_size (int): width of the hidden layers. Defaults to ``256``.
        depth (int): number of hidden layers. Defaults to ``2``.
        match_parameters (int, optional): the number of parameters to have, in place of
            ``hidden_size``: the width that comes closest is taken.
        frequencies (Sequence[float]): on which the state is read, see
            :func:`~torchrl_logo.modules.read_on_scales`. Defaults to none.
        device (torch.device, optional): where parameters and buffers are made.

    Examples:
        >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=1,
        ...                 action_low=(-1.0,), action_high=(1.0,))
        >>> model = JointWorldModel(spec, match_parameters=10_000)
        >>> 9_500 < sum(p.numel() for p in model.parameters()) < 10_500
        True
    """

    has_uncertainty: ClassVar[bool] = False

    def __init__(
        self,
        spec: TaskSpec,
        *,
        hidden_size: int = 256,
        depth: int = 2,
        match_parameters: int | None = None,
        frequencies: Sequence[float] = (),
        device: torch.device | str | None = None,
    ) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1, found {depth}.")
        super().__init__(spec, device=device)
        self.frequencies = [float(frequency) for frequency in frequencies]
        inputs = (1 + 2 * len(self.frequencies)) * spec.state_size
        inputs += spec.n_agents * spec.action_size
        self._sizes = [spec.state_size, spec.n_agents * spec.observation_size, 1, 1]
        if spec.discrete:
            self._sizes.append(spec.n_agents * spec.action_size)
        if match_parameters is not None:
            hidden_size = _match_width(inputs, sum(self._sizes), depth, match_parameters)
        if hidden_size < 1:
            raise ValueError(f"hidden_size must be at least 1, found {hidden_size}.")
        self.config: dict[str, Any] = {
            "hidden_size": hidden_size,
            "depth": depth,
            "frequencies": self.frequencies,
        }
        self.network = self._make_network(inputs, sum(self._sizes), device)

    def _make_network(
        self, inputs: int, outputs: int, device: torch.device | str | None
    ) -> nn.Sequential:
        return MLP(
            in_features=inputs,
            out_features=outputs,
            num_cells=[self.config["hidden_size"]] * self.config["depth"],
            activation_class=nn.SiLU,
            device=device,
        )

    @property
    def termination_bias(self) -> torch.Tensor:
        """Bias of the termination head, ``[1]``."""
        first = sum(self._sizes[:3])
        return self.network[-1].get_parameter("bias").data[first : first + 1]

    def predict_heads(self, state: torch.Tensor, action: torch.Tensor) -> JointHeads:
        """The network on standardised values.

        Args:
            state (torch.Tensor): standardised, ``[*, d_s]``.
            action (torch.Tensor): as :meth:`encode_action` returns it, ``[*, N, d_a]``.
        """
        scaled = read_on_scales(state, self.frequencies)
        return self._split_heads(self.network(torch.cat([scaled, action.flatten(-2)], -1)))

    def _split_heads(self, out: torch.Tensor) -> JointHeads:
        """The network's output ``[*, outputs]`` by what it predicts."""
        heads = out.split(self._sizes, -1)
        agents = (self.spec.n_agents, -1)
        return JointHeads(
            state_delta=heads[0],
            observation_delta=heads[1].unflatten(-1, agents) * self.observation_mask,
            reward=heads[2],
            termination_logit=heads[3],
            action_mask_logit=heads[4].unflatten(-1, agents) if self.spec.discrete else None,
        )

    def predict(
        self, state: torch.Tensor, observation: torch.Tensor, action: torch.Tensor
    ) -> Prediction:
        """Predicts the next step from tensors; see :class:`WorldModel`."""
        heads = self.predict_heads(
            self.state_normalizer.normalize(state), self.encode_action(action)
        )
        return self._to_units(heads, state, observation, torch.zeros_like(heads.reward))

    def _to_units(
        self,
        heads: JointHeads,
        state: torch.Tensor,
        observation: torch.Tensor,
        uncertainty: torch.Tensor,
    ) -> Prediction:
        change = self.observation_delta_normalizer.denormalize(heads.observation_delta)
        return Prediction(
            state=state + self.state_delta_normalizer.denormalize(heads.state_delta),
            observation=(observation + change) * self.observation_mask,
            reward=self.expect_reward(heads.reward, heads.termination_logit),
            termination_logit=heads.termination_logit,
            action_mask_logit=heads.action_mask_logit,
            uncertainty=uncertainty,
        )


def _match_width(inputs: int, outputs: int, depth: int, parameters: int) -> int:
    """The width of the network whose number of parameters comes closest to the one given."""

    def count(width: int) -> int:
        return (inputs + 1) * width + (depth - 1) * (width + 1) * width + (width + 1) * outputs

    width = 1
    while count(width + 1) <= parameters:
        width += 1
    return min((width, width + 1), key=lambda w: abs(count(w) - parameters))
