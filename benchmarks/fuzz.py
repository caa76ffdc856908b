"""Gives damaged and hostile files to every reader of the package, and counts what comes of it.

    python benchmarks/fuzz.py --cases 1000

Each target (a reader with a whole file to begin with) reads so many files, each damaged in one to
three ways that its number decides. Files are read in processes of their own, with a limit on
memory and on time. Results are counted in ``results/fuzz.json``; what is neither a whole reading
nor a clear error is listed there with the number that makes it again:

    python benchmarks/fuzz.py --target minari --first 123 --cases 1 --print
"""

from __future__ import annotations

import argparse
import collections
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import platform
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

for package in ("h5py", "minari", "tensorstore"):
    if importlib.util.find_spec(package) is None:
        print(f"{package} is not installed: pip install torchrl-logo[formats]")
        sys.exit(0)

import torch  # noqa: E402
from torchrl.checkpoint import CheckpointError  # noqa: E402

from benchmarks.fuzzing.mutations import mutate  # noqa: E402
from benchmarks.fuzzing.targets import TARGETS, Target  # noqa: E402
from torchrl_logo.data import DatasetError  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "fuzz.json"
MEMORY = 2**30  # bytes beyond what the process has at the start
SECONDS = 10  # a file
BATCH = 100
# What may come of a file. "other data": well-formed files with other numbers, and damage to
# numbers in formats without checksums, which nobody can tell from other data.
GOOD = ("whole", "clear error", "other data")
BAD = ("raw error", "silent", "memory", "hang", "crash", "outside", "code")


class Hang(BaseException):
    """A file took too long; no ``except Exception`` on the way takes it for something else."""


def run_case(
    target: Target, whole: Path, expected: str, number: int, work: Path
) -> tuple[str, str]:
    """Damages a file and reads it.

    Returns:
        What came of it (one of :data:`GOOD` or :data:`BAD`), and how it was made.
    """
    rng = random.Random(number)
    shutil.rmtree(work, ignore_errors=True)
    (work / "out").mkdir(parents=True)
    shutil.copytree(whole.parent, work / "in", symlinks=True)
    path = work / "in" / whole.name
    how, damage = mutate(rng, path)
    before = {f.name for f in work.iterdir()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = target.read(path, work / "out")
    except BaseException as error:
        outcome, how = _classify(error), f"{how} -> {type(error).__name__}: {str(error)[:300]}"
        if outcome == "raw error":
            frames = traceback.extract_tb(error.__traceback__)
            how += f" at {frames[-1].filename}:{frames[-1].lineno}"
    else:
        outcome = "whole" if found == expected else "other data"
        if outcome == "other data" and damage and target.checked:
            outcome = "silent"
    if (work / "ran").exists():
        outcome = "code"
    elif {f.name for f in work.iterdir()} != before:
        outcome = "outside"
    return outcome, how


def _classify(error: BaseException) -> str:
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return "memory"
    if isinstance(error, Hang):
        return "hang"
    named = isinstance(error, DatasetError | CheckpointError)
    if isinstance(error, ValueError | OSError) and "/case/" in str(error):
        named = True
    return "clear error" if named else "raw error"


def _work(name: str, whole: Path, expected: str, numbers: range, folder: Path, queue: Any) -> None:
    """Runs cases in a process that may be killed by any of them."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def stop(*args: Any) -> None:
        raise Hang(f"no answer within {SECONDS} s")

    signal.signal(signal.SIGALRM, stop)
    for number in numbers:
        queue.put((number, None, ""))
        signal.alarm(SECONDS)
        outcome, how = run_case(TARGETS[name], whole, expected, number, folder / "case")
        signal.alarm(0)
        queue.put((number, outcome, how))
    queue.put((None, None, ""))


def _prepare(target: Target, folder: Path, queue: Any) -> None:
    """Writes the whole file, and reads it unchanged."""
    whole = target.write(folder / "whole")
    copy = folder / "unchanged" / "in"
    shutil.copytree(whole.parent, copy)
    (folder / "unchanged" / "out").mkdir()
    queue.put((whole, target.read(copy / whole.name, folder / "unchanged" / "out")))


def fuzz(name: str, first: int, cases: int, folder: Path) -> list[tuple[int, str, str]]:
    """Runs cases of a target in processes one after the other.

    Returns:
        Number, outcome and making of each case.
    """
    context = multiprocessing.get_context("fork")
    target = TARGETS[name]
    (folder / "whole").mkdir(parents=True)
    queue = context.Queue()
    # In a process of its own, too: some libraries start threads, which do not survive a fork.
    process = context.Process(target=_prepare, args=(target, folder, queue))
    process.start()
    whole, expected = queue.get()
    process.join()
    results: list[tuple[int, str, str]] = []
    begin, end = first, first + cases
    while begin < end:
        queue = context.Queue()
        numbers = range(begin, min(begin + BATCH, end))
        arguments = (name, whole, expected, numbers, folder, queue)
        process = context.Process(target=_work, args=arguments)
        process.start()
        current, finished, last = begin, False, time.monotonic()
        while not finished:
            try:
                number, outcome, how = queue.get(timeout=2)
            except Exception:  # empty for a while
                if process.is_alive() and time.monotonic() - last < 2 * SECONDS:
                    continue
                outcome = "hang" if process.is_alive() else "crash"
                process.kill()
                process.join()
                results.append((current, outcome, f"exit code {process.exitcode}"))
                begin = current + 1
                break
            last = time.monotonic()
            if number is None:
                finished, begin = True, numbers.stop
            elif outcome is None:
                current = number
            else:
                results.append((number, outcome, how))
        process.join()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--target", choices=sorted(TARGETS), action="append")
    parser.add_argument("--cases", type=int, default=100, help="files of each target")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--print", action="store_true", help="print each case, write no results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")
    written = {}
    if RESULTS.exists() and not arguments.print:
        written = json.loads(RESULTS.read_text())["targets"]
    found: dict[str, Any] = dict(written)
    for name in arguments.target or sorted(TARGETS):
        began = time.monotonic()
        with tempfile.TemporaryDirectory(
            dir="/dev/shm" if os.path.isdir("/dev/shm") else None
        ) as f:
            results = fuzz(name, arguments.first, arguments.cases, Path(f))
        seconds = time.monotonic() - began
        counts = collections.Counter(outcome for _, outcome, _ in results)
        bad = [
            dict(zip(("number", "outcome", "how"), r, strict=True)) for r in results if r[1] in BAD
        ]
        print(f"{name}: {dict(counts)} in {seconds:.0f} s", flush=True)
        for row in bad[:20]:
            print("   ", row["number"], row["outcome"], row["how"], flush=True)
        if arguments.print:
            for number, outcome, how in results:
                print("   ", number, outcome, how)
            continue
        found[name] = {
            "first": arguments.first,
            "files": len(results),
            "outcomes": {key: counts[key] for key in (*GOOD, *BAD)},
            "seconds": round(seconds, 1),
            "bad": bad[:20],
        }
        summary = {
            "files": sum(row["files"] for row in found.values()),
            "bad": sum(row["outcomes"][key] for row in found.values() for key in BAD),
            "limits": {"bytes": MEMORY, "seconds": SECONDS},
            "versions": {
                package: importlib.metadata.version(package)
                for package in ("torch", "tensordict", "torchrl", "h5py", "numpy", "tensorstore")
            },
            "python": platform.python_version(),
            "targets": dict(sorted(found.items())),
        }
        RESULTS.write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
