"""A user's mistake in an example ends with a short message and an exit code, without traceback."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

#: Script, its arguments, and what the message says.
MISTAKES = {
    "unknown task": ("demo.py", ["--task", "vmas/balanse"], "Nearest: vmas/balance-medium-replay"),
    "no update": ("demo.py", ["--steps", "0"], "--steps: must be at least 1, found 0"),
    "unknown quality": ("collect_dataset.py", ["quality=medum"], "Nearest: vmas/balance-medium"),
    "no folder": ("collect_dataset.py", ["policy=random"], "root=<folder>"),
    "no frame": ("collect_dataset.py", ["frames=0"], "frames must be a positive integer, found 0"),
    "unknown field": ("collect_dataset.py", ["framez=3"], "Key 'framez' not in"),
    "text for a number": ("collect_dataset.py", ["frames=abc"], "could not be converted to Integ"),
    "missing file": ("inspect_dataset.py", ["dataset=no.h5"], "no such file or folder"),
    "unknown model": ("train_world_model.py", ["model=lego"], "There are: logo, joint, ensemble"),
    "no behaviour": ("import_components.py", ["--task", "vmas/flocking"], "No dataset 'vmas/floc"),
    "unknown team": ("train_behaviour.py", ["--task", "vmas/balanc"], "Nearest: vmas/balance"),
    "unknown method": ("train_logo.py", ["method=mcql"], "No method 'mcql'. Nearest: macql"),
    "unknown argument": ("train_logo.py", ["+trainer.lrr=1"], "takes no 'lrr'; it takes: batch_"),
    "horizon 0": ("train_logo.py", ["+trainer.horizon=0"], "horizon must be a positive integer"),
    "no such device": ("train_logo.py", ["device=cuda:99"], "No device 'cuda:99'"),
}
#: Data that are there at once; and loggers of this process stay as they are.
HYDRA = ["hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.run.dir=."]
COMMON = {
    "collect_dataset.py": HYDRA,
    "inspect_dataset.py": HYDRA,
    "train_logo.py": ["dataset=small", *HYDRA],
    "train_world_model.py": HYDRA,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from torchrl_logo.data import load_dataset

    folder = tmp_path_factory.mktemp("mistakes")
    load_dataset("vmas/balance-random", root=folder / "data", frames=400).save(folder / "small")
    return folder


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_ends_in_a_message(
    case: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, arguments, expected = MISTAKES[case]
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TORCHRL_LOGO_DATA", str(folder / "data"))
    for variable in ("MLFLOW_TRACKING_URI", "TORCHRL_LOGO_TRACEBACK"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(sys, "argv", [script, *COMMON.get(script, []), *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    assert ended.value.code not in (0, None)
    said = read_message(ended.value.code, capsys)
    assert expected in said
    assert "Traceback" not in said
    assert len(said.splitlines()) < 12


def read_message(code: Any, capsys: pytest.CaptureFixture[str]) -> str:
    """What a script prints before it ends; Python prints an exit code that is a text."""
    written = capsys.readouterr().err
    return written + (code if isinstance(code, str) else "")


def test_the_shell_sees_the_message_and_the_code(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "collect_dataset.py"), "policy=random"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Error: With policy=... say where the dataset goes: root=<folder>." in done.stderr
    assert "Traceback" not in done.stderr
