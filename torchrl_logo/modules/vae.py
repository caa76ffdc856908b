"""What batch-constrained Q-learning draws actions from: generators, and small perturbations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn

from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.modules.decentralized_mlp import DecentralizedMLP
from torchrl_logo.modules.normalizer import Normalizer

__all__ = ["make_action_vae", "make_perturbation_network"]


class AgentNetwork(nn.Module):
    """An MLP of each agent on its observation and a vector, within a task's action bounds.

    The bounds are buffers, which move with the module; they are not saved, since they are the
    task's.

    Args:
        spec (TaskSpec): sizes and action bounds.

    Keyword Args:
        in_size (int): features beside the observation's.
        out_size (int): features of the output.
        hidden_sizes (sequence of int): widths of the hidden layers.
        share_params (bool): whether all agents use one set of weights.
        activation_class (type): non-linearity between layers.
        normalizer (Normalizer, optional): standardises each agent's observation first.
        device (torch.device, optional): where the parameters are made.

    Raises:
        ValueError: if the task has discrete or unbounded actions.

    Examples:
        >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=1,
        ...                 action_low=(0.0,), action_high=(4.0,))
        >>> network = AgentNetwork(spec, in_size=1, out_size=5, hidden_sizes=(8,))
        >>> network(torch.zeros(7, 2, 3), torch.zeros(7, 2, 1)).shape
        torch.Size([7, 2, 5])
        >>> network.scale_to_unit(torch.tensor([4.0]))
        tensor([1.])
    """

    low: torch.Tensor
    high: torch.Tensor

    def __init__(
        self,
        spec: TaskSpec,
        *,
        in_size: int,
        out_size: int,
        hidden_sizes: Sequence[int] = (128, 128),
        share_params: bool = True,
        activation_class: type[nn.Module] = nn.ReLU,
        normalizer: Normalizer | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if spec.discrete:
            raise ValueError(
                "Generators of actions need continuous actions; the task's are discrete: see "
                "DiscreteMABCQLoss, which needs none."
            )
        if not all(map(math.isfinite, (*spec.action_low, *spec.action_high))):
            raise ValueError(
                "Generators of actions need finite action bounds, found "
                f"low={spec.action_low}, high={spec.action_high}."
            )
        super().__init__()
        self.normalizer = nn.Identity() if normalizer is None else normalizer
        self.network = DecentralizedMLP(
            spec.observation_size + in_size,
            out_size,
            spec.n_agents,
            share_params=share_params,
            num_cells=hidden_sizes,
            activation_class=activation_class,
            device=device,
        )
        low, high = (
            torch.tensor(bound, device=device) for bound in (spec.action_low, spec.action_high)
        )
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)

    @property
    def half_range(self) -> torch.Tensor:
        """Half of what lies between the bounds, ``[d_a]``."""
        return (self.high - self.low) / 2

    def scale_to_unit(self, action: torch.Tensor) -> torch.Tensor:
        """Actions ``[*, d_a]`` moved from the bounds into ``[-1, 1]``."""
        return (action - (self.high + self.low) / 2) / self.half_range

    def forward(self, observation: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        """Outputs ``[*, N, out_size]`` of observations and vectors ``[*, N, in_size]``."""
        return self.network(torch.cat([self.normalizer(observation), vector], -1))


class ActionEncoder(AgentNetwork):
    """Location and scale ``[*, N, J]`` of the latent of an action; see :func:`make_action_vae`."""

    def __init__(self, spec: TaskSpec, latent_size: int, **kwargs: Any) -> None:
        super().__init__(
            spec,
            in_size=spec.action_size,
            out_size=2 * latent_size,
            **kwargs,
        )
        self.split = NormalParamExtractor(scale_lb=1e-2)

    def forward(  # type: ignore[override]
        self, observation: torch.Tensor, action: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Location and scale of the latents of actions ``[*, N, d_a]``."""
        return self.split(super().forward(observation, self.scale_to_unit(action)))


