"""Rate of conversion of each format against a plain copy of the same bytes, in one run.

    python benchmarks/conversion.py --megabytes 1000

Files of synthetic data are written in each format, then copied and converted in turn; the ratio
of the two rates (a copy that is flushed to disk is 1) is written with the peak of the process'
own memory to ``benchmarks/results/conversion.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from torchrl_logo.data import OfflineDataset, convert_dataset, from_arrays
from torchrl_logo.data.formats.minari import write_minari
from torchrl_logo.data.formats.pymarl_hdf5 import write_pymarl_hdf5
from torchrl_logo.data.formats.vault import write_vault
from torchrl_logo.data.metadata import record_versions

RESULTS = Path(__file__).resolve().parent / "results" / "conversion.json"
AGENTS, OBSERVATION, STATE, LENGTH, ACTIONS = 3, 50, 150, 100, 2
ROW_BYTES = 2 * 4 * (AGENTS * OBSERVATION + STATE) + 4 * AGENTS * ACTIONS + 7


def make_arrays(megabytes: int, discrete: bool = False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    episodes = max(2, int(megabytes * 1e6 / ROW_BYTES / LENGTH))
    frames = rng.standard_normal((episodes, LENGTH + 1, STATE), dtype=np.float32)
    rows = episodes * LENGTH
    end = np.tile((np.arange(LENGTH) == LENGTH - 1)[:, None], (episodes, 1))
    state = frames[:, :-1].reshape(rows, STATE)
    following = frames[:, 1:].reshape(rows, STATE)
    made = {
        "agents/observation": state.reshape(rows, AGENTS, OBSERVATION),
        "next/agents/observation": following.reshape(rows, AGENTS, OBSERVATION),
        "agents/action": rng.uniform(-1, 1, (rows, AGENTS, ACTIONS)).astype(np.float32),
        "state": state,
        "next/state": following,
        "next/reward": rng.standard_normal((rows, 1), dtype=np.float32),
        "next/done": end,
        "next/terminated": np.zeros_like(end),
        "next/truncated": end,
    }
    if discrete:
        made["agents/action"] = rng.integers(0, 5, (rows, AGENTS))
        made["agents/action_mask"] = np.ones((rows, AGENTS, 5), bool)
        made["next/agents/action_mask"] = np.ones((rows, AGENTS, 5), bool)
    return made


def write_npz(folder: Path, megabytes: int) -> Path:
    np.savez(folder / "recorded.npz", **make_arrays(megabytes))
    return folder / "recorded.npz"


def write_npy(folder: Path, megabytes: int) -> Path:
    for key, value in make_arrays(megabytes).items():
        path = folder / "recorded" / f"{key}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, value)
    return folder / "recorded"


def write_omiga(folder: Path, megabytes: int) -> Path:
    arrays = make_arrays(megabytes)
    with h5py.File(folder / "recorded.hdf5", "w") as file:
        names = {"s": "state", "o": "agents/observation", "a": "agents/action"}
        for name, key in {**names, "r": "next/reward", "d": "next/done"}.items():
            file[name] = arrays[key]
    return folder / "recorded.hdf5"


def write_from_dataset(
    write: Callable[[OfflineDataset, Path], Path], discrete: bool = False
) -> Callable[[Path, int], Path]:
    def make(folder: Path, megabytes: int) -> Path:
        return write(from_arrays(make_arrays(megabytes, discrete)), folder)

    return make


def write_own_pymarl(dataset: OfflineDataset, folder: Path) -> Path:
    write_pymarl_hdf5(dataset, folder / "recorded.h5")
    return folder / "recorded.h5"


def write_own_vault(dataset: OfflineDataset, folder: Path) -> Path:
    write_vault(dataset, folder / "map.vlt" / "Medium")
    return folder / "map.vlt"


# Compressed formats are read at the rate of their decompression, so they get smaller files.
FORMATS: dict[str, tuple[Callable[[Path, int], Path], float]] = {
    "npz": (write_npz, 1.0),
    "npy": (write_npy, 1.0),
    "omiga-hdf5": (write_omiga, 1.0),
    "minari": (write_from_dataset(lambda d, f: write_minari(d, "made/flat-v0", root=f)), 0.2),
    "pymarl-hdf5 (gzip)": (write_from_dataset(write_own_pymarl, discrete=True), 0.2),
    "vault (gzip)": (write_from_dataset(write_own_vault), 0.2),
}


def count_bytes(path: Path) -> int:
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    return sum(file.stat().st_size for file in files)


def own_memory() -> int:
    """Bytes that are the process' own, without mapped files."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(x for x in status.splitlines() if x.startswith("RssAnon")).split()[1])


def measure(path: Path, folder: Path, repeats: int) -> dict[str, Any]:
    copies, conversions = [], []
    for _ in range(repeats):
        for place in ("copy", "own"):
            shutil.rmtree(folder / place, ignore_errors=True)
        (folder / "copy").mkdir()
        start = time.perf_counter()
        copy = shutil.copyfile if path.is_file() else shutil.copytree
        copy(path, folder / "copy" / path.name)
        os.sync()
        copies.append(time.perf_counter() - start)
        start = time.perf_counter()
        convert_dataset(path, folder / "own", progress_bar=False)
        conversions.append(time.perf_counter() - start)
    size = count_bytes(path)
    return {
        "megabytes": round(size / 1e6),
        "copy_mb_per_s": round(size / 1e6 / float(np.median(copies))),
        "converted_mb_per_s": round(size / 1e6 / float(np.median(conversions))),
        "share_of_copy": round(float(np.median(np.array(copies) / np.array(conversions))), 2),
        "repeats": repeats,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for name in args.formats:
        write, share = FORMATS[name]
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            path = write(folder, int(args.megabytes * share))
            rows[name] = measure(path, folder, args.repeats)
        print(name, rows[name], flush=True)
    record = {"rows": rows, "versions": record_versions(), "own_memory_mb": own_memory() // 2**20}
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
