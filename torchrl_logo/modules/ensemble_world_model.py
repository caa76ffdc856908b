"""An ensemble of joint world models, the usual way to an uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.modules.input_scales import read_on_scales
from torchrl_logo.modules.joint_world_model import JointHeads, JointWorldModel
from torchrl_logo.modules.world_model import Prediction

__all__ = ["EnsembleWorldModel"]


class _StackedLinear(nn.Module):
    """The linear layers of all members as one batched product: ``[M, B, in]`` to ``[M, B, out]``.

    Each member's weights are drawn on their own, as :class:`torch.nn.Linear` draws them.
    """

    def __init__(
        self, members: int, inputs: int, outputs: int, *, device: torch.device | str | None
    ) -> None:
        super().__init__()
        layers = [nn.Linear(inputs, outputs, device=device) for _ in range(members)]
        self.weight = nn.Parameter(torch.stack([layer.weight.detach().T for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(self.bias.unsqueeze(1), x, self.weight)


class EnsembleWorldModel(JointWorldModel):
    r"""Several joint models, evaluated at once, that differ in their initial weights.

    The prediction is the members' mean; the uncertainty is their disagreement about the next
    state, the root mean square over features and members of the deviation from the mean,

    .. math:: u = \sqrt{\frac{1}{M d} \sum_{m, k} (\Delta_{m,k} - \bar\Delta_k)^2},

    in standard deviations of the state's one-step change.

    Args:
        spec (TaskSpec): the task's sizes.

    Keyword Args:
        hidden_size (int): width of each member's hidden layers. Defaults to ``256``.
        depth (int): number of hidden layers. Defaults to ``2``.
        members (int): number of members. Defaults to ``5``.
        frequencies (Sequence[float]): on which the state is read, as by
            :class:`JointWorldModel`. Defaults to none.
        device (torch.device, optional): where parameters and buffers are made.

    Examples:
        >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=1,
        ...                 action_low=(-1.0,), action_high=(1.0,))
        >>> model = EnsembleWorldModel(spec, hidden_size=8, members=3)
        >>> zeros = torch.zeros(6, 4), torch.zeros(6, 2, 3), torch.zeros(6, 2, 1)
        >>> bool((model.predict(*zeros).uncertainty > 0).all())
        True
    """

    has_uncertainty: ClassVar[bool] = True

    def __init__(
        self,
        spec: TaskSpec,
        *,
        hidden_size: int = 256,
        depth: int = 2,
        members: int = 5,
        frequencies: Sequence[float] = (),
        device: torch.device | str | None = None,
    ) -> None:
        if members < 2:
            raise ValueError(f"An ensemble needs two members or more, found {members}.")
        self._members = members
        super().__init__(
            spec, hidden_size=hidden_size, depth=depth, frequencies=frequencies, device=device
        )
        self.config["members"] = members

    @property
    def members(self) -> int:
        """Number of members, ``M``."""
        return self._members

    def _make_network(
        self, inputs: int, outputs: int, device: torch.device | str | None
    ) -> nn.Sequential:
        widths = [inputs, *[self.config["hidden_size"]] * self.config["depth"], outputs]
        layers: list[nn.Module] = []
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            layers += [_StackedLinear(self._members, before, after, device=device), nn.SiLU()]
        return nn.Sequential(*layers[:-1])

    @property
    def termination_bias(self) -> torch.Tensor:
        """Bias of the members' termination heads, ``[M, 1]``."""
        first = sum(self._sizes[:3])
        return self.network[-1].get_parameter("bias").data[:, first : first + 1]

    def predict_heads(self, state: torch.Tensor, action: torch.Tensor) -> JointHeads:
        """The members' predictions from standardised values, the members in front.

        Args:
            state (torch.Tensor): ``[M, *, d_s]``, an input for each member.
            action (torch.Tensor): ``[M, *, N, d_a]``.
        """
        inputs = torch.cat([read_on_scales(state, self.frequencies), action.flatten(-2)], -1)
        batch = inputs.shape[1:-1]
        out = self.network(inputs.flatten(1, -2) if len(batch) else inputs.unsqueeze(1))
        return self._split_heads(out.reshape(self._members, *batch, out.shape[-1]))

    def predict(
        self, state: torch.Tensor, observation: torch.Tensor, action: torch.Tensor
    ) -> Prediction:
        """Predicts the next step from tensors; see :class:`~torchrl_logo.modules.WorldModel`."""
        state_n = self.state_normalizer.normalize(state)
        action = self.encode_action(action)
        heads = self.predict_heads(
            state_n.expand(self._members, *state_n.shape),
            action.expand(self._members, *action.shape),
        )
        varies = (self.state_delta_normalizer.inverse_scale > 0).to(state.dtype)
        variance = heads.state_delta.var(0, correction=0)  # [*, d_s]
        mean_variance = (variance * varies).sum(-1, keepdim=True) / varies.sum().clamp_min(1)
        mask_logit = heads.action_mask_logit
        # Probabilities are averaged, not log-odds: one certain member must not outvote the rest.
        mean = JointHeads(
            state_delta=heads.state_delta.mean(0),
            observation_delta=heads.observation_delta.mean(0),
            reward=heads.reward.mean(0),
            termination_logit=_mean_logit(heads.termination_logit),
            action_mask_logit=None if mask_logit is None else _mean_logit(mask_logit),
        )
        return self._to_units(mean, state, observation, mean_variance.sqrt())


def _mean_logit(logit: torch.Tensor) -> torch.Tensor:
    """Log-odds of the mean probability over the first dimension."""
    return torch.logsumexp(F.logsigmoid(logit), 0) - torch.logsumexp(F.logsigmoid(-logit), 0)
