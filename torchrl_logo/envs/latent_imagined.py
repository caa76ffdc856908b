"""A recurrent latent world model as a TorchRL environment, observed by its latents."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Categorical, Composite, Unbounded
from torchrl.envs.model_based import ModelBasedEnvBase

from torchrl_logo.argument_checks import MissingKeyError
from torchrl_logo.modules.recurrent_latent_world_model import RecurrentLatentWorldModel

__all__ = ["LatentImaginedEnv"]


class LatentImaginedEnv(ModelBasedEnvBase):
    """Rollouts inside a :class:`~torchrl_logo.modules.RecurrentLatentWorldModel`.

    An agent's observation is its latent, ``("agents", "latent")`` ``[*, N, L]``; for discrete
    actions there are masks ``("agents", "action_mask")`` ``[*, N, A]``, at the start the data's
    and later the model's. ``reset()`` draws start latents uniformly, with replacement. A step
    draws the latents that follow, without decoding observations, and gives the team's expected
    ``"reward"`` ``[*, 1]`` in the task's units.

    A row terminates where the model's probability of that is above one half (MAMBA multiplies
    the discount by it), and is truncated after ``horizon`` steps, or where an agent seems to have
    no available action. Latents are bounded, so that a rollout cannot run away.

    Steps carry no gradient and need nothing from the host. The environment holds no state beside
    its random generator.

    Args:
        world_model (RecurrentLatentWorldModel): predicts the next step; moved to ``device``.
        start_latents (TensorDictBase): where rollouts start, ``[R]``: ``("agents", "latent")``
            and, for discrete actions, ``("agents", "action_mask")``; see
            :func:`~torchrl_logo.trainers.infer_latents`.

    Keyword Args:
        batch_size (int): number of rollouts that run at once.
        horizon (int): steps after which a rollout is truncated. Defaults to ``15``, MAMBA's.
        seed (int, optional): seed of start latents and of the model's draws.
        device (torch.device, optional): where the environment runs. Defaults to the device of the
            world model.

    Raises:
        ValueError: if ``horizon`` or ``batch_size`` is not positive, or the start latents have
            another shape than the model's.
        KeyError: if the start latents lack a key.

    Examples:
        >>> from torchrl_logo.data import TaskSpec
        >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=1,
        ...                 action_low=(-1.0,), action_high=(1.0,))
        >>> model = RecurrentLatentWorldModel(spec, memory_size=8, code_groups=2, code_classes=4,
        ...                                   hidden_size=8, attention_heads=2)
        >>> starts = TensorDict({("agents", "latent"): torch.zeros(10, 2, 16)}, [10])
        >>> env = LatentImaginedEnv(model, starts, batch_size=5, horizon=3)
        >>> env.rollout(3, break_when_any_done=False)["next", "agents", "latent"].shape
        torch.Size([5, 3, 2, 16])
    """

    def __init__(
        self,
        world_model: RecurrentLatentWorldModel,
        start_latents: TensorDictBase,
        *,
        batch_size: int,
        horizon: int = 15,
        seed: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if horizon < 1 or batch_size < 1:
            raise ValueError(
                f"horizon and batch_size must be at least 1, found {horizon} and {batch_size}."
            )
        if device is None:
            device = world_model.observation_mask.device
        super().__init__(world_model, device=device, batch_size=torch.Size([batch_size]))
        self.horizon = horizon
        self._start_latents = self._read_start_latents(start_latents)
        self._generator = torch.Generator(device=self.device)
        self._make_specs()
        if seed is not None:
            self.set_seed(seed)

    def _read_start_latents(self, start_latents: TensorDictBase) -> TensorDictBase:
        model, spec = self.world_model, self.world_model.spec
        if start_latents.ndim != 1 or start_latents.shape[0] < 1:
            raise ValueError(
                "start_latents must have one batch dimension and one row or more, found batch "
                f"size {tuple(start_latents.batch_size)}."
            )
        shapes = {("agents", "latent"): (spec.n_agents, model.latent_size)}
        if spec.discrete:
            shapes["agents", "action_mask"] = (spec.n_agents, spec.action_size)
        for key, shape in shapes.items():
            value = start_latents.get(key, None)
            if value is None:
                raise MissingKeyError(
                    f"start_latents lack {key!r}; found "
                    f"{sorted(map(str, start_latents.keys(True, True)))}: infer_latents makes them."
                )
            if tuple(value.shape[1:]) != shape:
                raise ValueError(
                    f"start_latents belong to another model: {key!r} expected shape "
                    f"{('R', *shape)}, found {tuple(value.shape)}."
                )
        return start_latents.select(*shapes).to(self.device)

    def _make_specs(self) -> None:
        spec, device, batch = self.world_model.spec, self.device, self.batch_size
        latent = Unbounded((spec.n_agents, self.world_model.latent_size), device=device)
        agents = Composite(latent=latent, shape=(spec.n_agents,), device=device)
        layout = spec.observation_spec(device)
        if spec.discrete:
            agents["action_mask"] = layout["agents", "action_mask"]
        observation = Composite({"agents": agents, "step": layout["step"]}, device=device)
        self.observation_spec = observation.expand(batch)
        action = Composite(
            {"agents": Composite(shape=(spec.n_agents,), device=device)}, device=device
        )
        action["agents", "action"] = spec.action_spec(device)
        self.action_spec = action.expand(batch)
        self.reward_spec = Composite(reward=Unbounded((1,), device=device), device=device).expand(
            batch
        )
        flag = Categorical(2, shape=(1,), dtype=torch.bool, device=device)
        self.done_spec = Composite(
            {name: flag.clone() for name in ("done", "terminated", "truncated")}, device=device
        ).expand(batch)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The state of the random generator: the world model is not part of a rollout's state."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Restores the random generator, if there is a state to restore."""
        if state_dict:
            self._generator.set_state(state_dict["generator"].cpu())

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            self._generator.manual_seed(seed)

    def _make_agents(self, shape: torch.Size) -> TensorDict:
        agents = TensorDict(batch_size=(*shape, self.world_model.spec.n_agents), device=self.device)
        return TensorDict({"agents": agents}, batch_size=shape, device=self.device)

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        shape = self.batch_size if tensordict is None else tensordict.batch_size
        index = torch.randint(
            self._start_latents.shape[0], shape, generator=self._generator, device=self.device
        )
        out = self._make_agents(shape)
        for key in self._start_latents.keys(True, True):
            out.set(key, self._start_latents.get(key)[index])
        out.set("step", torch.zeros(*shape, 1, dtype=torch.int64, device=self.device))
        for name in ("done", "terminated", "truncated"):
            out.set(name, torch.zeros(*shape, 1, dtype=torch.bool, device=self.device))
        return out

    @torch.no_grad()
    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        model = self.world_model
        latent = model.imagine_step(
            tensordict.get(("agents", "latent")),
            model.encode_action(tensordict.get(("agents", "action"))),
            generator=self._generator,
        )
        reward, termination_logit, mask_logit = model.read_outcome(latent)
        step = tensordict.get("step") + 1
        terminated, truncated = termination_logit > 0, step >= self.horizon
        out = self._make_agents(tensordict.batch_size)
        out.set(("agents", "latent"), latent)
        if mask_logit is not None:
            mask = mask_logit > 0
            truncated = truncated | ~mask.any(-1).all(-1, keepdim=True)
            out.set(("agents", "action_mask"), mask)
        out.set("step", step)
        out.set("reward", reward)
        out.set("terminated", terminated)
        out.set("truncated", truncated)
        out.set("done", terminated | truncated)
        return out
