"""Rate of conversion of each format against a plain copy of the same bytes, in one run.

    python benchmarks/conversion.py --megabytes 1000
    python benchmarks/conversion.py --budget --megabytes 20000 --memory 2000

Files of synthetic data are written in each format, then copied and converted in turn; the ratio
of the two rates (a copy that is flushed to disk is 1) is written to
``benchmarks/results/conversion.json``. What was written before is removed, and that is waited
for, before the clock starts. A conversion computes about three times as much as a copy, on two
threads and more: on busy cores the ratio falls, so the load is recorded, too. ``--budget`` converts
one large folder of ``.npy`` files in a process of its own and records the peak of that process'
own memory (without mapped files and the system's cache) over what it was before.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
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
from torchrl_logo.whole_files import flush_files

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


def clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.sync()


def copy_flushed(path: Path, folder: Path) -> None:
    folder.mkdir()
    copy = shutil.copyfile if path.is_file() else shutil.copytree
    copy(path, folder / path.name)
    flush_files([folder, *folder.rglob("*")])


def measure(path: Path, folder: Path, repeats: int) -> dict[str, Any]:
    copies, conversions = [], []
    for _ in range(repeats):
        clear(folder / "copy")
        start = time.perf_counter()
        copy_flushed(path, folder / "copy")
        copies.append(time.perf_counter() - start)
        clear(folder / "own")
        start = time.perf_counter()
        convert_dataset(path, folder / "own", progress_bar=False)
        conversions.append(time.perf_counter() - start)
    size = count_bytes(path)
    return {
        "megabytes": round(size / 1e6),
        "copy_mb_per_s": round(size / 1e6 / float(np.median(copies))),
        "converted_mb_per_s": round(size / 1e6 / float(np.median(conversions))),
        "share_of_copy": round(float(np.median(np.array(copies) / np.array(conversions))), 2),
        "shares": [round(a / b, 2) for a, b in zip(copies, conversions, strict=True)],
        "load": round(os.getloadavg()[0], 1),
    }


def write_large(folder: Path, megabytes: int) -> None:
    """A folder of ``.npy`` files, a block of episodes at a time."""
    block = make_arrays(200)
    rows = len(block["state"])
    for key, value in block.items():
        path = folder / f"{key}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        blocks = max(1, round(megabytes / 200))
        with path.open("wb") as file:
            header = {"descr": value.dtype.str, "fortran_order": False}
            shape = (blocks * rows, *value.shape[1:])
            np.lib.format.write_array_header_1_0(file, {**header, "shape": shape})
            for _ in range(blocks):
                file.write(value.data)


def convert_and_watch(path: Path, folder: Path, memory: int) -> dict[str, Any]:
    """Converts with a budget of so many bytes, and looks at the memory every few milliseconds."""
    before = own_memory()
    peak, ended = before, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.005):
            peak = max(peak, own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    convert_dataset(path, folder, memory=memory, progress_bar=False)
    seconds = time.perf_counter() - start
    ended.set()
    watcher.join()
    return {
        "megabytes": round(count_bytes(path) / 1e6),
        "memory_mb": round(memory / 1e6),
        "peak_own_mb": round((peak - before) / 1e6),
        "seconds": round(seconds, 1),
        "load": round(os.getloadavg()[0], 1),
    }


def measure_budget(megabytes: int, memory: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary, "recorded")
        write_large(source, megabytes)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            work = pool.submit(convert_and_watch, source, Path(temporary, "own"), memory * 10**6)
            return work.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS))
    parser.add_argument("--budget", action="store_true")
    parser.add_argument("--memory", type=int, default=2000, help="megabytes of the budget")
    args = parser.parse_args()
    torch.set_num_threads(1)
    record = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    if args.budget:
        record["budget"] = measure_budget(args.megabytes, args.memory)
        print(record["budget"], flush=True)
    for name in () if args.budget else args.formats:
        write, share = FORMATS[name]
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            path = write(folder, int(args.megabytes * share))
            record["rows"][name] = measure(path, folder, args.repeats)
        print(name, record["rows"][name], flush=True)
    record["versions"] = record_versions()
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
