"""What a plan tries: joint actions from the policy, around it, and around the best so far."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import distributions as D
from torch import nn
from torchrl.envs import ExplorationType, set_exploration_type

from torchrl_logo.modules.gaussian_actor import require_finite_bounds
from torchrl_logo.modules.world_model import WorldModel

__all__ = ["CategoricalCandidates", "GaussianCandidates"]

Guide = tuple[torch.Tensor, ...]


class GaussianCandidates(nn.Module):
    """Candidates for continuous actions.

    First, candidate 0 acts as the policy does deterministically; the next ones draw from the
    policy, a share ``policy_share`` of them; the others take the deterministic action with
    Gaussian noise. All of them ask the policy anew at each imagined step. Once there are elites,
    candidates are sequences drawn around the elites' weighted mean with their standard deviation;
    candidate 0 is then the mean itself.

    Args:
        policy (TensorDictModuleBase): writes the joint action. With ``get_dist`` (a
            ``ProbabilisticTensorDictSequential``) of a normal distribution, transformed or not, it
            can be drawn from; any other is deterministic, and draws are its action.
        world_model (WorldModel): gives keys, sizes and action bounds.

    Keyword Args:
        num_candidates (int): ``K``.
        policy_share (float): share of the noisy candidates that are draws from the policy.
        noise_scale (float): standard deviation of the noise, in halves of the action's range.
        min_std (float): least standard deviation around elites, in the same unit.

    Raises:
        ValueError: if the actions are discrete, or their bounds are not finite.
    """

    low: torch.Tensor
    high: torch.Tensor
    drawn: torch.Tensor

    def __init__(
        self,
        policy: TensorDictModuleBase,
        world_model: WorldModel,
        *,
        num_candidates: int,
        policy_share: float,
        noise_scale: float,
        min_std: float,
    ) -> None:
        super().__init__()
        spec = world_model.spec
        require_finite_bounds(spec, "GaussianCandidates")
        self.policy = policy
        self.action_key = world_model.tensor_keys.action
        self.noise_shape = (spec.n_agents, spec.action_size)
        self.noise_scale = noise_scale
        self.min_std = min_std
        device = world_model.observation_mask.device
        drawn = torch.arange(num_candidates, device=device) <= policy_share * (num_candidates - 1)
        self.register_buffer("low", torch.tensor(spec.action_low, device=device), persistent=False)
        self.register_buffer(
            "high", torch.tensor(spec.action_high, device=device), persistent=False
        )
        self.register_buffer("drawn", drawn.reshape(-1, 1, 1), persistent=False)  # [K, 1, 1]

    def draw_noise(
        self,
        shape: tuple[int, ...],
        *,
        device: torch.device,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Standard normal noise ``[*shape, N, d_a]``."""
        return torch.randn(*shape, *self.noise_shape, generator=generator, device=device)

    def act(self, tensordict: TensorDictBase) -> torch.Tensor:
        """The policy's deterministic action, ``[*, N, d_a]``."""
        return _act_deterministically(self.policy, tensordict, self.action_key)

    def propose(
        self, tensordict: TensorDictBase, noise: torch.Tensor, guide: Guide | None, step: int
    ) -> torch.Tensor:
        """The candidates' actions at one step of the plan.

        Args:
            tensordict (TensorDictBase): where the candidates are, ``[B, K]``.
            noise (torch.Tensor): ``[B, K, N, d_a]``, or broadcastable to it.
            guide (tuple of Tensors, optional): what :meth:`refine` made of the elites.
            step (int): index of the step.

        Returns:
            Actions ``[B, K, N, d_a]`` within the bounds.
        """
        half = (self.high - self.low) / 2
        if guide is not None:
            mean, std = guide
            action = mean[:, :, step] + std[:, :, step] * noise
        else:
            action, draw = self._ask_policy(tensordict, noise)
            action = torch.where(self.drawn, draw, action + self.noise_scale * half * noise)
        # A policy asked about numbers that are not finite answers with such; the candidate is
        # not chosen, but elites must stay finite.
        return action.nan_to_num().clamp(self.low, self.high)

    def _ask_policy(
        self, tensordict: TensorDictBase, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not hasattr(self.policy, "get_dist"):
            action = self.act(tensordict)
            return action, action
        dist = self.policy.get_dist(tensordict.select(*self.policy.in_keys))
        action = dist.deterministic_sample if hasattr(dist, "deterministic_sample") else dist.mean
        draw = _push_noise(dist, noise)
        # Noise is zero for candidate 0; a squashed location is then the deterministic action, but
        # another distribution may have a deterministic sample of its own.
        return action, torch.where(noise == 0, action, draw)

    def refine(self, actions: torch.Tensor, weights: torch.Tensor) -> Guide:
        """Mean and standard deviation, ``[B, 1, T, N, d_a]``, of the elites.

        Args:
            actions (torch.Tensor): elites, ``[B, E, T, N, d_a]``.
            weights (torch.Tensor): ``[B, E]``, summing to one.
        """
        weights = weights.reshape(*weights.shape, 1, 1, 1)
        mean = (weights * actions).sum(1, keepdim=True)
        variance = (weights * (actions - mean).square()).sum(1, keepdim=True)
        least = self.min_std * (self.high - self.low) / 2
        return mean, torch.maximum(variance.sqrt(), least)


class CategoricalCandidates(nn.Module):
    """Candidates for discrete actions, of which only some are available.

    At each imagined step, each agent's action is drawn from a mixture: the policy (asked anew
    about what is imagined), with a share ``noise_scale`` of the uniform distribution over
    available actions, and, once there are elites, with a share ``elite_share`` of the weighted
    frequencies of the elites' actions at this step. Candidate 0 takes the likeliest action of the
    mixture: at first what the policy does deterministically. The mask applies to the whole
    mixture: an action that is not available is never proposed.

    Args:
        policy (TensorDictModuleBase): writes the joint action. With ``get_dist`` whose
            distribution has ``probs`` ``[*, N, A]`` it is drawn from; any other is deterministic.
        world_model (WorldModel): gives keys and sizes.

    Keyword Args:
        noise_scale (float): share of uniformly drawn actions, in [0, 1].
        elite_share (float): share of the elites' frequencies, in [0, 1].

    Raises:
        ValueError: if the actions are continuous, or a share is not within [0, 1].
    """

    def __init__(
        self,
        policy: TensorDictModuleBase,
        world_model: WorldModel,
        *,
        noise_scale: float,
        elite_share: float,
    ) -> None:
        super().__init__()
        spec = world_model.spec
        if not spec.discrete:
            raise ValueError(
                "CategoricalCandidates needs discrete actions; the task's are continuous."
            )
        for name, share in (("noise_scale", noise_scale), ("elite_share", elite_share)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must lie within [0, 1], found {share}.")
        self.policy = policy
        self.keys = world_model.tensor_keys
        self.noise_shape = (spec.n_agents, spec.action_size)
        self.noise_scale = noise_scale
        self.elite_share = elite_share

    def draw_noise(
        self,
        shape: tuple[int, ...],
        *,
        device: torch.device,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Standard Gumbel noise ``[*shape, N, A]``: its argmax over log-probabilities draws."""
        uniform = torch.rand(*shape, *self.noise_shape, generator=generator, device=device)
        tiny = torch.finfo(uniform.dtype).tiny
        return -(-uniform.clamp_min(tiny).log()).clamp_min(tiny).log()

    def act(self, tensordict: TensorDictBase) -> torch.Tensor:
        """The policy's deterministic action, ``[*, N]``."""
        return _act_deterministically(self.policy, tensordict, self.keys.action)

    def propose(
        self, tensordict: TensorDictBase, noise: torch.Tensor, guide: Guide | None, step: int
    ) -> torch.Tensor:
        """The candidates' actions at one step of the plan.

        Args:
            tensordict (TensorDictBase): where the candidates are, ``[B, K]``.
            noise (torch.Tensor): ``[B, K, N, A]``, or broadcastable to it.
            guide (tuple of Tensors, optional): what :meth:`refine` made of the elites.
            step (int): index of the step.

        Returns:
            Actions ``[B, K, N]`` int64.
        """
        mask = tensordict.get(self.keys.action_mask)  # [B, K, N, A]
        if hasattr(self.policy, "get_dist"):
            dist = self.policy.get_dist(tensordict.select(*self.policy.in_keys))
            probs = dist.probs.nan_to_num()
        else:
            probs = self._one_hot(self.act(tensordict))
        uniform = mask / mask.sum(-1, keepdim=True).clamp_min(1)
        probs = (1 - self.noise_scale) * probs + self.noise_scale * uniform
        if guide is not None:
            probs = (1 - self.elite_share) * probs + self.elite_share * guide[0][:, :, step]
        # An available action of probability zero still comes before one that is not available.
        tiny = torch.finfo(probs.dtype).tiny
        scores = torch.where(mask, probs.clamp_min(tiny).log() + noise, -torch.inf)
        return scores.argmax(-1)

    def refine(self, actions: torch.Tensor, weights: torch.Tensor) -> Guide:
        """Weighted frequencies ``[B, 1, T, N, A]`` of the elites' actions.

        Args:
            actions (torch.Tensor): elites, ``[B, E, T, N]`` int64.
            weights (torch.Tensor): ``[B, E]``, summing to one.
        """
        weights = weights.reshape(*weights.shape, 1, 1, 1)
        return ((weights * self._one_hot(actions)).sum(1, keepdim=True),)

    def _one_hot(self, action: torch.Tensor) -> torch.Tensor:
        indices = torch.arange(self.noise_shape[-1], device=action.device)
        return (action.unsqueeze(-1) == indices).to(torch.float32)


def _act_deterministically(
    policy: TensorDictModuleBase, tensordict: TensorDictBase, key: tuple[str, ...] | str
) -> torch.Tensor:
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        return policy(tensordict.select(*policy.in_keys)).get(key)


def _push_noise(dist: D.Distribution, noise: torch.Tensor) -> torch.Tensor:
    """The draw that standard normal noise makes of a normal distribution, transformed or not."""
    transforms: list[Any] = []
    base = dist
    while isinstance(base, (D.TransformedDistribution, D.Independent)):
        if isinstance(base, D.TransformedDistribution):
            transforms = [*base.transforms, *transforms]
        base = base.base_dist
    if not isinstance(base, D.Normal):
        raise TypeError(
            "GaussianCandidates draws from policies of normal distributions, transformed or not; "
            f"found {type(dist).__name__}. Pass a policy without get_dist to plan around its "
            "actions alone."
        )
    draw = base.loc + base.scale * noise
    for transform in transforms:
        draw = transform(draw)
    return draw
