"""Multi-agent batch-constrained Q-learning (MABCQ) for discrete actions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import (
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictModuleBase,
    TensorDictSequential,
    dispatch,
)
from tensordict.utils import NestedKey, unravel_key
from torch import nn
from torchrl.objectives import LossModule, ValueEstimators, distance_loss
from torchrl.objectives.utils import dispatch_value_estimator

from torchrl_logo.argument_checks import require_discount
from torchrl_logo.modules.masked_categorical import MaskedCategorical
from torchrl_logo.objectives.memory import refuse_memory
from torchrl_logo.objectives.required_keys import (
    match_batch_size,
    require_keys,
    require_shape,
    require_written,
)
from torchrl_logo.objectives.value_checks import read_weights, require_available_actions

__all__ = ["DiscreteMABCQLoss"]


class ConstrainedArgmax(nn.Module):
    r"""Takes each agent's best action among those that the behaviour takes often enough.

    .. math:: \arg\max_{a \text{ available},\
        p(a|o_i) / \max_{\hat a} p(\hat a|o_i) \ge \tau} Q_i(o_i, a)

    The ratio is at most one and one for the likeliest action, so that something is permitted
    whenever something is available; where nothing is, the answer is action 0.

    Args:
        threshold (float): :math:`\tau`, in ``[0, 1]``.

    Examples:
        >>> choose = ConstrainedArgmax(0.5)
        >>> logits = torch.tensor([2.0, 1.5, 0.0])
        >>> choose(logits, torch.ones(3, dtype=torch.bool), torch.tensor([1.0, 2.0, 9.0]))
        tensor(1)
    """

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.log_threshold = math.log(threshold) if threshold > 0 else -math.inf

    def permit(self, logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Which actions ``[*, A]`` are permitted, from unnormalised log-probabilities."""
        available = torch.where(mask, logits, torch.finfo(logits.dtype).min)
        ratio = logits - available.amax(-1, keepdim=True)  # the normaliser cancels
        return mask & (ratio >= self.log_threshold)

    def forward(
        self, logits: torch.Tensor, mask: torch.Tensor, action_value: torch.Tensor
    ) -> torch.Tensor:
        """Actions ``[*]`` from ``[*, A]`` each of logits, availability and values."""
        permitted = self.permit(logits, mask)
        lowest = torch.finfo(action_value.dtype).min
        return torch.where(permitted, action_value, lowest).argmax(-1)


