"""A critic that reads a team by attention."""

from __future__ import annotations

import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.modules import MLP

from torchrl_logo.modules.recurrent_latent_world_model import RecurrentLatentWorldModel

__all__ = ["AttentionCritic", "make_latent_critic"]


class AttentionCritic(nn.Module):
    """The value of a team: agents are embedded, attend to each other, and are averaged.

    MAMBA's critic attends over agents too, and gives each a value; here there is one, as the
    reward is the team's. The order of agents does not matter.

    Args:
        input_size (int): features of an agent, ``L``.

    Keyword Args:
        hidden_size (int): width of all layers. Defaults to ``128``.
        attention_heads (int): must divide ``hidden_size``. Defaults to ``4``.
        device (torch.device, optional): where the parameters are made.

    Examples:
        >>> AttentionCritic(6, hidden_size=8)(torch.zeros(5, 3, 6)).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        input_size: int,
        *,
        hidden_size: int = 128,
        attention_heads: int = 4,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.embedding = nn.Linear(input_size, hidden_size, device=device)
        self.attention = nn.TransformerEncoderLayer(
            hidden_size,
            attention_heads,
            dim_feedforward=2 * hidden_size,
            dropout=0.0,
            batch_first=True,
            device=device,
        )
        self.head = MLP(
            in_features=hidden_size,
            out_features=1,
            num_cells=[hidden_size],
            activation_class=nn.ELU,
            device=device,
        )

    def forward(self, agents: torch.Tensor) -> torch.Tensor:
        """Values ``[*, 1]`` of teams ``[*, N, L]``."""
        embedded = nn.functional.elu(self.embedding(agents))
        attended = self.attention(embedded.reshape(-1, *embedded.shape[-2:]))
        return self.head(attended.mean(-2)).view(*agents.shape[:-2], 1)


def make_latent_critic(
    world_model: RecurrentLatentWorldModel,
    *,
    hidden_size: int = 128,
    device: torch.device | str | None = None,
) -> TensorDictModule:
    """Makes a critic of latents: ``("agents", "latent")`` to ``"state_value"`` ``[*, 1]``.

    Args:
        world_model (RecurrentLatentWorldModel): whose latents; none of its parameters are used.

    Keyword Args:
        hidden_size (int): width of all layers. Defaults to ``128``.
        device (torch.device, optional): where the parameters are made.

    Examples:
        >>> from torchrl_logo.data import TaskSpec
        >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=5,
        ...                 discrete=True)
        >>> make_latent_critic(RecurrentLatentWorldModel(spec)).out_keys
        ['state_value']
    """
    return TensorDictModule(
        AttentionCritic(world_model.latent_size, hidden_size=hidden_size, device=device),
        in_keys=[("agents", "latent")],
        out_keys=["state_value"],
    )
