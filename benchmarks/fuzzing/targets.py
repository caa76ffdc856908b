"""What is fuzzed: for each reader, a whole file to begin with, and the reading of it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from tensordict import TensorDict

from torchrl_logo.data import OfflineDataset, convert_dataset, from_arrays
from torchrl_logo.data.content_hash import hash_content
from torchrl_logo.data.formats import write_minari, write_pymarl_hdf5, write_vault
from torchrl_logo.data.uncertainty_sampler import UncertaintySampler
from torchrl_logo.modules import EnsembleWorldModel, JointWorldModel, LOGOWorldModel
from torchrl_logo.trainers.durable_checkpoint import DurableCheckpoint, DurableRotation

Arrays = dict[str, np.ndarray]
LENGTHS = (3, 4)


@dataclasses.dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        write: writes a whole file or folder below a folder, and returns its path.
        read: reads it, with a folder to write to, and returns a hash of all that was read.
        checked: whether the files have checksums: damage must then never be read as other data.
    """

    write: Callable[[Path], Path]
    read: Callable[[Path, Path], str]
    checked: bool = False


def make_arrays(discrete: bool = False) -> Arrays:
    """Two short episodes of two agents in the layout."""
    rng = np.random.default_rng(0)
    made: dict[str, list[np.ndarray]] = {}

    def put(key: str, value: np.ndarray) -> None:
        made.setdefault(key, []).append(value)

    for index, length in enumerate(LENGTHS):
        observation = rng.normal(size=(length + 1, 2, 3)).astype(np.float32)
        state = rng.normal(size=(length + 1, 4)).astype(np.float32)
        last = np.arange(length)[:, None] == length - 1
        for key, value in (("agents/observation", observation), ("state", state)):
            put(key, value[:-1])
            put(f"next/{key}", value[1:])
        put("next/reward", rng.normal(size=(length, 1)).astype(np.float32))
        put("next/done", last)
        put("next/terminated", last & (index == 0))
        put("next/truncated", last & (index == 1))
        put("episode", np.full(length, index))
        put("step", np.arange(length))
        if discrete:
            mask = np.ones((length + 1, 2, 3), bool)
            mask[:, :, 2] = rng.random((length + 1, 2)) < 0.5
            put("agents/action_mask", mask[:-1])
            put("next/agents/action_mask", mask[1:])
            put("agents/action", rng.integers(0, 2, (length, 2)))
        else:
            put("agents/action", rng.uniform(-1, 1, (length, 2, 2)).astype(np.float32))
    return {key: np.concatenate(values) for key, values in made.items()}


def make_dataset(discrete: bool = False) -> OfflineDataset:
    return from_arrays(make_arrays(discrete))


def _write_npz(folder: Path) -> Path:
    np.savez(folder / "recorded.npz", **make_arrays())
    return folder / "recorded.npz"


def _write_compressed(folder: Path) -> Path:
    np.savez_compressed(folder / "recorded.npz", **make_arrays(discrete=True))
    return folder / "recorded.npz"


def _write_npy(folder: Path) -> Path:
    for key, value in make_arrays().items():
        path = folder / "recorded" / f"{key}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.asfortranarray(value) if key == "state" else value)
    return folder / "recorded"


def _write_omar(folder: Path) -> Path:
    arrays, path = make_arrays(), folder / "seed_0_data"
    path.mkdir()
    for agent in range(2):
        np.save(path / f"obs_{agent}.npy", arrays["agents/observation"][:, agent])
        np.save(path / f"next_obs_{agent}.npy", arrays["next/agents/observation"][:, agent])
        np.save(path / f"acs_{agent}.npy", arrays["agents/action"][:, agent])
        np.save(path / f"rews_{agent}.npy", arrays["next/reward"])
        np.save(path / f"dones_{agent}.npy", arrays["next/done"].astype(np.float64))
    np.save(path / "states_0.npy", arrays["state"])
    np.save(path / "next_states_0.npy", arrays["next/state"])
    return path


def _write_omiga(folder: Path) -> Path:
    arrays = make_arrays()
    with h5py.File(folder / "Task-2x3-medium.hdf5", "w") as file:
        file["s"] = arrays["state"]
        file.create_dataset("o", data=arrays["agents/observation"], compression="gzip")
        file["a"] = arrays["agents/action"]
        file["r"] = arrays["next/reward"]
        file["d"] = arrays["next/done"].astype(np.float64)
    return folder / "Task-2x3-medium.hdf5"


