"""A network of agents that remember what they saw, in TorchRL's recurrent conventions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import nn
from torchrl.data import Unbounded
from torchrl.envs import TensorDictPrimer
from torchrl.modules import recurrent_mode

from torchrl_logo.argument_checks import MissingKeyError
from torchrl_logo.modules.decentralized_gru import DecentralizedGRU
from torchrl_logo.modules.world_model import next_key

__all__ = ["RecurrentNetwork", "find_recurrent_states"]


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
