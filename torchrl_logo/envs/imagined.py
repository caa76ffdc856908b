"""The environment that a world model imagines."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Categorical, Composite, Unbounded
from torchrl.envs.model_based import ModelBasedEnvBase

from torchrl_logo.argument_checks import MissingKeyError, require_type
from torchrl_logo.modules.accumulated_uncertainty import accumulate_uncertainty
from torchrl_logo.modules.world_model import WorldModel

if TYPE_CHECKING:
    from torchrl_logo.data.dataset import OfflineDataset

__all__ = ["ImaginedEnv"]

# Agents that a processor predicts at once: the networks' activations then stay in its cache, and
# are small beside what is imagined.
_AGENTS_AT_ONCE = 6144


class ImaginedEnv(ModelBasedEnvBase):
    """Rollouts inside a world model, from states of a dataset.

    To TorchRL it is an environment like any other, with the real environment's specs: it runs in
    collectors, under planners and transforms. It differs in what it writes beside them:
    ``"uncertainty"`` ``[*, 1]``, 0 at the start of a rollout and under ``"next"`` after a step,
    is the model's uncertainty accumulated over the rollout so far (which ranks a model's errors
    far better than that of the last step) or, with ``accumulate=False``, that of the step.

    ``reset()`` draws start states uniformly, with replacement; ``reset(tensordict)`` with an
    observation and a state in ``tensordict`` starts from these; with a ``"_reset"`` mask the
    marked rows are drawn anew. With ``batch_size=()`` tensordicts may have any batch shape, as
    TorchRL's planners need it; otherwise they have the environment's. The number of steps since
    the start is read from and written to ``"step"`` and truncates at ``horizon``: the environment
    itself holds no state beside its random generator.

    Random actions, those of ``env.rollout()`` without a policy, are drawn from what the predicted
    mask leaves; policies read the mask themselves.

    A row ends early, as *truncated*, where the model yields numbers that are not finite or leaves
    an agent without an available action: the transition is written as it is, for whoever stores
    it to refuse, but nothing is imagined on top of it.

    Steps carry no gradient unless ``grad=True``, and need nothing from the host.

    Args:
        world_model (WorldModel): predicts the next step; moved to ``device``.
        start_states (OfflineDataset or TensorDictBase): where rollouts start: observations, state
            and, for discrete actions, masks of one batch dimension ``[B]``.

    Keyword Args:
        batch_size (int or torch.Size): number of rollouts that run at once; ``()`` leaves it to
            the tensordicts.
        horizon (int): steps after which a rollout is truncated. Defaults to ``15``, the paper's
            best.
        termination (Callable, optional): a known rule for the end of an episode, in place of the
            model's: maps the transition (root and ``"next"`` entries) to bool ``[*, 1]``.
        accumulate (bool): whether uncertainty is accumulated along the rollout
            (:func:`~torchrl_logo.modules.accumulate_uncertainty`). Defaults to ``True``.
        clamp_margin (float, optional): imagined states and observations are kept within the
            training data's range of each feature, widened by this share of the range on both
            sides, so that a bad rollout does not run away. ``None`` leaves them alone.
            Defaults to ``0.5``.
        grad (bool): whether steps may be differentiated. Defaults to ``False``.
        seed (int, optional): seed of the draws of start states.
        device (torch.device, optional): where the environment runs. Defaults to the device of the
            world model.

    Raises:
        ValueError: if the start states belong to another task than the model, or have another
            shape than the task's; if ``horizon`` is not positive.
        KeyError: if the start states lack a key.

    Examples:
        >>> from torchrl_logo.data import TaskSpec
        >>> from torchrl_logo.modules import JointWorldModel
        >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=1,
        ...                 action_low=(-1.0,), action_high=(1.0,))
        >>> model = JointWorldModel(spec, hidden_size=8)
        >>> starts = TensorDict({"agents": {"observation": torch.zeros(10, 2, 3)},
        ...                      "state": torch.zeros(10, 4)}, batch_size=[10])
        >>> def survive(transition):  # a known rule: nothing ends but by the horizon
        ...     return torch.zeros_like(transition["next", "terminated"])
        >>> env = ImaginedEnv(model, starts, batch_size=5, horizon=3, termination=survive)
        >>> rollout = env.rollout(10, break_when_any_done=False)
        >>> rollout["next", "truncated"][0].squeeze(-1)[:4]
        tensor([False, False,  True, False])
    """

    _supports_set_state = True

    def __init__(
        self,
        world_model: WorldModel,
        start_states: OfflineDataset | TensorDictBase,
        *,
        batch_size: int | torch.Size | tuple[int, ...],
        horizon: int = 15,
        termination: Callable[[TensorDictBase], torch.Tensor] | None = None,
        accumulate: bool = True,
        clamp_margin: float | None = 0.5,
        grad: bool = False,
        seed: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        require_type(world_model, WorldModel, "world_model", "LOGOWorldModel.from_dataset(dataset)")
        if termination is not None and not callable(termination):
            raise TypeError(
                f"termination must be a rule, or None to have the model predict ends; found "
                f"{termination!r}. known_termination(task) gives the rule of a task."
            )
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1, found {horizon}.")
        if clamp_margin is not None and not clamp_margin >= 0:
            raise ValueError(f"clamp_margin must not be negative, found {clamp_margin}.")
        if device is None:
            device = world_model.observation_mask.device
        size = (batch_size,) if isinstance(batch_size, int) else tuple(batch_size)
        if math.prod(size) < 1:
            raise ValueError(f"batch_size must be positive, found {size}.")
        super().__init__(world_model, device=device, batch_size=torch.Size(size))
        self.horizon = horizon
        self.termination = termination
        self.accumulate = accumulate
        self.clamp_margin = clamp_margin
        self.grad = grad
        self._start_states = self._read_start_states(start_states)
        self._generator = torch.Generator(device=self.device)
        self._make_specs()
        if seed is not None:
            self.set_seed(seed)

    def _read_start_states(self, start_states: OfflineDataset | TensorDictBase) -> TensorDictBase:
        model_spec, keys = self.world_model.spec, self.world_model.tensor_keys
        data: TensorDictBase
        if isinstance(start_states, TensorDictBase):
            data = start_states
        else:
            model_spec.require_match(start_states.spec, "The dataset of start states")
            data = start_states.data
        if data.ndim != 1 or data.shape[0] < 1:
            raise ValueError(
                "start_states must have one batch dimension and one row or more, found batch "
                f"size {tuple(data.batch_size)}."
            )
        shapes = {
            keys.observation: (model_spec.n_agents, model_spec.observation_size),
            keys.state: (model_spec.state_size,),
        }
        if model_spec.discrete:
            shapes[keys.action_mask] = (model_spec.n_agents, model_spec.action_size)
        for key, shape in shapes.items():
            value = data.get(key, None)
            if value is None:
                raise MissingKeyError(
                    f"start_states lack {key!r}; found {sorted(map(str, data.keys(True, True)))}: "
                    "pass an OfflineDataset, or rows with all of the model's inputs."
                )
            if tuple(value.shape[1:]) != shape:
                raise ValueError(
                    f"start_states belong to another task: {key!r} expected shape "
                    f"{('B', *shape)}, found {tuple(value.shape)}."
                )
        self._start_keys = list(shapes)
        return data.select(*shapes).to(self.device)

    def _make_specs(self) -> None:
        spec, keys, device = self.world_model.spec, self.world_model.tensor_keys, self.device
        batch = self.batch_size
        layout = spec.observation_spec(device)
        agents = Composite(shape=(spec.n_agents,), device=device)
        observation = Composite({"agents": agents}, device=device)
        observation[keys.observation] = layout["agents", "observation"]
        if spec.discrete:
            observation[keys.action_mask] = layout["agents", "action_mask"]
        observation[keys.state] = layout["state"]
        observation["step"] = layout["step"]
        observation[keys.uncertainty] = Unbounded((1,), device=device)
        if not len(list(observation["agents"].keys())):
            del observation["agents"]
        self._has_agents = "agents" in observation.keys()
        self.observation_spec = observation.expand(batch)
        action = Composite(device=device)
        if keys.action[0] == "agents":
            action["agents"] = Composite(shape=(spec.n_agents,), device=device)
        action[keys.action] = spec.action_spec(device)
        self.action_spec = action.expand(batch)
        reward = Composite(device=device)
        reward[keys.reward] = Unbounded((1,), device=device)
        self.reward_spec = reward.expand(batch)
        flag = Categorical(2, shape=(1,), dtype=torch.bool, device=device)
        self.done_spec = Composite(
            {name: flag.clone() for name in ("done", "terminated", "truncated")}, device=device
        ).expand(batch)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The state of the random generator: the world model is not part of a rollout's state."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Restores the random generator.

        TorchRL's collectors store nothing of an environment without transforms, and hand back
        that nothing: it changes nothing here.
        """
        if state_dict:
            self._generator.set_state(state_dict["generator"].cpu())

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            self._generator.manual_seed(seed)

    def _resolve_set_state(
        self, set_state: bool | None, tensordict: TensorDictBase | None, select_reset_only: bool
    ) -> bool:
        # TorchRL is about to ignore states passed to reset() without set_state=True; this
        # environment's contract is that start states that are given are taken.
        if set_state is None:
            keys = self.world_model.tensor_keys
            return (
                not select_reset_only
                and tensordict is not None
                and tensordict.get("_reset", None) is None
                and tensordict.get(keys.state, None) is not None
                and tensordict.get(keys.observation, None) is not None
            )
        return super()._resolve_set_state(set_state, tensordict, select_reset_only)

    def _reset(
        self,
        tensordict: TensorDictBase | None = None,
        *,
        set_state: bool = False,
        **kwargs: Any,
    ) -> TensorDictBase:
        if set_state:
            if tensordict is None:
                raise ValueError("reset(set_state=True) needs a tensordict of start states.")
            starts = tensordict.select(*self._start_keys, strict=True)
            shape = tensordict.batch_size
        else:
            shape = self.batch_size if tensordict is None else tensordict.batch_size
            index = torch.randint(
                self._start_states.shape[0], shape, generator=self._generator, device=self.device
            )
            starts = self._start_states[index]
        # The copies keep the caller's, or the dataset's, tensors from being written to.
        out = self._new_tensordict(shape)
        for key in self._start_keys:
            out.set(key, starts.get(key).clone())
        out.set("step", torch.zeros(*shape, 1, dtype=torch.int64, device=self.device))
        out.set(
            self.world_model.tensor_keys.uncertainty, torch.zeros(*shape, 1, device=self.device)
        )
        for name in ("done", "terminated", "truncated"):
            out.set(name, torch.zeros(*shape, 1, dtype=torch.bool, device=self.device))
        self._offer_actions(out, None if tensordict is None else tensordict.get("_reset", None))
        return out

    def _offer_actions(self, out: TensorDictBase, reset: torch.Tensor | None = None) -> None:
        """Has random actions drawn from what is available, as TorchRL's environments do it.

        With ``batch_size=()`` the spec has no rows, and cannot hold a mask of any.
        """
        if not self.world_model.spec.discrete or not self.batch_size:
            return
        mask = out.get(self.world_model.tensor_keys.action_mask)  # [B, N, A]
        spec = self.full_action_spec[self.world_model.tensor_keys.action]
        if reset is not None and spec.mask is not None:
            mask = torch.where(reset.reshape(*self.batch_size, 1, 1), mask, spec.mask)
        spec.update_mask(mask)

    def _new_tensordict(self, shape: torch.Size) -> TensorDict:
        """An empty TensorDict, with the agents' part in the agents' batch size if there is one."""
        out = TensorDict(batch_size=shape, device=self.device)
        if self._has_agents:
            agents = TensorDict(
                batch_size=(*shape, self.world_model.spec.n_agents), device=self.device
            )
            out.set("agents", agents)
        return out

    def _predict(self, inputs: TensorDictBase) -> TensorDictBase:
        """The model's transition, on a processor block by block where there are many rows."""
        agents = inputs.numel() * self.world_model.spec.n_agents
        if self.device.type != "cpu" or not inputs.ndim or agents <= _AGENTS_AT_ONCE:
            return self.world_model(inputs)
        rows = max(len(inputs) * _AGENTS_AT_ONCE // agents, 1)
        # of one size, or nearly so: fewer that compiled models are compiled for
        rows = math.ceil(len(inputs) / math.ceil(len(inputs) / rows))
        return torch.cat([self.world_model(block) for block in inputs.split(rows)])

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        keys, spec = self.world_model.tensor_keys, self.world_model.spec
        with contextlib.nullcontext() if self.grad else torch.no_grad():
            transition = self._predict(tensordict.select(*self.world_model.in_keys))
            missing = [
                key for key in self.world_model.out_keys if transition.get(key, None) is None
            ]
            if missing:
                raise MissingKeyError(
                    f"The world model did not write {missing}; found "
                    f"{sorted(map(str, transition.keys(True, True)))}."
                )
            uncertainty = transition.get(keys.uncertainty)
            predicted = transition.get("next")
            state = predicted.get(keys.state)
            observation = predicted.get(keys.observation)
            if self.clamp_margin is not None:
                model = self.world_model
                state = model.state_normalizer.clamp(state, self.clamp_margin)
                observation = model.observation_normalizer.clamp(observation, self.clamp_margin)
                # Padding is 0, which need not lie within the range of the features.
                observation = observation * model.observation_mask
                predicted.set(keys.state, state)
                predicted.set(keys.observation, observation)
            if self.termination is not None:
                terminated = self.termination(transition)
                if terminated.shape != predicted.get(keys.reward).shape:
                    raise ValueError(
                        "termination must return bool "
                        f"{tuple(predicted.get(keys.reward).shape)}, found "
                        f"{tuple(terminated.shape)}."
                    )
            else:
                terminated = predicted.get(keys.terminated)
            alive = (
                _find_finite(state, 1)
                & _find_finite(observation, 2)
                & _find_finite(predicted.get(keys.reward), 1)
                & _find_finite(uncertainty, 1)
            ).unsqueeze(-1)  # [*, 1]
            if spec.discrete:
                mask = predicted.get(keys.action_mask)
                alive = alive & mask.any(-1).all(-1, keepdim=True)
            step = tensordict.get("step") + 1
            truncated = (step >= self.horizon) | ~alive
            if self.accumulate:
                uncertainty = accumulate_uncertainty(tensordict.get(keys.uncertainty), uncertainty)
            out = self._new_tensordict(tensordict.batch_size)
            out.set(keys.observation, observation)
            if spec.discrete:
                out.set(keys.action_mask, mask)
            out.set(keys.state, state)
            out.set("step", step)
            out.set(keys.uncertainty, uncertainty)
            out.set(keys.reward, predicted.get(keys.reward))
            out.set("terminated", terminated)
            out.set("truncated", truncated)
            out.set("done", terminated | truncated)
        self._offer_actions(out)
        return out


def _find_finite(values: torch.Tensor, dims: int) -> torch.Tensor:
    """Which rows ``[*]`` of ``values``, whose last ``dims`` dimensions are a row, are finite."""
    # x - x is 0 where x is finite and NaN elsewhere, and so are their sums: two passes in place of
    # the five of isfinite().all().
    return (values - values).flatten(-dims).sum(-1) == 0
