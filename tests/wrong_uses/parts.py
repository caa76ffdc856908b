"""Small right things, from which the tables of wrong uses make wrong ones."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase

from torchrl_logo.data import OfflineDataset, TaskSpec, collect
from torchrl_logo.envs import make_env
from torchrl_logo.modules import JointWorldModel, make_centralized_critic, make_gaussian_actor

DISCRETE = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=5, discrete=True)


@cache
def dataset() -> OfflineDataset:
    return collect(make_env("vmas/balance", num_envs=4, seed=0), None, 400, seed=0)


@cache
def other_dataset() -> OfflineDataset:
    """Of another task."""
    return collect(make_env("vmas/transport", num_envs=1, seed=0), None, 100, seed=0)


@cache
def env() -> Any:
    return make_env("vmas/balance", num_envs=2, seed=0)


def model(of: OfflineDataset | None = None) -> JointWorldModel:
    return JointWorldModel.from_dataset(dataset() if of is None else of, hidden_size=8)


def actor(of: OfflineDataset | None = None) -> Any:
    return make_gaussian_actor((dataset() if of is None else of).spec, hidden_sizes=(8,))


def critic() -> Any:
    return make_centralized_critic(dataset().spec, hidden_sizes=(8,))


def action_spec() -> Any:
    return dataset().spec.action_spec()


def batch(without: Any = None, **replaced: torch.Tensor) -> TensorDictBase:
    rows = dataset().data[:8].clone()
    for key, value in replaced.items():
        rows[tuple(key.split("__"))] = value
    return rows if without is None else rows.exclude(without)


def arrays(without: str | None = None, **changed: Any) -> dict[str, Any]:
    """Two episodes of three steps; ``changed`` maps an array, ``agents__action`` for instance."""
    moved = np.random.default_rng(0).normal(size=(2, 4, 2, 3)).astype(np.float32)
    end = np.tile([[False], [False], [True]], (2, 1))
    out: dict[str, Any] = {"agents/observation": moved[:, :-1].reshape(6, 2, 3)}
    out["next/agents/observation"] = moved[:, 1:].reshape(6, 2, 3)
    for prefix in ("", "next/"):
        out[f"{prefix}state"] = out[f"{prefix}agents/observation"].reshape(6, 6)
    out["agents/action"] = np.zeros((6, 2, 1), np.float32)
    out["next/reward"] = np.arange(6, dtype=np.float32)[:, None]
    out |= {"next/done": end, "next/terminated": end, "next/truncated": np.zeros_like(end)}
    for name, change in changed.items():
        key = name.replace("__", "/")
        out[key] = change(out[key])
    out.pop(without, None)
    return out
