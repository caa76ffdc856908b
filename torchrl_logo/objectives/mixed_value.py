"""What losses share that learn a conservative team value, mixed from agents' discrete values."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, dispatch
from tensordict.utils import NestedKey, unravel_key
from torchrl.modules import VDNMixer, set_recurrent_mode
from torchrl.objectives import LossModule, ValueEstimators, distance_loss
from torchrl.objectives.utils import dispatch_value_estimator

from torchrl_logo.argument_checks import require_discount
from torchrl_logo.modules.recurrent_network import find_recurrent_states
from torchrl_logo.modules.world_model import next_key
from torchrl_logo.objectives.available_actions import fill_unavailable
from torchrl_logo.objectives.imagined_rows import find_real_rows, restrict_rows, weigh_rows
from torchrl_logo.objectives.required_keys import (
    match_batch_size,
    require_keys,
    require_shape,
    require_written,
)
from torchrl_logo.objectives.value_checks import read_weights, require_available_actions

__all__ = ["MixedValueLoss"]


class MixedValueLoss(LossModule):
    r"""Base of losses of a mixed value :math:`Q_{tot}` with a conservative penalty.

    The team's value is mixed from the agents' values of their own actions by a monotonic network,
    :math:`Q_{tot}(s, a) = f_s(Q_1(o_1, a_1), \dots, Q_N(o_N, a_N))`, so that each agent's best
    action is part of the team's best:

    .. math::

        L_{qvalue} &= \big(Q_{tot}(s, a) - r - \gamma (1 - d) \bar Q_{tot}(s', a')\big)^2 / 2,
            \quad a'_i = \arg\max_{a_i \text{ available}} Q_i(o'_i, a_i) \\
        L_{cql} &= \alpha \big(P(s, a) - Q_{tot}(s, a)\big)

    with the soft maximum :math:`P` that a subclass defines. The next action is the networks'
    choice and its value the target networks' (double Q-learning, van Hasselt et al. 2016). No
    value of an unavailable action enters anything.

    Utility networks may have memory
    (:func:`~torchrl_logo.modules.make_recurrent_action_value_network`); batches are then sequences
    ``[*, T]`` with ``"is_init"`` ``[*, T, 1]``
    (:func:`~torchrl_logo.data.sequence_buffer`). A network runs over the sequence from zeros, and
    values the next step's observation by the state in which the current step left it: the
    networks by their own states, the target networks by theirs.

    Where a batch says which transitions are ``"imagined"``, the penalty (and what a subclass
    learns of the data's actions) leaves those out, whose actions are the policy's own. The rows
    that remain are scaled up, so that the mean over the batch is the mean (weighted, with
    weights) over the remaining rows, whatever their share.

    Subclasses implement :meth:`_soften`, and describe their arguments and keys.
    """

    @dataclass
    class _AcceptedKeys:
        """Keys that can be renamed with ``set_keys``.

        Attributes:
            action: the joint action, ``[*, N]`` int64.
            action_mask: available actions, ``[*, N, A]`` bool, also under ``"next"``.
            action_value: what the utility network writes, ``[*, N, A]``.
            local_value: value of each agent's action, which the mixer reads, ``[*, N, 1]``.
            global_value: what the mixer writes, ``[*, 1]``.
            reward: the team reward, ``[*, 1]``, under ``"next"``.
            done: end of the episode, ``[*, 1]``, under ``"next"``.
            terminated: end that forbids bootstrapping, ``[*, 1]``, under ``"next"``.
            priority_weight: importance weight of a transition, ``[*]`` (optional).
            imagined: which transitions come from a model, ``[*, 1]`` bool (optional).
        """

        action: NestedKey = ("agents", "action")
        action_mask: NestedKey = ("agents", "action_mask")
        action_value: NestedKey = ("agents", "action_value")
        local_value: NestedKey = ("agents", "chosen_action_value")
        global_value: NestedKey = "chosen_action_value"
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"
        priority_weight: NestedKey = "priority_weight"
        imagined: NestedKey = "imagined"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    default_value_estimator = ValueEstimators.TD0
    discrete = True
    continuous = False
    recurrent = True

    action_value_network: TensorDictModule
    mixer_network: TensorDictModule
    action_value_network_params: TensorDictParams
    mixer_network_params: TensorDictParams
    target_action_value_network_params: TensorDictParams
    target_mixer_network_params: TensorDictParams

    def __init__(
        self,
        action_value_network: TensorDictModule,
        mixer_network: TensorDictModule,
        *,
        min_q_weight: float = 5.0,
        temperature: float = 1.0,
        gamma: float = 0.99,
        loss_function: str = "l2",
        reduction: str | None = None,
        deactivate_vmap: bool = False,
        use_prioritized_weights: str | bool = "auto",
    ) -> None:
        name = type(self).__name__
        if min_q_weight < 0:
            raise ValueError(f"{name}: min_q_weight must not be negative, found {min_q_weight}.")
        if temperature <= 0:
            raise ValueError(f"{name}: temperature must be positive, found {temperature}.")
        if reduction not in (None, "none", "mean", "sum"):
            raise ValueError(
                f"{name}: reduction must be 'none', 'mean' or 'sum', found {reduction!r}."
            )
        super().__init__()
        self.use_prioritized_weights = use_prioritized_weights
        self.deactivate_vmap = deactivate_vmap
        self._in_keys: list[NestedKey] | None = None
        self._out_keys: list[str] | None = None
        # Where the team's value is a sum, soft maxima need no mixed alternatives.
        self.additive = isinstance(getattr(mixer_network, "module", None), VDNMixer)
        self.convert_to_functional(
            action_value_network, "action_value_network", create_target_params=True
        )
        self.convert_to_functional(mixer_network, "mixer_network", create_target_params=True)
        self.min_q_weight = min_q_weight
        self.temperature = temperature
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
            tensor_keys={
                "value": self.tensor_keys.global_value,
                "reward": self.tensor_keys.reward,
                "done": self.tensor_keys.done,
                "terminated": self.tensor_keys.terminated,
            },
            value_network=None,
            **hyperparams,
        )

    def _forward_value_estimator_keys(self, **kwargs: Any) -> None:
        if self._value_estimator is not None:
            self._value_estimator.set_keys(
                value=self.tensor_keys.global_value,
                reward=self.tensor_keys.reward,
                done=self.tensor_keys.done,
                terminated=self.tensor_keys.terminated,
            )
        self._in_keys = None

    @property
    def in_keys(self) -> list[NestedKey]:
        """What the loss reads; ``"imagined"`` and ``"priority_weight"`` are optional."""
        if self._in_keys is None:
            keys, network = self.tensor_keys, self.action_value_network
            roots = [*network.in_keys, *self._context_keys, keys.action_mask]
            states = find_recurrent_states(network)
            # the next step goes on from the current one, and has no state or start of its own
            carried = [*states, "is_init"] if states else []
            self._in_keys = list(
                dict.fromkeys(
                    [
                        keys.action,
                        *roots,
                        *[next_key(key) for key in roots if key not in carried],
                        ("next", keys.reward),
                        ("next", keys.done),
                        ("next", keys.terminated),
                    ]
                )
            )
        return self._in_keys

    @in_keys.setter
    def in_keys(self, values: list[NestedKey]) -> None:
        self._in_keys = values

    @property
    def out_keys(self) -> list[str]:
        """What the loss writes."""
        if self._out_keys is None:
            self._out_keys = [
                "loss_qvalue",
                "loss_cql",
                "pred_value",
                "target_value",
                "conservative_gap",
            ]
        return self._out_keys

    @out_keys.setter
    def out_keys(self, values: list[str]) -> None:
        self._out_keys = values

    @property
    def _context_keys(self) -> list[NestedKey]:
        """What the mixer reads besides the agents' values."""
        local = unravel_key(self.tensor_keys.local_value)
        return [key for key in self.mixer_network.in_keys if key != local]

    def _run(self, tensordict: TensorDictBase, params: TensorDictParams) -> TensorDictBase:
        """What the utility network writes, and reads."""
        net = self.action_value_network
        with params.to_module(net, preserve_module_state=False):
            return net(tensordict.select(*net.in_keys, strict=True))

    def _utilities(self, tensordict: TensorDictBase, params: TensorDictParams) -> torch.Tensor:
        """Values of all actions of each agent, ``[*batch, N, A]``, available or not."""
        return self._read_utilities(self._run(tensordict, params), tensordict)

    def _next_utilities(
        self,
        tensordict: TensorDictBase,
        params: TensorDictParams,
        passed: TensorDictBase | None = None,
    ) -> torch.Tensor:
        """Those of the next step, ``[*batch, N, A]``.

        Args:
            tensordict (TensorDictBase): the batch.
            params (TensorDictParams): the utility network's.
            passed (TensorDictBase, optional): what it wrote at the current steps with these
                parameters; a network with memory goes on from there. Run anew if not given.
        """
        net, following = self.action_value_network, tensordict.get("next")
        states = find_recurrent_states(net)
        if not states:
            return self._utilities(following, params)
        if passed is None:
            passed = self._run(tensordict, params)
        inputs = following.select(*net.in_keys, strict=False)
        for key in states:
            inputs.set(key, passed.get(next_key(key)))
        done = following.get(self.tensor_keys.done)
        inputs.set("is_init", torch.zeros_like(done))
        # each row is one further step from the state that its sequence is in by then
        with params.to_module(net, preserve_module_state=False), set_recurrent_mode(False):
            return self._read_utilities(net(inputs), following)

    def _read_utilities(self, outputs: TensorDictBase, tensordict: TensorDictBase) -> torch.Tensor:
        key = self.tensor_keys.action_value
        value = outputs.get(key, None)
        value = require_written(
            value, key, self.action_value_network, "the utility network", type(self).__name__
        )
        mask = tensordict.get(self.tensor_keys.action_mask)
        return require_shape(value, mask.shape, key, type(self).__name__)

    def _mix(
        self, chosen: torch.Tensor, tensordict: TensorDictBase, params: TensorDictParams
    ) -> torch.Tensor:
        """The team's values ``[*batch]`` of agents' values ``[*batch, N]``."""
        key, net = self.tensor_keys.global_value, self.mixer_network
        # TorchRL's mixers view what they are given, which needs to be in one piece
        inputs = tensordict.select(*self._context_keys, strict=True).contiguous()
        inputs.set(self.tensor_keys.local_value, chosen.unsqueeze(-1).contiguous())
        with params.to_module(net, preserve_module_state=False):
            value = net(inputs).get(key, None)
        value = require_written(value, key, net, "the mixer", type(self).__name__)
        # a value for each agent would broadcast against the team's reward without an error
        expected = (*tensordict.batch_size, 1)
        return require_shape(value, expected, key, type(self).__name__).squeeze(-1)

    def _mix_each(self, chosen: torch.Tensor, tensordict: TensorDictBase) -> torch.Tensor:
        """The team's values ``[K, *batch]`` of ``K`` joint actions in each state."""
        params = self.mixer_network_params
        if self.deactivate_vmap:
            inputs = tensordict.select(*self._context_keys, strict=True)
            inputs = inputs.expand(chosen.shape[0], *tensordict.batch_size)
            return self._mix(chosen, inputs, params)
        # what the mixer makes of the state is made once for all joint actions
        return torch.vmap(lambda values: self._mix(values, tensordict, params))(chosen)

    def _check(self, tensordict: TensorDictBase) -> None:
        """Refuses what would fail late, or not at all; waits for no values."""
        keys, batch_size, name = self.tensor_keys, tensordict.batch_size, type(self).__name__
        if unravel_key(keys.local_value) not in self.mixer_network.in_keys:
            raise ValueError(
                f"{name}: the mixer must read the agents' values {keys.local_value!r}; it reads "
                f"{list(self.mixer_network.in_keys)}."
            )
        action = tensordict.get(keys.action)
        if action.dtype is not torch.int64:
            raise ValueError(
                f"{name} needs discrete actions of int64 in {keys.action!r}, found {action.dtype}."
            )
        mask = tensordict.get(keys.action_mask)
        agents = action.shape[len(batch_size) :]
        if len(agents) != 1:
            raise ValueError(
                f"{name} expected {keys.action!r} of shape {(*batch_size, 'N')}, found "
                f"{tuple(action.shape)}."
            )
        actions = mask.shape[-1:]
        nested = (keys.action_mask,) if isinstance(keys.action_mask, str) else keys.action_mask
        for key in (keys.action_mask, ("next", *nested)):
            found = tensordict.get(key)
            require_shape(found, (*batch_size, *agents, *actions), key, name)
            if found.dtype is not torch.bool:
                raise ValueError(f"{name} expected {key!r} of dtype bool, found {found.dtype}.")
        for outcome in (keys.reward, keys.done, keys.terminated):
            key = ("next", outcome)
            require_shape(tensordict.get(key), (*batch_size, 1), key, name)
        require_available_actions(self, tensordict, keys.action_mask)
        end: NestedKey = ("next", keys.terminated)
        require_available_actions(self, tensordict, ("next", *nested), terminated=end)

    @torch.no_grad()
    def _target_value(self, tensordict: TensorDictBase, passed: TensorDictBase) -> torch.Tensor:
        """The target ``[*batch]``, by double Q-learning on what is available."""
        keys, following = self.tensor_keys, tensordict.get("next")
        mask = following.get(keys.action_mask)
        online = self._next_utilities(tensordict, self.action_value_network_params, passed)
        best = fill_unavailable(online, mask).argmax(-1, keepdim=True)  # [B, N, 1]
        delayed = self._next_utilities(tensordict, self.target_action_value_network_params)
        chosen = delayed.gather(-1, best).squeeze(-1)  # [B, N]
        next_value = self._mix(chosen, following, self.target_mixer_network_params)
        outcome = following.select(keys.reward, keys.done, keys.terminated)
        outcome.set(keys.global_value, next_value.unsqueeze(-1))
        targets = TensorDict({"next": outcome}, batch_size=tensordict.batch_size)
        return self.value_estimator.value_estimate(targets).squeeze(-1)

    @abstractmethod
    def _soften(
        self,
        tensordict: TensorDictBase,
        utilities: torch.Tensor,
        chosen: torch.Tensor,
        pred_value: torch.Tensor,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The soft maximum that the penalty pushes down.

        Args:
            tensordict (TensorDictBase): the batch.
            utilities (torch.Tensor): ``[*batch, N, A]``.
            chosen (torch.Tensor): those of the data's actions, ``[*batch, N]``.
            pred_value (torch.Tensor): the team's value of the data's actions, ``[*batch]``.

        Returns:
            The soft maximum ``[*batch]``, and further losses (of the data's actions) and further
            statistics by their names, ``[*batch]`` each.
        """

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Computes all losses of a batch of transitions; see the class for keys and formulas."""
        keys = self.tensor_keys
        require_keys(tensordict, self.in_keys, type(self).__name__)
        tensordict = match_batch_size(tensordict, keys.action, 1)
        self._check(tensordict)
        weights = read_weights(self, tensordict)
        action = tensordict.get(keys.action)  # [B, N]
        passed = self._run(tensordict, self.action_value_network_params)
        utilities = self._read_utilities(passed, tensordict)  # [B, N, A]
        chosen = utilities.gather(-1, action.unsqueeze(-1)).squeeze(-1)  # [B, N]
        pred_value = self._mix(chosen, tensordict, self.mixer_network_params)  # [B]
        target_value = self._target_value(tensordict, passed)  # [B]
        soft_maximum, more_losses, more_statistics = self._soften(
            tensordict, utilities, chosen, pred_value
        )
        gap = soft_maximum - pred_value
        distance = distance_loss(pred_value, target_value, loss_function=self.loss_function)
        real = find_real_rows(tensordict, keys.imagined, type(self).__name__)
        row_weights = weigh_rows(self, tensordict, weights, gap)[1]
        of_data = {"loss_cql": self.min_q_weight * gap, **more_losses}
        losses = {"loss_qvalue": 0.5 * distance}
        losses |= {k: restrict_rows(loss, real, row_weights) for k, loss in of_data.items()}
        statistics = {
            "pred_value": pred_value,
            "target_value": target_value,
            "conservative_gap": gap,
            **more_statistics,
        }
        out = {
            name: self._reduce_loss(loss, tensordict=tensordict, weights=weights)
            for name, loss in losses.items()
        }
        none = self.reduction == "none"
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
            "action_value_network_params",
            "mixer_network_params",
            "target_action_value_network_params",
            "target_mixer_network_params",
        )
        return result
