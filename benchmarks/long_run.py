"""Trains LOGO for an hour, and follows what a process must not collect.

    python benchmarks/long_run.py --minutes 60

Every half minute it notes resident memory, open file handles, threads and the size of the MLflow
store, then writes ``results/long_run.json``. Memory is compared after a warm-up of a fifth of the
time. Run it on a machine where nothing else decides how fast it goes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import threading
import time
from pathlib import Path

import torch

from torchrl_logo.data import load_dataset
from torchrl_logo.record import MLflowRun
from torchrl_logo.trainers import OfflineTrainer

RESULTS = Path(__file__).parent / "results" / "long_run.json"
_WARM_UP = 0.2


class _Enough(Exception):
    """The time is over."""


def read_resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=30.0, help="seconds between two looks")
    parser.add_argument("--world-model-steps", type=int, default=1000)
    parser.add_argument("--imagined-capacity", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    dataset = load_dataset("vmas/balance-medium-replay", frames=20_000)
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = folder / "runs" / "mlflow.db"
        with MLflowRun("long-run", runs_dir=folder / "runs") as run:
            trainer = OfflineTrainer(
                "logo",
                dataset,
                steps=100_000_000,
                logger=run,
                world_model_steps=args.world_model_steps,
                imagined_capacity=args.imagined_capacity,
                eval_interval=2000,
                eval_episodes=8,
                log_interval=100,
                checkpoint_dir=folder / "checkpoints",
                progress_bar=False,
            )
            begin = time.monotonic()

            def look() -> None:
                minutes = (time.monotonic() - begin) / 60
                if not rows or minutes - rows[-1]["minutes"] >= args.every / 60:
                    rows.append(
                        {
                            "minutes": round(minutes, 3),
                            "updates": trainer._optim_count,
                            "resident_bytes": read_resident_bytes(),
                            "file_handles": len(os.listdir("/proc/self/fd")),
                            "threads": threading.active_count(),
                            "system_threads": len(os.listdir("/proc/self/task")),
                            "store_bytes": store.stat().st_size,
                        }
                    )
                if minutes >= args.minutes:
                    raise _Enough

            trainer.register_op("post_optim", look)
            try:
                trainer.train()
            except _Enough:
                run.flush()
    warm = [row for row in rows if row["minutes"] >= _WARM_UP * args.minutes]
    first, last = warm[0], warm[-1]
    logged = (last["updates"] - first["updates"]) / 100
    result = {
        "minutes": args.minutes,
        "updates": last["updates"],
        "memory_growth_after_warm_up": last["resident_bytes"] / first["resident_bytes"] - 1,
        "most_memory_growth_after_warm_up": max(r["resident_bytes"] for r in warm)
        / first["resident_bytes"]
        - 1,
        "file_handles": [
            min(r["file_handles"] for r in warm),
            max(r["file_handles"] for r in warm),
        ],
        "threads": [min(r["system_threads"] for r in warm), max(r["system_threads"] for r in warm)],
        "store_bytes_per_log_interval": (last["store_bytes"] - first["store_bytes"]) / logged,
        "log_interval": 100,
        "imagined_capacity": args.imagined_capacity,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "rows": rows,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print({key: value for key, value in result.items() if key != "rows"})


if __name__ == "__main__":
    main()
