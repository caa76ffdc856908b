"""A recurrent latent world model of a team whose agents communicate by attention."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from torchrl.modules import MLP

from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.modules.decentralized_gru import DecentralizedGRU
from torchrl_logo.modules.world_model import Prediction, WorldModel

__all__ = ["Decoded", "LatentSequence", "RecurrentLatentWorldModel", "draw_code"]


class Decoded(NamedTuple):
    """What the heads read off the latents of a team, standardised where values are.

    Attributes:
        observation: ``[*, N, d_o]``.
        state: ``[*, d_s]``.
        reward: of the step that led here, ``[*, 1]``.
        termination_logit: log-odds that the episode terminated here, ``[*, 1]``.
        action_mask_logit: log-odds that an action is available, ``[*, N, A]``; ``None`` for
            continuous actions.
    """

    observation: torch.Tensor
    state: torch.Tensor
    reward: torch.Tensor
    termination_logit: torch.Tensor
    action_mask_logit: torch.Tensor | None


class LatentSequence(NamedTuple):
    """The latents of sequences.

    Attributes:
        latent: before each action, ``[*, T, N, L]``, given all observations up to then.
        next_memory: memories after each action, ``[*, T, N, H]``.
        next_latent: after each action and the next observation, ``[*, T, N, L]``.
        prior_logits: of the next codes without the next observation, ``[*, T, N, G, C]``.
        posterior_logits: of the next codes with it, ``[*, T, N, G, C]``.
    """

    latent: torch.Tensor
    next_memory: torch.Tensor
    next_latent: torch.Tensor
    prior_logits: torch.Tensor
    posterior_logits: torch.Tensor


def draw_code(logits: torch.Tensor, *, generator: torch.Generator | None = None) -> torch.Tensor:
    """Draws one-hot codes, with the gradient of the probabilities (straight through).

    Args:
        logits (torch.Tensor): ``[*, G, C]``, of ``G`` categorical variables.

    Keyword Args:
        generator (torch.Generator, optional): of the draws.

    Returns:
        ``[*, G * C]``.

    Examples:
        >>> draw_code(torch.tensor([[0.0, 99.0], [99.0, 0.0]]))
        tensor([0., 1., 1., 0.])
    """
    # Gumbel's trick: no look at the probabilities' values on the host
    options: dict[str, Any] = {"dtype": logits.dtype, "device": logits.device}
    if generator is not None:
        options["generator"] = generator
    uniform = torch.rand(logits.shape, **options)
    return _choose_code(logits, -(-uniform.log()).log())


def _choose_code(logits: torch.Tensor, noise: torch.Tensor | float = 0.0) -> torch.Tensor:
    chosen = (logits + noise).argmax(-1, keepdim=True)
    code = torch.zeros_like(logits).scatter(-1, chosen, 1.0)
    if logits.requires_grad:
        probabilities = logits.softmax(-1)
        code = code + (probabilities - probabilities.detach())
    return code.flatten(-2)


class RecurrentLatentWorldModel(WorldModel):
    r"""MAMBA's world model: each agent has a latent, and agents' latents attend to each other.

    After "Scalable Multi-Agent Model-Based Reinforcement Learning" (Egorov and Shpilman, 2022,
    arXiv 2205.15023), itself a team's form of DreamerV2's model. An agent's latent, of size
    ``L = H + G * C``, is a memory :math:`h` ``[H]`` and a code :math:`z` of ``G`` categorical
    variables with ``C`` classes, one-hot. All networks are shared by the agents:

    .. math::
        x = \text{attention}(\text{mlp}(z, a)), \quad h' = \text{gru}(x, h), \quad
        z' \sim p(z' | h') \text{ or, with an observation, } q(z' | h', o')

    Attention is a transformer's encoder over the agents of a step; it is the only place where
    they communicate. Heads on ``(h', z')`` give the observation, the reward, the termination and
    the available actions; one on ``h'`` gives the action that led there, for MAMBA's information
    term.

    From the paper: the above. Ours: the reward and the log-odds of termination are the team's, the
    means of what the agents' heads say; observations and rewards are standardised; and a head
    for the *global state*, from all agents' latents, so that errors can be compared with those of
    other models. It sends no gradient to the latents, which therefore know nothing of the state
    that is not in the observations. The paper's sizes are larger (256 hidden units, 32 variables
    of 32 classes) and its attention has three layers with dropout.

    As every :class:`~torchrl_logo.modules.WorldModel` it predicts single transitions
    (:meth:`predict`), as if an episode began with each; with what came before, :meth:`unroll`
    filters sequences and :meth:`imagine_step` continues them.

    Args:
        spec (TaskSpec): the task's sizes.

    Keyword Args:
        memory_size (int): features of an agent's memory, ``H``. Defaults to ``128``.
        code_groups (int): categorical variables of a code, ``G``. Defaults to ``8``.
        code_classes (int): classes of each, ``C``. Defaults to ``16``.
        hidden_size (int): width of hidden layers. Defaults to ``128``.
        attention_layers (int): layers of the encoder over agents; ``0`` leaves agents without
            communication. Defaults to ``1``.
        attention_heads (int): its heads; must divide ``hidden_size``. Defaults to ``4``.
        device (torch.device, optional): where parameters and buffers are made.

    Raises:
        ValueError: if a size is not positive, or heads do not divide the hidden size.

    Examples:
        >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=1,
        ...                 action_low=(-1.0,), action_high=(1.0,))
        >>> model = RecurrentLatentWorldModel(spec, memory_size=8, code_groups=2, code_classes=4,
        ...                                   hidden_size=8, attention_heads=2)
        >>> sequence = model.unroll(torch.zeros(5, 6, 2, 3), torch.zeros(5, 6, 2, 1),
        ...                         torch.zeros(5, 6, 2, 3))
        >>> sequence.latent.shape, model.decode(sequence.next_latent).state.shape
        (torch.Size([5, 6, 2, 16]), torch.Size([5, 6, 4]))
    """

    has_uncertainty: ClassVar[bool] = False

    def __init__(
        self,
        spec: TaskSpec,
        *,
        memory_size: int = 128,
        code_groups: int = 8,
        code_classes: int = 16,
        hidden_size: int = 128,
        attention_layers: int = 1,
        attention_heads: int = 4,
        device: torch.device | str | None = None,
    ) -> None:
        sizes = {
            "memory_size": memory_size,
            "code_groups": code_groups,
            "code_classes": code_classes,
            "hidden_size": hidden_size,
            "attention_heads": attention_heads,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, found {size}.")
        if attention_layers < 0:
            raise ValueError(f"attention_layers must not be negative, found {attention_layers}.")
        if hidden_size % attention_heads:
            raise ValueError(
                f"attention_heads must divide hidden_size {hidden_size}, found {attention_heads}."
            )
        super().__init__(spec, device=device)
        self.config: dict[str, Any] = {**sizes, "attention_layers": attention_layers}
        self.memory_size, self.code_groups, self.code_classes = (
            memory_size,
            code_groups,
            code_classes,
        )
        self.code_size = code_groups * code_classes
        self.latent_size = memory_size + self.code_size

        def make_mlp(inputs: int, outputs: int, depth: int = 1) -> MLP:
            return MLP(
                in_features=inputs,
                out_features=outputs,
                num_cells=[hidden_size] * depth,
                activation_class=nn.ELU,
                device=device,
            )

        self.encoder = make_mlp(spec.observation_size, hidden_size)
        self.mixer = make_mlp(self.code_size + spec.action_size, hidden_size)
        self.attention: nn.Module = nn.Identity()
        if attention_layers:
            layer = nn.TransformerEncoderLayer(
                hidden_size,
                attention_heads,
                dim_feedforward=2 * hidden_size,
                dropout=0.0,
                batch_first=True,
                device=device,
            )
            self.attention = nn.TransformerEncoder(
                layer, attention_layers, enable_nested_tensor=False
            )
        self.memory = DecentralizedGRU(hidden_size, memory_size, spec.n_agents, device=device)
        self.prior_head = make_mlp(memory_size, self.code_size)
        self.posterior_head = make_mlp(memory_size + hidden_size, self.code_size)
        self.observation_head = make_mlp(self.latent_size, spec.observation_size, 2)
        self.state_head = make_mlp(spec.n_agents * self.latent_size, spec.state_size, 2)
        self.reward_head = make_mlp(self.latent_size, 1, 2)
        self.termination_head = make_mlp(self.latent_size, 1, 2)
        self.action_head = make_mlp(memory_size, spec.action_size)
        self.action_mask_head = (
            make_mlp(self.latent_size, spec.action_size) if spec.discrete else None
        )

    @property
    def termination_bias(self) -> torch.Tensor:
        """Bias of the termination head, ``[1]``."""
        return self.termination_head[-1].bias

    def start_memory(self, observation: torch.Tensor) -> torch.Tensor:
        """The memories at the start of an episode, zeros ``[*, N, H]``.

        Args:
            observation (torch.Tensor): the observations then, ``[*, N, d_o]``.
        """
        return observation.new_zeros(*observation.shape[:-1], self.memory_size)

    def standardise(self, observation: torch.Tensor) -> torch.Tensor:
        """Standardises observations ``[*, N, d_o]``; padding is 0."""
        return self.observation_normalizer.normalize(observation) * self.observation_mask

    def posterior_logits(self, memory: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """Logits ``[*, N, G, C]`` of codes, given memories and embedded observations."""
        return self._group(self.posterior_head(torch.cat([memory, embedding], -1)))

    def prior_logits(self, memory: torch.Tensor) -> torch.Tensor:
        """Logits ``[*, N, G, C]`` of codes, given memories ``[*, N, H]`` alone."""
        return self._group(self.prior_head(memory))

    def _group(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.unflatten(-1, (self.code_groups, self.code_classes))

    def observe(
        self, memory: torch.Tensor, observation: torch.Tensor, *, deterministic: bool = False
    ) -> torch.Tensor:
        """The latents ``[*, N, L]`` of agents that have just made an observation.

        Args:
            memory (torch.Tensor): ``[*, N, H]``.
            observation (torch.Tensor): standardised, ``[*, N, d_o]``.

        Keyword Args:
            deterministic (bool): whether codes are the likeliest ones, and not drawn.
        """
        logits = self.posterior_logits(memory, self.encoder(observation))
        code = _choose_code(logits) if deterministic else draw_code(logits)
        return torch.cat([memory, code], -1)

    def remember(self, latent: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """The memories ``[*, N, H]`` after an action; here agents communicate.

        Args:
            latent (torch.Tensor): before the action, ``[*, N, L]``.
            action (torch.Tensor): as :meth:`encode_action` returns it, ``[*, N, d_a]``.
        """
        memory, code = latent.split([self.memory_size, self.code_size], -1)
        message = self.mixer(torch.cat([code, action], -1))
        heard = self.attention(message.reshape(-1, *message.shape[-2:]))  # [-1, N, D]
        return self.memory(heard.view(message.shape), memory)

    def imagine_step(
        self,
        latent: torch.Tensor,
        action: torch.Tensor,
        *,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """The latents ``[*, N, L]`` after an action, without the observation that follows.

        Args:
            latent (torch.Tensor): ``[*, N, L]``.
            action (torch.Tensor): as :meth:`encode_action` returns it, ``[*, N, d_a]``.

        Keyword Args:
            generator (torch.Generator, optional): of the draws of codes.
        """
        memory = self.remember(latent, action)
        code = draw_code(self.prior_logits(memory), generator=generator)
        return torch.cat([memory, code], -1)

    def unroll(
        self,
        observation: torch.Tensor,
        action: torch.Tensor,
        next_observation: torch.Tensor,
        is_init: torch.Tensor | None = None,
    ) -> LatentSequence:
        """Filters sequences of transitions; a loop over their steps.

        Args:
            observation (torch.Tensor): standardised, ``[*, T, N, d_o]``.
            action (torch.Tensor): as :meth:`encode_action` returns it, ``[*, T, N, d_a]``.
            next_observation (torch.Tensor): standardised, ``[*, T, N, d_o]``.
            is_init (torch.Tensor, optional): ``[*, T]`` bool, before which steps memories start
                anew, beside the first.
        """
        starts = self.observe(self.start_memory(observation), observation)
        embedding = self.encoder(next_observation)
        time = observation.ndim - 3
        latent = starts.select(time, 0)
        steps = []
        for t in range(observation.shape[time]):
            if is_init is not None and t > 0:
                fresh = is_init.select(time, t)[..., None, None]
                latent = torch.where(fresh, starts.select(time, t), latent)
            memory = self.remember(latent, action.select(time, t))
            posterior = self.posterior_logits(memory, embedding.select(time, t))
            following = torch.cat([memory, draw_code(posterior)], -1)
            steps.append((latent, memory, following, posterior))
            latent = following
        latents, memories, followings, posteriors = (
            torch.stack(values, time) for values in zip(*steps, strict=True)
        )
        return LatentSequence(
            latents, memories, followings, self.prior_logits(memories), posteriors
        )

    def decode(self, latent: torch.Tensor) -> Decoded:
        """What the heads say of latents ``[*, N, L]``, values standardised."""
        mask = None if self.action_mask_head is None else self.action_mask_head(latent)
        return Decoded(
            observation=self.observation_head(latent) * self.observation_mask,
            state=self.state_head(latent.detach().flatten(-2)),
            reward=self.reward_head(latent).mean(-2),
            termination_logit=self.termination_head(latent).mean(-2),
            action_mask_logit=mask,
        )

    def read_outcome(
        self, latent: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """What a step in imagination needs of latents ``[*, N, L]``, without observations.

        Returns:
            The team's expected reward ``[*, 1]`` in its own units, the log-odds of termination
            ``[*, 1]``, and those of available actions ``[*, N, A]`` (``None`` for continuous
            ones).
        """
        logit = self.termination_head(latent).mean(-2)
        reward = self.expect_reward(self.reward_head(latent).mean(-2), logit)
        mask = None if self.action_mask_head is None else self.action_mask_head(latent)
        return reward, logit, mask

    def describe(self, latent: torch.Tensor) -> Prediction:
        """What the heads say of latents ``[*, N, L]`` in the task's units; no uncertainty."""
        decoded = self.decode(latent)
        reward = self.expect_reward(decoded.reward, decoded.termination_logit)
        return Prediction(
            state=self.state_normalizer.denormalize(decoded.state),
            observation=self.observation_normalizer.denormalize(decoded.observation)
            * self.observation_mask,
            reward=reward,
            termination_logit=decoded.termination_logit,
            action_mask_logit=decoded.action_mask_logit,
            uncertainty=torch.zeros_like(reward),
        )

    def predict(
        self, state: torch.Tensor, observation: torch.Tensor, action: torch.Tensor
    ) -> Prediction:
        """Predicts the next step as if the episode began with this one; codes are the likeliest.

        Args:
            state (torch.Tensor): not read.
            observation (torch.Tensor): ``[*, N, d_o]``.
            action (torch.Tensor): ``[*, N, d_a]``, or ``[*, N]`` integers.
        """
        observation = self.standardise(observation)
        latent = self.observe(self.start_memory(observation), observation, deterministic=True)
        memory = self.remember(latent, self.encode_action(action))
        code = _choose_code(self.prior_logits(memory))
        return self.describe(torch.cat([memory, code], -1))
