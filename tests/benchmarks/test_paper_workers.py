"""The processes that share the paper's grid."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SCRIPT = """
import os, pathlib, sys, time
from benchmarks.paper import workers

def wait(*_):
    pathlib.Path(sys.argv[1]).write_text(str(os.getpid()) + ".")
    time.sleep(100)

if __name__ == "__main__":
    workers.work = wait
    workers.run_cells([], pathlib.Path("rows"), None)
"""


def wait_for(happened: Callable[[], bool], seconds: float = 300.0) -> bool:
    end = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # one that has ended, and that nobody has asked about yet, is still listed
    return "(zombie)" not in Path(f"/proc/{process}/status").read_text()


def test_no_process_goes_on_when_the_grid_is_stopped(tmp_path: Path) -> None:
    script, note = tmp_path / "grid.py", tmp_path / "process"
    script.write_text(SCRIPT)
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, str(script), str(note)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as grid:
        assert wait_for(lambda: note.exists() and note.read_text().endswith("."))
        worker = int(note.read_text()[:-1])
        assert is_alive(worker)
        grid.send_signal(signal.SIGTERM)
        assert grid.wait(300) == 128 + signal.SIGTERM
    assert wait_for(lambda: not is_alive(worker))