class DiscreteMABCQLoss(LossModule):
    r"""Q-learning that bootstraps on actions like the dataset's, with mixed utilities.

    Each agent has a utility :math:`Q_i(o_i, a_i)` and a behaviour :math:`p_i(a_i|o_i)` fitted to
    the data, which says what its bootstrap action may be; a mixer :math:`f` that is monotonic in
    utilities makes the team's value of them, so that the agents' own choices are the team's:

    .. math::

        a'_i &= \arg\max_{a \text{ available},\
            p_i(a|o'_i) / \max_{\hat a} p_i(\hat a|o'_i) \ge \tau} Q_i(o'_i, a) \\
        L_{qvalue} &= \ell\Big(f\big(s, Q_1(o_1, a_1), \dots\big),\ r + \gamma (1 - d)
            \bar f\big(s', \bar Q_1(o'_1, a'_1), \dots\big)\Big) \\
        L_{behaviour} &= -\frac{1}{N} \sum_i \log p_i(a_i|o_i)

    Source: discrete BCQ (Fujimoto et al. 2019, "Benchmarking Batch Deep Reinforcement Learning
    Algorithms", arXiv 1910.01708, section on BCQ), where bootstrap actions are chosen by the
    current network and valued by the target network, and :math:`\ell` is Huber's loss. The paper
    has one agent; the mixture of utilities is QMIX's (Rashid et al. 2018) or VDN's. The paper's
    ratio is greater than :math:`\tau`; here it may equal it, so that ``threshold=1`` permits the
    likeliest action instead of none. :math:`\tau = 0` is Q-learning. Utilities and behaviour
    share no layers, and their losses no gradient.

    With ``"priority_weight"`` in the batch, each loss is :math:`\sum w l / \sum w` under
    ``"mean"``, :math:`\sum w l` under ``"sum"`` and :math:`w l` under ``"none"``. Weights must not
    be negative, which is checked, and not all zero. Each agent must have an available action, but
    for steps after a termination (whose bootstrap, which does not count, is of action 0). A
    dataset's action that was not available has an infinite behaviour loss.

    Args:
        behaviour_network (TensorDictModule): reads observations and writes
            ``("agents", "logits")`` ``[*, N, A]``. Of a
            :class:`~tensordict.nn.ProbabilisticTensorDictSequential`, such as
            :func:`~torchrl_logo.modules.make_categorical_actor` makes, all but the distribution is
            used.
        action_value_network (TensorDictModule): reads observations and writes utilities
            ``("agents", "action_value")`` ``[*, N, A]``.
        mixer_network (TensorDictModule): reads ``("agents", "chosen_action_value")`` ``[*, N, 1]``
            and, if it likes, the state; writes ``"chosen_action_value"`` ``[*, 1]``. Must be
            monotonic in utilities, as TorchRL's ``QMixer`` and ``VDNMixer`` are.

    Keyword Args:
        threshold (float): :math:`\tau`, in ``[0, 1]``. Defaults to the paper's ``0.3``; 0.4 is
            common for teams.
        gamma (float): discount. Defaults to ``0.99``.
        loss_function (str): :math:`\ell`, as :func:`torchrl.objectives.distance_loss` takes it.
            Defaults to ``"smooth_l1"``, Huber's; ``"l2"`` is the square, without a half.
        reduction (str): ``"none"``, ``"mean"`` or ``"sum"``. Defaults to ``"mean"``.
        use_prioritized_weights (bool or str): whether ``"priority_weight"`` weighs transitions;
            ``"auto"`` and ``True`` use it where it is there. Defaults to ``"auto"``.

    Reads what the networks read, at the root and under ``"next"``, the action ``[*, N]``, the mask
    ``("agents", "action_mask")`` ``[*, N, A]`` bool at the root and under ``"next"``,
    ``("next", "reward")``, ``("next", "done")``, ``("next", "terminated")`` ``[*, 1]``, and
    optionally ``"priority_weight"`` ``[*]`` and TorchRL's masks of padded steps. Writes
    ``"loss_qvalue"``, ``"loss_behaviour"`` and the detached, unweighted ``"pred_value"``,
    ``"target_value"``, ``"bc_log_prob"`` and ``"permitted_actions"`` (how many an agent has at the
    next step).

    :attr:`actor_network` is the decentralised policy: each agent's constrained argmax.

    Raises:
        ValueError: for an unknown reduction, a threshold out of range or a mixer that does not
            read utilities. In :meth:`forward`, for entries or network outputs of wrong shapes or
            types, so for continuous actions.
        KeyError: in :meth:`forward`, for missing entries, or outputs that a network does not write.
        RuntimeError: in :meth:`forward`, for negative weights, or an agent without available
            actions (:mod:`~torchrl_logo.objectives.value_checks`).

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_logo.data import TaskSpec
        >>> from torchrl_logo.modules import (
        ...     make_action_value_network, make_categorical_actor, make_mixer)
        >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=5,
        ...                 discrete=True)
        >>> loss = DiscreteMABCQLoss(make_categorical_actor(spec), make_action_value_network(spec),
        ...                          make_mixer(spec))
        >>> agents = {"observation": torch.randn(8, 2, 3),
        ...           "action_mask": torch.ones(8, 2, 5, dtype=torch.bool)}
        >>> ended = torch.zeros(8, 1, dtype=torch.bool)
        >>> batch = TensorDict({
        ...     "agents": {**agents, "action": torch.zeros(8, 2, dtype=torch.int64)},
        ...     "state": torch.randn(8, 4),
        ...     "next": {"agents": agents, "state": torch.randn(8, 4), "done": ended,
        ...              "reward": torch.ones(8, 1), "terminated": ended},
        ... }, [8])
        >>> [key for key in loss(batch).keys() if key.startswith("loss_")]
        ['loss_qvalue', 'loss_behaviour']
        >>> loss.actor_network(TensorDict({"agents": agents}, [8]))["agents", "action"].shape
        torch.Size([8, 2])
    """

    @dataclass
    class _AcceptedKeys:
        """Keys that can be renamed with ``set_keys``.

        Attributes:
            action: the joint action, ``[*, N]``.
            action_mask: which actions are available, ``[*, N, A]``, also under ``"next"``.
            logits: what the behaviour network writes, ``[*, N, A]``.
            action_value: what the utilities' network writes, ``[*, N, A]``.
            local_value: utilities of the chosen actions, which the mixer reads, ``[*, N, 1]``.
            global_value: what the mixer writes, ``[*, 1]``.
            reward: the team reward, ``[*, 1]``, under ``"next"``.
            done: end of the episode, ``[*, 1]``, under ``"next"``.
            terminated: end that forbids bootstrapping, ``[*, 1]``, under ``"next"``.
            priority_weight: importance weight of a transition, ``[*]`` (optional).
        """

        action: NestedKey = ("agents", "action")
        action_mask: NestedKey = ("agents", "action_mask")
        logits: NestedKey = ("agents", "logits")
        action_value: NestedKey = ("agents", "action_value")
        local_value: NestedKey = ("agents", "chosen_action_value")
        global_value: NestedKey = "chosen_action_value"
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"
        priority_weight: NestedKey = "priority_weight"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    default_value_estimator = ValueEstimators.TD0
    discrete = True
    continuous = False
    recurrent = False
    out_keys = [
        "loss_qvalue",
        "loss_behaviour",
        "pred_value",
        "target_value",
        "bc_log_prob",
        "permitted_actions",
    ]

    behaviour_network: TensorDictModuleBase
    action_value_network: TensorDictModuleBase
    mixer_network: TensorDictModuleBase
    behaviour_network_params: TensorDictParams
    action_value_network_params: TensorDictParams
    mixer_network_params: TensorDictParams
    target_behaviour_network_params: TensorDictParams
    target_action_value_network_params: TensorDictParams
    target_mixer_network_params: TensorDictParams

    def __init__(
        self,
        behaviour_network: TensorDictModuleBase,
        action_value_network: TensorDictModuleBase,
        mixer_network: TensorDictModuleBase,
        *,
        threshold: float = 0.3,
        gamma: float = 0.99,
        loss_function: str = "smooth_l1",
        reduction: str | None = None,
        use_prioritized_weights: str | bool = "auto",
    ) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"DiscreteMABCQLoss: threshold must be in [0, 1], found {threshold}.")
        if reduction not in (None, "none", "mean", "sum"):
            raise ValueError(
                f"DiscreteMABCQLoss: reduction must be 'none', 'mean' or 'sum', found "
                f"{reduction!r}."
            )
        refuse_memory(type(self).__name__, behaviour_network, action_value_network)
        super().__init__()
        if isinstance(behaviour_network, ProbabilisticTensorDictSequential):
            behaviour_network = behaviour_network.det_part
        self.use_prioritized_weights = use_prioritized_weights
        self.convert_to_functional(behaviour_network, "behaviour_network")
        self.convert_to_functional(
            action_value_network, "action_value_network", create_target_params=True
        )
        self.convert_to_functional(mixer_network, "mixer_network", create_target_params=True)
        self.threshold = threshold
        self.choose = ConstrainedArgmax(threshold)
        self.loss_function = loss_function
        self.reduction = "mean" if reduction is None else reduction
        require_discount(gamma, type(self).__name__)
        self.make_value_estimator(self.default_value_estimator, gamma=gamma)

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
            "value": keys.global_value,
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
        mixed = unravel_key(keys.local_value)
        roots = [
            keys.action_mask,
            *self.behaviour_network.in_keys,
            *self.action_value_network.in_keys,
            *[key for key in self.mixer_network.in_keys if key != mixed],
        ]
        following = [*roots, keys.reward, keys.done, keys.terminated]
        # a key of several networks is listed once
        return list(
            dict.fromkeys([keys.action, *roots, *[unravel_key(("next", k)) for k in following]])
        )

    @property
    def actor_network(self) -> TensorDictSequential:
        """The policy, with the loss's own networks: each agent's constrained argmax.

        Reads what the behaviour's and the utilities' networks read and the mask; writes the
        action ``[*, N]``, beside what these networks write.
        """
        keys = self.tensor_keys
        return TensorDictSequential(
            self.behaviour_network,
            self.action_value_network,
            TensorDictModule(
                self.choose,
                in_keys=[keys.logits, keys.action_mask, keys.action_value],
                out_keys=[keys.action],
            ),
        )

    def _call(
        self,
        name: str,
        params: TensorDictParams,
        tensordict: TensorDictBase,
        key: NestedKey,
        shape: torch.Size,
    ) -> torch.Tensor:
        """What a network writes at ``key``, of the shape that it must have."""
        network = getattr(self, name)
        with params.to_module(network, preserve_module_state=False):
            out = network(tensordict.select(*network.in_keys, strict=True))
        value = out.get(key, None)
        value = require_written(value, key, network, name, "DiscreteMABCQLoss")
        return require_shape(value, shape, key, "DiscreteMABCQLoss")

    def _mix(
        self,
        params: TensorDictParams,
        tensordict: TensorDictBase,
        action_value: torch.Tensor,
        action: torch.Tensor,
    ) -> torch.Tensor:
        """The team's value ``[*, 1]`` of actions ``[*, N]`` with utilities ``[*, N, A]``."""
        key = self.tensor_keys.local_value
        inputs = tensordict.select(*self.mixer_network.in_keys, strict=False)
        inputs.set(key, action_value.gather(-1, action.unsqueeze(-1)))  # [B, N, 1]
        shape = torch.Size([*tensordict.batch_size, 1])
        return self._call("mixer_network", params, inputs, self.tensor_keys.global_value, shape)

    def _check(self, tensordict: TensorDictBase) -> None:
        """Refuses what would fail late, or not at all; waits for no values."""
        keys, batch_size, loss = self.tensor_keys, tensordict.batch_size, "DiscreteMABCQLoss"
        if unravel_key(keys.local_value) not in self.mixer_network.in_keys:
            raise ValueError(
                f"{loss}: the mixer must read utilities at {keys.local_value!r}; it reads "
                f"{list(self.mixer_network.in_keys)}."
            )
        action, mask = tensordict.get(keys.action), tensordict.get(keys.action_mask)
        if action.is_floating_point() or action.dtype is torch.bool:
            raise ValueError(
                f"{loss} needs categorical actions, integers [*, N], in {keys.action!r}, found "
                f"{action.dtype}."
            )
        if mask.ndim != len(batch_size) + 2:
            raise ValueError(
                f"{loss} expected {keys.action_mask!r} of shape [*, N, A] with batch "
                f"{tuple(batch_size)}, found {tuple(mask.shape)}."
            )
        require_shape(action, (*batch_size, mask.shape[-2]), keys.action, loss)
        require_shape(mask, (*action.shape, mask.shape[-1]), keys.action_mask, loss)
        following = unravel_key(("next", keys.action_mask))
        require_shape(tensordict.get(following), mask.shape, following, loss)
        for key in (keys.action_mask, following):
            if tensordict.get(key).dtype is not torch.bool:
                raise ValueError(
                    f"{loss} expected {key!r} of dtype bool, found {tensordict.get(key).dtype}."
                )
        for name in (keys.reward, keys.done, keys.terminated):
            key = unravel_key(("next", name))
            require_shape(tensordict.get(key), (*batch_size, 1), key, loss)
        require_available_actions(self, tensordict, keys.action_mask)
        end = unravel_key(("next", keys.terminated))
        require_available_actions(self, tensordict, following, terminated=end)

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Computes both losses of a batch of transitions; see the class for keys and formulas."""
        keys = self.tensor_keys
        require_keys(tensordict, self.in_keys, "DiscreteMABCQLoss")
        tensordict = match_batch_size(tensordict, keys.action, 1)
        self._check(tensordict)
        weights = read_weights(self, tensordict)
        following = tensordict.get("next")
        action, mask = tensordict.get(keys.action).long(), tensordict.get(keys.action_mask)
        batch_size, shape = tensordict.batch_size, mask.shape
        behaviour, utilities = self.behaviour_network_params, self.action_value_network_params

        logits = self._call("behaviour_network", behaviour, tensordict, keys.logits, shape)
        log_prob = MaskedCategorical(logits, mask).log_prob(action).mean(-1)  # [B]
        value = self._call("action_value_network", utilities, tensordict, keys.action_value, shape)
        pred_value = self._mix(self.mixer_network_params, tensordict, value, action).squeeze(-1)

        with torch.no_grad():
            next_logits = self._call("behaviour_network", behaviour, following, keys.logits, shape)
            next_mask = following.get(keys.action_mask)
            next_value, target_next_value = (
                self._call("action_value_network", params, following, keys.action_value, shape)
                for params in (utilities, self.target_action_value_network_params)
            )
            next_action = self.choose(next_logits, next_mask, next_value)  # [B, N]
            bootstrap = self._mix(
                self.target_mixer_network_params, following, target_next_value, next_action
            )
            outcome = following.select(keys.reward, keys.done, keys.terminated)
            outcome.set(keys.global_value, bootstrap)
            targets = TensorDict({"next": outcome}, batch_size=batch_size)
            target_value = self.value_estimator.value_estimate(targets).squeeze(-1)  # [B]
            permitted = self.choose.permit(next_logits, next_mask).sum(-1).to(logits.dtype).mean(-1)

        losses = {
            "loss_qvalue": distance_loss(
                pred_value, target_value, loss_function=self.loss_function
            ),
            "loss_behaviour": -log_prob,
        }
        statistics = {
            "pred_value": pred_value.detach(),
            "target_value": target_value,
            "bc_log_prob": log_prob.detach(),
            "permitted_actions": permitted,
        }
        none = self.reduction == "none"
        if not none:
            # the mean over what is not padding, without weights
            statistics = {
                name: self._reduce_loss(value, tensordict=tensordict, reduction="mean")
                for name, value in statistics.items()
            }
        out = {
            name: self._reduce_loss(loss, tensordict=tensordict, weights=weights)
            for name, loss in losses.items()
        }
        result = TensorDict({**out, **statistics}, batch_size=batch_size if none else [])
        self._clear_weakrefs(
            tensordict,
            result,
            "behaviour_network_params",
            "action_value_network_params",
            "mixer_network_params",
            "target_behaviour_network_params",
            "target_action_value_network_params",
            "target_mixer_network_params",
        )
        return result
