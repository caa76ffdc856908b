"""The methods that the offline trainer knows by name."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.objectives import LossModule

from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.modules.actors import make_gaussian_actor
from torchrl_logo.modules.critics import make_centralized_critic
from torchrl_logo.modules.normalizer import Normalizer
from torchrl_logo.objectives.bc import BCLoss
from torchrl_logo.objectives.macql import MACQLLoss

__all__ = ["METHODS", "Method", "find_method"]


@dataclasses.dataclass(frozen=True)
class Networks:
    """What the networks of a method are made from.

    Attributes:
        spec: the task's sizes.
        hidden_sizes: widths of the hidden layers of actors and critics.
        observation_normalizer: standardises an agent's observation.
        state_normalizer: standardises the global state.
        device: where the parameters are made.
    """

    spec: TaskSpec
    hidden_sizes: Sequence[int]
    observation_normalizer: Normalizer
    state_normalizer: Normalizer
    device: torch.device

    @classmethod
    def from_data(
        cls,
        spec: TaskSpec,
        data: TensorDictBase,
        *,
        hidden_sizes: Sequence[int],
        device: torch.device,
    ) -> Networks:
        """Fits the normalisers on the transitions that will be trained on."""
        observation = Normalizer(spec.observation_size, device=device)
        observation.fit(data.get(("agents", "observation")))
        state = Normalizer(spec.state_size, device=device)
        state.fit(data.get("state"))
        return cls(spec, hidden_sizes, observation, state, device)

    def make_actor(self) -> Any:
        """A decentralised stochastic actor, shared by all agents."""
        return make_gaussian_actor(
            self.spec,
            hidden_sizes=self.hidden_sizes,
            normalizer=self.observation_normalizer,
            device=self.device,
        )

    def make_critic(self) -> Any:
        """A centralised critic."""
        return make_centralized_critic(
            self.spec,
            hidden_sizes=self.hidden_sizes,
            normalizer=self.state_normalizer,
            device=self.device,
        )


def _make_bc(networks: Networks, gamma: float, **kwargs: Any) -> BCLoss:
    # Behaviour cloning has no values, hence no discount.
    action_spec = networks.spec.action_spec(networks.device)
    return BCLoss(networks.make_actor(), action_spec=action_spec, **kwargs)


def _make_macql(networks: Networks, gamma: float, **kwargs: Any) -> MACQLLoss:
    return MACQLLoss(
        networks.make_actor(),
        networks.make_critic(),
        action_spec=networks.spec.action_spec(networks.device),
        gamma=gamma,
        **kwargs,
    )


@dataclasses.dataclass(frozen=True)
class Method:
    """How a named method is put together, with the defaults that a small search found for it.

    Attributes:
        make_loss: makes the loss with its networks: ``(networks, gamma, **loss_kwargs)``; none
            where a loss module is given.
        imagines: whether half of each batch comes from a world model.
        lr: learning rate at the start.
        tau: share by which targets move at each update.
        loss_kwargs: arguments of the loss.
    """

    make_loss: Callable[..., LossModule] | None = None
    imagines: bool = False
    lr: float = 5e-4
    tau: float = 0.005
    loss_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)


METHODS: dict[str, Method] = {
    "bc": Method(_make_bc),
    "macql": Method(
        _make_macql, loss_kwargs={"min_q_weight": 5.0, "bc_coeff": 1.0, "num_samples": 2}
    ),
    # Values are learnt on what the policy does, in imagination: LOGO can trust them with a fifth
    # of the penalty and of the behaviour term, where they run away without a model.
    "logo": Method(
        _make_macql,
        imagines=True,
        lr=1e-3,
        tau=0.01,
        loss_kwargs={"min_q_weight": 1.0, "bc_coeff": 0.2, "num_samples": 2},
    ),
}


def find_method(name: str) -> Method:
    """Finds a method by its name.

    Raises:
        ValueError: if there is no such method; names the nearest ones and all there are.

    Examples:
        >>> find_method("logo").imagines
        True
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=2, cutoff=0.3)
        hint = f" Nearest: {', '.join(near)}." if near else ""
        raise ValueError(f"No method {name!r}.{hint} There are: {', '.join(METHODS)}.")
    return METHODS[name]
