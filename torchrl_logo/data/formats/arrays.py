"""Datasets from plain arrays: the door for every format that is not read directly."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import NestedKey, TensorDict

from torchrl_logo.argument_checks import require_type
from torchrl_logo.data.dataset import OfflineDataset
from torchrl_logo.data.reference_returns import reference_returns
from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.data.validation import DatasetError, find_episode_starts, require_size

__all__ = ["LAYOUT_KEYS", "MASKS", "cast_to_layout", "check_array_keys", "find_spec", "from_arrays"]

#: The layout's keys by the names that arrays have.
LAYOUT_KEYS: dict[str, NestedKey] = {
    "agents/observation": ("agents", "observation"),
    "agents/action": ("agents", "action"),
    "agents/action_mask": ("agents", "action_mask"),
    "state": "state",
    "next/agents/observation": ("next", "agents", "observation"),
    "next/agents/action_mask": ("next", "agents", "action_mask"),
    "next/state": ("next", "state"),
    "next/reward": ("next", "reward"),
    "next/done": ("next", "done"),
    "next/terminated": ("next", "terminated"),
    "next/truncated": ("next", "truncated"),
    "episode": "episode",
    "step": "step",
}
#: Those of them that only discrete actions have.
MASKS = ("agents/action_mask", "next/agents/action_mask")
_CASTS = {
    (torch.float64, torch.float32),
    (torch.int32, torch.int64),
    (torch.int16, torch.int64),
    (torch.int8, torch.int64),
    (torch.uint8, torch.int64),
    (torch.uint8, torch.bool),
}


def from_arrays(
    arrays: Mapping[str, np.ndarray | torch.Tensor],
    *,
    task: str | TaskSpec | None = None,
    root: str | Path | None = None,
    quality: str | None = None,
    action_bounds: tuple[float, float] = (-1.0, 1.0),
    n_actions: int | None = None,
    cast: bool = False,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
) -> OfflineDataset:
    """Makes a dataset of NumPy arrays or tensors in the package's layout.

    The keys, for ``B`` transitions (episodes one after the other) of ``N`` agents:

    - ``"agents/observation"`` ``[B, N, d_o]`` f32 and ``"state"`` ``[B, d_s]`` f32;
    - ``"agents/action"`` ``[B, N, d_a]`` f32, or ``[B, N]`` i64 for discrete actions, which come
      with ``"agents/action_mask"`` ``[B, N, A]`` bool;
    - ``"next/agents/observation"``, ``"next/state"`` (and ``"next/agents/action_mask"``): the
      true next step, also at episode ends, never the first step of the next episode;
    - ``"next/reward"`` ``[B, 1]`` f32, the team's;
    - ``"next/done"``, ``"next/terminated"``, ``"next/truncated"`` ``[B, 1]`` bool;
    - ``"episode"`` and ``"step"`` ``[B]`` i64, the only ones that may be left out. Then an
      episode is taken to end with each row where ``"next/done"`` holds, and steps count from 0
      in each episode; the provenance says so.

    Nothing else is derived, and nothing is repaired.

    Args:
        arrays (mapping): the arrays, by these keys.

    Keyword Args:
        task (str or TaskSpec, optional): the name of a task of
            :func:`torchrl_logo.envs.make_env`, whose sizes and bounds the data must then have,
            or the spec itself. By default the sizes are read off the arrays.
        root (str or Path, optional): folder to save the dataset in, which must not exist.
            Defaults to temporary files that end with the process.
        quality (str, optional): how good the behaviour was.
        action_bounds (tuple of float): bounds of each continuous action component, if there is
            no ``task`` to tell them. Defaults to ``(-1, 1)``.
        n_actions (int, optional): for discrete actions *without* masks: how many there are; all
            of them are then available at all times.
        cast (bool): whether f64 becomes f32, smaller integers i64, and u8 (0 or 1) bool.
            Defaults to ``False``: any other dtype than the layout's is refused.
        batch_size (int, optional): transitions in a sample.
        device (torch.device or str): where the data lie. Defaults to ``"cpu"``.

    Raises:
        DatasetError: names the key, what was expected and what was found (see
            :func:`~torchrl_logo.data.validate_layout`).
        ValueError: if there is no such task; names the nearest ones.
        FileExistsError: if ``root`` exists.
        TypeError: if ``arrays`` is no mapping.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> observation = rng.normal(size=(11, 2, 3)).astype(np.float32)
        >>> end = (np.arange(10) == 9)[:, None]
        >>> dataset = from_arrays({
        ...     "agents/observation": observation[:-1],
        ...     "next/agents/observation": observation[1:],
        ...     "agents/action": np.zeros((10, 2, 1), np.float32),
        ...     "state": observation[:-1].sum(1),
        ...     "next/state": observation[1:].sum(1),
        ...     "next/reward": np.ones((10, 1), np.float32),
        ...     "next/done": end, "next/terminated": end, "next/truncated": np.zeros_like(end),
        ... })
        >>> dataset.returns
        tensor([10.])
        >>> dataset.spec.n_agents, dataset.metadata["provenance"]["derived"]
        (2, ['episode', 'step'])
    """
    require_type(arrays, Mapping, "arrays", "a dict of arrays by the layout's keys")
    check_array_keys(arrays)
    tensors = {k: _to_tensor(k, v) for k, v in arrays.items()}
    rows = len(tensors["agents/observation"])
    for key, value in tensors.items():
        found = value.shape[0] if value.ndim else 0
        if found != rows:
            raise DatasetError(key, f"{rows} rows, as 'agents/observation' has", f"{found}")
    if cast:
        tensors = {k: cast_to_layout(k, v) for k, v in tensors.items()}

    discrete = not tensors["agents/action"].is_floating_point()
    if discrete and n_actions is not None and not set(MASKS) & set(tensors):
        shape = (*tensors["agents/action"].shape, n_actions)
        tensors |= {key: torch.ones(shape, dtype=torch.bool) for key in MASKS}
    spec = find_spec(task, tensors, action_bounds)
    derived = _derive_episodes(tensors)
    data = TensorDict({LAYOUT_KEYS[k]: v.cpu() for k, v in tensors.items()}, batch_size=[rows])
    return OfflineDataset.from_transitions(
        data,
        spec,
        quality=quality,
        reference_returns=None if spec.task is None else reference_returns(spec.task),
        provenance={"source": "arrays", "derived": derived, "cast": cast},
        root=root,
        batch_size=batch_size,
        device=device,
    )


def check_array_keys(names: Collection[str]) -> None:
    """Refuses unknown keys, and that a key which cannot be derived is missing.

    Raises:
        DatasetError: names the key, and the nearest one of the layout's or the keys there are.
    """
    unknown = sorted(set(names) - set(LAYOUT_KEYS))
    if unknown:
        near = difflib.get_close_matches(unknown[0], LAYOUT_KEYS, n=1)
        hint = f"{near[0]!r}" if near else f"one of {list(LAYOUT_KEYS)}"
        raise DatasetError(unknown[0], f"a key of the layout, such as {hint}", "an unknown key")
    for key in LAYOUT_KEYS:
        if key not in names and key not in ("episode", "step", *MASKS):
            listed = ", ".join(sorted(names)) or "none"
            raise DatasetError(key, "an array", f"no such key (keys: {listed})")


def _to_tensor(key: str, value: np.ndarray | torch.Tensor) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    try:
        # Copies arrays that torch cannot view: read-only, strided backwards.
        return torch.from_numpy(np.require(value, requirements=["C", "W"]))
    except TypeError as error:
        dtype = np.asarray(value).dtype
        raise DatasetError(key, "an array of numbers or flags", f"dtype {dtype}") from error


def cast_to_layout(key: str, value: torch.Tensor) -> torch.Tensor:
    """Converts to the layout's dtype where no meaning is lost; leaves the rest to be refused."""
    if key in MASKS or key in ("next/done", "next/terminated", "next/truncated"):
        wanted = torch.bool
    elif key in ("episode", "step") or (key == "agents/action" and not value.is_floating_point()):
        wanted = torch.int64
    else:
        wanted = torch.float32
    if (value.dtype, wanted) not in _CASTS:
        return value
    if wanted is torch.bool and (value > 1).any():
        raise DatasetError(key, "0 and 1 only, to be cast to bool", str(int(value.max())))
    converted = value.to(wanted)
    if wanted is torch.float32 and (value.isfinite() & ~converted.isfinite()).any():
        largest = float(value.abs().nan_to_num(0.0).max())
        raise DatasetError(key, "values that float32 can hold", f"{largest:.3g}")
    return converted


