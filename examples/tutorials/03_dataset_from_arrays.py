"""
Your own dataset from arrays
============================

Whatever was recorded elsewhere comes in as NumPy arrays, by the names of the :doc:`../data` layout.
Other formats (vaults, PyMARL's, OMIGA's and OMAR's files, Minari) are read by
:func:`~torchrl_logo.data.load_dataset` directly.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from torchrl_logo.data import DatasetError, find_accidents, from_arrays, load_dataset

# %%
# A recording
# -----------
#
# Two agents on a line move towards each other's starting points: 40 episodes of 25 steps. An agent
# observes its own position and its distance from the other; the state is both positions.

rng = np.random.default_rng(0)
episodes, steps, agents = 40, 25, 2
position = np.zeros((episodes, steps + 1, agents), np.float32)
position[:, 0] = rng.uniform(-1, 1, (episodes, agents))
goal = position[:, 0, ::-1].copy()
action = np.zeros((episodes, steps, agents), np.float32)
for t in range(steps):
    wish = 2 * (goal - position[:, t]) + 0.3 * rng.normal(size=(episodes, agents))
    action[:, t] = wish.clip(-1, 1)
    position[:, t + 1] = position[:, t] + 0.1 * action[:, t]
observation = np.stack([position, position - position[..., ::-1]], -1)  # [E, T + 1, N, d_o]
reward = -np.abs(position[:, 1:] - goal[:, None]).sum(-1)  # [E, T]

# %%
# As transitions
# --------------
#
# Rows are transitions, episodes one after the other. The *next* entries are the true next step also
# at an episode's end, never the first step of the next one. These episodes were cut by time: they
# are truncated, and values go on beyond them; ``terminated`` would say that there is nothing more.


def flatten(array):
    """From ``[E, T, ...]`` to ``[E * T, ...]``."""
    return np.ascontiguousarray(array.reshape(-1, *array.shape[2:]), np.float32)


last = np.tile(np.arange(steps) == steps - 1, episodes)[:, None]
arrays = {
    "agents/observation": flatten(observation[:, :-1]),
    "agents/action": flatten(action[..., None]),
    "state": flatten(position[:, :-1]),
    "next/agents/observation": flatten(observation[:, 1:]),
    "next/state": flatten(position[:, 1:]),
    "next/reward": flatten(reward[..., None]),
    "next/done": last,
    "next/truncated": last,
    "next/terminated": np.zeros_like(last),
}
for key, array in arrays.items():
    print(f"{key:25} {array.shape!s:15} {array.dtype}")

# %%
# The dataset
# -----------

folder = Path(tempfile.mkdtemp()) / "crossing"
dataset = from_arrays(arrays, quality="heuristic", root=folder)
print(dataset)

# %%
# It is a TorchRL replay buffer, and a folder that opens again:

print(load_dataset(folder).sample(8)["agents", "observation"].shape)
plt.figure(figsize=(4, 2.5), layout="constrained")
plt.hist(dataset.returns, bins=15)
plt.xlabel("return of an episode")
plt.show()

# %%
# What breaks the layout is refused
# ---------------------------------
#
# The message names the key, what was expected and what was found. Nothing is repaired.

wrong = {**arrays, "next/state": np.roll(arrays["next/state"], 1, axis=0)}
try:
    from_arrays(wrong)
except DatasetError as error:
    print(error)

# %%
# What is allowed, but has gone wrong in published data, is looked for on request.

print(find_accidents(dataset) or "none found")

# %%
# ``OfflineTrainer("bc", dataset, steps=..., eval_interval=0)`` trains from here. To evaluate on the
# way, pass ``eval_env=``: an environment, or a task's name.
