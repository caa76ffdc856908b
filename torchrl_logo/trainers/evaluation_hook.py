"""The trainer hook that evaluates the policy while it learns."""

from __future__ import annotations

from typing import Any

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase
from torchrl.trainers import Trainer
from torchrl.trainers.trainers import TrainerHookBase

from torchrl_logo.evaluation import evaluate

__all__ = ["EvaluationHook"]


class EvaluationHook(TrainerHookBase):
    """Evaluates the deterministic policy in the real environment every so many updates.

    Writes ``"eval/return"`` and, for tasks with reference returns, ``"eval/normalized"`` (0 for
    random actions, 100 for the expert) to the trainer's log and progress bar. These figures are
    for following a run: nothing is selected by them.

    Args:
        policy (TensorDictModuleBase): the policy that learns.
        task_or_env (str or EnvBase): where it is evaluated.

    Keyword Args:
        interval (int): updates between two evaluations.
        episodes (int): episodes of one evaluation. Defaults to ``32``.
        seed (int): the same start states each time. Defaults to ``0``.
    """

    def __init__(
        self,
        policy: TensorDictModuleBase,
        task_or_env: str | EnvBase,
        *,
        interval: int,
        episodes: int = 32,
        seed: int = 0,
    ) -> None:
        if interval < 1:
            raise ValueError(f"interval must be at least 1, found {interval}.")
        self.policy = policy
        self.task_or_env = task_or_env
        self.interval = interval
        self.episodes = episodes
        self.seed = seed
        self._next = interval
        self._trainer: Trainer | None = None

    def __call__(self, batch: TensorDictBase | None = None) -> dict[str, Any] | None:
        """Evaluates if the next evaluation is due."""
        updates = 0 if self._trainer is None else self._trainer._optim_count
        if updates < self._next:
            return None
        self._next = updates + self.interval
        result = evaluate(self.policy, self.task_or_env, episodes=self.episodes, seed=self.seed)
        figures = {"eval/return": result.mean, "log_pbar": True}
        if result.normalized is not None:
            figures["eval/normalized"] = result.normalized
        if result.win_rate is not None:
            figures["eval/win_rate"] = result.win_rate
        return figures

    def state_dict(self) -> dict[str, Any]:
        """When the next evaluation is due."""
        return {"next": self._next}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores when the next evaluation is due."""
        self._next = int(state_dict["next"])

    def register(self, trainer: Trainer, name: str = "evaluation") -> None:
        """Registers the hook after the updates of each batch."""
        self._trainer = trainer
        trainer.register_op("post_steps_log", self)
        trainer.register_module(name, self)