def find_spec(
    task: str | TaskSpec | None,
    tensors: dict[str, torch.Tensor],
    action_bounds: tuple[float, float],
) -> TaskSpec:
    """The sizes of a task, by its name or, without one, as the arrays tell them."""
    if isinstance(task, TaskSpec):
        return task
    if task is not None:
        # Not at the top of the file: environments import this package.
        from torchrl_logo.envs import make_env

        env = make_env(task)
        spec = TaskSpec.from_env(env)
        env.close()
        return spec
    observation, state, action = (
        tensors[k] for k in ("agents/observation", "state", "agents/action")
    )
    discrete = not action.is_floating_point()
    for key, value, dims in (
        ("agents/observation", observation, "[B, N, d_o]"),
        ("state", state, "[B, d_s]"),
        ("agents/action", action, "[B, N]" if discrete else "[B, N, d_a]"),
    ):
        if value.ndim != dims.count(",") + 1 or 0 in value.shape[1:]:
            raise DatasetError(key, f"shape {dims}", f"shape {list(value.shape)}")
        for size in value.shape[1:]:
            require_size(key, size)
    if discrete:
        mask = tensors.get("agents/action_mask")
        if mask is None:
            raise DatasetError(
                "agents/action_mask",
                "bool [B, N, A] (or from_arrays(n_actions=...) if all are always available)",
                "no such key",
            )
        if mask.ndim != 3:
            raise DatasetError("agents/action_mask", "shape [B, N, A]", f"{list(mask.shape)}")
        require_size("agents/action_mask", mask.shape[-1])
        action_size = mask.shape[-1]
        bounds: dict[str, Any] = {}
    else:
        action_size = action.shape[-1]
        low, high = action_bounds
        bounds = {"action_low": (low,) * action_size, "action_high": (high,) * action_size}
    return TaskSpec(
        n_agents=observation.shape[1],
        observation_size=observation.shape[2],
        state_size=state.shape[1],
        action_size=action_size,
        discrete=discrete,
        **bounds,
    )


def _derive_episodes(tensors: dict[str, torch.Tensor]) -> list[str]:
    """Adds ``"episode"`` and ``"step"`` where they are missing; returns which were."""
    derived = [k for k in ("episode", "step") if k not in tensors]
    if "episode" in derived:
        done = tensors["next/done"].flatten(1).any(-1) if tensors["next/done"].ndim > 1 else None
        if done is None or done.dtype != torch.bool:
            value = tensors["next/done"]
            raise DatasetError("next/done", "bool [B, 1]", f"{value.dtype} {list(value.shape)}")
        ends = done.long().cumsum(0)
        tensors["episode"] = ends - done.long()  # the ending row belongs to its own episode
    if "step" in derived:
        episode = tensors["episode"]
        if episode.ndim != 1:
            raise DatasetError("episode", "shape [B]", f"shape {list(episode.shape)}")
        rows = torch.arange(len(episode))
        starts = find_episode_starts(episode)
        lengths = torch.diff(starts, append=starts.new_tensor([len(episode)]))
        tensors["step"] = rows - starts.repeat_interleave(lengths)
    return derived
