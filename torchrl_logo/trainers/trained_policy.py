"""Trained policies with their cards: printed, saved, and loaded into environments."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import torch
from tensordict.nn import TensorDictModuleBase, TensorDictModuleWrapper
from torchrl.envs import EnvBase

from torchrl_logo.argument_checks import find_device
from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.envs import make_env
from torchrl_logo.evaluation import Evaluation
from torchrl_logo.evaluation.rollout import carry_states
from torchrl_logo.html_tables import make_html_table
from torchrl_logo.modules.normalizer import Normalizer
from torchrl_logo.trainers.method_networks import Networks
from torchrl_logo.trainers.methods import METHODS, find_method, find_policy
from torchrl_logo.trainers.policy_card import PolicyCard
from torchrl_logo.weight_files import load_weights, save_weights

__all__ = ["TrainedPolicy"]

# Critics are made with a policy and are larger, but not by more than this.
_LARGEST_RATIO, _SMALL = 64, 2**20


class TrainedPolicy(TensorDictModuleWrapper):
    """A policy that knows what it is, and otherwise behaves as the module that it wraps.

    It prints as a summary, in notebooks as a table. :meth:`save` writes weights and card into
    one file, and :meth:`load` makes the policy again, ready to act::

        make_env("vmas/balance").rollout(200, TrainedPolicy.load("policy.pt"))

    Args:
        policy (TensorDictModuleBase): acts on a TensorDict.
        card (PolicyCard): what is known of it.

    Attributes:
        card: what is known of the policy.

    Examples:
        >>> import tempfile
        >>> from torchrl_logo.data import collect
        >>> from torchrl_logo.trainers import OfflineTrainer
        >>> dataset = collect(make_env("vmas/balance", num_envs=4), None, 400, seed=0)
        >>> trainer = OfflineTrainer("bc", dataset, steps=2, eval_interval=0, progress_bar=False)
        >>> policy = trainer.train().policy
        >>> print(policy)
        TrainedPolicy(
            task: vmas/balance: 3 agents, 16 observation features, 2 action components,
            made by: bc, 2 updates, seed 0,
            return: not evaluated,
            data: unknown quality, 425 transitions in 6 episodes of mean return ..., hash ...,
            acts on: ('agents', 'observation'), on cpu, by ... weights,
        )
        >>> path = Path(tempfile.mkdtemp(), "policy.pt")
        >>> policy.save(path)
        >>> loaded = TrainedPolicy.load(path)
        >>> loaded.make_env(num_envs=2).rollout(5, loaded)["agents", "action"].shape
        torch.Size([2, 5, 3, 2])
    """

    def __init__(self, policy: TensorDictModuleBase, card: PolicyCard) -> None:
        super().__init__(policy)
        self.card = card

    def with_returns(self, evaluation: Evaluation) -> TrainedPolicy:
        """The same policy, whose card has the returns of an evaluation.

        Args:
            evaluation (Evaluation): what :func:`~torchrl_logo.evaluation.evaluate` found.
        """
        return TrainedPolicy(self.td_module, self.card.with_returns(evaluation))

    def make_env(self, *, num_envs: int = 1, seed: int | None = None, **options: Any) -> EnvBase:
        """The environment of the policy's task, with the states of a policy with memory.

        Keyword Args:
            num_envs (int): simulations that run as one batch. Defaults to ``1``.
            seed (int, optional): of the environment.
            **options: of the task (see :func:`torchrl_logo.envs.make_env`).

        Raises:
            ValueError: if the card names no task.
        """
        if self.card.task is None:
            raise ValueError(
                "The policy's card names no task, expected one that make_env takes: make the "
                "environment yourself."
            )
        device = self._find_device()
        env = make_env(self.card.task, num_envs=num_envs, device=device, seed=seed, **options)
        return carry_states(env, self.td_module)

    def save(self, path: str | Path) -> None:
        """Writes weights and card into one file, which :meth:`load` reads without running code.

        Args:
            path (str or Path): the file; an earlier one is replaced as a whole.

        Raises:
            OSError: if the disk is full or read-only.
        """
        content = {
            "policy_card": json.dumps(self.card.to_dict()),
            "state_dict": dict(self.td_module.state_dict()),
        }
        save_weights(content, path, what="the policy")

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        policy: TensorDictModuleBase | None = None,
        device: torch.device | str = "cpu",
    ) -> TrainedPolicy:
        """Makes the policy that :meth:`save` wrote.

        Args:
            path (str or Path): the file.

        Keyword Args:
            policy (TensorDictModuleBase, optional): a module of the same architecture, which
                gets the weights. Needed for policies of other losses than those of
                :data:`~torchrl_logo.trainers.methods.METHODS`.
            device (torch.device or str): where the policy is made. Defaults to ``"cpu"``.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged, holds something else, or weights of another
                architecture than its card says.
        """
        device = find_device(device)
        stored = load_weights(path, device=device)
        if set(stored) != {"policy_card", "state_dict"}:
            raise ValueError(
                f"{path}: expected a policy that TrainedPolicy.save wrote, found "
                f"{sorted(map(str, stored))}. World models are loaded by LOGOWorldModel.load(path)."
            )
        weights = stored["state_dict"]
        if not isinstance(weights, dict) or not all(
            isinstance(value, torch.Tensor) for value in weights.values()
        ):
            raise ValueError(f"{path}: expected tensors by their names as state_dict.")
        try:
            card = PolicyCard.from_dict(json.loads(str(stored["policy_card"])))
            if policy is None:
                policy = _make_policy(card, sum(v.numel() for v in weights.values()), device)
            policy.load_state_dict(weights)
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            raise ValueError(f"{path}: expected a policy, found: {error}") from error
        return cls(policy, card).eval()

    def _find_device(self) -> torch.device:
        return next((tensor.device for tensor in self.parameters()), torch.device("cpu"))

    def _describe(self) -> dict[str, str]:
        weights = sum(parameter.numel() for parameter in self.parameters())
        reads = ", ".join(map(str, self.in_keys))
        return {
            **self.card.describe(),
            "acts on": f"{reads}, on {self._find_device()}, by {weights:,} weights",
        }

    def __repr__(self) -> str:
        lines = [f"    {name}: {text},\n" for name, text in self._describe().items()]
        return f"{type(self).__name__}(\n{''.join(lines)})"

    def _repr_html_(self) -> str:
        rows = {**self._describe(), "hyperparameters": json.dumps(self.card.hyperparameters)}
        return make_html_table(type(self).__name__, rows)


def _make_policy(card: PolicyCard, weights: int, device: torch.device) -> TensorDictModuleBase:
    """The policy that a card's method trains, with weights that mean nothing yet."""
    if card.method not in METHODS:
        raise ValueError(
            f"made by {card.method!r}, expected a method of {sorted(METHODS)}. Pass policy=, a "
            "module of the same architecture, which gets the weights."
        )
    recipe = card.hyperparameters
    hidden_sizes, share_params = recipe.get("hidden_sizes"), recipe.get("share_params")
    loss_kwargs = recipe.get("loss")
    if (
        not isinstance(hidden_sizes, list)
        or not all(type(size) is int and size > 0 for size in hidden_sizes)
        or type(share_params) is not bool
        or not isinstance(loss_kwargs, dict)
    ):
        raise ValueError("a card whose hyperparameters lack hidden_sizes, share_params or loss.")
    # The state is for critics only, which do not act.
    spec = dataclasses.replace(card.spec, state_size=1)
    _require_size(spec, hidden_sizes, share_params, weights)
    networks = Networks(
        spec,
        hidden_sizes,
        share_params,
        recipe.get("sequence_length") is not None,
        Normalizer(spec.observation_size, device=device),
        Normalizer(spec.state_size, device=device),
        device,
    )
    loss = find_method(card.method).build_loss(networks, 0.99, loss_kwargs)
    return find_policy(loss)


def _require_size(
    spec: TaskSpec, hidden_sizes: list[int], share_params: bool, weights: int
) -> None:
    """Refuses a card that asks for far more memory than its file has weights."""
    inputs = max(spec.observation_size, 1 + spec.n_agents * spec.action_size)
    widths = [inputs, *hidden_sizes, 2 * spec.action_size]
    size = sum(math.prod(pair) for pair in zip(widths, widths[1:], strict=False))
    size *= 1 if share_params else spec.n_agents
    if size > _LARGEST_RATIO * weights + _SMALL:
        raise ValueError(f"{weights:,} weights, and a card that speaks of networks of {size:,}.")
