"""Rewards that fall with a world model's uncertainty."""

from __future__ import annotations

from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torchrl.envs import Transform

from torchrl_logo.modules.accumulated_uncertainty import recover_step_uncertainty

__all__ = ["UncertaintyPenalty"]


class UncertaintyPenalty(Transform):
    r"""Takes a world model's uncertainty off the imagined rewards, as MOPO does.

    .. math:: \tilde r = r - \lambda\, u(s, a)

    (Yu et al. 2020, "MOPO: Model-based Offline Policy Optimization", arXiv 2005.13239, section
    4.2). There :math:`u` is the largest norm of the ensemble members' standard deviations. Here
    it is what the model reports: for :class:`~torchrl_logo.modules.EnsembleWorldModel` the
    members' disagreement, since its members predict no variances.

    An :class:`~torchrl_logo.envs.ImaginedEnv` accumulates uncertainty along a rollout unless it
    was made with ``accumulate=False``; the step's own is recovered from the root's.

    Args:
        coefficient (float): :math:`\lambda`, in units of reward per unit of uncertainty; not
            negative.

    Keyword Args:
        accumulated (bool): whether the environment accumulates uncertainty along a rollout.
            Defaults to ``True``.
        reward_key (NestedKey): Defaults to ``"reward"``.
        uncertainty_key (NestedKey): Defaults to ``"uncertainty"``.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_logo.modules import accumulate_uncertainty
        >>> before = TensorDict({"uncertainty": torch.tensor([[3.0]])}, [1])
        >>> uncertainty = accumulate_uncertainty(before["uncertainty"], torch.tensor([[4.0]]))
        >>> after = TensorDict({"uncertainty": uncertainty, "reward": torch.ones(1, 1)}, [1])
        >>> UncertaintyPenalty(2.0)._step(before, after)["reward"]
        tensor([[-7.]])
    """

    def __init__(
        self,
        coefficient: float,
        *,
        accumulated: bool = True,
        reward_key: NestedKey = "reward",
        uncertainty_key: NestedKey = "uncertainty",
    ) -> None:
        if not coefficient >= 0:
            raise ValueError(f"coefficient must not be negative, found {coefficient}.")
        super().__init__(in_keys=[reward_key], out_keys=[reward_key])
        self.coefficient = coefficient
        self.accumulated = accumulated
        self.reward_key = reward_key
        self.uncertainty_key = uncertainty_key

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        uncertainty = next_tensordict.get(self.uncertainty_key)
        if self.accumulated:
            before = tensordict.get(self.uncertainty_key)
            uncertainty = recover_step_uncertainty(before, uncertainty)
        reward = next_tensordict.get(self.reward_key)
        return next_tensordict.set(self.reward_key, reward - self.coefficient * uncertainty)

    def _reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        return tensordict_reset
