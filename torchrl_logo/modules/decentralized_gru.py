"""Gated recurrent units of agents, each on its own input."""

from __future__ import annotations

import math

import torch
from torch import nn

__all__ = ["DecentralizedGRU"]


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