class ActionDecoder(AgentNetwork):
    """The action ``[*, N, d_a]`` of a latent; see :func:`make_action_vae`."""

    def __init__(self, spec: TaskSpec, latent_size: int, **kwargs: Any) -> None:
        super().__init__(
            spec,
            in_size=latent_size,
            out_size=spec.action_size,
            **kwargs,
        )

    def forward(self, observation: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """Actions of latents ``[*, N, J]``."""
        unit = torch.tanh(super().forward(observation, latent))
        return (self.high + self.low) / 2 + self.half_range * unit


class ActionPerturbation(AgentNetwork):
    """An action near a given one; see :func:`make_perturbation_network`."""

    def __init__(self, spec: TaskSpec, phi: float, **kwargs: Any) -> None:
        super().__init__(
            spec,
            in_size=spec.action_size,
            out_size=spec.action_size,
            **kwargs,
        )
        self.phi = phi

    def forward(self, observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Perturbed actions of actions ``[*, N, d_a]``."""
        unit = torch.tanh(super().forward(observation, self.scale_to_unit(action)))
        return torch.clamp(action + self.phi * self.half_range * unit, self.low, self.high)


def make_action_vae(
    spec: TaskSpec,
    *,
    latent_size: int | None = None,
    hidden_sizes: Sequence[int] = (128, 128),
    share_params: bool = True,
    activation_class: type[nn.Module] = nn.ReLU,
    normalizer: Normalizer | None = None,
    device: torch.device | str | None = None,
) -> tuple[TensorDictModule, TensorDictModule]:
    """Makes the encoder and the decoder of each agent's conditional variational autoencoder.

    The generator of BCQ (Fujimoto et al. 2019, "Off-Policy Deep Reinforcement Learning without
    Exploration", section 4), one an agent: a Gaussian latent that, with the agent's observation,
    says which action the data has. Trained by :class:`~torchrl_logo.objectives.MABCQLoss`.

    The encoder reads ``("agents", "observation")`` ``[*, N, d_o]`` and ``("agents", "action")``
    ``[*, N, d_a]`` and writes ``("agents", "latent_loc")`` and ``("agents", "latent_scale")``
    ``[*, N, J]``; the decoder reads the observation and ``("agents", "latent")`` ``[*, N, J]`` and
    writes ``("agents", "action")`` within the bounds.

    Args:
        spec (TaskSpec): sizes and action bounds.

    Keyword Args:
        latent_size (int, optional): ``J``. Defaults to ``2 * d_a``, the paper's.
        hidden_sizes (sequence of int): widths of the hidden layers.
        share_params (bool): whether all agents use one set of weights. Defaults to ``True``.
        activation_class (type): non-linearity between layers.
        normalizer (Normalizer, optional): standardises each agent's observation first.
        device (torch.device, optional): where the parameters are made.

    Returns:
        The encoder and the decoder.

    Raises:
        ValueError: if the task has discrete or unbounded actions, or no latents are asked for.

    Examples:
        >>> from tensordict import TensorDict
        >>> spec = TaskSpec(n_agents=3, observation_size=4, state_size=6, action_size=2,
        ...                 action_low=(-1.0, -1.0), action_high=(1.0, 1.0))
        >>> encoder, decoder = make_action_vae(spec, hidden_sizes=(8,))
        >>> data = TensorDict({"agents": {"observation": torch.zeros(5, 3, 4),
        ...                               "action": torch.zeros(5, 3, 2)}}, [5])
        >>> data["agents", "latent"] = encoder(data)["agents", "latent_loc"]
        >>> data["agents", "latent"].shape, decoder(data)["agents", "action"].shape
        (torch.Size([5, 3, 4]), torch.Size([5, 3, 2]))
    """
    size = 2 * spec.action_size if latent_size is None else latent_size
    if size < 1:
        raise ValueError(f"make_action_vae: latent_size must be positive, found {size}.")
    kwargs: dict[str, Any] = {
        "hidden_sizes": hidden_sizes,
        "share_params": share_params,
        "activation_class": activation_class,
        "normalizer": normalizer,
        "device": device,
    }
    encoder = TensorDictModule(
        ActionEncoder(spec, size, **kwargs),
        in_keys=[("agents", "observation"), ("agents", "action")],
        out_keys=[("agents", "latent_loc"), ("agents", "latent_scale")],
    )
    decoder = TensorDictModule(
        ActionDecoder(spec, size, **kwargs),
        in_keys=[("agents", "observation"), ("agents", "latent")],
        out_keys=[("agents", "action")],
    )
    return encoder, decoder


def make_perturbation_network(
    spec: TaskSpec,
    *,
    phi: float = 0.05,
    hidden_sizes: Sequence[int] = (128, 128),
    share_params: bool = True,
    activation_class: type[nn.Module] = nn.ReLU,
    normalizer: Normalizer | None = None,
    device: torch.device | str | None = None,
) -> TensorDictModule:
    r"""Makes a network that moves each agent's action a little, to where it is worth more.

    :math:`a_i + \Phi \frac{h - l}{2} \tanh(\cdot)`, clipped to the bounds :math:`l` and :math:`h`:
    the perturbation model of BCQ (Fujimoto et al. 2019, "Off-Policy Deep Reinforcement Learning
    without Exploration", section 4).

    Reads ``("agents", "observation")`` ``[*, N, d_o]`` and ``("agents", "action")``
    ``[*, N, d_a]``; writes the action anew.

    Args:
        spec (TaskSpec): sizes and action bounds.

    Keyword Args:
        phi (float): how far an action moves at most, as a share of half of the range of each
            component; positive. Defaults to ``0.05``, the paper's.
        hidden_sizes (sequence of int): widths of the hidden layers.
        share_params (bool): whether all agents use one set of weights. Defaults to ``True``.
        activation_class (type): non-linearity between layers.
        normalizer (Normalizer, optional): standardises each agent's observation first.
        device (torch.device, optional): where the parameters are made.

    Raises:
        ValueError: if the task has discrete or unbounded actions, or for ``phi`` out of range.

    Examples:
        >>> from tensordict import TensorDict
        >>> spec = TaskSpec(n_agents=3, observation_size=4, state_size=6, action_size=2,
        ...                 action_low=(-1.0, -1.0), action_high=(1.0, 1.0))
        >>> perturb = make_perturbation_network(spec, hidden_sizes=(8,))
        >>> data = TensorDict({"agents": {"observation": torch.randn(5, 3, 4),
        ...                               "action": torch.zeros(5, 3, 2)}}, [5])
        >>> bool((perturb(data)["agents", "action"].abs() <= 0.05).all())
        True
    """
    if not 0 < phi <= 2:
        raise ValueError(f"make_perturbation_network: phi must be in (0, 2], found {phi}.")
    return TensorDictModule(
        ActionPerturbation(
            spec,
            phi,
            hidden_sizes=hidden_sizes,
            share_params=share_params,
            activation_class=activation_class,
            normalizer=normalizer,
            device=device,
        ),
        in_keys=[("agents", "observation"), ("agents", "action")],
        out_keys=[("agents", "action")],
    )
