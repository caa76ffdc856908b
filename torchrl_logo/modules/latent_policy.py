"""Policies on the latents of a recurrent latent world model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from tensordict.nn import (
    NormalParamExtractor,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictModuleBase,
)
from tensordict.utils import NestedKey
from torch import nn
from torchrl.data import Unbounded
from torchrl.envs import ExplorationType, TensorDictPrimer
from torchrl.envs.utils import exploration_type

from torchrl_logo.argument_checks import MissingKeyError, require_type
from torchrl_logo.modules.decentralized_mlp import DecentralizedMLP
from torchrl_logo.modules.gaussian_actor import require_finite_bounds
from torchrl_logo.modules.masked_categorical import MaskedCategorical
from torchrl_logo.modules.recurrent_latent_world_model import RecurrentLatentWorldModel
from torchrl_logo.modules.squashed_normal import SquashedNormalModule

__all__ = ["LatentPolicy", "make_latent_actor"]

_LATENT = ("agents", "latent")
_MEMORY = ("agents", "memory")


def make_latent_actor(
    world_model: RecurrentLatentWorldModel,
    *,
    hidden_sizes: Sequence[int] = (128, 128),
    activation_class: type[nn.Module] = nn.ELU,
    device: torch.device | str | None = None,
) -> ProbabilisticTensorDictSequential:
    """Makes a stochastic actor, shared by all agents, that acts on each agent's own latent.

    Reads ``("agents", "latent")`` ``[*, N, L]`` and, for discrete actions, ``("agents",
    "action_mask")`` ``[*, N, A]`` bool; writes ``("agents", "action")`` and ``("agents",
    "action_log_prob")`` ``[*, N]``, beside the distribution's parameters. Continuous actions are
    squashed into their bounds; unavailable discrete ones are never taken.

    Args:
        world_model (RecurrentLatentWorldModel): whose latents; none of its parameters are used.

    Keyword Args:
        hidden_sizes (sequence of int): widths of the hidden layers.
        activation_class (type): non-linearity between layers.
        device (torch.device, optional): where the parameters are made.

    Raises:
        ValueError: if the task has unbounded actions.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl_logo.data import TaskSpec
        >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=5,
        ...                 discrete=True)
        >>> model = RecurrentLatentWorldModel(spec)
        >>> actor = make_latent_actor(model, hidden_sizes=(8,))
        >>> mask = torch.tensor([False, False, True, False, False]).expand(7, 2, 5)
        >>> data = TensorDict({"agents": {"latent": torch.zeros(7, 2, model.latent_size),
        ...                               "action_mask": mask}}, [7])
        >>> actor(data)["agents", "action"][0]
        tensor([2, 2])
    """
    how = "RecurrentLatentWorldModel(spec)"
    require_type(world_model, RecurrentLatentWorldModel, "world_model", how)
    spec = world_model.spec
    if not spec.discrete:
        require_finite_bounds(spec, "make_latent_actor")
    network = DecentralizedMLP(
        world_model.latent_size,
        spec.action_size if spec.discrete else 2 * spec.action_size,
        spec.n_agents,
        num_cells=hidden_sizes,
        activation_class=activation_class,
        device=device,
    )
    if spec.discrete:
        return ProbabilisticTensorDictSequential(
            TensorDictModule(network, in_keys=[_LATENT], out_keys=[("agents", "logits")]),
            ProbabilisticTensorDictModule(
                in_keys={"logits": ("agents", "logits"), "mask": ("agents", "action_mask")},
                out_keys=[("agents", "action")],
                distribution_class=MaskedCategorical,
                return_log_prob=True,
                log_prob_key=("agents", "action_log_prob"),
            ),
        )
    parameters = [("agents", "loc"), ("agents", "scale")]
    return ProbabilisticTensorDictSequential(
        TensorDictModule(
            nn.Sequential(network, NormalParamExtractor(scale_lb=1e-2)),
            in_keys=[_LATENT],
            out_keys=parameters,
        ),
        SquashedNormalModule(
            torch.tensor(spec.action_low, device=device),
            torch.tensor(spec.action_high, device=device),
            in_keys=parameters,
            out_keys=[("agents", "action")],
            log_prob_key=("agents", "action_log_prob"),
        ),
    )


class LatentPolicy(TensorDictModuleBase):
    """A latent actor in a real environment: it filters observations as its world model does.

    As in MAMBA, agents act on their own latents, and communicate (by the world model's attention)
    between two steps. What is carried from step to step is each agent's memory, which has heard
    of the team's last actions already; the step's observation adds the code to it.

    Reads ``("agents", "observation")`` ``[*, N, d_o]``, ``"is_init"`` ``[*, 1]`` bool,
    ``("agents", "memory")`` ``[*, N, H]`` and what else the actor reads (masks). Writes
    ``("agents", "latent")``, what the actor writes, and ``("next", "agents", "memory")``. Where
    ``"is_init"`` is true the memory is zero.

    In an environment, :class:`torchrl.envs.InitTracker` and the primer of
    :meth:`make_tensordict_primer` carry flags and memories;
    :func:`~torchrl_logo.evaluation.evaluate` adds them by itself. Under deterministic exploration
    codes are the likeliest ones (ours; MAMBA draws them), otherwise they are drawn.

    Args:
        world_model (RecurrentLatentWorldModel): filters.
        actor (ProbabilisticTensorDictSequential): acts on latents, see
            :func:`make_latent_actor`.

    Raises:
        KeyError: in :meth:`forward`, for missing entries.

    Examples:
        >>> from torchrl_logo.data import TaskSpec
        >>> from torchrl_logo.envs import make_env
        >>> from torchrl_logo.evaluation import evaluate
        >>> env = make_env("vmas/balance", num_envs=2, seed=0)
        >>> model = RecurrentLatentWorldModel.from_env(env)
        >>> policy = LatentPolicy(model, make_latent_actor(model))
        >>> len(evaluate(policy, env, episodes=2).returns)
        2
    """

    def __init__(
        self, world_model: RecurrentLatentWorldModel, actor: ProbabilisticTensorDictSequential
    ) -> None:
        super().__init__()
        self.world_model, self.actor = world_model, actor
        read = [key for key in actor.in_keys if key != _LATENT]
        self.in_keys: list[NestedKey] = [("agents", "observation"), "is_init", _MEMORY, *read]
        self.out_keys: list[NestedKey] = [_LATENT, *actor.out_keys, ("next", *_MEMORY)]

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """The transform that gives an environment the agents' memories, zero at resets."""
        model = self.world_model
        spec = Unbounded((model.spec.n_agents, model.memory_size))
        return TensorDictPrimer({_MEMORY: spec}, expand_specs=True)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Acts one step."""
        missing = [key for key in self.in_keys if tensordict.get(key, None) is None]
        if missing:
            raise MissingKeyError(
                f"LatentPolicy reads {missing}, which are missing; found "
                f"{sorted(map(str, tensordict.keys(True, True)))}. In an environment, "
                "torchrl.envs.InitTracker marks first steps, and the primer that "
                "make_tensordict_primer() gives carries memories."
            )
        model = self.world_model
        memory = tensordict.get(_MEMORY)
        is_init = tensordict.get("is_init").unsqueeze(-1)
        memory = torch.where(is_init, torch.zeros_like(memory), memory)
        latent = model.observe(
            memory,
            model.standardise(tensordict.get(("agents", "observation"))),
            deterministic=exploration_type() != ExplorationType.RANDOM,
        )
        tensordict.set(_LATENT, latent)
        self.actor(tensordict)
        action = model.encode_action(tensordict.get(("agents", "action")))
        return tensordict.set(("next", *_MEMORY), model.remember(latent, action))
