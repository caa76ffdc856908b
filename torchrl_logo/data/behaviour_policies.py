"""The behaviour policies that ship with the package: which there are, and how they are read.

``examples/train_behaviour.py`` writes two files a task: ``<task>.json``, the recipe (sizes,
measured returns, which policies make up which data quality), and ``<task>.pt``, the actors'
weights.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import io
import json
from collections.abc import Sequence
from importlib.resources.abc import Traversable
from typing import Any

import torch
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase
from torch import nn

from torchrl_logo.data.task_spec import TaskSpec

__all__ = [
    "behaviour_digest",
    "behaviour_tasks",
    "load_behaviour_policy",
    "make_behaviour_actor",
    "read_recipe",
]


def _behaviour_folder() -> Traversable:
    return importlib.resources.files("torchrl_logo.data") / "behaviour"


def _behaviour_file(task: str, suffix: str) -> Traversable:
    return _behaviour_folder() / f"{task.replace('/', '_')}{suffix}"


def behaviour_tasks() -> list[str]:
    """Names of the tasks that behaviour policies ship for, sorted."""
    folder = _behaviour_folder()
    if not folder.is_dir():
        return []
    recipes = [f for f in folder.iterdir() if f.name.endswith(".json")]
    return sorted(json.loads(f.read_text())["task"] for f in recipes)


def read_recipe(task: str) -> dict[str, Any]:
    """The recipe of a task's behaviour policies.

    Args:
        task (str): one of :func:`behaviour_tasks`.

    Returns:
        ``spec``, ``hidden_sizes``, ``share_params`` and ``normalize`` (see
        :func:`make_behaviour_actor`), ``returns`` (mean return of each policy), ``qualities``
        (the names of the policies of each data quality) and ``training`` (the command's
        settings).

    Raises:
        ValueError: if no policies ship for the task.
    """
    if task not in behaviour_tasks():
        raise ValueError(
            f"No behaviour policies ship for the task {task!r}; "
            f"there are some for {behaviour_tasks()}."
        )
    return json.loads(_behaviour_file(task, ".json").read_text())


def behaviour_digest(task: str) -> str:
    """Eight hexadecimal digits that change with the policies or their recipe."""
    digest = hashlib.sha256()
    for suffix in (".json", ".pt"):
        digest.update(_behaviour_file(task, suffix).read_bytes())
    return digest.hexdigest()[:8]


def make_behaviour_actor(
    spec: TaskSpec,
    *,
    hidden_sizes: Sequence[int],
    share_params: bool = True,
    normalize: bool = False,
    device: torch.device | str = "cpu",
) -> ProbabilisticTensorDictSequential:
    """The kind of actor that behaviour policies are: categorical or squashed Gaussian.

    Args:
        spec (TaskSpec): of the task.

    Keyword Args:
        hidden_sizes (sequence of int): widths of the hidden layers.
        share_params (bool): whether all agents use one set of weights. Defaults to ``True``.
        normalize (bool): whether observations are standardised first, by constants that the
            actor holds. Defaults to ``False``.
        device (torch.device or str): where the parameters are made.

    Examples:
        >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=5,
        ...                 discrete=True)
        >>> make_behaviour_actor(spec, hidden_sizes=(8,)).out_keys[-1]
        ('agents', 'action_log_prob')
    """
    from torchrl_logo.modules.categorical_actor import make_categorical_actor
    from torchrl_logo.modules.gaussian_actor import make_gaussian_actor
    from torchrl_logo.modules.normalizer import Normalizer

    make = make_categorical_actor if spec.discrete else make_gaussian_actor
    return make(
        spec,
        hidden_sizes=hidden_sizes,
        share_params=share_params,
        activation_class=nn.Tanh,
        normalizer=Normalizer(spec.observation_size, device=device) if normalize else None,
        device=device,
    )


def load_behaviour_policy(
    task: str, name: str, *, device: torch.device | str = "cpu"
) -> TensorDictModuleBase | None:
    """Loads one behaviour policy.

    Args:
        task (str): one of :func:`behaviour_tasks`.
        name (str): ``"random"``, ``"medium"``, ``"expert"`` or ``"replay_<k>"``.

    Keyword Args:
        device (torch.device or str): where the parameters are made.

    Returns:
        A stochastic actor (see :func:`make_behaviour_actor`), or ``None`` for ``"random"``:
        uniformly random (available) actions, as :func:`torchrl_logo.data.collect` takes it.

    Raises:
        ValueError: if the task or the policy does not exist.
    """
    recipe = read_recipe(task)
    if name == "random":
        return None
    content = io.BytesIO(_behaviour_file(task, ".pt").read_bytes())
    policies = torch.load(content, weights_only=True, map_location=device)
    if name not in policies:
        raise ValueError(
            f"No behaviour policy {name!r} for {task!r}; expected 'random' or one of "
            f"{sorted(policies)}."
        )
    actor = make_behaviour_actor(
        TaskSpec.from_dict(recipe["spec"]),
        hidden_sizes=recipe["hidden_sizes"],
        share_params=recipe.get("share_params", True),
        normalize=recipe.get("normalize", False),
        device=device,
    )
    actor.load_state_dict(policies[name])
    return actor.requires_grad_(False).eval()
