from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from torchrl_logo.data import DatasetError, TaskSpec, validate_layout

SPEC = TaskSpec(
    n_agents=2,
    observation_size=3,
    state_size=5,
    action_size=2,
    action_low=(-1.0, -1.0),
    action_high=(1.0, 1.0),
)
DISCRETE_SPEC = TaskSpec(n_agents=2, observation_size=3, state_size=5, action_size=4, discrete=True)
Change = Callable[[TensorDict], TensorDict | None]


def _to_tensordict(arrays: dict[str, np.ndarray]) -> TensorDict:
    tensors = {tuple(k.split("/")): torch.from_numpy(v) for k, v in arrays.items()}
    return TensorDict(tensors, batch_size=[len(arrays["episode"])])


def _edit(key, value, row=None) -> Change:
    """Sets (a row of) a key to a value, or to what a function makes of it."""

    def change(data: TensorDict) -> None:
        new = value(data[key]) if callable(value) else value
        if row is None:
            data[key] = new
        else:
            data[key][row] = new

    return change


def _in_turn(*changes: Change) -> Change:
    def change(data: TensorDict) -> None:
        for c in changes:
            c(data)

    return change


# name: (change, key, expected, found)
BAD = {
    "missing key": (
        lambda d: d.exclude(("next", "state")),
        "next/state",
        "float32 [15, 5]",
        "no such key",
    ),
    "empty": (lambda d: d[:0], "dataset", "at least one transition", "none"),
    "two batch dimensions": (lambda d: d.reshape(3, 5), "dataset", "[B]", "[3, 5]"),
    "float64": (_edit("state", lambda x: x.double()), "state", "float32", "float64"),
    "integer flag": (
        _edit(("next", "done"), lambda x: x.int()),
        "next/done",
        "bool",
        "int32",
    ),
    "discrete actions for a continuous task": (
        _edit(("agents", "action"), lambda x: x.long()),
        "agents/action",
        "float32",
        "int64",
    ),
    "agent count": (
        _edit(("agents", "observation"), lambda x: torch.cat([x, x[:, :1]], 1)),
        "agents/observation",
        "2 agents",
        "3 (shape [15, 3, 3])",
    ),
    "action size": (
        _edit(("agents", "action"), lambda x: x[..., :1]),
        "agents/action",
        "2 action components",
        "1 (shape [15, 2, 1])",
    ),
    "state size": (_edit("state", lambda x: x[:, :4]), "state", "5 state features", "4"),
    "reward a agent": (
        _edit(("next", "reward"), lambda x: x.expand(15, 2).unsqueeze(-1)),
        "next/reward",
        "shape [15, 1]",
        "shape [15, 2, 1]",
    ),
    "NaN": (
        _edit("state", torch.tensor([0, 0, float("nan"), 0, float("inf")]), row=7),
        "state",
        "finite values",
        "1 NaN and 1 infinite values, first in row 7",
    ),
    "infinite reward": (
        _edit(("next", "reward"), float("-inf"), row=2),
        "next/reward",
        "finite values",
        "first in row 2",
    ),
    "action too large": (
        _edit(("agents", "action"), 1.5, row=(4, 1, 0)),
        "agents/action",
        "within [-1.0, -1.0] and [1.0, 1.0]",
        "1.5 in row 4",
    ),
    "action just outside the tolerance": (
        _edit(("agents", "action"), -1.0002, row=(4, 1, 0)),
        "agents/action",
        "within",
        "-1.0002 in row 4",
    ),
    "done without a reason": (
        _edit(("next", "truncated"), False, row=9),
        "next/done",
        "terminated | truncated",
        "1 rows that differ, first row 9",
    ),
    "no end": (
        _in_turn(
            *[_edit(("next", k), torch.zeros_like) for k in ("done", "terminated", "truncated")]
        ),
        "next/done",
        "at least one episode end",
        "none",
    ),
    "episode in two places": (
        _edit("episode", lambda x: x.where(x != 12, 10)),
        "episode",
        "next to each other",
        "episode 10 in 2 separate places",
    ),
    "gap in the steps": (
        _edit("step", lambda x: x + (torch.arange(15) == 3)),
        "step",
        "count up by one",
        "step 4 in row 3 after step 2",
    ),
    "negative step": (_edit("step", lambda x: x - 1), "step", "0 or more", "-1"),
    "goes on past an end": (
        _in_turn(_edit(("next", "done"), True, row=5), _edit(("next", "terminated"), True, row=5)),
        "next/done",
        "in the last row of an episode only",
        "episode 11 goes on after row 5",
    ),
    "stops without an end": (
        _in_turn(_edit(("next", "done"), False, row=9), _edit(("next", "truncated"), False, row=9)),
        "next/done",
        "an end in the last row of each episode",
        "episode 11 stops in row 9",
    ),
    "next state of another step": (
        _edit(("next", "state"), lambda x: x.roll(1, 0)),
        "next/state",
        "the same as 'state' of the next row",
        "other values in row 0 (episode 10)",
    ),
    "next observation of another agent": (
        _edit(("next", "agents", "observation"), lambda x: x[12].flip(0), row=12),
        "next/agents/observation",
        "the same as 'agents/observation' of the next row",
        "other values in row 12 (episode 12)",
    ),
}

