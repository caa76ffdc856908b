"""Losses of world models: one class a model, since each is trained on its own predictions."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch.nn import functional as F
from torchrl.objectives import LossModule
from torchrl.objectives.utils import distance_loss

from torchrl_logo.argument_checks import MissingKeyError
from torchrl_logo.modules.ensemble_world_model import EnsembleWorldModel
from torchrl_logo.modules.joint_world_model import JointWorldModel
from torchrl_logo.modules.logo_world_model import SMALLEST_ERROR, LOGOWorldModel
from torchrl_logo.modules.world_model import WorldModel, next_key
from torchrl_logo.objectives.value_checks import read_weights

__all__ = [
    "EnsembleWorldModelLoss",
    "JointWorldModelLoss",
    "LOGOWorldModelLoss",
    "WorldModelLoss",
    "make_world_model_loss",
]


class _Targets(NamedTuple):
    """A batch as networks see it: standardised inputs and targets."""

    state: torch.Tensor  # [*, d_s]
    observation: torch.Tensor  # [*, N, d_o]
    action: torch.Tensor  # [*, N, d_a]
    next_state: torch.Tensor  # [*, d_s]
    next_observation: torch.Tensor  # [*, N, d_o]
    state_delta: torch.Tensor  # [*, d_s]
    observation_delta: torch.Tensor  # [*, N, d_o]
    reward: torch.Tensor  # [*, 1]
    terminated: torch.Tensor  # [*, 1]
    action_mask: torch.Tensor | None  # [*, N, A]


class WorldModelLoss(LossModule):
    """Base of the losses of world models.

    Reads transitions ``[*]`` in the package's layout: observation, action, state, and under
    ``"next"`` observation, state, reward, terminated and, for discrete actions, action mask; the
    next step of a terminated row is its true last one. Writes a ``loss_*`` entry for each term,
    already times its coefficient.

    The model is held as an ordinary submodule, as TorchRL's Dreamer losses hold theirs: there
    are no target parameters for which it would have to be made functional.

    With ``unroll`` above 1 a batch is windows ``[*, unroll]`` of consecutive transitions of one
    episode. Along a window the model predicts from its own predictions, through which gradients
    flow, and each prediction is compared with the recorded next step: the terms are the same,
    from predicted in place of recorded states and observations.

    Subclasses implement :meth:`compute_terms`, in which a term is one number a transition.

    Args:
        world_model (WorldModel): the model to train.

    Keyword Args:
        unroll (int): steps of a window. Defaults to ``1``, single transitions.
        reward_loss (str): distance of standardised rewards: ``"smooth_l1"``, under which rare
            large rewards do not drown the others, ``"l2"`` or ``"l1"``. Defaults to
            ``"smooth_l1"``.
        reduction (str, optional): ``"mean"``, ``"sum"`` or ``"none"``. Defaults to ``"mean"``.
        **coefficients (float): the factor of each term, by its name without ``loss_``.
    """

    @dataclasses.dataclass
    class _AcceptedKeys:
        """The keys that ``set_keys`` renames; what lies under ``"next"`` is renamed with them.

        Attributes:
            observation (NestedKey): local observations. Defaults to ``("agents", "observation")``.
            action (NestedKey): the team's action. Defaults to ``("agents", "action")``.
            action_mask (NestedKey): available actions. Defaults to ``("agents", "action_mask")``.
            state (NestedKey): global state. Defaults to ``"state"``.
            reward (NestedKey): team reward. Defaults to ``"reward"``.
            terminated (NestedKey): end of the task. Defaults to ``"terminated"``.
            priority_weight (NestedKey): weight of a transition ``[*]``, if there is one.
                Defaults to ``"priority_weight"``.
        """

        observation: NestedKey = ("agents", "observation")
        action: NestedKey = ("agents", "action")
        action_mask: NestedKey = ("agents", "action_mask")
        state: NestedKey = "state"
        reward: NestedKey = "reward"
        terminated: NestedKey = "terminated"
        priority_weight: NestedKey = "priority_weight"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys

    #: The model that the loss trains.
    world_model_class: ClassVar[type[WorldModel]]
    #: Names of the terms and their default coefficients.
    default_coefficients: ClassVar[dict[str, float]] = {}

    world_model: WorldModel

    def __init__(
        self,
        world_model: WorldModel,
        *,
        unroll: int = 1,
        reward_loss: str = "smooth_l1",
        reduction: str | None = None,
        **coefficients: float,
    ) -> None:
        if unroll < 1:
            raise ValueError(f"unroll must be at least 1, found {unroll}.")
        if not isinstance(world_model, self.world_model_class):
            raise TypeError(
                f"{type(self).__name__} trains a {self.world_model_class.__name__}, found a "
                f"{type(world_model).__name__}."
            )
        if reward_loss not in ("smooth_l1", "l2", "l1"):
            raise ValueError(
                f"reward_loss must be 'smooth_l1', 'l2' or 'l1', found {reward_loss!r}."
            )
        unknown = sorted(set(coefficients) - set(self.default_coefficients))
        if unknown:
            raise ValueError(
                f"{type(self).__name__} has no terms {unknown}; expected "
                f"{sorted(self.default_coefficients)}."
            )
        super().__init__()
        self.world_model = world_model
        self.unroll = unroll
        self.reward_loss = reward_loss
        self.reduction = reduction or "mean"
        self.coefficients = {**self.default_coefficients, **coefficients}
        if not world_model.spec.discrete:
            self.coefficients.pop("action_mask", None)

    def _forward_value_estimator_keys(self, **kwargs: NestedKey) -> None:
        """There is no value estimator to forward keys to."""

    @property
    def in_keys(self) -> list[NestedKey]:
        """The keys that :meth:`forward` reads."""
        keys = self.tensor_keys
        names = [keys.observation, keys.state, keys.reward, keys.terminated]
        if self.world_model.spec.discrete:
            names.append(keys.action_mask)
        return [keys.observation, keys.action, keys.state, *map(next_key, names)]

    @property
    def out_keys(self) -> list[NestedKey]:
        """The keys that :meth:`forward` writes."""
        return [f"loss_{name}" for name in self.coefficients]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Computes all terms.

        Raises:
            KeyError: if one of :attr:`in_keys` is missing.
            ValueError: if the last dimension of the batch is not ``unroll``, where that is above
                1.
            RuntimeError: for negative weights (:mod:`~torchrl_logo.objectives.value_checks`).
        """
        steps = tensordict if self.unroll == 1 else self._roll_out(tensordict)
        terms = self.compute_terms(self._standardise(steps))
        weights = read_weights(self, tensordict)
        batch_size = tensordict.batch_size if self.reduction == "none" else torch.Size([])
        out = TensorDict(batch_size=batch_size, device=tensordict.device)
        for name, coefficient in self.coefficients.items():
            loss = self._reduce_loss(terms[name], tensordict, weights=weights)
            out.set(f"loss_{name}", coefficient * loss)
        return out

    def compute_terms(self, targets: _Targets) -> dict[str, torch.Tensor]:
        """Each term, one number a transition ``[*]``, without its coefficient."""
        raise NotImplementedError

    def _roll_out(self, windows: TensorDictBase) -> TensorDictBase:
        """Windows ``[*, unroll]`` with predicted states and observations after the first."""
        if not windows.batch_dims or windows.batch_size[-1] != self.unroll:
            raise ValueError(
                f"{type(self).__name__} with unroll={self.unroll} expected windows "
                f"[*, {self.unroll}], found a batch of {tuple(windows.batch_size)}."
            )
        self._require_keys(windows)
        keys = self.tensor_keys
        along = windows.batch_dims - 1
        action = windows.get(keys.action)
        states = [windows.get(keys.state).select(along, 0)]
        observations = [windows.get(keys.observation).select(along, 0)]
        for t in range(self.unroll - 1):
            prediction = self.world_model.predict(
                states[-1], observations[-1], action.select(along, t)
            )
            states.append(prediction.state)
            observations.append(prediction.observation)
        rolled = windows.copy()
        rolled.set(keys.state, torch.stack(states, along))
        rolled.set(keys.observation, torch.stack(observations, along))
        return rolled

    def _require_keys(self, tensordict: TensorDictBase) -> None:
        missing = [key for key in self.in_keys if tensordict.get(key, None) is None]
        if missing:
            raise MissingKeyError(
                f"{type(self).__name__} reads {missing}, which are missing; found "
                f"{sorted(map(str, tensordict.keys(True, True)))}."
            )

    def _standardise(self, tensordict: TensorDictBase) -> _Targets:
        self._require_keys(tensordict)
        keys, model = self.tensor_keys, self.world_model
        state, next_state = tensordict.get(keys.state), tensordict.get(next_key(keys.state))
        observation = tensordict.get(keys.observation)
        next_observation = tensordict.get(next_key(keys.observation))
        mask = None
        if model.spec.discrete:
            mask = tensordict.get(next_key(keys.action_mask)).to(state.dtype)
        present = model.observation_mask
        terminated = tensordict.get(next_key(keys.terminated)).to(state.dtype)
        return _Targets(
            state=model.state_normalizer.normalize(state),
            observation=model.observation_normalizer.normalize(observation) * present,
            action=model.encode_action(tensordict.get(keys.action)),
            next_state=model.state_normalizer.normalize(next_state),
            next_observation=model.observation_normalizer.normalize(next_observation) * present,
            state_delta=model.state_delta_normalizer.normalize(next_state - state),
            observation_delta=model.observation_delta_normalizer.normalize(
                next_observation - tensordict.get("recorded_observation", observation)
            )
            * present,
            reward=model.normalize_reward(tensordict.get(next_key(keys.reward)), terminated),
            terminated=terminated,
            action_mask=mask,
        )

    def _reward_term(self, reward: torch.Tensor, targets: _Targets) -> torch.Tensor:
        return distance_loss(reward, targets.reward, self.reward_loss).squeeze(-1)

    def _observation_term(self, error: torch.Tensor) -> torch.Tensor:
        """Mean square over the features that agents have, ``[*, N, d_o]`` to ``[*]``."""
        present = self.world_model.observation_mask
        return (error.square() * present).sum((-1, -2)) / present.sum()

    def _mask_term(self, logit: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        loss = F.binary_cross_entropy_with_logits(logit, mask, reduction="none")
        return loss.mean((-1, -2))


class LOGOWorldModelLoss(WorldModelLoss):
    r"""Trains a :class:`~torchrl_logo.modules.LOGOWorldModel`.

    The terms, in standardised units, after "Puzzle it Out" (arXiv 2601.07463), with :math:`f` the
    local model, :math:`g` the deductive one and :math:`h` its decoder; :math:`\Delta` is a change
    from this step to the next, :math:`\mathrm{sg}` stops gradients:

    =================== ======================================================================
    loss_local          :math:`\lVert f(o_i, a_i; s) - \Delta o_i \rVert^2`
    loss_state          :math:`\lVert g(\Delta o; s, a) - \Delta s \rVert^2`, from true changes
    loss_regularizer    :math:`\lVert g(\mathrm{sg} f(o, a; s); s, a) - \Delta s \rVert^2`
    loss_reward         distance of reward, deduced from the predicted local changes
    loss_termination    cross-entropy of termination, deduced likewise
    loss_action_mask    cross-entropy of the next masks (discrete actions only)
    loss_reconstruction :math:`\lVert h(s') - o' \rVert^2`
    loss_persistence    :math:`\lVert \lambda \odot (o - h(s)) - (o' - h(s')) \rVert^2`, which
                        trains :math:`\lambda` alone
    loss_direct         :math:`\lVert d(s, a) - \Delta s \rVert^2` of the uncertainty's encoder
    loss_error          distance of that encoder's expected log error from the deduction's
    =================== ======================================================================

    Squares are means over features. The local predictions are detached inside the regulariser
    (ours): they stay predictions of observations, and do not become a code for the state. The
    regulariser is the path that rollouts take; ``loss_state``, from true changes, costs a third
    more time and improved nothing that was measured, hence its coefficient of 0 (the paper has
    both). The cross-entropy of termination is not reweighted, which keeps its probabilities
    calibrated; its imbalance is met by the head's starting point (see
    :meth:`~torchrl_logo.modules.WorldModel.fit_normalizers`).

    Along a rollout observations are decoded from deduced states. In ``decoded_share`` of the rows
    the networks therefore read :math:`h(s)` in place of the recorded observation (ours): it makes
    errors over many steps smaller and those of a single step larger.

    Args:
        world_model (LOGOWorldModel): the model to train.

    Keyword Args:
        decoded_share (float): the share of a batch, spread evenly, whose observations are
            decoded; within [0, 1]. Without effect on a model that carries local predictions.
            Defaults to ``0.25``.
        reward_loss (str): see :class:`WorldModelLoss`.
        reduction (str, optional): ``"mean"``, ``"sum"`` or ``"none"``. Defaults to ``"mean"``.
        **coefficients (float): ``local``, ``state``, ``regularizer``, ``reward``,
            ``termination``, ``action_mask``, ``reconstruction``, ``persistence``, ``direct``,
            ``error``. Without ``direct`` there is no ``error`` either.

    Examples:
        >>> from torchrl_logo.data import TaskSpec
        >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=1,
        ...                 action_low=(-1.0,), action_high=(1.0,))
        >>> model = LOGOWorldModel(spec, hidden_size=8)
        >>> step = {"agents": {"observation": torch.ones(5, 2, 3)}, "state": torch.ones(5, 4)}
        >>> batch = TensorDict({**step, "next": {**step, "reward": torch.zeros(5, 1),
        ...                     "terminated": torch.zeros(5, 1, dtype=torch.bool)}}, [5])
        >>> batch["agents", "action"] = torch.zeros(5, 2, 1)
        >>> sorted(LOGOWorldModelLoss(model, direct=0.5)(batch).keys())[:3]
        ['loss_direct', 'loss_error', 'loss_local']
    """

    world_model_class: ClassVar[type[WorldModel]] = LOGOWorldModel
    default_coefficients = {
        "local": 1.0,
        "state": 0.0,
        "regularizer": 1.0,
        "reward": 1.0,
        "termination": 1.0,
        "action_mask": 1.0,
        "reconstruction": 1.0,
        "persistence": 1.0,
        "direct": 1.0,
        # Its gradient reaches one small head alone: the factor keeps its size, of logarithms, from
        # deciding which weights are kept.
        "error": 0.1,
    }
    world_model: LOGOWorldModel

    def __init__(
        self,
        world_model: LOGOWorldModel,
        *,
        decoded_share: float = 0.25,
        **kwargs: Any,
    ) -> None:
        if not 0.0 <= decoded_share <= 1.0:
            raise ValueError(f"decoded_share must be within [0, 1], found {decoded_share}.")
        super().__init__(world_model, **kwargs)
        self.decoded_share = decoded_share

    def _roll_out(self, windows: TensorDictBase) -> TensorDictBase:
        rolled = super()._roll_out(windows)
        if self.world_model.carry != "local":
            # The local model's changes are not carried: they need not make up for the decoder.
            rolled.set("recorded_observation", windows.get(self.tensor_keys.observation))
        return rolled

    def compute_terms(self, targets: _Targets) -> dict[str, torch.Tensor]:
        """Each term, one number a transition ``[*]``, without its coefficient."""
        model = self.world_model
        observation = self._mix_decoded(targets)
        agents = model.describe_agents(observation, targets.action)
        # Along windows only the deduced states' errors reach earlier predictions: those of side
        # predictions, in units of one step's change, would bend the states to their liking.
        state = targets.state.detach()
        local = model.local_delta(state, agents.detach())
        # One pass over the predicted and the true local changes.
        guesses = [local]
        if self.coefficients["state"]:
            guesses.append(targets.observation_delta)
        deduction = model.deduce(
            targets.state, agents, targets.action, torch.stack(guesses).detach()
        )
        decoded = model.decode(targets.next_state)
        with torch.no_grad():
            missed = targets.observation - model.decode(targets.state)
            missed_next = targets.next_observation - decoded
        squares = (deduction.state_delta - targets.state_delta).square().mean(-1)  # [2, *]
        none = torch.zeros_like(squares[0])
        terms = {
            "direct": none,
            "error": none,
            "local": self._observation_term(local - targets.observation_delta.detach()),
            "regularizer": squares[0],
            "state": squares[-1],
            "reward": self._reward_term(deduction.reward[0], targets),
            "termination": F.binary_cross_entropy_with_logits(
                deduction.termination_logit[0], targets.terminated, reduction="none"
            ).squeeze(-1),
            "reconstruction": self._observation_term(decoded - targets.next_observation),
            "persistence": self._observation_term(model.persistence * missed - missed_next),
        }
        if self.coefficients["direct"]:
            code = model.encode_directly(state, targets.action)
            direct = model.direct_head(code)
            terms["direct"] = (direct - targets.state_delta.detach()).square().mean(-1)
            if model.expect_errors:
                deduced = deduction.state_delta[0]
                terms["error"] = self._error_term(code, direct, deduced, targets)
        if deduction.action_mask_logit is not None and targets.action_mask is not None:
            terms["action_mask"] = self._mask_term(
                deduction.action_mask_logit[0], targets.action_mask
            )
        return terms

    def _error_term(
        self, code: torch.Tensor, direct: torch.Tensor, deduced: torch.Tensor, targets: _Targets
    ) -> torch.Tensor:
        """Distance of the expected log error from the error that was made, ``[*]``."""
        model = self.world_model
        with torch.no_grad():
            error = model.measure_changes(deduced - targets.state_delta)
            log_error = error.clamp_min(SMALLEST_ERROR).log()
        return F.smooth_l1_loss(
            model.expect_log_error(code, direct, deduced), log_error, reduction="none"
        ).squeeze(-1)

    def _mix_decoded(self, targets: _Targets) -> torch.Tensor:
        """Observations ``[*, N, d_o]``, in an even share of the rows decoded from the state."""
        share = self.decoded_share if self.world_model.carry != "local" else 0.0
        if not share:
            return targets.observation
        with torch.no_grad():
            decoded = self.world_model.decode(targets.state)
        shape = targets.state.shape[:-1]
        # Row i where i * share passes a whole number: the same rows at every call.
        row = torch.arange(shape.numel(), device=decoded.device).reshape(shape)
        chosen = ((row + 1) * share).floor() > (row * share).floor()
        return torch.where(chosen[..., None, None], decoded, targets.observation)


class JointWorldModelLoss(WorldModelLoss):
    r"""Trains a :class:`~torchrl_logo.modules.JointWorldModel`.

    ``loss_state`` and ``loss_observation`` are mean squares of the standardised changes,
    ``loss_reward`` a distance of standardised rewards, ``loss_termination`` and
    ``loss_action_mask`` cross-entropies.

    Args:
        world_model (JointWorldModel): the model to train.

    Keyword Args:
        reward_loss (str): see :class:`WorldModelLoss`.
        reduction (str, optional): ``"mean"``, ``"sum"`` or ``"none"``. Defaults to ``"mean"``.
        **coefficients (float): ``state``, ``observation``, ``reward``, ``termination``,
            ``action_mask``.
    """

    world_model_class: ClassVar[type[WorldModel]] = JointWorldModel
    default_coefficients = {
        "state": 1.0,
        "observation": 1.0,
        "reward": 1.0,
        "termination": 1.0,
        "action_mask": 1.0,
    }
    world_model: JointWorldModel

    def compute_terms(self, targets: _Targets) -> dict[str, torch.Tensor]:
        """Each term, one number a transition ``[*]``, without its coefficient."""
        heads = self.world_model.predict_heads(targets.state, targets.action)
        terms = {
            "state": (heads.state_delta - targets.state_delta).square().mean(-1),
            "observation": self._observation_term(
                heads.observation_delta - targets.observation_delta
            ),
            "reward": self._reward_term(heads.reward, targets),
            "termination": F.binary_cross_entropy_with_logits(
                heads.termination_logit, targets.terminated, reduction="none"
            ).squeeze(-1),
        }
        if heads.action_mask_logit is not None and targets.action_mask is not None:
            terms["action_mask"] = self._mask_term(heads.action_mask_logit, targets.action_mask)
        return terms


class EnsembleWorldModelLoss(JointWorldModelLoss):
    """Trains an :class:`~torchrl_logo.modules.EnsembleWorldModel`.

    The terms are those of :class:`JointWorldModelLoss`, summed over the members, so that each
    learns as it would alone.

    Args:
        world_model (EnsembleWorldModel): the model to train.

    Keyword Args:
        reward_loss (str): see :class:`WorldModelLoss`.
        reduction (str, optional): ``"mean"``, ``"sum"`` or ``"none"``. Defaults to ``"mean"``.
        **coefficients (float): see :class:`JointWorldModelLoss`.
    """

    world_model_class: ClassVar[type[WorldModel]] = EnsembleWorldModel
    world_model: EnsembleWorldModel

    def compute_terms(self, targets: _Targets) -> dict[str, torch.Tensor]:
        """Each term, one number a transition ``[*]``, without its coefficient."""
        # Members lie in front; every target is the same for each of them.
        members = self.world_model.members
        expanded: dict[str, Any] = {
            name: None if value is None else value.expand(members, *value.shape)
            for name, value in targets._asdict().items()
        }
        terms = super().compute_terms(targets._replace(**expanded))
        return {name: term.sum(0) for name, term in terms.items()}


def make_world_model_loss(world_model: WorldModel, **kwargs: float | str) -> WorldModelLoss:
    """Makes the loss that trains a world model.

    Args:
        world_model (WorldModel): a model one of this module's losses is made for.

    Keyword Args:
        **kwargs: the loss's.

    Raises:
        TypeError: if there is no loss for the model's class.
    """
    losses = (LOGOWorldModelLoss, EnsembleWorldModelLoss, JointWorldModelLoss)
    for loss_class in losses:
        if isinstance(world_model, loss_class.world_model_class):
            return loss_class(world_model, **kwargs)  # type: ignore[arg-type]
    names = ", ".join(loss_class.world_model_class.__name__ for loss_class in losses)
    raise TypeError(
        f"There is no loss for a {type(world_model).__name__}; there are some for: {names}. Write "
        "one of your own as a WorldModelLoss."
    )
