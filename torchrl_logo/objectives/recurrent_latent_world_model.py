"""The loss of a recurrent latent world model, on sequences."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch.nn import functional as F

from torchrl_logo.modules.recurrent_latent_world_model import RecurrentLatentWorldModel
from torchrl_logo.modules.world_model import WorldModel, next_key
from torchrl_logo.objectives.value_checks import read_weights
from torchrl_logo.objectives.world_model import WorldModelLoss, _Targets

__all__ = ["RecurrentLatentWorldModelLoss", "balanced_kl"]


def balanced_kl(
    posterior: torch.Tensor, prior: torch.Tensor, *, balance: float, free_nats: float
) -> torch.Tensor:
    r"""KL divergence of categorical codes, whose sides learn at different speeds.

    With :math:`\mathrm{sg}` stopping gradients, :math:`\alpha` the balance and :math:`f` the free
    nats:

    .. math::
        \alpha \max(f, KL(\mathrm{sg}(q) \Vert p))
        + (1 - \alpha) \max(f, KL(q \Vert \mathrm{sg}(p)))

    Its value is that of the divergence; most of the gradient goes to the prior (DreamerV2,
    arXiv 2010.02193, section 2, "KL balancing").

    Args:
        posterior (torch.Tensor): logits ``[*, G, C]`` of ``q``.
        prior (torch.Tensor): logits ``[*, G, C]`` of ``p``.

    Keyword Args:
        balance (float): share of the prior's side.
        free_nats (float): divergence of a whole code below which nothing is learnt.

    Returns:
        ``[*]``, summed over the variables of a code.

    Examples:
        >>> even, odd = torch.zeros(1, 2), torch.tensor([[0.0, 99.0]])
        >>> balanced_kl(odd, even, balance=0.8, free_nats=0.0)
        tensor(0.6931)
    """
    q, p = posterior.log_softmax(-1), prior.log_softmax(-1)

    def divergence(q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        return (q.exp() * (q - p)).sum((-1, -2)).clamp_min(free_nats)

    return balance * divergence(q.detach(), p) + (1 - balance) * divergence(q, p.detach())


class RecurrentLatentWorldModelLoss(WorldModelLoss):
    r"""Trains a :class:`~torchrl_logo.modules.RecurrentLatentWorldModel` (MAMBA's).

    Reads sequences ``[*, T]`` of transitions; a batch ``[B]`` is one of sequences of one step.
    Memories start anew at the first step, and after each that is done. Steps for which
    ``("collector", "mask")`` is false count for nothing.

    In standardised units, with :math:`\hat{\cdot}` what the heads say of the latents that follow
    on the true observations:

    ================= ========================================================================
    loss_kl           balanced divergence of codes with and without the next observation, see
                      :func:`balanced_kl`, mean over agents
    loss_observation  :math:`\lVert \hat o' - o' \rVert^2`, mean over features
    loss_reward       distance of the team's reward
    loss_termination  cross-entropy of termination
    loss_action_mask  cross-entropy of the next masks (discrete actions only)
    loss_information  cross-entropy, or square, of each agent's action told from its next memory
    loss_state        :math:`\lVert \hat s' - s' \rVert^2`, of a head that sends no gradient back
    ================= ========================================================================

    The divergence, reconstruction, reward, discount, mask and information terms are MAMBA's, the
    term of the state and the weights are ours: the mean square of an observation is a likelihood
    in which small errors count more than at the unit variance of DreamerV2.

    Args:
        world_model (RecurrentLatentWorldModel): the model to train.

    Keyword Args:
        kl_balance (float): share of the prior's side, within 0 and 1. Defaults to ``0.8``,
            MAMBA's and DreamerV2's.
        free_nats (float): divergence of an agent's code below which nothing is learnt. Defaults
            to ``1.0``.
        reward_loss (str): see :class:`WorldModelLoss`.
        reduction (str, optional): ``"mean"``, ``"sum"`` or ``"none"``. Defaults to ``"mean"``.
        **coefficients (float): ``kl``, ``observation``, ``reward``, ``termination``,
            ``action_mask``, ``information``, ``state``.

    Raises:
        ValueError: for a balance or free nats out of range, or a batch without dimension.

    Examples:
        >>> from torchrl_logo.data import TaskSpec
        >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=1,
        ...                 action_low=(-1.0,), action_high=(1.0,))
        >>> model = RecurrentLatentWorldModel(spec, hidden_size=8, attention_heads=2)
        >>> step = {"agents": {"observation": torch.ones(5, 6, 2, 3)}, "state": torch.ones(5, 6, 4)}
        >>> flag = torch.zeros(5, 6, 1, dtype=torch.bool)
        >>> batch = TensorDict({**step, "next": {**step, "reward": torch.zeros(5, 6, 1),
        ...                     "terminated": flag, "done": flag}}, [5, 6])
        >>> batch["agents", "action"] = torch.zeros(5, 6, 2, 1)
        >>> sorted(RecurrentLatentWorldModelLoss(model)(batch).keys())[:3]
        ['loss_information', 'loss_kl', 'loss_observation']
    """

    @dataclasses.dataclass
    class _AcceptedKeys(WorldModelLoss._AcceptedKeys):
        """The keys that ``set_keys`` renames: those of every world model's loss, and one more.

        Attributes:
            done (NestedKey): end of the episode. Defaults to ``"done"``.
        """

        done: NestedKey = "done"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys

    world_model_class: ClassVar[type[WorldModel]] = RecurrentLatentWorldModel
    default_coefficients = {
        "kl": 0.05,
        "observation": 1.0,
        "reward": 1.0,
        "termination": 1.0,
        "action_mask": 1.0,
        "information": 0.1,
        "state": 1.0,
    }
    world_model: RecurrentLatentWorldModel

    def __init__(
        self,
        world_model: RecurrentLatentWorldModel,
        *,
        kl_balance: float = 0.8,
        free_nats: float = 1.0,
        reward_loss: str = "smooth_l1",
        reduction: str | None = None,
        **coefficients: float,
    ) -> None:
        if not 0 <= kl_balance <= 1:
            raise ValueError(f"kl_balance must lie within 0 and 1, found {kl_balance}.")
        if not free_nats >= 0:
            raise ValueError(f"free_nats must not be negative, found {free_nats}.")
        # Sequences are unrolled by the model itself.
        super().__init__(
            world_model, unroll=1, reward_loss=reward_loss, reduction=reduction, **coefficients
        )
        self.kl_balance, self.free_nats = kl_balance, free_nats

    @property
    def in_keys(self) -> list[NestedKey]:
        """The keys that :meth:`forward` reads."""
        keys = self.tensor_keys
        names = [keys.observation, keys.state, keys.reward, keys.terminated, keys.done]
        if self.world_model.spec.discrete:
            names.append(keys.action_mask)
        return [keys.observation, keys.action, keys.state, *map(next_key, names)]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Computes all terms.

        Raises:
            KeyError: if one of :attr:`in_keys` is missing.
            ValueError: if there is no batch dimension.
            RuntimeError: for negative weights (:mod:`~torchrl_logo.objectives.value_checks`).
        """
        if not tensordict.ndim:
            raise ValueError(f"{type(self).__name__} expected sequences, found batch size [].")
        single = tensordict.ndim == 1
        sequences = tensordict.unsqueeze(-1) if single else tensordict
        targets = self._standardise(sequences)
        done = sequences.get(next_key(self.tensor_keys.done)).squeeze(-1)  # [*, T]
        is_init = torch.cat([torch.ones_like(done[..., :1]), done[..., :-1]], -1)
        terms = self.compute_terms(targets, is_init)
        weights = read_weights(self, tensordict)
        batch_size = tensordict.batch_size if self.reduction == "none" else torch.Size([])
        out = TensorDict(batch_size=batch_size, device=tensordict.device)
        for name, coefficient in self.coefficients.items():
            term = terms[name].squeeze(-1) if single else terms[name]
            out.set(
                f"loss_{name}", coefficient * self._reduce_loss(term, tensordict, weights=weights)
            )
        return out

    def compute_terms(
        self, targets: _Targets, is_init: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Each term, one number a transition ``[*, T]``, without its coefficient.

        Args:
            targets: standardised sequences ``[*, T]``.
            is_init (torch.Tensor, optional): ``[*, T]`` bool, where memories start anew.
        """
        model = self.world_model
        sequence = model.unroll(
            targets.observation, targets.action, targets.next_observation, is_init
        )
        decoded = model.decode(sequence.next_latent)
        divergence = balanced_kl(
            sequence.posterior_logits,
            sequence.prior_logits,
            balance=self.kl_balance,
            free_nats=self.free_nats,
        )  # [*, T, N]
        terms = {
            "kl": divergence.mean(-1),
            "observation": self._observation_term(decoded.observation - targets.next_observation),
            "reward": self._reward_term(decoded.reward, targets),
            "termination": F.binary_cross_entropy_with_logits(
                decoded.termination_logit, targets.terminated, reduction="none"
            ).squeeze(-1),
            "information": self._information_term(
                model.action_head(sequence.next_memory), targets.action
            ),
            "state": (decoded.state - targets.next_state).square().mean(-1),
        }
        if decoded.action_mask_logit is not None and targets.action_mask is not None:
            terms["action_mask"] = self._mask_term(decoded.action_mask_logit, targets.action_mask)
        return terms

    def _information_term(self, guess: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """How badly actions are told from memories, ``[*, T, N, d_a]`` both, to ``[*, T]``."""
        if self.world_model.spec.discrete:
            return -(action * guess.log_softmax(-1)).sum(-1).mean(-1)
        return (guess - action).square().mean((-1, -2))
