"""The local-to-global world model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from tensordict import TensorDictBase
from torch import nn
from torch.nn import functional as F
from torchrl.modules import MLP

from torchrl_logo.argument_checks import MissingKeyError
from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.modules.input_scales import split_into_scales
from torchrl_logo.modules.world_model import Prediction, WorldModel, next_key

__all__ = ["Deduction", "LOGOWorldModel"]

# Width of the code that tells agents apart: fixed, so that the local model's size does not
# depend on how many agents there are.
_IDENTITY_SIZE = 8

_PERSISTENCE_SCALE = 10.0

# Where differences of the two paths, in one-step deviations, begin to be told by their orders.
_GAP_SCALE = 10.0

#: Of mean squares, in variances of the state: what float32 numbers round away.
SMALLEST_ERROR = 1e-8

# Of the largest variance of a direction in the space of states.
_LINEAR_TOLERANCE = 1e-7

# Outcomes are judged on fewer scales than contacts need: on these alone, rewards are as accurate.
_OUTCOME_FREQUENCIES = (2.0, 4.0, 8.0, 16.0)


class Deduction(NamedTuple):
    """What the deductive model concludes, in standardised units.

    Attributes:
        state_delta: change of the global state, ``[*, d_s]``.
        reward: team reward, ``[*, 1]``.
        termination_logit: ``[*, 1]``.
        action_mask_logit: ``[*, N, A]``, or ``None`` for continuous actions.
    """

    state_delta: torch.Tensor
    reward: torch.Tensor
    termination_logit: torch.Tensor
    action_mask_logit: torch.Tensor | None


class LOGOWorldModel(WorldModel):
    r"""Predicts each agent's next observation, and deduces the next global state from them.

    Three parts, after "Puzzle it Out: Local-to-Global World Model for Offline Multi-Agent
    Reinforcement Learning" (arXiv 2601.07463):

    - the *local predictive model*, shared by all agents, predicts the change of an agent's
      observation from its observation and action, with the global state as auxiliary information
      (embedded once for all agents);
    - the *deductive model* encodes the N local predictions together, conditioned on state and
      actions, and deduces the change of the global state, the reward, the termination and, for
      discrete actions, the next action masks; its decoder maps the next state back to the local
      observations;
    - the *direct encoder* predicts the change of the state from state and actions alone, and how
      far off the deduced change will be.

    The uncertainty of a transition is the geometric mean of the distance of the two predictions of
    the next state, and of the error that the deduced one is expected to have,

    .. math:: u(s, a) = \sqrt{\lVert \hat s'_{direct} - \hat s'_{deduced} \rVert_2 / \sqrt{d}
        \cdot \hat e(s, a)},

    both in standard deviations of the state, whatever the task and its size. (The paper has the
    norm alone. Dividing by the root of the number of changing features ``d`` is ours, and so is
    the second factor: a head of the direct encoder that reads its code of state and actions and
    how far the two paths are apart feature by feature, and learns the size of the errors. Where
    both paths are wrong alike, as at contacts, it knows; off the data, where nothing was learnt of
    errors, the paths part.)

    Ours, beside the paper: standardised changes instead of absolute values; the conditioning of
    the deduction on state, observations and actions; the encoder of the local predictions, which
    is shared by the agents and adds up; gates in what is done agent by agent; observations read on
    several scales; termination, judged from the deduced change without shaping it; reward and
    masks, judged likewise, and from the predicted next observations: agent by agent and, since
    what a team is paid or punished for is often how its members stand to each other (collisions,
    spreading out), pair by pair, from the differences of their observations.

    Args:
        spec (TaskSpec): the task's sizes.

    Keyword Args:
        hidden_size (int): width of the deductive model's layers, at least 4; the local model and
            the direct encoder are half, decoder and outcome heads a quarter as wide. Defaults to
            ``256``.
        carry (str): which next observation is written, and so carried along a rollout:
            ``"decoded"`` from the deduced next state, so that the two never drift apart;
            ``"residual"``, that and what the decoder missed of the last observation, feature by
            feature as far as such misses persist in the data; or ``"local"``, the local model's
            own. Defaults to ``"residual"``.
        max_pairs (int): the reward, termination and masks are judged from pairs of agents where
            there are no more pairs than these, so that memory grows no faster than the team.
            Defaults to ``45``, the pairs of ten agents; ``0`` never compares agents.
        frequencies (Sequence[float]): on which observations are read, see
            :func:`~torchrl_logo.modules.read_on_scales`. Defaults to powers of 2
            up to 64.
        gates (bool): whether what is done agent by agent has gates. Defaults to ``True``.
        expect_errors (bool): whether the uncertainty has its second factor; without, it is the
            distance alone, as the paper's. Defaults to ``True``.
        device (torch.device, optional): where parameters and buffers are made.

    Examples:
        >>> from tensordict import TensorDict
        >>> spec = TaskSpec(n_agents=3, observation_size=4, state_size=6, action_size=2,
        ...                 action_low=(-1.0, -1.0), action_high=(1.0, 1.0))
        >>> model = LOGOWorldModel(spec, hidden_size=16)
        >>> data = TensorDict({"agents": {"observation": torch.zeros(5, 3, 4),
        ...                               "action": torch.zeros(5, 3, 2)},
        ...                    "state": torch.zeros(5, 6)}, batch_size=[5])
        >>> data = model(data)
        >>> data["next", "state"].shape, data["uncertainty"].shape
        (torch.Size([5, 6]), torch.Size([5, 1]))
    """

    has_uncertainty: ClassVar[bool] = True
    identity: torch.Tensor
    decoder_matrix: torch.Tensor
    decoder_offset: torch.Tensor
    decoder_rest: torch.Tensor
    _first: torch.Tensor
    _second: torch.Tensor

    def __init__(
        self,
        spec: TaskSpec,
        *,
        hidden_size: int = 256,
        carry: Literal["residual", "decoded", "local"] = "residual",
        max_pairs: int = 45,
        frequencies: Sequence[float] = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0),
        gates: bool = True,
        expect_errors: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        if carry not in ("residual", "decoded", "local"):
            raise ValueError(f"carry must be 'residual', 'decoded' or 'local', found {carry!r}.")
        if hidden_size < 4:
            raise ValueError(f"hidden_size must be at least 4, found {hidden_size}.")
        if max_pairs < 0:
            raise ValueError(f"max_pairs must not be negative, found {max_pairs}.")
        super().__init__(spec, device=device)
        # A list, as it is read back from a file.
        frequencies = [float(frequency) for frequency in frequencies]
        self.config = {
            "hidden_size": hidden_size,
            "carry": carry,
            "max_pairs": max_pairs,
            "frequencies": frequencies,
            "gates": gates,
            "expect_errors": expect_errors,
        }
        self.expect_errors = expect_errors
        self.carry = carry
        self.frequencies = frequencies
        self.register_buffer("identity", _encode_identity(spec.n_agents, device=device))

        n, d_o, d_a, d_s = (
            spec.n_agents,
            spec.observation_size,
            spec.action_size,
            spec.state_size,
        )
        half, quarter = hidden_size // 2, hidden_size // 4
        scales = (1 + 2 * len(self.frequencies)) * d_o
        agent = scales + d_a + _IDENTITY_SIZE
        self.local_input = nn.Linear(agent, half, device=device)
        self.local_state_input = nn.Linear(d_s, half, bias=False, device=device)
        second = _gated_layer if gates else _plain_layer
        self.local_network = nn.Sequential(
            nn.SiLU(), second(half, device), nn.Linear(half, d_o, device=device)
        )

        self.agent_input = nn.Linear(agent, half, device=device)
        self.agent_delta_input = nn.Linear(d_o, half, bias=False, device=device)
        self.agent_state_input = nn.Linear(d_s, half, bias=False, device=device)
        self.agent_encoder = nn.Sequential(nn.SiLU(), second(half, device))
        self.deductive_encoder = _mlp(
            half + n * (d_o + d_a) + d_s, hidden_size, d_s, depth=2, device=device
        )
        # Observations are mostly linear in the state (parts of it, relative positions): that share
        # is a least-squares fit, exact where it can be, and a network decodes what it leaves.
        self.register_buffer("decoder_matrix", torch.zeros(n * d_o, d_s, device=device))
        self.register_buffer("decoder_offset", torch.zeros(n * d_o, device=device))
        self.register_buffer("decoder_rest", torch.ones(n * d_o, device=device))
        self.decoder = _mlp(d_s, quarter, n * d_o, depth=1, device=device)

        # How much of what the decoder misses is still missed a step later, by feature.
        self.persistence_logit = nn.Parameter(torch.zeros(n, d_o, device=device))

        pairs = n * (n - 1) // 2
        read = (1 + 2 * len(_OUTCOME_FREQUENCIES)) * d_o
        eighth = max(hidden_size // 8, 1)
        self.outcome_agent_encoder = _mlp(read + d_a, quarter, eighth, depth=1, device=device)
        self.outcome_pair_encoder, judged = None, eighth
        if 0 < pairs <= max_pairs:
            first, second = torch.triu_indices(n, n, 1, device=device)
            self.register_buffer("_first", first, persistent=False)
            self.register_buffer("_second", second, persistent=False)
            self.outcome_pair_encoder = _mlp(read, quarter, eighth, depth=1, device=device)
            judged += eighth
        outcomes = 1 + (n * d_a if spec.discrete else 0)
        self.outcome_network = _mlp(
            half + judged + 2 * d_s + n * d_a, half, outcomes, depth=2, device=device
        )
        self.termination_network = _mlp(3 * d_s + n * d_a, quarter, 1, depth=2, device=device)
        self.direct_encoder = _mlp(d_s + n * d_a, half, half, depth=1, device=device)
        self.direct_head = nn.Linear(half, d_s, device=device)
        self.error_head = _mlp(half + d_s, quarter, 1, depth=1, device=device)

    @torch.no_grad()
    def fit_normalizers(self, data: TensorDictBase) -> None:
        """As every world model's; also fits the decoder's linear share.

        Args:
            data (TensorDictBase): see :meth:`WorldModel.fit_normalizers`.
        """
        super().fit_normalizers(data)
        keys = self.tensor_keys
        state, observation = self._standardise(data.get(keys.state), data.get(keys.observation))
        rows = state.reshape(-1, state.shape[-1]).double()
        targets = observation.reshape(rows.shape[0], -1).double()
        # Standardised states have no mean; agents have each their own. Directions in which states
        # hardly vary are left out: their weights would be large, and noise off the data.
        offset = targets.mean(0)
        inverse = torch.linalg.pinv(rows.T @ rows, rtol=_LINEAR_TOLERANCE, hermitian=True)
        solution = inverse @ (rows.T @ (targets - offset))
        rest = targets - offset - rows @ solution
        self.decoder_matrix.copy_(solution.T)
        self.decoder_offset.copy_(offset)
        self.decoder_rest.copy_(rest.square().mean(0).sqrt())

    @property
    def termination_bias(self) -> torch.Tensor:
        """Bias of the termination head, ``[1]``."""
        return self.termination_network[-1].bias.data

    @property
    def persistence(self) -> torch.Tensor:
        """Share of what the decoder misses that it misses again a step later, ``[N, d_o]``."""
        # Scaled, so that an optimiser's small steps reach either end.
        return (_PERSISTENCE_SCALE * self.persistence_logit).sigmoid()

    def describe_agents(self, observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """What both models read of an agent: observation on several scales, action, identity.

        Args:
            observation (torch.Tensor): standardised, ``[*, N, d_o]``.
            action (torch.Tensor): as :meth:`encode_action` returns it, ``[*, N, d_a]``.

        Returns:
            ``[*, N, features]``.
        """
        scaled = split_into_scales(observation, self.frequencies)
        identity = self.identity.expand(*observation.shape[:-1], _IDENTITY_SIZE)
        return torch.cat([*scaled, action, identity], -1)

    def local_delta(self, state: torch.Tensor, agents: torch.Tensor) -> torch.Tensor:
        """Each agent's change of observation, standardised: ``[*, N, d_o]``.

        Args:
            state (torch.Tensor): standardised, ``[*, d_s]``.
            agents (torch.Tensor): from :meth:`describe_agents`.
        """
        hidden = self.local_input(agents)  # [*, N, h]
        hidden = hidden + self.local_state_input(state).unsqueeze(-2)
        return self.local_network(hidden) * self.observation_mask

    def deduce(
        self,
        state: torch.Tensor,
        agents: torch.Tensor,
        action: torch.Tensor,
        local_delta: torch.Tensor,
    ) -> Deduction:
        """The deductive model on standardised values.

        Args:
            state (torch.Tensor): standardised, ``[*, d_s]``.
            agents (torch.Tensor): from :meth:`describe_agents`.
            action (torch.Tensor): as :meth:`encode_action` returns it, ``[*, N, d_a]``.
            local_delta (torch.Tensor): the agents' standardised changes, ``[*, N, d_o]``, which
                may have further dimensions in front: several guesses for one step.
        """
        hidden = self.agent_input(agents) + self.agent_state_input(state).unsqueeze(-2)
        hidden = hidden + self.agent_delta_input(local_delta)
        # What agents do to the world adds up, as forces do.
        team = self.agent_encoder(hidden).sum(-2)  # [*, h]
        state = state.expand(*team.shape[:-1], -1)
        flat_action = action.flatten(-2).expand(*team.shape[:-1], -1)
        state_delta = self.deductive_encoder(
            torch.cat([team, local_delta.flatten(-2), state, flat_action], -1)
        )
        # Reward and masks are judged from the two states and the agents' places in the next. They
        # do not shape these: rare ends and large rewards would be learnt by heart at the
        # dynamics' expense.
        places = self._encode_places(agents.detach(), local_delta.detach(), action)
        states = [state.detach(), state_delta.detach()]
        outcome = self.outcome_network(
            torch.cat([team.detach(), *places, *states, flat_action], -1)
        )
        # Ends are too rare to be told from fine scales, which repeat: from the states alone.
        change = self.state_delta_normalizer.denormalize(states[1])
        states.append(states[0] + change * self.state_normalizer.inverse_scale)
        mask_logit = None
        if self.spec.discrete:
            mask_logit = outcome[..., 1:].unflatten(-1, (self.spec.n_agents, -1))
        return Deduction(
            state_delta=state_delta,
            reward=outcome[..., 0:1],
            termination_logit=self.termination_network(torch.cat([*states, flat_action], -1)),
            action_mask_logit=mask_logit,
        )

    def _encode_places(
        self, agents: torch.Tensor, local_delta: torch.Tensor, action: torch.Tensor
    ) -> list[torch.Tensor]:
        """The agents' next observations, by themselves and to each other: codes ``[*, h]``."""
        change = self.observation_delta_normalizer.denormalize(local_delta)
        change = change * self.observation_normalizer.inverse_scale * self.observation_mask
        # An agent's description begins with its observation, on the first scale.
        following = agents[..., : self.spec.observation_size] + change  # [*, N, d_o]
        scaled = split_into_scales(following, _OUTCOME_FREQUENCIES)
        action = action.expand(*following.shape[:-1], -1)
        codes = [F.silu(self.outcome_agent_encoder(torch.cat([*scaled, action], -1))).sum(-2)]
        if self.outcome_pair_encoder is not None:
            between = following[..., self._first, :] - following[..., self._second, :]  # [*, P, d]
            scaled = split_into_scales(between, _OUTCOME_FREQUENCIES)
            codes.append(F.silu(self.outcome_pair_encoder(torch.cat(scaled, -1))).sum(-2))
        return codes

    def decode(self, state: torch.Tensor) -> torch.Tensor:
        """The local observations that belong to a state, both standardised: ``[*, N, d_o]``.

        Args:
            state (torch.Tensor): standardised, ``[*, d_s]``.
        """
        linear = F.linear(state, self.decoder_matrix, self.decoder_offset)
        flat = linear + self.decoder_rest * self.decoder(state)
        return flat.unflatten(-1, (self.spec.n_agents, -1)) * self.observation_mask

    def encode_directly(self, state: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """The direct encoder's code of state and actions, ``[*, h]``, which its heads read.

        Args:
            state (torch.Tensor): standardised, ``[*, d_s]``.
            action (torch.Tensor): as :meth:`encode_action` returns it, ``[*, N, d_a]``.
        """
        return F.silu(self.direct_encoder(torch.cat([state, action.flatten(-2)], -1)))

    def direct_delta(self, state: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """The state's standardised change, from state and actions alone: ``[*, d_s]``.

        Args:
            state (torch.Tensor): standardised, ``[*, d_s]``.
            action (torch.Tensor): as :meth:`encode_action` returns it, ``[*, N, d_a]``.
        """
        return self.direct_head(self.encode_directly(state, action))

    def measure_changes(self, delta: torch.Tensor) -> torch.Tensor:
        """Mean square of standardised changes in standard deviations of the state: ``[*, 1]``.

        Args:
            delta (torch.Tensor): in standard deviations of the one-step change, ``[*, d_s]``.
        """
        scale, count = self._change_scale()
        return (delta * scale).square().sum(-1, keepdim=True) / count

    def expect_log_error(
        self, code: torch.Tensor, direct: torch.Tensor, deduced: torch.Tensor
    ) -> torch.Tensor:
        """Logarithm of the deduced state's expected error, as :meth:`measure_changes` has it.

        Trains nothing but its own head.

        Args:
            code (torch.Tensor): from :meth:`encode_directly`.
            direct (torch.Tensor): the standardised change that the code leads to, ``[*, d_s]``.
            deduced (torch.Tensor): the one that is deduced, ``[*, d_s]``.

        Returns:
            ``[*, 1]``.
        """
        scale, count = self._change_scale()
        # Logarithms, since the two paths differ by orders of magnitude from row to row.
        gap = torch.log1p(_GAP_SCALE * (direct - deduced).abs()) * (scale > 0)
        log_error = self.error_head(torch.cat([code, gap], -1).detach())
        # In units of a step, so that the head begins near the truth on every task.
        return log_error + (scale.square().sum() / count).clamp_min(SMALLEST_ERROR).log()

    def doubt(
        self, code: torch.Tensor, direct: torch.Tensor, deduced: torch.Tensor
    ) -> torch.Tensor:
        """The uncertainty of a deduced change, ``[*, 1]``; reads what the expected error reads."""
        disagreement = self.measure_changes(direct - deduced)
        if not self.expect_errors:
            return disagreement.sqrt()
        expected = self.expect_log_error(code, direct, deduced).exp()
        return (disagreement * expected).pow(0.25)

    def _change_scale(self) -> tuple[torch.Tensor, torch.Tensor]:
        """One-step changes in standard deviations of the state, ``[d_s]``, and how many vary."""
        # A feature that never changes in the data is not predicted, and not compared.
        scale = self.state_delta_normalizer.scale * self.state_normalizer.inverse_scale
        return scale, (scale > 0).sum().clamp_min(1)

    def predict(
        self, state: torch.Tensor, observation: torch.Tensor, action: torch.Tensor
    ) -> Prediction:
        """Predicts the next step from tensors; see :class:`WorldModel`."""
        action = self.encode_action(action)
        state_n, observation_n = self._standardise(state, observation)
        agents = self.describe_agents(observation_n, action)
        local = self.local_delta(state_n, agents)
        deduction = self.deduce(state_n, agents, action, local)
        next_state = state + self.state_delta_normalizer.denormalize(deduction.state_delta)
        if self.carry == "local":
            next_observation = self._advance(observation, local)
        else:
            next_state_n = self.state_normalizer.normalize(next_state)
            next_observation = self._advance_decoded(state_n, observation_n, next_state_n)
        code = self.encode_directly(state_n, action)
        return Prediction(
            state=next_state,
            observation=next_observation,
            reward=self.expect_reward(deduction.reward, deduction.termination_logit),
            termination_logit=deduction.termination_logit,
            action_mask_logit=deduction.action_mask_logit,
            uncertainty=self.doubt(code, self.direct_head(code), deduction.state_delta),
        )

    def predict_local(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The local predictive model alone.

        Reads observation, action and state; writes ``("next", "agents", "observation")``
        ``[*, N, d_o]``, each agent's own prediction, into ``tensordict``.
        """
        state, observation, action = self.read_inputs(tensordict)
        state_n, observation_n = self._standardise(state, observation)
        agents = self.describe_agents(observation_n, self.encode_action(action))
        local = self.local_delta(state_n, agents)
        key = next_key(self.tensor_keys.observation)
        return tensordict.set(key, self._advance(observation, local))

    def deduce_global(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The deductive model alone, from next local observations.

        Reads observation, action, state and ``("next", "agents", "observation")``, predicted (as
        by :meth:`predict_local`) or true; writes ``("next", "state")``, ``("next", "reward")``,
        ``("next", "terminated")``, ``("next", "done")`` and, for discrete actions, ``("next",
        "agents", "action_mask")`` into ``tensordict``.

        Raises:
            KeyError: if there are no next local observations.
        """
        keys = self.tensor_keys
        state, observation, action = self.read_inputs(tensordict)
        next_observation = tensordict.get(next_key(keys.observation), None)
        if next_observation is None:
            raise MissingKeyError(
                f"deduce_global reads {next_key(keys.observation)!r}, which is missing: call "
                "predict_local first."
            )
        local = self.observation_delta_normalizer.normalize(next_observation - observation)
        state_n, observation_n = self._standardise(state, observation)
        action = self.encode_action(action)
        deduction = self.deduce(
            state_n,
            self.describe_agents(observation_n, action),
            action,
            local * self.observation_mask,
        )
        next_state = state + self.state_delta_normalizer.denormalize(deduction.state_delta)
        terminated = deduction.termination_logit > 0
        tensordict.set(next_key(keys.state), next_state)
        reward = self.expect_reward(deduction.reward, deduction.termination_logit)
        tensordict.set(next_key(keys.reward), reward)
        tensordict.set(next_key(keys.terminated), terminated)
        tensordict.set(next_key(keys.done), terminated.clone())
        if deduction.action_mask_logit is not None:
            tensordict.set(next_key(keys.action_mask), deduction.action_mask_logit > 0)
        return tensordict

    def predict_state_directly(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The direct encoder alone.

        Reads observation, action and state; writes ``("next", "state_direct")`` ``[*, d_s]``
        into ``tensordict``.
        """
        state, observation, action = self.read_inputs(tensordict)
        state_n, _ = self._standardise(state, observation)
        delta = self.direct_delta(state_n, self.encode_action(action))
        return tensordict.set(
            ("next", "state_direct"), state + self.state_delta_normalizer.denormalize(delta)
        )

    def _standardise(
        self, state: torch.Tensor, observation: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        observation = self.observation_normalizer.normalize(observation) * self.observation_mask
        return self.state_normalizer.normalize(state), observation

    def _advance(self, observation: torch.Tensor, local_delta: torch.Tensor) -> torch.Tensor:
        change = self.observation_delta_normalizer.denormalize(local_delta)
        return (observation + change) * self.observation_mask

    def _advance_decoded(
        self, state: torch.Tensor, observation: torch.Tensor, next_state: torch.Tensor
    ) -> torch.Tensor:
        """The next observation from the next state; all standardised but the result."""
        decoded = self.decode(next_state)
        if self.carry == "residual":
            decoded = decoded + self.persistence * (observation - self.decode(state))
        return self.observation_normalizer.denormalize(decoded) * self.observation_mask


class _Gate(nn.Module):
    """The second half of the features, as far as the first lets it through.

    After "Language Modeling with Gated Convolutional Networks" (arXiv 1612.08083). A gate without
    bound, as SiLU's, makes predictions grow with the square of what they are made from: rollouts
    off the data then end in infinity.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, value = x.chunk(2, -1)
        return gate.sigmoid() * value


def _gated_layer(size: int, device: torch.device | str | None) -> nn.Sequential:
    """What an agent does counts where it touches something: a product."""
    return nn.Sequential(nn.Linear(size, 2 * size, device=device), _Gate())


def _plain_layer(size: int, device: torch.device | str | None) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, size, device=device), nn.SiLU())


def _mlp(
    inputs: int, hidden: int, outputs: int, *, depth: int, device: torch.device | str | None
) -> MLP:
    return MLP(
        in_features=inputs,
        out_features=outputs,
        num_cells=[hidden] * depth,
        activation_class=nn.SiLU,
        device=device,
    )


def _encode_identity(n_agents: int, *, device: torch.device | str | None) -> torch.Tensor:
    """Sines and cosines of the agent's index, ``[N, 8]``: distinct for thousands of agents."""
    index = torch.arange(n_agents, device=device, dtype=torch.float32).unsqueeze(-1)
    frequency = 2.0 ** -torch.arange(0.0, _IDENTITY_SIZE, 2.0, device=device)  # [4]
    angle = index * frequency  # [N, 4]
    return torch.cat([angle.sin(), angle.cos()], -1)
