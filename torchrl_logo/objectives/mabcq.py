"""Multi-agent batch-constrained Q-learning (MABCQ) for continuous actions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import (
    TensorDictModule,
    TensorDictModuleBase,
    TensorDictSequential,
    dispatch,
)
from tensordict.utils import NestedKey, unravel_key
from torch import nn
from torch.distributions import Normal
from torchrl.data import Bounded, TensorSpec
from torchrl.objectives import LossModule, ValueEstimators, distance_loss
from torchrl.objectives.utils import _cache_values, _vmap_func, dispatch_value_estimator

from torchrl_logo.argument_checks import require_discount
from torchrl_logo.objectives.critic_values import value_actions
from torchrl_logo.objectives.memory import refuse_memory
from torchrl_logo.objectives.required_keys import (
    match_batch_size,
    require_keys,
    require_shape,
    require_written,
)
from torchrl_logo.objectives.value_checks import read_weights

__all__ = ["MABCQLoss"]


class ZeroLatent(nn.Module):
    """The middle of the latents' prior, for each agent that is observed.

    Args:
        latent_size (int): ``J``.

    Examples:
        >>> ZeroLatent(4)(torch.ones(5, 2, 3)).shape
        torch.Size([5, 2, 4])
    """

    def __init__(self, latent_size: int) -> None:
        super().__init__()
        self.latent_size = latent_size

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        """Zeros ``[*, N, J]`` for observations ``[*, N, d_o]``."""
        return observation.new_zeros((*observation.shape[:-1], self.latent_size))


class MABCQLoss(LossModule):
    r"""Q-learning over joint actions that generators, fitted to the data, draw.

    Each agent has a conditional variational autoencoder (encoder :math:`E_i`, decoder
    :math:`D_i`) of the data's actions and a small perturbation :math:`\xi_i` of what is decoded;
    the critics :math:`Q_k` are the team's and see the state and the joint action. With :math:`n`
    joint actions :math:`a^{(j)}` whose parts are
    :math:`\xi_i\big(o_i, D_i(o_i, z_i)\big)`, :math:`z_i \sim N(0, 1)` clipped to
    :math:`[-c, c]`:

    .. math::

        y &= r + \gamma (1 - d) \max_j \Big(\lambda \min_k \bar Q_k(s', a'^{(j)})
            + (1 - \lambda) \max_k \bar Q_k(s', a'^{(j)})\Big) \\
        L_{qvalue} &= \sum_k \ell\big(Q_k(s, a), y\big) \\
        L_{actor} &= -Q_1(s, a^{(1)}) \\
        L_{vae} &= \frac{1}{N d_a} \sum_{i, m}
            \Big(\frac{D_i(o_i, z_i) - a_i}{(h - l) / 2}\Big)_m^2
            + \kappa \frac{1}{N J} \sum_{i, m} KL\big(N(\mu_{im}, \sigma_{im}^2)\,\|\,N(0, 1)\big),
            \quad \mu_i, \sigma_i = E_i(o_i, a_i),\ z_i \sim N(\mu_i, \sigma_i^2)

    Source: BCQ (Fujimoto et al. 2019, "Off-Policy Deep Reinforcement Learning without
    Exploration", arXiv 1812.02900, section 4 and its supplement for :math:`\lambda`, :math:`n`,
    :math:`c` and :math:`\kappa`). The perturbation of the bootstrap is a target network's,
    :math:`\bar \xi_i`; the decoder has no target, as in the paper. The paper's one agent is here
    the team: its generator factorises over agents, the maximum is over joint draws. Ours is that
    reconstruction is measured in units of half the action range (the paper's tasks have range
    :math:`[-1, 1]`, where it is the same). Only the decoder's and encoder's parameters get a
    gradient of :math:`L_{vae}`, only the perturbation's that of :math:`L_{actor}`.

    :attr:`actor_network` acts on observations alone: each agent decodes the middle of the
    latents' prior, :math:`z_i = 0`, and perturbs the result. The paper acts on the best of several
    draws by the critic; the team's critic needs the state and all agents' actions, which a
    decentralised agent does not have. Zero is the middle of the latents on which the perturbation
    is trained. So that policy follows the data more closely than the targets, which choose among
    draws, and where the data has several modes it may decode what lies between; a wider
    perturbation (``phi``) gives it more room.

    With ``"priority_weight"`` in the batch, each loss is :math:`\sum w l / \sum w` under
    ``"mean"``, :math:`\sum w l` under ``"sum"`` and :math:`w l` under ``"none"``. Weights must not
    be negative, which is checked, and not all zero.

    Args:
        encoder_network (TensorDictModule): reads observations and the action ``[*, N, d_a]``;
            writes ``("agents", "latent_loc")`` and ``("agents", "latent_scale")`` (positive)
            ``[*, N, J]``.
        decoder_network (TensorDictModule): reads observations and ``("agents", "latent")``
            ``[*, N, J]``; writes the action. The first thing that it reads besides the latent is
            ``[*, N, d]`` of any ``d``. :func:`~torchrl_logo.modules.make_action_vae` makes both.
        perturbation_network (TensorDictModule): reads observations and the action; writes the
            action anew. See :func:`~torchrl_logo.modules.make_perturbation_network`.
        qvalue_network (TensorDictModule or list of them): reads the state and the joint action,
            writes ``"state_action_value"`` ``[*, 1]``. A single network is copied
            ``num_qvalue_nets`` times onto one stacked axis, and each copy is initialised anew.

    Keyword Args:
        action_spec (TensorSpec): bounds of the joint action, ``[N, d_a]``, finite.
        latent_size (int, optional): ``J``. Defaults to ``2 * d_a``, as that of
            :func:`~torchrl_logo.modules.make_action_vae`.
        num_qvalue_nets (int): number of critics. Defaults to ``2``.
        num_samples (int): joint draws :math:`n` for a target. Defaults to ``10``.
        min_weight (float): :math:`\lambda`, in ``[0, 1]``. Defaults to ``0.75``.
        kl_coeff (float): :math:`\kappa`. Defaults to ``0.5``.
        latent_clip (float): :math:`c`, positive. Defaults to ``0.5``.
        gamma (float): discount. Defaults to ``0.99``.
        loss_function (str): :math:`\ell`, as :func:`torchrl.objectives.distance_loss` takes it.
            Defaults to ``"l2"``, the square.
        reduction (str): ``"none"``, ``"mean"`` or ``"sum"``. Defaults to ``"mean"``.
        deactivate_vmap (bool): whether to loop over critics instead of :func:`torch.vmap`.
            Defaults to ``False``.
        use_prioritized_weights (bool or str): whether ``"priority_weight"`` weighs transitions;
            ``"auto"`` and ``True`` use it where it is there. Defaults to ``"auto"``.

    Reads what the networks read, and under ``"next"`` what all but the encoder read, the action,
    ``("next", "reward")``, ``("next", "done")``, ``("next", "terminated")`` ``[*, 1]``, and
    optionally ``"priority_weight"`` ``[*]`` and TorchRL's masks of padded steps. Writes
    ``"loss_qvalue"``, ``"loss_vae"``, ``"loss_actor"`` and the detached, unweighted
    ``"pred_value"``, ``"target_value"``, ``"reconstruction_error"`` and ``"kl_divergence"`` (the
    two parts of the autoencoder's loss).

    Raises:
        ValueError: for discrete or unbounded actions, weights out of range, or networks that do
            not read or write what they must. In :meth:`forward`, for entries or network outputs of
            wrong shapes or types.
        KeyError: in :meth:`forward`, for missing entries.
        RuntimeError: in :meth:`forward`, for negative weights
            (:mod:`~torchrl_logo.objectives.value_checks`).

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_logo.data import TaskSpec
        >>> from torchrl_logo.modules import (
        ...     make_action_vae, make_centralized_critic, make_perturbation_network)
        >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=1,
        ...                 action_low=(-1.0,), action_high=(1.0,))
        >>> loss = MABCQLoss(*make_action_vae(spec), make_perturbation_network(spec),
        ...                  make_centralized_critic(spec), action_spec=spec.action_spec())
        >>> batch = TensorDict({
        ...     "agents": {"observation": torch.randn(8, 2, 3), "action": torch.zeros(8, 2, 1)},
        ...     "state": torch.randn(8, 4),
        ...     "next": {
        ...         "agents": {"observation": torch.randn(8, 2, 3)},
        ...         "state": torch.randn(8, 4), "reward": torch.ones(8, 1),
        ...         "done": torch.zeros(8, 1, dtype=torch.bool),
        ...         "terminated": torch.zeros(8, 1, dtype=torch.bool),
        ...     },
        ... }, [8])
        >>> [key for key in loss(batch).keys() if key.startswith("loss_")]
        ['loss_qvalue', 'loss_vae', 'loss_actor']
        >>> data = TensorDict({("agents", "observation"): torch.randn(8, 2, 3)}, [8])
        >>> loss.actor_network(data)["agents", "action"].shape
        torch.Size([8, 2, 1])
    """

    @dataclass
    class _AcceptedKeys:
        """Keys that can be renamed with ``set_keys``.

        Attributes:
            action: the joint action, ``[*, N, d_a]``.
            latent_loc: where the encoder writes the latents' location, ``[*, N, J]``.
            latent_scale: where the encoder writes the latents' scale, ``[*, N, J]``.
            latent: what the decoder reads, ``[*, N, J]``.
            state_action_value: what the critic writes, ``[*, 1]``.
            reward: the team reward, ``[*, 1]``, under ``"next"``.
            done: end of the episode, ``[*, 1]``, under ``"next"``.
            terminated: end that forbids bootstrapping, ``[*, 1]``, under ``"next"``.
            priority_weight: importance weight of a transition, ``[*]`` (optional).
        """

        action: NestedKey = ("agents", "action")
        latent_loc: NestedKey = ("agents", "latent_loc")
        latent_scale: NestedKey = ("agents", "latent_scale")
        latent: NestedKey = ("agents", "latent")
        state_action_value: NestedKey = "state_action_value"
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"
        priority_weight: NestedKey = "priority_weight"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    default_value_estimator = ValueEstimators.TD0
    discrete = False
    continuous = True
    recurrent = False
    out_keys = [
        "loss_qvalue",
        "loss_vae",
        "loss_actor",
        "pred_value",
        "target_value",
        "reconstruction_error",
        "kl_divergence",
    ]

    encoder_network: TensorDictModuleBase
    decoder_network: TensorDictModuleBase
    perturbation_network: TensorDictModuleBase
    qvalue_network: TensorDictModule
    encoder_network_params: TensorDictParams
    decoder_network_params: TensorDictParams
    perturbation_network_params: TensorDictParams
    qvalue_network_params: TensorDictParams
    target_encoder_network_params: TensorDictParams
    target_decoder_network_params: TensorDictParams
    target_perturbation_network_params: TensorDictParams
    target_qvalue_network_params: TensorDictParams

    def __init__(
        self,
        encoder_network: TensorDictModuleBase,
        decoder_network: TensorDictModuleBase,
        perturbation_network: TensorDictModuleBase,
        qvalue_network: TensorDictModule | list[TensorDictModule],
        *,
        action_spec: TensorSpec,
        latent_size: int | None = None,
        num_qvalue_nets: int = 2,
        num_samples: int = 10,
        min_weight: float = 0.75,
        kl_coeff: float = 0.5,
        latent_clip: float = 0.5,
        gamma: float = 0.99,
        loss_function: str = "l2",
        reduction: str | None = None,
        deactivate_vmap: bool = False,
        use_prioritized_weights: str | bool = "auto",
    ) -> None:
        if num_samples < 1:
            raise ValueError(f"MABCQLoss: num_samples must be at least 1, found {num_samples}.")
        if not 0 <= min_weight <= 1:
            raise ValueError(f"MABCQLoss: min_weight must be in [0, 1], found {min_weight}.")
        if kl_coeff < 0:
            raise ValueError(f"MABCQLoss: kl_coeff must be at least 0, found {kl_coeff}.")
        if latent_clip <= 0:
            raise ValueError(f"MABCQLoss: latent_clip must be positive, found {latent_clip}.")
        if reduction not in (None, "none", "mean", "sum"):
            raise ValueError(
                f"MABCQLoss: reduction must be 'none', 'mean' or 'sum', found {reduction!r}."
            )
        if not isinstance(action_spec, Bounded) or len(action_spec.shape) != 2:
            raise ValueError(
                "MABCQLoss needs a Bounded action_spec of shape [N, d_a] (continuous actions, "
                f"without batch dimensions), found {type(action_spec).__name__} of shape "
                f"{tuple(action_spec.shape)}."
            )
        low, high = action_spec.space.low, action_spec.space.high
        if not all(0 < side < math.inf for side in (high - low).flatten().tolist()):
            raise ValueError(
                "MABCQLoss needs finite action bounds, low below high; found "
                f"low={low.tolist()}, high={high.tolist()}."
            )
        refuse_memory(
            type(self).__name__,
            encoder_network,
            decoder_network,
            perturbation_network,
            qvalue_network,
        )
        super().__init__()
        self.use_prioritized_weights = use_prioritized_weights
        self.deactivate_vmap = deactivate_vmap
        self.convert_to_functional(encoder_network, "encoder_network")
        self.convert_to_functional(decoder_network, "decoder_network")
        self.convert_to_functional(
            perturbation_network, "perturbation_network", create_target_params=True
        )
        self.convert_to_functional(
            qvalue_network, "qvalue_network", num_qvalue_nets, create_target_params=True
        )
        device = next(self.parameters()).device
        self.latent_size = 2 * action_spec.shape[-1] if latent_size is None else latent_size
        self.num_qvalue_nets = num_qvalue_nets
        self.num_samples = num_samples
        self.min_weight = min_weight
        self.kl_coeff = kl_coeff
        self.latent_clip = latent_clip
        self.loss_function = loss_function
        self.reduction = "mean" if reduction is None else reduction
        self.register_buffer("half_range", ((high - low) / 2).to(device))
        self._make_vmap()
        require_discount(gamma, type(self).__name__)
        self.make_value_estimator(self.default_value_estimator, gamma=gamma)

    def _make_vmap(self) -> None:
        self._vmap_qvalue_network = _vmap_func(
            self.qvalue_network, (None, 0), randomness=self.vmap_randomness,
            pseudo_vmap=self.deactivate_vmap,
        )  # fmt: skip

    def make_value_estimator(
        self, value_type: ValueEstimators | None = None, **hyperparams: Any
    ) -> None:
        """Chooses how targets are made; TD(0) by default. ``gamma`` is the discount."""
        dispatch_value_estimator(
            self,
            self.default_value_estimator if value_type is None else value_type,
            supported=(ValueEstimators.TD0,),
            tensor_keys=self._estimator_keys(),
            value_network=None,
            **hyperparams,
        )

    def _estimator_keys(self) -> dict[str, NestedKey]:
        keys = self.tensor_keys
        return {
            "value": keys.state_action_value,
            "reward": keys.reward,
            "done": keys.done,
            "terminated": keys.terminated,
        }

    def _forward_value_estimator_keys(self, **kwargs: Any) -> None:
        if self._value_estimator is not None:
            self._value_estimator.set_keys(**self._estimator_keys())

    @property
    def in_keys(self) -> list[NestedKey]:
        """What the loss reads; ``"priority_weight"`` is optional."""
        keys = self.tensor_keys
        made = {unravel_key(keys.action), unravel_key(keys.latent)}
        drawing = [
            key
            for net in (self.decoder_network, self.perturbation_network, self.qvalue_network)
            for key in net.in_keys
            if key not in made
        ]
        following = [*drawing, keys.reward, keys.done, keys.terminated]
        # a key of several networks is listed once
        return list(
            dict.fromkeys(
                [
                    keys.action,
                    *self.encoder_network.in_keys,
                    *drawing,
                    *[unravel_key(("next", key)) for key in following],
                ]
            )
        )

    @property
    def actor_network(self) -> TensorDictSequential:
        """The decentralised policy, with the loss's own networks: decodes zero and perturbs.

        Reads what the decoder and the perturbation read; writes the latent and the action.
        """
        latent = unravel_key(self.tensor_keys.latent)
        observed = [key for key in self.decoder_network.in_keys if key != latent]
        return TensorDictSequential(
            TensorDictModule(ZeroLatent(self.latent_size), in_keys=observed[:1], out_keys=[latent]),
            self.decoder_network,
            self.perturbation_network,
        )

    @property
    @_cache_values
    def _cached_detached_qvalue_params(self) -> TensorDictParams:
        return self.qvalue_network_params.detach()

    def _read(
        self, out: TensorDictBase, key: NestedKey, shape: tuple[int, ...], network: str
    ) -> torch.Tensor:
        """What a network wrote, of the shape that it must have."""
        value = out.get(key, None)
        value = require_written(value, key, getattr(self, network), network, "MABCQLoss")
        return require_shape(value, shape, key, "MABCQLoss")

    def _value(
        self, tensordict: TensorDictBase, action: torch.Tensor, params: TensorDictParams
    ) -> torch.Tensor:
        """Values ``[nets, *draws, *batch]`` of joint actions ``[*draws, *batch, N, d_a]``."""
        return value_actions(self, tensordict, action, params, action_dims=self.half_range.ndim)

    def _encode(self, tensordict: TensorDictBase) -> tuple[torch.Tensor, torch.Tensor]:
        """Location and scale ``[*batch, N, J]`` of the latents of the data's actions."""
        net, keys = self.encoder_network, self.tensor_keys
        with self.encoder_network_params.to_module(net, preserve_module_state=False):
            out = net(tensordict.select(*net.in_keys, strict=True))
        shape = (*tensordict.batch_size, self.half_range.shape[0], self.latent_size)
        loc, scale = (
            self._read(out, key, shape, "encoder_network")
            for key in (keys.latent_loc, keys.latent_scale)
        )
        return loc, scale

    def _decode(self, tensordict: TensorDictBase, latent: torch.Tensor) -> torch.Tensor:
        """Actions ``[*batch, N, d_a]`` of latents ``[*batch, N, J]``."""
        net, keys = self.decoder_network, self.tensor_keys
        inputs = tensordict.select(*net.in_keys, strict=False).set(keys.latent, latent)
        with self.decoder_network_params.to_module(net, preserve_module_state=False):
            out = net(inputs)
        shape = (*tensordict.batch_size, *self.half_range.shape)
        return self._read(out, keys.action, shape, "decoder_network")

    def _perturb(
        self, tensordict: TensorDictBase, action: torch.Tensor, params: TensorDictParams
    ) -> torch.Tensor:
        """Perturbed actions ``[*batch, N, d_a]``."""
        net, key = self.perturbation_network, self.tensor_keys.action
        inputs = tensordict.select(*net.in_keys, strict=False).set(key, action)
        with params.to_module(net, preserve_module_state=False):
            out = net(inputs)
        shape = (*tensordict.batch_size, *self.half_range.shape)
        return self._read(out, key, shape, "perturbation_network")

    def _generate(self, tensordict: TensorDictBase) -> torch.Tensor:
        """Draws of the generators ``[*batch, N, d_a]``, before the perturbation."""
        shape = (*tensordict.batch_size, self.half_range.shape[0], self.latent_size)
        zeros = torch.zeros(shape, device=self.half_range.device, dtype=self.half_range.dtype)
        prior = Normal(zeros, torch.ones_like(zeros), validate_args=False)
        latent = prior.rsample().clamp(-self.latent_clip, self.latent_clip)
        return self._decode(tensordict, latent)

    def _check(self, tensordict: TensorDictBase) -> None:
        """Refuses what would fail late, or not at all; waits for no values."""
        keys, batch_size = self.tensor_keys, tensordict.batch_size
        action_key, latent = unravel_key(keys.action), unravel_key(keys.latent)
        for name, verb, found, key in (
            ("encoder_network", "read", self.encoder_network.in_keys, action_key),
            ("decoder_network", "read", self.decoder_network.in_keys, latent),
            ("decoder_network", "write", self.decoder_network.out_keys, action_key),
            ("perturbation_network", "write", self.perturbation_network.out_keys, action_key),
            ("qvalue_network", "read", self.qvalue_network.in_keys, action_key),
        ):
            if key not in found:
                raise ValueError(
                    f"MABCQLoss: {name} must {verb} {key!r}; it {verb}s {list(found)}."
                )
        action = tensordict.get(keys.action)
        require_shape(action, (*batch_size, *self.half_range.shape), keys.action, "MABCQLoss")
        if not action.is_floating_point():
            raise ValueError(
                f"MABCQLoss needs continuous actions in {keys.action!r}, found {action.dtype}."
            )
        for name in (keys.reward, keys.done, keys.terminated):
            key = unravel_key(("next", name))
            require_shape(tensordict.get(key), (*batch_size, 1), key, "MABCQLoss")

    @torch.no_grad()
    def _target_value(self, tensordict: TensorDictBase) -> torch.Tensor:
        """The target ``[*batch]``: the best of the joint draws at the next step."""
        keys, following = self.tensor_keys, tensordict.get("next")
        batch_size = tensordict.batch_size
        made = {unravel_key(keys.action), unravel_key(keys.latent)}
        nets = (self.decoder_network, self.perturbation_network)
        inputs = following.select(*[k for net in nets for k in net.in_keys if k not in made])
        inputs = inputs.expand(self.num_samples, *batch_size)
        drawn = self._perturb(
            inputs, self._generate(inputs), self.target_perturbation_network_params
        )  # [n, B, N, d_a]
        values = self._value(following, drawn, self.target_qvalue_network_params)  # [nets, n, B]
        low, high = values.amin(0), values.amax(0)
        best = (self.min_weight * low + (1 - self.min_weight) * high).amax(0)  # [B]
        outcome = following.select(keys.reward, keys.done, keys.terminated)
        outcome.set(keys.state_action_value, best.unsqueeze(-1))
        targets = TensorDict({"next": outcome}, batch_size=batch_size)
        return self.value_estimator.value_estimate(targets).squeeze(-1)

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Computes all losses of a batch of transitions; see the class for keys and formulas."""
        keys = self.tensor_keys
        require_keys(tensordict, self.in_keys, "MABCQLoss")
        tensordict = match_batch_size(tensordict, keys.action, self.half_range.ndim)
        self._check(tensordict)
        weights = read_weights(self, tensordict)
        action = tensordict.get(keys.action)  # [B, N, d_a]

        loc, scale = self._encode(tensordict)  # [B, N, J]
        latent = Normal(loc, scale, validate_args=False).rsample()
        error = (self._decode(tensordict, latent) - action) / self.half_range
        reconstruction_error = error.square().mean((-2, -1))  # [B]
        divergence = 0.5 * (loc.square() + scale.square() - 1) - scale.log()
        kl_divergence = divergence.mean((-2, -1))  # [B]

        target_value = self._target_value(tensordict)  # [B]
        pred_value = self._value(tensordict, action, self.qvalue_network_params)  # [nets, B]
        loss_qvalue = distance_loss(
            pred_value, target_value.expand_as(pred_value), loss_function=self.loss_function
        ).sum(0)

        with torch.no_grad():
            drawn = self._generate(tensordict)
        chosen = self._perturb(tensordict, drawn, self.perturbation_network_params)
        policy_value = self._value(tensordict, chosen, self._cached_detached_qvalue_params)[0]

        losses = {
            "loss_qvalue": loss_qvalue,
            "loss_vae": reconstruction_error + self.kl_coeff * kl_divergence,
            "loss_actor": -policy_value,
        }
        statistics = {
            "pred_value": pred_value.mean(0),
            "target_value": target_value,
            "reconstruction_error": reconstruction_error,
            "kl_divergence": kl_divergence,
        }
        none = self.reduction == "none"
        out = {
            name: self._reduce_loss(loss, tensordict=tensordict, weights=weights)
            for name, loss in losses.items()
        }
        for name, value in statistics.items():
            value = value.detach()
            if not none:
                # the mean over what is not padding, without weights
                value = self._reduce_loss(value, tensordict=tensordict, reduction="mean")
            out[name] = value
        result = TensorDict(out, batch_size=tensordict.batch_size if none else [])
        self._clear_weakrefs(
            tensordict,
            result,
            "encoder_network_params",
            "decoder_network_params",
            "perturbation_network_params",
            "qvalue_network_params",
            "target_encoder_network_params",
            "target_decoder_network_params",
            "target_perturbation_network_params",
            "target_qvalue_network_params",
        )
        return result
