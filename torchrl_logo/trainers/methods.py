"""The methods that the offline trainer knows by name."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Callable
from typing import Any

from tensordict.nn import TensorDictModuleBase
from torchrl.objectives import LossModule

from torchrl_logo.argument_checks import require_arguments, require_type
from torchrl_logo.modules.ensemble_world_model import EnsembleWorldModel
from torchrl_logo.modules.greedy_policy import make_greedy_policy
from torchrl_logo.modules.logo_world_model import LOGOWorldModel
from torchrl_logo.modules.world_model import WorldModel
from torchrl_logo.objectives.bc import BCLoss
from torchrl_logo.objectives.cfcql import CFCQLLoss
from torchrl_logo.objectives.discrete_cfcql import DiscreteCFCQLLoss
from torchrl_logo.objectives.discrete_mabcq import DiscreteMABCQLoss
from torchrl_logo.objectives.discrete_macql import DiscreteMACQLLoss
from torchrl_logo.objectives.discrete_maicq import DiscreteMAICQLoss
from torchrl_logo.objectives.mabcq import MABCQLoss
from torchrl_logo.objectives.macql import MACQLLoss
from torchrl_logo.objectives.maicq import MAICQLoss
from torchrl_logo.objectives.matd3bc import MATD3BCLoss
from torchrl_logo.objectives.omar import OMARLoss
from torchrl_logo.objectives.omiga import OMIGALoss
from torchrl_logo.trainers.method_networks import Networks

__all__ = ["METHODS", "Method", "find_method", "find_policy"]

MakeLoss = Callable[..., LossModule]


@dataclasses.dataclass(frozen=True)
class Method:
    """How a named method is put together, with the defaults that a small search found for it.

    Attributes:
        make_loss: makes the loss for continuous actions with its networks:
            ``(networks, **loss_kwargs)``, with the discount ``gamma`` among them; none where the
            method has no such form, or a loss module is given.
        make_discrete_loss: the same for discrete actions.
        discounts: whether the loss has a discount.
        recurrent: whether it trains networks with memory on sequences.
        next_actions: whether it bootstraps from the data's next actions.
        world_model: class of the model that half of each batch comes from; none for model-free
            methods.
        weighted: whether imagined transitions are drawn by their uncertainty; otherwise uniformly.
        reward_penalty: what a unit of uncertainty costs an imagined transition, in standard
            deviations of the data's rewards.
        horizon: steps of an imagined rollout.
        lr: learning rate at the start.
        tau: share by which targets move at each update.
        loss_kwargs: arguments of the loss for continuous actions.
        discrete_loss_kwargs: arguments of the loss for discrete actions.
    """

    make_loss: MakeLoss | None = None
    make_discrete_loss: MakeLoss | None = None
    discounts: bool = True
    recurrent: bool = False
    next_actions: bool = False
    world_model: type[WorldModel] | None = None
    weighted: bool = True
    reward_penalty: float = 0.0
    horizon: int = 15
    lr: float = 5e-4
    tau: float = 0.005
    loss_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    discrete_loss_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)

    def build_loss(self, networks: Networks, gamma: float, loss_kwargs: dict[str, Any]) -> Any:
        """Makes the loss of a task's kind of actions.

        Args:
            networks (Networks): what its networks are made from.
            gamma (float): discount.
            loss_kwargs (dict): arguments over the method's own.

        Raises:
            ValueError: if the method has no form for such actions.
        """
        discrete = networks.spec.discrete
        make = self.make_discrete_loss if discrete else self.make_loss
        if make is None:
            kind, other = ("discrete", "continuous") if discrete else ("continuous", "discrete")
            fitting = ", ".join(
                name
                for name, method in METHODS.items()
                if (method.make_discrete_loss if discrete else method.make_loss) is not None
            )
            raise ValueError(
                f"The method has no form for {kind} actions, only for {other} ones. Methods for "
                f"{kind} actions: {fitting}."
            )
        kwargs = {**(self.discrete_loss_kwargs if discrete else self.loss_kwargs), **loss_kwargs}
        loss = typing.get_type_hints(make).get("return")
        if isinstance(loss, type) and issubclass(loss, LossModule):
            own = [kind for kind in loss.__mro__ if issubclass(kind, LossModule)][:-1]
            takers = [vars(kind)["__init__"] for kind in own if "__init__" in vars(kind)]
            require_arguments(loss_kwargs, [make, *takers], loss.__name__)
        if self.discounts:
            kwargs.setdefault("gamma", gamma)
        return make(networks, **kwargs)


def find_policy(loss: LossModule) -> TensorDictModuleBase:
    """The policy that a loss trains: its actor, or its utilities' greedy choice.

    Raises:
        ValueError: if it has neither.
    """
    actor = getattr(loss, "actor_network", None)
    if actor is not None:
        return actor
    utilities = getattr(loss, "action_value_network", None)
    if utilities is None:
        raise ValueError(
            f"{type(loss).__name__} has neither an actor_network nor an action_value_network: "
            "nothing acts."
        )
    keys = loss.tensor_keys
    return make_greedy_policy(
        utilities,
        action_value_key=keys.action_value,
        action_mask_key=keys.action_mask,
        action_key=keys.action,
    )


def _make_bc(networks: Networks, **kwargs: Any) -> BCLoss:
    return BCLoss(networks.make_actor(), action_spec=networks.action_spec, **kwargs)


def _make_macql(networks: Networks, **kwargs: Any) -> MACQLLoss:
    return MACQLLoss(
        networks.make_actor(),
        networks.make_critic(),
        action_spec=networks.action_spec,
        **kwargs,
    )


def _make_cfcql(networks: Networks, **kwargs: Any) -> CFCQLLoss:
    return CFCQLLoss(
        networks.make_actor(),
        networks.make_critic(),
        action_spec=networks.action_spec,
        behaviour_network=networks.make_actor(),
        **kwargs,
    )


def _make_omar(networks: Networks, **kwargs: Any) -> OMARLoss:
    return OMARLoss(
        networks.make_actor(),
        networks.make_agent_critic(),
        action_spec=networks.action_spec,
        **kwargs,
    )


def _make_matd3bc(networks: Networks, **kwargs: Any) -> MATD3BCLoss:
    return MATD3BCLoss(
        networks.make_actor(),
        networks.make_critic(),
        action_spec=networks.action_spec,
        **kwargs,
    )


def _make_mabcq(networks: Networks, phi: float = 0.05, **kwargs: Any) -> MABCQLoss:
    return MABCQLoss(
        *networks.make_vae(),
        networks.make_perturbation(phi),
        networks.make_critic(),
        action_spec=networks.action_spec,
        **kwargs,
    )


def _make_omiga(networks: Networks, **kwargs: Any) -> OMIGALoss:
    return OMIGALoss(
        networks.make_actor(),
        networks.make_agent_critic(),
        networks.make_agent_value(),
        networks.make_linear_mixer(),
        action_spec=networks.action_spec,
        **kwargs,
    )


def _make_maicq(networks: Networks, **kwargs: Any) -> MAICQLoss:
    return MAICQLoss(
        networks.make_actor(),
        networks.make_agent_critic(),
        networks.make_linear_mixer(),
        action_spec=networks.action_spec,
        **kwargs,
    )


def _make_discrete_maicq(networks: Networks, **kwargs: Any) -> DiscreteMAICQLoss:
    return DiscreteMAICQLoss(
        networks.make_actor(),
        networks.make_agent_critic(),
        networks.make_linear_mixer(),
        **kwargs,
    )


def _make_discrete_macql(
    networks: Networks, mixer: str = "qmix", **kwargs: Any
) -> DiscreteMACQLLoss:
    return DiscreteMACQLLoss(networks.make_agent_critic(), networks.make_mixer(mixer), **kwargs)


def _make_discrete_cfcql(
    networks: Networks, mixer: str = "qmix", **kwargs: Any
) -> DiscreteCFCQLLoss:
    return DiscreteCFCQLLoss(
        networks.make_agent_critic(),
        networks.make_mixer(mixer),
        behaviour_network=networks.make_actor(),
        **kwargs,
    )


def _make_discrete_mabcq(
    networks: Networks, mixer: str = "qmix", **kwargs: Any
) -> DiscreteMABCQLoss:
    return DiscreteMABCQLoss(
        networks.make_actor(), networks.make_agent_critic(), networks.make_mixer(mixer), **kwargs
    )


_CONSERVATIVE = {"min_q_weight": 5.0, "bc_coeff": 1.0, "num_samples": 2}
_DISCRETE_CONSERVATIVE = {"min_q_weight": 1.0}

#: The methods by name, with the settings they start from.
METHODS: dict[str, Method] = {
    "bc": Method(_make_bc, _make_bc, discounts=False, recurrent=True),
    "macql": Method(
        _make_macql,
        _make_discrete_macql,
        recurrent=True,
        loss_kwargs=_CONSERVATIVE,
        discrete_loss_kwargs=_DISCRETE_CONSERVATIVE,
    ),
    "cfcql": Method(
        _make_cfcql,
        _make_discrete_cfcql,
        recurrent=True,
        loss_kwargs=_CONSERVATIVE,
        discrete_loss_kwargs=_DISCRETE_CONSERVATIVE,
    ),
    "mabcq": Method(_make_mabcq, _make_discrete_mabcq),
    "matd3bc": Method(_make_matd3bc),
    "omar": Method(_make_omar),
    "omiga": Method(_make_omiga, _make_omiga),
    "maicq": Method(_make_maicq, _make_discrete_maicq, next_actions=True),
    # Values are learnt on what the policy does, in imagination: LOGO can trust them with a fifth
    # of the penalty and of the behaviour term, where they run away without a model.
    "logo": Method(
        _make_macql,
        _make_discrete_macql,
        world_model=LOGOWorldModel,
        lr=1e-3,
        tau=0.01,
        loss_kwargs={"min_q_weight": 1.0, "bc_coeff": 0.2, "num_samples": 2},
        discrete_loss_kwargs=_DISCRETE_CONSERVATIVE,
    ),
    # MOPO (Yu et al. 2020): soft actor-critic on rewards that fall with the ensemble's
    # disagreement. Its real share is 0.05; ours is the trainer's.
    "mopo": Method(
        _make_macql,
        world_model=EnsembleWorldModel,
        weighted=False,
        reward_penalty=2.5,
        horizon=5,
        loss_kwargs={"min_q_weight": 0.0, "entropy_coeff": 0.01, "num_samples": 2},
    ),
    # COMBO (Yu et al. 2021): conservative values, pushed down in the ensemble's imagination.
    "combo": Method(
        _make_macql,
        world_model=EnsembleWorldModel,
        weighted=False,
        horizon=5,
        loss_kwargs={**_CONSERVATIVE, "penalize_imagined": True},
    ),
}


def find_method(name: str) -> Method:
    """Finds a method by its name.

    Raises:
        ValueError: if there is no such method; names the nearest ones and all there are.

    Examples:
        >>> find_method("logo").world_model.__name__
        'LOGOWorldModel'
    """
    require_type(name, str, "method", "METHODS, by its name, or make a LossModule")
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=2, cutoff=0.3)
        hint = f" Nearest: {', '.join(near)}." if near else ""
        raise ValueError(f"No method {name!r}.{hint} There are: {', '.join(METHODS)}.")
    return METHODS[name]
