"""An environment of your own: two agents on a line that are to meet.

Copy this file to ``torchrl_logo/envs/``: ``make_env("line/meeting")`` then finds it, and the
contract tests of environments run on it. Functions that take an environment, such as ``collect``
and ``evaluate``, take it without that, too.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from torchrl_logo.data import TaskSpec

__all__ = ["TASK_PREFIX", "MeetingEnv", "available_tasks", "build_env"]

# 1. What the registry looks for: the prefix of the names, the names, and how one is built.

#: What the names of these tasks begin with.
TASK_PREFIX = "line"


def available_tasks() -> list[str]:
    """Names of the tasks, as :func:`torchrl_logo.envs.make_env` takes them."""
    return [f"{TASK_PREFIX}/meeting"]


def build_env(
    name: str, *, num_envs: int = 1, device: torch.device | str = "cpu", seed: int | None = None
) -> MeetingEnv:
    """Builds a task, by its name without the prefix."""
    if name != "meeting":
        raise ValueError(f"No task 'line/{name}'; there are: {', '.join(available_tasks())}.")
    return MeetingEnv(num_envs=num_envs, device=device, seed=seed)


class MeetingEnv(EnvBase):
    """Agents stay or step to either side, and the episode ends when they are near each other.

    All simulations are rows of the same tensors. An agent at an end of the line cannot go further:
    that action is not available.
    """

    n_agents, n_actions, stride, max_steps = 2, 3, 0.1, 20
    batch_locked = True

    def __init__(
        self, *, num_envs: int = 1, device: torch.device | str = "cpu", seed: int | None = None
    ) -> None:
        super().__init__(device=device, batch_size=torch.Size([num_envs]))
        # 2. What the rest of the package asks an environment for, beside max_steps.
        self.task = f"{TASK_PREFIX}/meeting"
        self.group_map = {"agents": [f"agent_{index}" for index in range(self.n_agents)]}
        self.observation_sizes = [2] * self.n_agents  # before padding
        self._make_specs()
        self.position = torch.zeros((num_envs, self.n_agents), device=self.device)  # [E, N]
        self.steps = torch.zeros((num_envs, 1), dtype=torch.int64, device=self.device)
        self._generator = torch.Generator(device=self.device)
        self._set_seed(torch.initial_seed() % 2**31 if seed is None else seed)

    def _make_specs(self) -> None:
        # 3. The layout: observations, masks and actions under "agents", the global state, the
        #    step, and one reward for the team. TaskSpec writes most of it.
        spec = TaskSpec(
            n_agents=self.n_agents,
            observation_size=2,
            state_size=self.n_agents,
            action_size=self.n_actions,
            discrete=True,
        )
        device, rows = self.device, self.batch_size
        action = Composite(
            action=spec.action_spec(device), shape=torch.Size([self.n_agents]), device=device
        )
        flag = Categorical(2, shape=(1,), dtype=torch.bool, device=device)
        ends = {name: flag.clone() for name in ("done", "terminated", "truncated")}
        self.observation_spec = spec.observation_spec(device).expand(rows)
        self.action_spec = Composite(agents=action, device=device).expand(rows)
        self.reward_spec = Composite(reward=Unbounded((1,), device=device)).expand(rows)
        self.done_spec = Composite(ends, device=device).expand(rows)

    def _observe(self) -> TensorDict:
        """What is seen now."""
        others = self.position.flip(-1) - self.position
        left, right = self.position >= self.stride, self.position <= 1 - self.stride
        mask = torch.stack([torch.ones_like(left), left, right], -1)  # [E, N, A]
        # random actions, which are drawn from the spec, are available ones
        self.full_action_spec["agents", "action"].update_mask(mask)
        agents = TensorDict(
            {"observation": torch.stack([self.position, others], -1), "action_mask": mask},
            self.position.shape,
            device=self.device,
        )
        return TensorDict(
            {"agents": agents, "state": self.position, "step": self.steps},
            self.batch_size,
            device=self.device,
        )

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDict:
        # 4. Only rows that are marked start anew; the others go on as they are.
        marked = None if tensordict is None else tensordict.get("_reset", None)  # [E, 1]
        if marked is None:
            marked = torch.ones_like(self.steps, dtype=torch.bool)
        start = torch.rand(self.position.shape, generator=self._generator, device=self.device)
        self.position = torch.where(marked, start, self.position)
        self.steps = torch.where(marked, 0, self.steps)
        goes_on = torch.zeros_like(marked)
        ends = {"done": goes_on, "terminated": goes_on.clone(), "truncated": goes_on.clone()}
        return self._observe().update(ends)

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        # 5. The true next step, also where the episode ends: resetting is not this one's business.
        action, mask = tensordict["agents", "action"], tensordict["agents", "action_mask"]
        if not mask.gather(-1, action.unsqueeze(-1)).all():
            raise ValueError("An action is not available; see ('agents', 'action_mask').")
        moves = torch.tensor([0.0, -self.stride, self.stride], device=self.device)
        self.position = self.position + moves[action]
        self.steps = self.steps + 1
        distance = (self.position[:, :1] - self.position[:, 1:]).abs()  # [E, 1]
        # time is up, or the task is done: values go on beyond the first, and not the second
        terminated = distance < self.stride
        truncated = (self.steps >= self.max_steps) & ~terminated
        ends = {"done": terminated | truncated, "terminated": terminated, "truncated": truncated}
        return self._observe().update({"reward": -distance, **ends})

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            self._generator.manual_seed(seed)
