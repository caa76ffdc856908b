"""Finds the environment of a task by its name."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import Any

import torch
from torchrl.envs import EnvBase

from torchrl_logo.argument_checks import find_device, require_positive_integers, require_seed

__all__ = ["available_tasks", "make_env"]


def _simulators() -> dict[str, ModuleType]:
    """The modules of this folder that build environments, by the prefix of their tasks.

    A simulator is one file of this folder with ``TASK_PREFIX``, ``available_tasks()`` and
    ``build_env(name, *, num_envs, device, seed)``; nothing else has to be told of it. Its
    packages are imported when an environment is built, not before. ``CONTRACT_TASKS`` may name
    the tasks that the contract of environments is tested on, in place of the first two.
    """
    package = importlib.import_module("torchrl_logo.envs")
    found = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        if hasattr(module, "TASK_PREFIX"):
            found[module.TASK_PREFIX] = module
    return found


def available_tasks() -> list[str]:
    """Names of all tasks that :func:`make_env` builds.

    Examples:
        >>> "vmas/balance" in available_tasks()
        True
    """
    return [task for module in _simulators().values() for task in module.available_tasks()]


def make_env(
    task: str,
    *,
    num_envs: int = 1,
    device: torch.device | str = "cpu",
    seed: int | None = None,
    **options: Any,
) -> EnvBase:
    """Makes a real environment in the package's layout.

    The environment writes ``("agents", "observation")`` ``[num_envs, N, d_o]``, ``"state"``
    ``[num_envs, d_s]`` (the simulator's own), ``"step"`` ``[num_envs, 1]``, ``"reward"``
    ``[num_envs, 1]`` (the team's) and ``"done"``, ``"terminated"``, ``"truncated"``
    ``[num_envs, 1]``; it reads ``("agents", "action")``. Discrete actions come with
    ``("agents", "action_mask")`` ``[num_envs, N, A]``.

    Args:
        task (str): ``"<simulator>/<scenario>"``, for instance ``"vmas/balance"``, or
            ``"pettingzoo/<module>:<env>"`` for any PettingZoo parallel environment.

    Keyword Args:
        num_envs (int): number of simulations that run as one batch. Defaults to ``1``.
        device (torch.device or str): where the environment runs. Defaults to ``"cpu"``.
        seed (int, optional): environments with the same seed yield the same episodes.
        **options: passed on to simulators that take some: see
            :func:`torchrl_logo.envs.pettingzoo.build_env`.

    Raises:
        ValueError: if there is no such task, naming the nearest ones, or ``num_envs`` is not
            positive.
        TypeError: if ``task`` is not a string, or its simulator does not take an option.
        ImportError: if the simulator is not installed; names the extra that brings it.

    Examples:
        >>> env = make_env("vmas/balance", num_envs=4, seed=0)
        >>> env.reset()["state"].shape
        torch.Size([4, 42])
    """
    require_positive_integers(num_envs=num_envs)
    if seed is not None:
        require_seed(seed)
    if not isinstance(task, str):
        raise TypeError(f"task must be a name, '<simulator>/<scenario>', found {task!r}.")
    prefix, _, name = task.partition("/")
    module = _simulators().get(prefix)
    if module is None or not name:
        near = difflib.get_close_matches(task, available_tasks(), n=3, cutoff=0.3)
        raise ValueError(
            f"No task {task!r}. Nearest: {', '.join(near) or 'none'}. "
            "torchrl_logo.envs.available_tasks() lists all."
        )
    known = inspect.signature(module.build_env).parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values()):
        unknown = sorted(set(options) - set(known))
        if unknown:
            own = sorted(set(known) - {"name", "num_envs", "device", "seed"})
            raise TypeError(
                f"Tasks of {prefix!r} take no option {', '.join(unknown)}; beside num_envs, device "
                f"and seed they take: {', '.join(own) or 'none'}."
            )
    find_device(device)
    return module.build_env(name, num_envs=num_envs, device=device, seed=seed, **options)
