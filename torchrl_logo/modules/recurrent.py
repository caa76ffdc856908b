"""Networks of agents that remember what they saw, for tasks that are partially observable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import (
    NormalParamExtractor,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModuleBase,
)
from tensordict.utils import NestedKey
from torch import nn
from torchrl.data import Unbounded
from torchrl.envs import TensorDictPrimer
from torchrl.modules import recurrent_mode

from torchrl_logo.argument_checks import MissingKeyError
from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.modules.decentralized_mlp import DecentralizedMLP
from torchrl_logo.modules.gaussian_actor import require_finite_bounds
from torchrl_logo.modules.masked_categorical import MaskedCategorical
from torchrl_logo.modules.normalizer import Normalizer
from torchrl_logo.modules.squashed_normal import SquashedNormalModule
from torchrl_logo.modules.world_model import next_key

__all__ = [
    "DecentralizedGRU",
    "RecurrentNetwork",
    "find_recurrent_states",
    "make_recurrent_action_value_network",
    "make_recurrent_categorical_actor",
    "make_recurrent_gaussian_actor",
]


class DecentralizedGRU(nn.Module):
    r"""A gated recurrent unit for each agent, with or without shared weights.

    The formulas and the initialisation are those of :class:`torch.nn.GRU` with one layer. All
    agents are computed at once; a sequence is a loop over its steps, as in TorchRL's own
    ``GRU``, in which states may be reset anywhere without a look at where. (The fused kernels of
    :class:`torch.nn.GRU` know no resets, and run under no :func:`torch.vmap`.)

    Args:
        input_size (int): features of an agent's input, ``D``.
        hidden_size (int): features of an agent's state, ``H``.
        n_agents (int): number of agents, ``N``.

    Keyword Args:
        share_params (bool): whether all agents use one set of weights. Defaults to ``True``.
        device (torch.device, optional): where the parameters are made.

    Examples:
        >>> gru = DecentralizedGRU(4, 8, n_agents=3)
        >>> gru(torch.zeros(5, 3, 4), torch.zeros(5, 3, 8)).shape
        torch.Size([5, 3, 8])
        >>> starts = torch.tensor([True, False, False, True, False, False]).expand(5, 6)
        >>> gru.unroll(torch.zeros(5, 6, 3, 4), starts, torch.zeros(5, 3, 8)).shape
        torch.Size([5, 6, 3, 8])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        n_agents: int,
        *,
        share_params: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.hidden_size, self.n_agents, self.share_params = hidden_size, n_agents, share_params
        sets = () if share_params else (n_agents,)

        def make(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*sets, *shape, device=device))

        self.weight_ih = make(3 * hidden_size, input_size)
        self.weight_hh = make(3 * hidden_size, hidden_size)
        self.bias_ih = make(3 * hidden_size)
        self.bias_hh = make(3 * hidden_size)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws the parameters anew."""
        bound = 1 / math.sqrt(self.hidden_size)
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(self, name).uniform_(-bound, bound)

    def _project(
        self, value: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        """Each agent's gates ``[*, N, 3 H]``."""
        if self.share_params:
            return nn.functional.linear(value, weight, bias)
        return torch.einsum("...nd,nhd->...nh", value, weight) + bias

    def _update(self, input_gates: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        hidden_gates = self._project(hidden, self.weight_hh, self.bias_hh)
        input_reset, input_update, input_new = input_gates.chunk(3, -1)
        hidden_reset, hidden_update, hidden_new = hidden_gates.chunk(3, -1)
        reset = torch.sigmoid(input_reset + hidden_reset)
        update = torch.sigmoid(input_update + hidden_update)
        new = torch.tanh(input_new + reset * hidden_new)
        return new + update * (hidden - new)

    def forward(self, inputs: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """The states ``[*, N, H]`` that follow on ``hidden`` ``[*, N, H]``, of one step."""
        return self._update(self._project(inputs, self.weight_ih, self.bias_ih), hidden)

    def unroll(
        self, inputs: torch.Tensor, is_init: torch.Tensor, hidden: torch.Tensor
    ) -> torch.Tensor:
        """The states of all steps of a sequence.

        Args:
            inputs (torch.Tensor): ``[*, T, N, D]``.
            is_init (torch.Tensor): ``[*, T]`` bool, the steps before which the state is set to
                zero.
            hidden (torch.Tensor): the state before the first step, ``[*, N, H]``.

        Returns:
            ``[*, T, N, H]``, the state after each step.
        """
        gates = self._project(inputs, self.weight_ih, self.bias_ih)
        states = []
        for step, start in zip(gates.unbind(-3), is_init.unbind(-1), strict=True):
            hidden = torch.where(start[..., None, None], torch.zeros_like(hidden), hidden)
            hidden = self._update(step, hidden)
            states.append(hidden)
        return torch.stack(states, -3)


class RecurrentNetwork(TensorDictModuleBase):
    """An encoder, a :class:`DecentralizedGRU` and a head, with the conventions of TorchRL.

    As :class:`torchrl.modules.GRUModule`, with agents: outside losses it is called step by step.
    It then reads each agent's state and writes the one that follows under ``"next"``. In
    recurrent mode (:class:`torchrl.modules.set_recurrent_mode`), in which TorchRL calls all
    losses, the last batch dimension is time: one call runs over whole sequences ``[*, T]``. In
    both modes the state is zero before a step at which ``"is_init"`` is true, so that a sequence
    may hold several episodes, and both give the same numbers.

    Reads ``in_key`` ``[*, N, d]``, ``init_key`` ``[*, 1]`` bool and ``state_key`` ``[*, N, H]``;
    writes ``out_keys`` and ``("next", state_key)``, in recurrent mode for all steps. In recurrent
    mode only the first step's state is read. It may be missing there, which means zeros, and is
    therefore not among the ``in_keys``: losses, which hand on these alone, start all sequences
    from zeros.

    In an environment, :class:`torchrl.envs.InitTracker` and the primer of
    :meth:`make_tensordict_primer` carry flags and states;
    :func:`~torchrl_logo.evaluation.evaluate` adds them by itself.

    Args:
        encoder (nn.Module): ``[*, N, d]`` to ``[*, N, D]``.
        gru (DecentralizedGRU): the memory.
        head (nn.Module): ``[*, N, H]`` to as many outputs as there are ``out_keys``.

    Keyword Args:
        in_key (NestedKey): what the encoder reads. Defaults to ``("agents", "observation")``.
        out_keys (sequence of NestedKey): what the head writes.
        state_key (NestedKey): agents' states. Defaults to ``("agents", "recurrent_state")``.
        init_key (NestedKey): first steps of episodes. Defaults to ``"is_init"``.

    Raises:
        KeyError: in :meth:`forward`, for missing entries.
        ValueError: in :meth:`forward`, for a state or flags of other shapes, or if there is no
            batch dimension in recurrent mode.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl.modules import set_recurrent_mode
        >>> network = RecurrentNetwork(nn.Identity(), DecentralizedGRU(4, 8, n_agents=3),
        ...                            nn.Linear(8, 2), out_keys=[("agents", "logits")])
        >>> is_init = torch.zeros(5, 6, 1, dtype=torch.bool)
        >>> data = TensorDict({("agents", "observation"): torch.zeros(5, 6, 3, 4),
        ...                    "is_init": is_init}, [5, 6])
        >>> with set_recurrent_mode(True):
        ...     data = network(data)
        >>> data["agents", "logits"].shape, data["next", "agents", "recurrent_state"].shape
        (torch.Size([5, 6, 3, 2]), torch.Size([5, 6, 3, 8]))
    """

    def __init__(
        self,
        encoder: nn.Module,
        gru: DecentralizedGRU,
        head: nn.Module,
        *,
        in_key: NestedKey = ("agents", "observation"),
        out_keys: Sequence[NestedKey],
        state_key: NestedKey = ("agents", "recurrent_state"),
        init_key: NestedKey = "is_init",
    ) -> None:
        super().__init__()
        self.encoder, self.gru, self.head = encoder, gru, head
        self.in_key, self.state_key, self.init_key = in_key, state_key, init_key
        self.value_keys = list(out_keys)
        self.next_state_key = next_key(state_key)
        self.in_keys = [in_key, init_key]
        self.out_keys = [*out_keys, self.next_state_key]

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """The transform that gives an environment the agents' states, zero at resets.

        :func:`torchrl.modules.utils.get_primers_from_module` finds it in any policy.
        """
        key = (self.state_key,) if isinstance(self.state_key, str) else self.state_key
        spec = Unbounded((self.gru.n_agents, self.gru.hidden_size))
        return TensorDictPrimer({key: spec}, expand_specs=True)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Runs one step, or in recurrent mode all steps of sequences."""
        batch_size, name = tensordict.batch_size, type(self).__name__
        missing = [key for key in self.in_keys if tensordict.get(key, None) is None]
        if missing:
            raise MissingKeyError(
                f"{name} reads {missing}, which are missing; found "
                f"{sorted(map(str, tensordict.keys(True, True)))}. In an environment, "
                "torchrl.envs.InitTracker marks first steps."
            )
        is_init = tensordict.get(self.init_key)
        if is_init.shape != (*batch_size, 1):
            raise ValueError(
                f"{name} expected {self.init_key!r} of shape {(*batch_size, 1)}, found "
                f"{tuple(is_init.shape)}."
            )
        inputs = self.encoder(tensordict.get(self.in_key))  # [*, N, D]
        hidden = tensordict.get(self.state_key, None)
        shape = (*batch_size, self.gru.n_agents, self.gru.hidden_size)
        if hidden is not None and hidden.shape != shape:
            raise ValueError(
                f"{name} expected {self.state_key!r} of shape {shape}, found {tuple(hidden.shape)}."
            )
        if recurrent_mode():
            if not batch_size:
                raise ValueError(
                    f"{name} expected a batch whose last dimension is time, found batch size []."
                )
            first = (*batch_size[:-1], *shape[-2:])
            start = inputs.new_zeros(first) if hidden is None else hidden.select(-3, 0)
            states = self.gru.unroll(inputs, is_init.squeeze(-1), start)  # [*, T, N, H]
        else:
            if hidden is None:
                raise MissingKeyError(
                    f"{name} acts step by step and needs its state {self.state_key!r}, which is "
                    "missing: the primer that torchrl.modules.utils.get_primers_from_module "
                    "makes of a policy gives it to an environment."
                )
            start = torch.where(is_init.unsqueeze(-1), torch.zeros_like(hidden), hidden)
            states = self.gru(inputs, start)  # [*, N, H]
        outputs = self.head(states)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        for key, value in zip(self.value_keys, outputs, strict=True):
            tensordict.set(key, value)
        return tensordict.set(self.next_state_key, states)


def find_recurrent_states(module: TensorDictModuleBase) -> list[NestedKey]:
    """The states that a module hands on from step to step, of whatever kind it is.

    They are what it writes under ``"next"``, TorchRL's convention of recurrent modules.

    Args:
        module (TensorDictModuleBase): a policy or a value network.

    Returns:
        Their keys without ``"next"``; none for a module without memory.

    Examples:
        >>> from torchrl.modules import GRUModule
        >>> find_recurrent_states(GRUModule(2, 3, in_key="observation", out_key="encoding"))
        ['recurrent_state']
    """
    states: list[NestedKey] = []
    for key in module.out_keys:
        if isinstance(key, tuple) and key[0] == "next":
            states.append(key[1] if len(key) == 2 else key[1:])
    return states


def _make_recurrent_network(
    spec: TaskSpec,
    out_size: int,
    out_keys: Sequence[NestedKey],
    *,
    hidden_sizes: Sequence[int],
    recurrent_size: int,
    share_params: bool,
    activation_class: type[nn.Module],
    normalizer: Normalizer | None,
    device: torch.device | str | None,
    last: Sequence[nn.Module] = (),
) -> RecurrentNetwork:
    shared: dict[str, Any] = {
        "share_params": share_params,
        "activation_class": activation_class,
        "device": device,
    }
    encoder: list[nn.Module] = [] if normalizer is None else [normalizer]
    encoding_size = spec.observation_size
    if hidden_sizes:
        *widths, encoding_size = hidden_sizes
        encoder += [
            DecentralizedMLP(
                spec.observation_size, encoding_size, spec.n_agents, num_cells=widths, **shared
            ),
            activation_class(),
        ]
    return RecurrentNetwork(
        nn.Sequential(*encoder),
        DecentralizedGRU(
            encoding_size, recurrent_size, spec.n_agents, share_params=share_params, device=device
        ),
        nn.Sequential(
            DecentralizedMLP(recurrent_size, out_size, spec.n_agents, num_cells=(), **shared), *last
        ),
        out_keys=out_keys,
    )


def make_recurrent_categorical_actor(
    spec: TaskSpec,
    *,
    hidden_sizes: Sequence[int] = (64,),
    recurrent_size: int = 64,
    share_params: bool = True,
    activation_class: type[nn.Module] = nn.ReLU,
    normalizer: Normalizer | None = None,
    device: torch.device | str | None = None,
) -> ProbabilisticTensorDictSequential:
    """Makes a stochastic actor for discrete actions that remembers earlier observations.

    :func:`~torchrl_logo.modules.make_categorical_actor` with memory: reads and writes the same,
    and besides ``"is_init"`` ``[*, 1]`` bool and the agents' states, see
    :class:`RecurrentNetwork`.

    Args:
        spec (TaskSpec): sizes.

    Keyword Args:
        hidden_sizes (sequence of int): widths of the layers before the memory.
        recurrent_size (int): features of each agent's state. Defaults to ``64``.
        share_params (bool): whether all agents use one set of weights. Defaults to ``True``.
        activation_class (type): non-linearity between layers.
        normalizer (Normalizer, optional): standardises each agent's observation first.
        device (torch.device, optional): where the parameters are made.

    Raises:
        ValueError: if the task has continuous actions.

    Examples:
        >>> from torchrl.envs import InitTracker, TransformedEnv
        >>> from torchrl.modules.utils import get_primers_from_module
        >>> from torchrl_logo.envs import make_env
        >>> env = TransformedEnv(make_env("vmas/balance", num_envs=2), InitTracker())
        >>> spec = TaskSpec(n_agents=3, observation_size=16, state_size=42, action_size=9,
        ...                 discrete=True)
        >>> actor = make_recurrent_categorical_actor(spec)
        >>> env = env.append_transform(get_primers_from_module(actor))
        >>> env.reset()["agents", "recurrent_state"].shape
        torch.Size([2, 3, 64])
    """
    if not spec.discrete:
        raise ValueError(
            "make_recurrent_categorical_actor needs discrete actions; the task's are continuous: "
            "see make_recurrent_gaussian_actor."
        )
    network = _make_recurrent_network(
        spec,
        spec.action_size,
        [("agents", "logits")],
        hidden_sizes=hidden_sizes,
        recurrent_size=recurrent_size,
        share_params=share_params,
        activation_class=activation_class,
        normalizer=normalizer,
        device=device,
    )
    return ProbabilisticTensorDictSequential(
        network,
        ProbabilisticTensorDictModule(
            in_keys={"logits": ("agents", "logits"), "mask": ("agents", "action_mask")},
            out_keys=[("agents", "action")],
            distribution_class=MaskedCategorical,
            return_log_prob=True,
            log_prob_key=("agents", "action_log_prob"),
        ),
    )


def make_recurrent_gaussian_actor(
    spec: TaskSpec,
    *,
    hidden_sizes: Sequence[int] = (64,),
    recurrent_size: int = 64,
    share_params: bool = True,
    activation_class: type[nn.Module] = nn.ReLU,
    normalizer: Normalizer | None = None,
    device: torch.device | str | None = None,
) -> ProbabilisticTensorDictSequential:
    """Makes a stochastic actor for continuous actions that remembers earlier observations.

    :func:`~torchrl_logo.modules.make_gaussian_actor` with memory: reads and writes the same, and
    besides ``"is_init"`` ``[*, 1]`` bool and the agents' states, see :class:`RecurrentNetwork`.

    Args:
        spec (TaskSpec): sizes and action bounds.

    Keyword Args:
        hidden_sizes (sequence of int): widths of the layers before the memory.
        recurrent_size (int): features of each agent's state. Defaults to ``64``.
        share_params (bool): whether all agents use one set of weights. Defaults to ``True``.
        activation_class (type): non-linearity between layers.
        normalizer (Normalizer, optional): standardises each agent's observation first.
        device (torch.device, optional): where the parameters are made.

    Raises:
        ValueError: if the task has discrete or unbounded actions.

    Examples:
        >>> from tensordict import TensorDict
        >>> spec = TaskSpec(n_agents=3, observation_size=4, state_size=6, action_size=2,
        ...                 action_low=(-1.0, -1.0), action_high=(1.0, 1.0))
        >>> actor = make_recurrent_gaussian_actor(spec, recurrent_size=8)
        >>> data = TensorDict({"agents": {"observation": torch.zeros(5, 3, 4),
        ...                               "recurrent_state": torch.zeros(5, 3, 8)},
        ...                    "is_init": torch.ones(5, 1, dtype=torch.bool)}, [5])
        >>> actor(data)["agents", "action"].shape
        torch.Size([5, 3, 2])
    """
    require_finite_bounds(spec, "make_recurrent_gaussian_actor")
    network = _make_recurrent_network(
        spec,
        2 * spec.action_size,
        [("agents", "loc"), ("agents", "scale")],
        hidden_sizes=hidden_sizes,
        recurrent_size=recurrent_size,
        share_params=share_params,
        activation_class=activation_class,
        normalizer=normalizer,
        device=device,
        last=[NormalParamExtractor(scale_lb=1e-2)],
    )
    return ProbabilisticTensorDictSequential(
        network,
        SquashedNormalModule(
            torch.tensor(spec.action_low, device=device),
            torch.tensor(spec.action_high, device=device),
            in_keys=[("agents", "loc"), ("agents", "scale")],
            out_keys=[("agents", "action")],
            log_prob_key=("agents", "action_log_prob"),
        ),
    )


def make_recurrent_action_value_network(
    spec: TaskSpec,
    *,
    hidden_sizes: Sequence[int] = (64,),
    recurrent_size: int = 64,
    share_params: bool = True,
    activation_class: type[nn.Module] = nn.ReLU,
    normalizer: Normalizer | None = None,
    device: torch.device | str | None = None,
) -> RecurrentNetwork:
    """Makes a network that values an agent's discrete actions from all that it has seen.

    :func:`~torchrl_logo.modules.make_action_value_network` with memory, the agents' networks of
    QMIX (Rashid et al. 2018, section 4): reads and writes the same, and besides ``"is_init"``
    ``[*, 1]`` bool and the agents' states, see :class:`RecurrentNetwork`.

    Args:
        spec (TaskSpec): the task's sizes.

    Keyword Args:
        hidden_sizes (sequence of int): widths of the layers before the memory.
        recurrent_size (int): features of each agent's state. Defaults to ``64``.
        share_params (bool): whether all agents use one set of weights. Defaults to ``True``.
        activation_class (type): non-linearity between layers.
        normalizer (Normalizer, optional): standardises each agent's observation first.
        device (torch.device, optional): where the parameters are made.

    Raises:
        ValueError: if the task's actions are continuous.

    Examples:
        >>> from tensordict import TensorDict
        >>> spec = TaskSpec(n_agents=3, observation_size=4, state_size=6, action_size=5,
        ...                 discrete=True)
        >>> network = make_recurrent_action_value_network(spec, recurrent_size=8)
        >>> data = TensorDict({"agents": {"observation": torch.zeros(7, 3, 4),
        ...                               "recurrent_state": torch.zeros(7, 3, 8)},
        ...                    "is_init": torch.ones(7, 1, dtype=torch.bool)}, [7])
        >>> network(data)["agents", "action_value"].shape
        torch.Size([7, 3, 5])
    """
    if not spec.discrete:
        raise ValueError(
            "make_recurrent_action_value_network needs discrete actions; the task's are "
            "continuous: see make_agent_critic."
        )
    return _make_recurrent_network(
        spec,
        spec.action_size,
        [("agents", "action_value")],
        hidden_sizes=hidden_sizes,
        recurrent_size=recurrent_size,
        share_params=share_params,
        activation_class=activation_class,
        normalizer=normalizer,
        device=device,
    )
