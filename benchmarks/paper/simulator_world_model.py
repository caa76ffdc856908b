"""A world model that makes no errors: the VMAS simulator itself."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from tensordict import TensorDict, TensorDictBase

from torchrl_logo.data import TaskSpec
from torchrl_logo.envs import make_env
from torchrl_logo.envs.vmas import VmasTeamEnv
from torchrl_logo.modules.world_model import Prediction, WorldModel

__all__ = ["REPLAYED_TASKS", "SimulatorWorldModel"]

# Tasks whose recorded state is the whole state, which tests/benchmarks replay.
REPLAYED_TASKS = ("vmas/balance", "vmas/transport", "vmas/navigation", "vmas/wheel")

# Log-odds that stand for certainty.
_CERTAIN = 1e4


class SimulatorWorldModel(WorldModel):
    """Steps the simulator from any recorded state: what a perfect model would predict.

    A recorded state holds position, velocity, rotation and angular velocity of every entity. What
    else a scenario remembers from one step to the next is how far from its goal it was, of which
    it rewards the difference: it is computed again from the state, by asking for the rewards of
    the state that was put in and throwing them away. One thing cannot be restored: `navigation`
    punishes agents that come within 5 mm only if any pair of the whole batch touches.

    Being a world model, it takes the place of a learnt one in
    :class:`~torchrl_logo.envs.ImaginedEnv`, in trainers and in planners: the upper bound of what
    a better model could bring. Its predictions have no gradient, and it has no uncertainty.

    Args:
        spec (TaskSpec): of one of :data:`REPLAYED_TASKS`.

    Keyword Args:
        device (torch.device, optional): where the simulator runs.

    Raises:
        ValueError: if the task is another one.

    Examples:
        >>> env = make_env("vmas/wheel", num_envs=3, seed=0)
        >>> step = env.rand_step(env.reset())
        >>> model = SimulatorWorldModel(TaskSpec.from_env(env))
        >>> found = model.predict(step["state"], step["agents", "observation"],
        ...                       step["agents", "action"])
        >>> bool((found.state == step["next", "state"]).all())
        True
    """

    has_uncertainty: ClassVar[bool] = False

    def __init__(self, spec: TaskSpec, *, device: torch.device | str | None = None) -> None:
        if spec.task not in REPLAYED_TASKS:
            raise ValueError(
                f"The recorded state is known to be whole for {list(REPLAYED_TASKS)}, found the "
                f"task {spec.task!r}."
            )
        super().__init__(spec, device=device)
        self.task: str = spec.task
        self.config: dict[str, Any] = {}
        self.register_buffer("_termination_bias", torch.zeros(1, device=device))
        # A VMAS world has a fixed number of rows. The dictionary keeps simulators out of
        # state_dict.
        self._simulators: dict[int, VmasTeamEnv] = {}

    @property
    def termination_bias(self) -> torch.Tensor:
        """Of no use here."""
        return self._termination_bias

    @torch.no_grad()
    def fit_normalizers(self, data: TensorDictBase) -> None:
        """Does nothing: unfitted ranges are infinite, so that true states are never clamped."""

    @torch.no_grad()
    def predict(
        self, state: torch.Tensor, observation: torch.Tensor, action: torch.Tensor
    ) -> Prediction:
        """Steps the simulator; see :class:`~torchrl_logo.modules.WorldModel`."""
        batch = state.shape[:-1]
        rows = state.reshape(-1, state.shape[-1])
        env = self._find_simulator(rows.shape[0])
        env.put_state(rows)
        joint = action.reshape(rows.shape[0], *action.shape[len(batch) :])
        step = TensorDict({"agents": {"action": joint}}, [rows.shape[0]], device=rows.device)
        after = env.step(step).get("next")
        ends = after.get("terminated").to(state.dtype)
        return Prediction(
            state=after.get("state").reshape(state.shape),
            observation=after.get(("agents", "observation")).reshape(observation.shape),
            reward=after.get("reward").reshape(*batch, 1),
            termination_logit=((2 * ends - 1) * _CERTAIN).reshape(*batch, 1),
            action_mask_logit=None,
            uncertainty=torch.zeros(*batch, 1, device=state.device),
        )

    def _find_simulator(self, rows: int) -> VmasTeamEnv:
        if rows not in self._simulators:
            env = make_env(self.task, num_envs=rows, device=self.observation_mask.device, seed=0)
            assert isinstance(env, VmasTeamEnv)
            env.reset()
            self._simulators[rows] = env
        return self._simulators[rows]
