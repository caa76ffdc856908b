"""Refuses data that are not in the package's layout, before anything is trained on them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from tensordict import NestedKey, TensorDictBase

from torchrl_logo.data.task_spec import LARGEST_SIZE, TaskSpec

__all__ = [
    "DatasetError",
    "count_row_bytes",
    "find_episode_starts",
    "layout_shapes",
    "require_size",
    "validate_layout",
]

ACTION_TOLERANCE = 1e-4
CONTINUITY_TOLERANCE = 1e-6

# Checks walk through the rows in blocks, so that a dataset need not fit into memory.
_BLOCK = 65_536

_WORDS = {torch.float32: np.int32, torch.bool: np.uint8}


class DatasetError(ValueError):
    """Data that break the layout.

    Args:
        key (NestedKey): the key at fault, or ``"dataset"``.
        expected (str): what the layout asks for.
        found (str): what is there.
        hint (str, optional): what to do about it.

    Examples:
        >>> raise DatasetError(("next", "reward"), "float32", "float64")
        Traceback (most recent call last):
        ...
        torchrl_logo.data.validation.DatasetError: Dataset key 'next/reward': expected float32, \
found float64.
    """

    def __init__(self, key: NestedKey, expected: str, found: str, hint: str = "") -> None:
        self.key = key if isinstance(key, str) else "/".join(key)
        self.expected = expected
        self.found = found
        super().__init__(
            f"Dataset key {self.key!r}: expected {expected}, found {found}.{hint and ' '}{hint}"
        )


def layout_shapes(
    spec: TaskSpec,
) -> dict[NestedKey, tuple[tuple[int, ...], torch.dtype, tuple[str, ...]]]:
    """The layout of a task: each key's shape without the batch, its dtype and its dimensions.

    Args:
        spec (TaskSpec): sizes of the task.

    Examples:
        >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=1,
        ...                 action_low=(-1.0,), action_high=(1.0,))
        >>> layout_shapes(spec)["agents", "action"]
        ((2, 1), torch.float32, ('agents', 'action components'))
    """
    agents, floats, flag = spec.n_agents, torch.float32, torch.bool
    observation = ((agents, spec.observation_size), floats, ("agents", "observation features"))
    state = ((spec.state_size,), floats, ("state features",))
    expected: dict[NestedKey, tuple[tuple[int, ...], torch.dtype, tuple[str, ...]]] = {
        ("agents", "observation"): observation,
        "state": state,
        ("next", "agents", "observation"): observation,
        ("next", "state"): state,
        ("next", "reward"): ((1,), floats, ("team reward",)),
        ("next", "done"): ((1,), flag, ("flag",)),
        ("next", "terminated"): ((1,), flag, ("flag",)),
        ("next", "truncated"): ((1,), flag, ("flag",)),
        "episode": ((), torch.int64, ()),
        "step": ((), torch.int64, ()),
    }
    if spec.discrete:
        mask = ((agents, spec.action_size), flag, ("agents", "actions"))
        expected["agents", "action"] = ((agents,), torch.int64, ("agents",))
        expected["agents", "action_mask"] = mask
        expected["next", "agents", "action_mask"] = mask
    else:
        action = ((agents, spec.action_size), floats, ("agents", "action components"))
        expected["agents", "action"] = action
    return expected


def count_row_bytes(spec: TaskSpec) -> int:
    """Bytes of one transition in the layout.

    Args:
        spec (TaskSpec): sizes of the task.

    Examples:
        >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=1,
        ...                 action_low=(-1.0,), action_high=(1.0,))
        >>> count_row_bytes(spec)
        111
    """
    shapes = layout_shapes(spec).values()
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype, _ in shapes)


def require_size(key: NestedKey, size: int) -> int:
    """Refuses a size that no task has, before bounds or masks of that size are made.

    Args:
        key (NestedKey): what has the size.
        size (int): the size.

    Raises:
        DatasetError: if it is not within 1 and about a million.

    Examples:
        >>> require_size("state", 3)
        3
    """
    if not 1 <= size <= LARGEST_SIZE:
        raise DatasetError(key, f"a size within 1 and {LARGEST_SIZE}", f"{size}")
    return int(size)


def validate_layout(data: TensorDictBase, spec: TaskSpec) -> None:
    """Checks a flat batch of transitions against the package's layout.

    Refused are: a missing key, an empty dataset, wrong dtypes, shapes and agent counts, NaN and
    infinity, continuous actions out of bounds by more than ``1e-4``, discrete actions out of
    range or unavailable, agents without any available action (but for the next step of a
    termination), ``done`` other than ``terminated | truncated``, no episode end at all, episodes
    that are not contiguous, have gaps in their steps, go on past an end or lack one (the last
    episode alone may be open: a recording that was cut), and ``("next", ...)`` that differs from
    the following row of the same episode by more than ``1e-6`` (relative or absolute).

    Args:
        data (TensorDictBase): transitions ``[B]``, episodes contiguous. Keys beyond the
            layout's are not looked at.
        spec (TaskSpec): the task's sizes and bounds.

    Raises:
        DatasetError: names the key, what was expected and what was found.

    Examples:
        >>> from tensordict import TensorDict
        >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=1,
        ...                 action_low=(-1.0,), action_high=(1.0,))
        >>> validate_layout(TensorDict({"state": torch.zeros(5, 4)}, [5]), spec)
        Traceback (most recent call last):
        ...
        torchrl_logo.data.validation.DatasetError: Dataset key 'agents/observation': expected \
