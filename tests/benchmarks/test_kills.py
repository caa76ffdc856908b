"""Trainings that are killed end as ones left alone; ``benchmarks/kills.py`` has many more kills."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, warnings
import torch
from benchmarks import kills
warnings.filterwarnings("ignore")
torch.set_num_threads(1)
dataset = kills.make_dataset()
expected, seconds = kills.leave_alone({method!r}, dataset)
row = kills.kill_often({method!r}, dataset, expected, seconds, seed=1, most={most})
print(json.dumps([len(expected), row]))
"""


def run(method: str, most: int) -> tuple[int, dict]:
    # a process of its own, which may fork: it has one thread
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(method=method, most=most)],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    compared, row = json.loads(process.stdout.splitlines()[-1])
    return compared, row


def test_logo_ends_as_if_it_had_not_been_killed() -> None:
    compared, row = run("logo", 2)
    assert compared > 400 and sum(row["kills"].values()) >= 1
    assert row["differ"] == []


def test_mamba_ends_as_if_it_had_not_been_killed() -> None:
    compared, row = run("mamba", 3)
    assert compared > 400 and sum(row["kills"].values()) >= 1
    assert row["differ"] == []
