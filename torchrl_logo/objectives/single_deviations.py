"""QMIX's values of joint actions in which one agent departs, at a cost linear in the agents."""

from __future__ import annotations

import torch
from torch import nn
from torchrl.modules import QMixer

__all__ = ["mix_single_deviations"]


def mix_single_deviations(
    mixer: QMixer, chosen: torch.Tensor, own: torch.Tensor, state: torch.Tensor
) -> torch.Tensor:
    r"""Values the team where one agent departs from its chosen action and the others do not.

    The mixer (Rashid et al. 2018, section 4) is :math:`w(s)^T \mathrm{elu}(W(s)^T q + b(s)) + v(s)`
    in the agents' values :math:`q`. Where agent :math:`i` alone departs, only its own row of
    :math:`W` has another factor:

    .. math:: W^T q' + b = (W^T q + b) + W_i (q'_i - q_i)

    so that a departure costs as many operations as the mixer has hidden units, whatever the number
    of agents. Mixing each joint action by itself would cost that times the number of agents.

    Args:
        mixer (QMixer): TorchRL's, not a subclass with another :meth:`mix`.
        chosen (torch.Tensor): the agents' values of their chosen actions, ``[*, N]``.
        own (torch.Tensor): their values of what they may do instead, ``[*, N, A]``.
        state (torch.Tensor): ``[*, *state_shape]``.

    Returns:
        ``[*, N, A]``.

    Examples:
        >>> mixer = QMixer((4,), 8, 2, "cpu")
        >>> chosen, own, state = torch.randn(5, 2), torch.randn(5, 2, 3), torch.randn(5, 4)
        >>> values = mix_single_deviations(mixer, chosen, own, state)
        >>> joint = torch.stack([chosen[:, 0], own[:, 1, 2]], -1)  # the second agent departs
        >>> mixed = mixer(joint.unsqueeze(-1), state).squeeze(-1)
        >>> torch.allclose(values[:, 1, 2], mixed, atol=1e-5)
        True
    """
    batch_size, n_agents = chosen.shape[:-1], chosen.shape[-1]
    state = state.reshape(*batch_size, mixer.state_dim)
    weights = mixer.hyper_w_1(state).abs().unflatten(-1, (n_agents, mixer.embed_dim))  # [*, N, E]
    at_chosen = (chosen.unsqueeze(-2) @ weights).squeeze(-2) + mixer.hyper_b_1(state)  # [*, E]
    departure = (own - chosen.unsqueeze(-1)).unsqueeze(-1) * weights.unsqueeze(-2)
    hidden = nn.functional.elu(at_chosen[..., None, None, :] + departure)  # [*, N, A, E]
    final = mixer.hyper_w_final(state).abs()[..., None, :, None]  # [*, 1, E, 1]
    return (hidden @ final).squeeze(-1) + mixer.V(state).unsqueeze(-1)
