"""The networks that the offline trainer makes for its methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase

from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.modules.action_values import make_action_value_network
from torchrl_logo.modules.agent_critics import make_agent_critic, make_agent_value
from torchrl_logo.modules.categorical_actor import make_categorical_actor
from torchrl_logo.modules.centralized_critic import make_centralized_critic
from torchrl_logo.modules.gaussian_actor import make_gaussian_actor
from torchrl_logo.modules.linear_mixer import make_linear_mixer
from torchrl_logo.modules.mixers import make_mixer
from torchrl_logo.modules.normalizer import Normalizer
from torchrl_logo.modules.recurrent_policies import (
    make_recurrent_action_value_network,
    make_recurrent_categorical_actor,
    make_recurrent_gaussian_actor,
)
from torchrl_logo.modules.vae import make_action_vae, make_perturbation_network

__all__ = ["Networks"]


@dataclasses.dataclass(frozen=True)
class Networks:
    """What the networks of a method are made from.

    Attributes:
        spec: the task's sizes.
        hidden_sizes: widths of the hidden layers of actors and critics.
        share_params: whether agents share the weights of their own networks.
        recurrent: whether agents' actors and utilities have memory.
        observation_normalizer: standardises an agent's observation.
        state_normalizer: standardises the global state.
        device: where the parameters are made.
        critic: kind of the centralised critic
            (:func:`~torchrl_logo.modules.make_centralized_critic`).
    """

    spec: TaskSpec
    hidden_sizes: Sequence[int]
    share_params: bool
    recurrent: bool
    observation_normalizer: Normalizer
    state_normalizer: Normalizer
    device: torch.device
    critic: str = "joint"

    @classmethod
    def from_data(
        cls,
        spec: TaskSpec,
        data: TensorDictBase,
        *,
        hidden_sizes: Sequence[int],
        share_params: bool,
        recurrent: bool,
        device: torch.device,
        critic: str = "joint",
    ) -> Networks:
        """Fits the normalisers on the transitions that will be trained on."""
        observation = Normalizer(spec.observation_size, device=device)
        observation.fit(data.get(("agents", "observation")))
        state = Normalizer(spec.state_size, device=device)
        state.fit(data.get("state"))
        return cls(spec, hidden_sizes, share_params, recurrent, observation, state, device, critic)

    @property
    def action_spec(self) -> Any:
        """The joint action's spec, on the networks' device."""
        return self.spec.action_spec(self.device)

    def make_actor(self) -> Any:
        """A decentralised stochastic actor: squashed Gaussian, or categorical with masks."""
        if self.recurrent:
            return self._make_local(
                make_recurrent_categorical_actor
                if self.spec.discrete
                else make_recurrent_gaussian_actor
            )
        make = make_categorical_actor if self.spec.discrete else make_gaussian_actor
        return self._make_local(make)

    def make_agent_critic(self) -> Any:
        """Values of an agent's own action: of all of them, if actions are discrete."""
        if self.spec.discrete and self.recurrent:
            return self._make_local(make_recurrent_action_value_network)
        return self._make_local(
            make_action_value_network if self.spec.discrete else make_agent_critic
        )

    def make_agent_value(self) -> Any:
        """Values of an agent's own observation."""
        return self._make_local(make_agent_value)

    def make_vae(self) -> tuple[Any, Any]:
        """Encoder and decoder of an agent's actions."""
        return self._make_local(make_action_vae)

    def make_perturbation(self, phi: float) -> Any:
        """Small changes of an agent's action."""
        return self._make_local(make_perturbation_network, phi=phi)

    def make_critic(self) -> Any:
        """A centralised critic of joint actions."""
        return make_centralized_critic(
            self.spec,
            kind=self.critic,
            hidden_sizes=self.hidden_sizes,
            share_params=self.share_params,
            normalizer=self.state_normalizer,
            observation_normalizer=self.observation_normalizer,
            device=self.device,
        )

    def make_mixer(self, kind: str) -> Any:
        """A monotonic mixer of the agents' values."""
        return make_mixer(self.spec, kind, device=self.device)

    def make_linear_mixer(self) -> Any:
        """A mixer whose weights do not depend on the values."""
        return make_linear_mixer(self.spec, normalizer=self.state_normalizer, device=self.device)

    def _make_local(self, make: Callable[..., Any], **kwargs: Any) -> Any:
        return make(
            self.spec,
            hidden_sizes=self.hidden_sizes,
            share_params=self.share_params,
            normalizer=self.observation_normalizer,
            device=self.device,
            **kwargs,
        )
