"""What `import torchrl_logo` and its subpackages add to `import torchrl`.

    python benchmarks/imports.py

Each row is the median over fresh processes, after a first one that is not counted: the seconds
of the import after TorchRL's own packages, and which packages came with it beyond those that
TorchRL brought.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from torchrl_logo.data.metadata import record_versions

RESULTS = Path(__file__).resolve().parent / "results" / "imports.json"
SUBPACKAGES = "data envs evaluation modules objectives planning record trainers"
TORCHRL = ("", "data", "envs", "modules", "objectives", "record", "trainers", "collectors")
#: A package that is imported where nobody asked for it would show here.
CODE = """
import importlib, json, sys, time
start = time.perf_counter()
for name in {before}:
    importlib.import_module(name)
middle = time.perf_counter()
known = {{name.partition(".")[0] for name in sys.modules}}
importlib.import_module("{name}")
end = time.perf_counter()
new = {{name.partition(".")[0] for name in sys.modules}} - known - set(sys.stdlib_module_names)
new = sorted(name for name in new if not name.startswith(("_", "torchrl_logo")))
print(json.dumps({{"torchrl": middle - start, "seconds": end - middle, "brings": new}}))
"""


def measure(name: str, before: list[str]) -> dict:
    code = CODE.format(before=before, name=name)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    all_of_torchrl = [".".join(["torchrl", *([part] if part else [])]) for part in TORCHRL]
    cases = [("torchrl_logo", ["torchrl"])]
    cases += [(f"torchrl_logo.{part}", all_of_torchrl) for part in SUBPACKAGES.split()]
    rows = []
    for name, before in cases:
        rounds = [measure(name, before) for _ in range(args.rounds + 1)][1:]
        row = {
            "import": name,
            "after": before,
            "seconds": statistics.median(r["seconds"] for r in rounds),
            "slowest": max(r["seconds"] for r in rounds),
            "torchrl_seconds": statistics.median(r["torchrl"] for r in rounds),
            "brings": rounds[-1]["brings"],
        }
        rows.append(row)
        print(f"{name:26} {row['seconds']:6.3f} s  {', '.join(row['brings']) or 'nothing'}")
    content = {"rounds": args.rounds, "cores": os.cpu_count(), "versions": record_versions()}
    RESULTS.write_text(json.dumps({**content, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