BAD_DISCRETE = {
    "no mask": (
        lambda d: d.exclude(("next", "agents", "action_mask")),
        "next/agents/action_mask",
        "bool [15, 2, 4]",
        "no such key",
    ),
    "number of actions": (
        _edit(("agents", "action_mask"), lambda x: x[..., :3]),
        "agents/action_mask",
        "4 actions",
        "3 (shape [15, 2, 3])",
    ),
    "no such action": (
        _edit(("agents", "action"), 4, row=(6, 1)),
        "agents/action",
        "from 0 to 3",
        "4 in row 6",
    ),
    "masked action": (
        _in_turn(
            _edit(("agents", "action"), 2, row=(6, 1)),
            _edit(("agents", "action_mask"), False, row=(6, 1, 2)),
            _edit(("next", "agents", "action_mask"), False, row=(5, 1, 2)),
        ),
        "agents/action",
        "action_mask') allows",
        "action 2 of agent 1 in row 6",
    ),
    "nothing available after a truncation": (
        _edit(("next", "agents", "action_mask"), False, row=9),
        "next/agents/action_mask",
        "an available action",
        "row 9",
    ),
    "next mask of another step": (
        _edit(("next", "agents", "action_mask"), lambda x: ~x[0, 0, 3], row=(0, 0, 3)),
        "next/agents/action_mask",
        "the same as 'agents/action_mask' of the next row",
        "row 0",
    ),
}


def _check_message(data, spec, key, expected, found):
    with pytest.raises(DatasetError) as caught:
        validate_layout(data, spec)
    error = caught.value
    assert error.key == key
    assert expected in error.expected, error
    assert found in error.found, error
    pattern = f"{re.escape(key)}.*expected .*{re.escape(expected)}.*found .*{re.escape(found)}"
    assert re.search(pattern, str(error))


@pytest.mark.parametrize("name", BAD)
def test_bad_data_are_refused(arrays, name):
    change, key, expected, found = BAD[name]
    data = _to_tensordict(arrays)
    validate_layout(data, SPEC)
    changed = change(data)
    _check_message(data if changed is None else changed, SPEC, key, expected, found)


@pytest.mark.parametrize("name", BAD_DISCRETE)
def test_bad_discrete_data_are_refused(discrete_arrays, name):
    change, key, expected, found = BAD_DISCRETE[name]
    data = _to_tensordict(discrete_arrays)
    validate_layout(data, DISCRETE_SPEC)
    changed = change(data)
    _check_message(data if changed is None else changed, DISCRETE_SPEC, key, expected, found)


def test_what_is_tolerated(arrays, discrete_arrays):
    data = _to_tensordict(arrays)
    data["agents", "action"][4, 1, 0] = 1.00005  # rounding at a bound
    data["next", "done"][-1] = data["next", "terminated"][-1] = False  # a cut recording
    data["extra"] = torch.zeros(15)
    validate_layout(data, SPEC)
    discrete = _to_tensordict(discrete_arrays)
    discrete["next", "agents", "action_mask"][3] = False  # nobody acts after a termination
    validate_layout(discrete, DISCRETE_SPEC)


def test_blocks_do_not_hide_rows(arrays, monkeypatch):
    # Rows are checked in blocks: a fault in any of them is found, and its row named.
    monkeypatch.setattr("torchrl_logo.data.validation._BLOCK", 4)
    data = _to_tensordict(arrays)
    validate_layout(data, SPEC)
    data["next", "state"][11, 0] += 0.1
    _check_message(data, SPEC, "next/state", "the same as", "in row 11")
    data["agents", "action"][13, 0, 0] = 2.0
    _check_message(data, SPEC, "agents/action", "within", "in row 13")