def _write_pymarl(folder: Path) -> Path:
    write_pymarl_hdf5(make_dataset(discrete=True), folder / "recorded.h5")
    return folder / "recorded.h5"


def _write_minari(folder: Path) -> Path:
    return write_minari(make_dataset(discrete=True), "team/task-v0", root=folder)


def _write_vault(folder: Path) -> Path:
    write_vault(make_dataset(discrete=True), folder / "task.vlt" / "Good")
    return folder / "task.vlt" / "Good"


def _write_memmap(folder: Path) -> Path:
    TensorDict(dict(make_dataset().data.items()), [sum(LENGTHS)]).memmap(str(folder / "mapped"))
    return folder / "mapped"


def _write_dataset(folder: Path) -> Path:
    from_arrays(make_arrays(discrete=True), root=folder / "own")
    return folder / "own"


def _read_episodes(path: Path, out: Path) -> str:
    dataset = convert_dataset(path, out / "own", progress_bar=False, memory=4096)
    return dataset.metadata.hash + str(dataset.spec)


def _read_dataset(path: Path, out: Path) -> str:
    dataset = OfflineDataset.load(path)
    return hash_content(dataset.data) + str(dict(dataset.metadata))


def _hash_tensors(state: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name}|{value.dtype}|{list(value.shape)}|".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _world_model(kind: type, **config: Any) -> Target:
    def write(folder: Path) -> Path:
        torch.manual_seed(0)
        kind.from_dataset(make_dataset(), **config).save(folder / "model.pt")
        return folder / "model.pt"

    def read(path: Path, out: Path) -> str:
        model = kind.load(path)
        return _hash_tensors(model.state_dict()) + f"{model.spec}{model.config}"

    return Target(write, read, checked=True)


def _make_parts() -> dict[str, Any]:
    torch.manual_seed(0)
    policy = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(policy.parameters())
    policy(torch.ones(3)).sum().backward()
    optimizer.step()
    return {"policy": policy, "optimizer": optimizer}


def _write_checkpoint(folder: Path) -> Path:
    DurableRotation(folder / "checkpoints").save(DurableCheckpoint(**_make_parts()), step=3)
    return folder / "checkpoints"


def _read_checkpoint(path: Path, out: Path) -> str:
    parts = _make_parts()
    parts["policy"].requires_grad_(False).weight.zero_()
    DurableRotation(path).load_latest(DurableCheckpoint(**parts))
    return _hash_tensors(parts["policy"].state_dict()) + str(parts["optimizer"].state_dict())


def _write_sampler(folder: Path) -> Path:
    sampler = UncertaintySampler(8, C=1.0)
    state = sampler.state_dict()
    state["uncertainty"] = torch.arange(8.0)
    sampler.load_state_dict(state)
    sampler.dumps(folder / "sampler")
    return folder / "sampler"


def _read_sampler(path: Path, out: Path) -> str:
    sampler = UncertaintySampler(8, C=1.0)
    sampler.loads(path)
    state = sampler.state_dict()
    return _hash_tensors({"uncertainty": state.pop("uncertainty")}) + str(state)


TARGETS: dict[str, Target] = {
    "arrays-npz": Target(_write_npz, _read_episodes, checked=True),
    "arrays-npz-compressed": Target(_write_compressed, _read_episodes, checked=True),
    "arrays-npy": Target(_write_npy, _read_episodes),
    "omar-npy": Target(_write_omar, _read_episodes),
    "omiga-hdf5": Target(_write_omiga, _read_episodes),
    "pymarl-hdf5": Target(_write_pymarl, _read_episodes),
    "minari": Target(_write_minari, _read_episodes),
    "vault": Target(_write_vault, _read_episodes),
    "memmap": Target(_write_memmap, _read_episodes),
    "dataset": Target(_write_dataset, _read_dataset, checked=True),
    "joint-world-model": _world_model(JointWorldModel, hidden_size=8),
    "ensemble-world-model": _world_model(EnsembleWorldModel, hidden_size=8, members=2),
    "logo-world-model": _world_model(LOGOWorldModel, hidden_size=8),
    "checkpoint": Target(_write_checkpoint, _read_checkpoint, checked=True),
    "sampler": Target(_write_sampler, _read_sampler),
}
