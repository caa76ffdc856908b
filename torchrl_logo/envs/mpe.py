"""The cooperative multi-particle tasks (MPE) in the package's layout."""

from __future__ import annotations

import difflib
from typing import Any

import torch

from torchrl_logo.envs.pettingzoo import PettingZooTeamEnv
from torchrl_logo.optional_dependencies import require

__all__ = ["TASK_PREFIX", "available_tasks", "build_env"]

#: What the names of these tasks begin with.
TASK_PREFIX = "mpe"

_DISCRETE = "_discrete"

# The module of mpe2, and what makes the task a team's: with no local share of the reward, the
# agents have the one that the scenario calls global. Speaker and listener share theirs anyway.
_SCENARIOS: dict[str, tuple[str, dict[str, Any]]] = {
    "simple_spread": ("simple_spread_v3", {"local_ratio": 0.0}),
    "simple_reference": ("simple_reference_v3", {"local_ratio": 0.0}),
    "simple_speaker_listener": ("simple_speaker_listener_v4", {}),
}

# The length at which the simulator truncates an episode, its own default.
_MAX_STEPS = 25


def available_tasks() -> list[str]:
    """Names of the MPE tasks, as :func:`torchrl_logo.envs.make_env` takes them.

    Examples:
        >>> available_tasks()[:2]
        ['mpe/simple_spread', 'mpe/simple_spread_discrete']
    """
    return [f"{TASK_PREFIX}/{name}{kind}" for name in _SCENARIOS for kind in ("", _DISCRETE)]


CONTRACT_TASKS = tuple(available_tasks())


def build_env(
    name: str,
    *,
    num_envs: int = 1,
    device: torch.device | str = "cpu",
    seed: int | None = None,
) -> PettingZooTeamEnv:
    """Builds a task of ``mpe2``, with continuous actions unless its name ends in ``_discrete``.

    The state is the simulator's own ``state()``, which in MPE holds the agents' observations one
    after another. Episodes are truncated after 25 steps and never terminate.

    Args:
        name (str): the scenario, without the ``mpe/`` prefix: ``"simple_spread"``,
            ``"simple_reference"`` or ``"simple_speaker_listener"``, as it is (actions in [0, 1])
            or followed by ``"_discrete"``.

    Keyword Args:
        num_envs (int): number of simulators that run as one batch.
        device (torch.device or str): where tensors are written.
        seed (int, optional): seed of the environment's own random state.

    Raises:
        ValueError: if there is no such task, and then names the nearest ones.
        ImportError: if ``mpe2`` is not installed.

    Examples:
        >>> build_env("simple_spread", num_envs=4, seed=1).batch_size  # doctest: +SKIP
        torch.Size([4])
    """
    task = f"{TASK_PREFIX}/{name}"
    if task not in available_tasks():
        near = difflib.get_close_matches(task, available_tasks(), n=3, cutoff=0.3)
        raise ValueError(f"MPE has no team task {name!r}. Nearest: {', '.join(near)}.")
    module_name, options = _SCENARIOS[name.removesuffix(_DISCRETE)]
    module = require(f"mpe2.{module_name}", extra="mpe")
    continuous = not name.endswith(_DISCRETE)
    return PettingZooTeamEnv(
        lambda: module.parallel_env(
            continuous_actions=continuous, max_cycles=_MAX_STEPS, **options
        ),
        num_envs=num_envs,
        task=task,
        seed=seed,
        device=device,
    )
