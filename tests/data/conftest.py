"""Hand-made datasets, written with NumPy alone."""

from __future__ import annotations

import numpy as np
import pytest

LENGTHS = (4, 6, 5)  # of the episodes
N_AGENTS, OBSERVATION, STATE, ACTION = 2, 3, 5, 2


def _episodes(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Every episode has one frame more than it has transitions."""
    parts: dict[str, list[np.ndarray]] = {}

    def put(key: str, value: np.ndarray) -> None:
        parts.setdefault(key, []).append(value)

    for index, length in enumerate(LENGTHS):
        observation = rng.normal(size=(length + 1, N_AGENTS, OBSERVATION)).astype(np.float32)
        state = rng.normal(size=(length + 1, STATE)).astype(np.float32)
        put("agents/observation", observation[:-1])
        put("next/agents/observation", observation[1:])
        put("state", state[:-1])
        put("next/state", state[1:])
        put("next/reward", rng.normal(size=(length, 1)).astype(np.float32))
        last = np.arange(length)[:, None] == length - 1
        terminated = last & (index % 2 == 0)
        put("next/terminated", terminated)
        put("next/truncated", last & ~terminated)
        put("next/done", last)
        put("episode", np.full(length, 10 + index, dtype=np.int64))
        put("step", np.arange(length, dtype=np.int64))
    return {key: np.concatenate(values) for key, values in parts.items()}


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    """Three episodes of 4, 6 and 5 steps with continuous actions within [-1, 1]."""
    rng = np.random.default_rng(0)
    made = _episodes(rng)
    shape = (sum(LENGTHS), N_AGENTS, ACTION)
    made["agents/action"] = rng.uniform(-1, 1, size=shape).astype(np.float32)
    return made


@pytest.fixture
def discrete_arrays() -> dict[str, np.ndarray]:
    """The same with four actions, of which action 0 is always available."""
    rng = np.random.default_rng(1)
    made = _episodes(rng)
    rows = sum(LENGTHS)
    masks, next_masks, actions = [], [], []
    for length in LENGTHS:
        mask = rng.random((length + 1, N_AGENTS, 4)) < 0.5
        mask[..., 0] = True
        masks.append(mask[:-1])
        next_masks.append(mask[1:])
    made["agents/action_mask"] = np.concatenate(masks)
    made["next/agents/action_mask"] = np.concatenate(next_masks)
    for row in range(rows):
        allowed = made["agents/action_mask"][row]
        actions.append([rng.choice(np.flatnonzero(allowed[a])) for a in range(N_AGENTS)])
    made["agents/action"] = np.asarray(actions, dtype=np.int64)
    return made
