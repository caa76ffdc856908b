"""MLPs of agents, each on its own input, whose parameters can be swapped."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDict, TensorDictBase
from torch import nn
from torchrl.modules import MultiAgentMLP

from torchrl_logo.argument_checks import require_widths
from torchrl_logo.modules.stacked_layers import Weights, call_layers, have_stackable_layers

__all__ = ["DecentralizedMLP"]


class DecentralizedMLP(MultiAgentMLP):
    """TorchRL's ``MultiAgentMLP`` for decentralised agents, made for functional calls.

    Losses and vectorised maps put their own parameters into a module while they call it.
    ``MultiAgentMLP(use_td_params=False)``, which :func:`torch.compile` needs, puts those that it
    was made with over them: a target or restored network would silently be the old one. Here the
    parameters are those that are in the module when it is called.

    Args:
        n_agent_inputs (int): features of an agent's input.
        n_agent_outputs (int): features of an agent's output.
        n_agents (int): number of agents, ``N``.

    Keyword Args:
        num_cells (sequence of int): widths of the hidden layers.
        share_params (bool): whether all agents use one set of weights. Defaults to ``True``.
        activation_class (type): non-linearity between layers.
        device (torch.device, optional): where the parameters are made.

    Examples:
        >>> network = DecentralizedMLP(4, 2, n_agents=3, num_cells=(8,))
        >>> network(torch.zeros(5, 3, 4)).shape
        torch.Size([5, 3, 2])
    """

    def __init__(
        self,
        n_agent_inputs: int,
        n_agent_outputs: int,
        n_agents: int,
        *,
        num_cells: Sequence[int],
        share_params: bool = True,
        activation_class: type[nn.Module] = nn.ReLU,
        device: torch.device | str | None = None,
    ) -> None:
        require_widths(num_cells, "hidden_sizes")
        super().__init__(
            n_agent_inputs=n_agent_inputs,
            n_agent_outputs=n_agent_outputs,
            n_agents=n_agents,
            centralized=False,
            share_params=share_params,
            num_cells=list(num_cells),
            activation_class=activation_class,
            device=device,
            use_td_params=False,
        )
        # From here on the parameters are the module's own, and not a second list of them. Their
        # names stay: functional calls may put plain tensors in, which a module does not list.
        del self.__dict__["_made_params"]
        self._param_names = [name for name, _ in self._empty_net.named_parameters()]

    @property
    def can_be_unstacked(self) -> bool:
        """Whether there is :meth:`call_unstacked`: agents share weights, activations have none."""
        return self.share_params and have_stackable_layers(self._empty_net)

    @property
    def params(self) -> TensorDictBase:
        """The parameters that are in the module, ``[N]`` where they are not shared."""
        made = self.__dict__.get("_made_params")
        if made is not None:
            return made
        params = TensorDict({}, batch_size=[] if self.share_params else [self.n_agents])
        for name in self._param_names:
            params.set(tuple(name.split(".")), self._read(name))
        return params

    @params.setter
    def params(self, params: TensorDictBase) -> None:
        self.__dict__["_made_params"] = params

    def _read(self, name: str) -> torch.Tensor:
        path, _, attribute = name.rpartition(".")
        return getattr(self._empty_net.get_submodule(path), attribute)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Outputs ``[*, N, n_agent_outputs]`` of inputs ``[*, N, n_agent_inputs]``.

        Raises:
            ValueError: if the inputs' features are not those that the network was made for, or
                they lie on another device.
        """
        self._require_inputs(self._read(self._param_names[0]), *inputs)
        if not self.share_params:
            return super().forward(*inputs)
        joined = torch.cat(inputs, -1) if len(inputs) > 1 else inputs[0]
        # Matrices, not batches of them: see call_layers.
        rows = self._empty_net(joined.reshape(-1, joined.shape[-1]))
        return rows.view(*joined.shape[:-1], -1)

    def call_unstacked(
        self, weights: Weights, prefix: str, repeated: torch.Tensor, varied: torch.Tensor
    ) -> torch.Tensor:
        """Outputs for rows of which one part is the same in several of them.

        Args:
            weights (dict of torch.Tensor): parameters in place of the module's own.
            prefix (str): what their names begin with.
            repeated (torch.Tensor): an agent's first features, ``[R, d]``.
            varied (torch.Tensor): its last ones in each of several draws, ``[M, R, e]``.

        Returns:
            ``[M, R, n_agent_outputs]``.

        Raises:
            ValueError: as :meth:`forward`.
        """
        prefix = f"{prefix}_empty_net."
        self._require_inputs(weights[prefix + self._param_names[0]], repeated, varied)
        return call_layers(self._empty_net, weights, prefix, repeated, varied)

    def _require_inputs(self, weight: torch.Tensor, *inputs: torch.Tensor) -> None:
        found = sum(value.shape[-1] for value in inputs)
        if found != self.n_agent_inputs:
            raise ValueError(
                f"The network was made for {self.n_agents} agents with {self.n_agent_inputs} "
                f"features each, found inputs of shapes {[tuple(i.shape) for i in inputs]}: it "
                "belongs to another task. Load or make one for this."
            )
        if inputs[0].device != weight.device:
            raise ValueError(
                f"The network is on {weight.device}, found inputs on {inputs[0].device}: move one "
                "of them with .to(device)."
            )