float32 [5, 2, 3], found no such key (keys: state).
    """
    if data.ndim != 1:
        raise DatasetError("dataset", "one batch dimension [B]", str(list(data.batch_size)))
    if not len(data):
        raise DatasetError("dataset", "at least one transition", "none")
    _check_tensors(data, spec)
    _check_finite(data, spec)
    _check_actions(data, spec)
    _check_flags(data)
    _check_episodes(data)
    _check_continuity(data, spec)


def find_episode_starts(episode: torch.Tensor) -> torch.Tensor:
    """Rows at which an episode begins, ``[E]``, given the episode of each row, ``[B]``.

    Examples:
        >>> find_episode_starts(torch.tensor([4, 4, 7, 7, 7, 2]))
        tensor([0, 2, 5])
    """
    change = torch.ones_like(episode, dtype=torch.bool)
    change[1:] = episode[1:] != episode[:-1]
    return change.nonzero().squeeze(-1)


def _blocks(data: TensorDictBase) -> Iterator[slice]:
    for start in range(0, len(data), _BLOCK):
        yield slice(start, start + _BLOCK)


def _first_row(bad: torch.Tensor, offset: int = 0) -> int:
    return offset + int(bad.nonzero()[0, 0])


def _name(key: NestedKey) -> str:
    return key if isinstance(key, str) else "/".join(key)


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_tensors(data: TensorDictBase, spec: TaskSpec) -> None:
    batch = len(data)
    present = {_name(k) for k in data.keys(True, True)}
    for key, (shape, dtype, dims) in layout_shapes(spec).items():
        expected = f"{_type(dtype)} {[batch, *shape]}"
        if _name(key) not in present:
            listed = ", ".join(sorted(present)) or "none"
            raise DatasetError(key, expected, f"no such key (keys: {listed})")
        value = data.get(key)
        if value.dtype != dtype:
            raise DatasetError(key, _type(dtype), _type(value.dtype))
        found_shape = tuple(value.shape[1:])
        if found_shape == shape:
            continue
        if len(found_shape) == len(shape):
            wrong = next(i for i in range(len(shape)) if found_shape[i] != shape[i])
            raise DatasetError(
                key,
                f"{shape[wrong]} {dims[wrong]} (shape {[batch, *shape]})",
                f"{found_shape[wrong]} (shape {list(value.shape)})",
            )
        raise DatasetError(key, f"shape {[batch, *shape]}", f"shape {list(value.shape)}")


def _check_finite(data: TensorDictBase, spec: TaskSpec) -> None:
    for key, (_, dtype, _) in layout_shapes(spec).items():
        if not dtype.is_floating_point:
            continue
        nans, infinities, first = 0, 0, None
        for block in _blocks(data):
            value = data.get(key)[block]
            # A finite sum, read once, tells that all is finite; an overflow is looked into.
            if value.sum().isfinite():
                continue
            finite = value.isfinite()
            if finite.all():
                continue
            nans += int(value.isnan().sum())
            infinities += int(value.isinf().sum())
            if first is None:
                first = _first_row(~finite.flatten(1).all(-1), block.start)
        if first is not None:
            found = f"{nans} NaN and {infinities} infinite values, first in row {first}"
            raise DatasetError(key, "finite values", found)


def _check_actions(data: TensorDictBase, spec: TaskSpec) -> None:
    key = ("agents", "action")
    for block in _blocks(data):
        action = data.get(key)[block]
        if not spec.discrete:
            low = action.new_tensor(spec.action_low) - ACTION_TOLERANCE
            high = action.new_tensor(spec.action_high) + ACTION_TOLERANCE
            bad = (action < low) | (action > high)  # [block, N, d_a]
            if bad.any():
                row = _first_row(bad, block.start)
                worst = action[row - block.start][bad[row - block.start]][0]
                expected = f"actions within {list(spec.action_low)} and {list(spec.action_high)}"
                found = f"{float(worst):.6g} in row {row}"
                raise DatasetError(key, expected, found)
            continue
        bad = (action < 0) | (action >= spec.action_size)  # [block, N]
        if bad.any():
            row = _first_row(bad, block.start)
            value = int(action[row - block.start][bad[row - block.start]][0])
            expected = f"actions from 0 to {spec.action_size - 1}"
            raise DatasetError(key, expected, f"{value} in row {row}")
        mask = data.get(("agents", "action_mask"))[block]  # [block, N, A]
        bad = ~mask.gather(-1, action.unsqueeze(-1)).squeeze(-1)
        if bad.any():
            row = _first_row(bad, block.start)
            agent = int(bad[row - block.start].nonzero()[0, 0])
            value = int(action[row - block.start, agent])
            found = f"action {value} of agent {agent} in row {row}, which is masked"
            raise DatasetError(key, "actions that ('agents', 'action_mask') allows", found)
        next_mask = data.get(("next", "agents", "action_mask"))[block]
        bad = ~next_mask.any(-1) & ~data.get(("next", "terminated"))[block]  # [block, N]
        if bad.any():
            row = _first_row(bad, block.start)
            raise DatasetError(
                ("next", "agents", "action_mask"),
                "an available action for each agent unless the episode terminates",
                f"an agent without one in row {row}",
            )


def _check_flags(data: TensorDictBase) -> None:
    done, terminated, truncated = (
        data.get(("next", name)).squeeze(-1) for name in ("done", "terminated", "truncated")
    )
    bad = done != (terminated | truncated)
    if bad.any():
        found = f"{int(bad.sum())} rows that differ, first row {_first_row(bad)}"
        raise DatasetError(("next", "done"), "terminated | truncated", found)
    if not done.any():
        raise DatasetError(("next", "done"), "at least one episode end", "none")


def _check_episodes(data: TensorDictBase) -> None:
    episode, step = data.get("episode"), data.get("step")
    done = data.get(("next", "done")).squeeze(-1)
    starts = find_episode_starts(episode)
    ids, counts = episode[starts].unique(return_counts=True)
    if (counts > 1).any():
        again = int(ids[counts > 1][0])
        places = int(counts[counts > 1][0])
        found = f"episode {again} in {places} separate places"
        raise DatasetError("episode", "the rows of an episode next to each other", found)
    continues = torch.ones_like(done)
    continues[starts] = False  # row continues the episode of the row before
    jump = continues[1:] & (step[1:] != step[:-1] + 1)
    if jump.any():
        row = _first_row(jump) + 1
        found = f"step {int(step[row])} in row {row} after step {int(step[row - 1])}"
        raise DatasetError("step", "steps that count up by one within an episode", found)
    if (step < 0).any():
        raise DatasetError("step", "0 or more", f"{int(step.min())}")
    past_end = continues[1:] & done[:-1]
    if past_end.any():
        row = _first_row(past_end)
        found = f"episode {int(episode[row])} goes on after row {row}, where it is done"
        raise DatasetError(("next", "done"), "done in the last row of an episode only", found)
    no_end = ~continues[1:] & ~done[:-1]
    if no_end.any():
        row = _first_row(no_end)
        found = f"episode {int(episode[row])} stops in row {row} without one (mark it truncated)"
        raise DatasetError(("next", "done"), "an end in the last row of each episode", found)


def _rows_differ(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Whether rows are other numbers, bit by bit: ``[rows]``."""
    if a.device.type != "cpu" or a.dtype not in _WORDS:
        return (a != b).any(-1)
    # NumPy compares integers and looks for one that differs several times faster than PyTorch.
    words, others = (value.numpy().view(_WORDS[a.dtype]) for value in (a, b))
    return torch.from_numpy((words != others).any(-1))


def _check_continuity(data: TensorDictBase, spec: TaskSpec) -> None:
    episode = data.get("episode")
    same = episode[1:] == episode[:-1]
    keys: list[NestedKey] = ["state", ("agents", "observation")]
    if spec.discrete:
        keys.append(("agents", "action_mask"))
    for key in keys:
        next_key = ("next", key) if isinstance(key, str) else ("next", *key)
        root, following = data.get(key), data.get(next_key)
        for block in _blocks(data[:-1]):
            later = root[1:][block].flatten(1)
            earlier = following[:-1][block].flatten(1)
            bad = same[block] & _rows_differ(earlier, later)
            if root.is_floating_point():
                # Rows are mostly equal to the last bit; only others are looked at closely.
                tolerance, unequal = CONTINUITY_TOLERANCE, bad.nonzero().squeeze(-1)
                bad[unequal] = ~torch.isclose(
                    earlier[unequal], later[unequal], rtol=tolerance, atol=tolerance
                ).all(-1)
            if bad.any():
                row = _first_row(bad, block.start)
                found = (
                    f"other values in row {row} (episode {int(episode[row])}) than in row {row + 1}"
                )
                expected = f"the same as {_name(key)!r} of the next row within an episode"
                raise DatasetError(next_key, expected, found)
