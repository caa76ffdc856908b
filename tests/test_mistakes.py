"""Scripts end with a short message where their user made a mistake, and only there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from torchrl_logo.argument_checks import MissingKeyError
from torchrl_logo.data import load_dataset
from torchrl_logo.envs import make_env
from torchrl_logo.mistakes import explain_mistakes, is_mistake
from torchrl_logo.optional_dependencies import require


@explain_mistakes
def multiply() -> torch.Tensor:
    """Fails in the depth of a library."""
    return torch.zeros(2, 3) @ torch.zeros(2, 3)


@explain_mistakes
def open_dataset(name: str) -> object:
    return load_dataset(name)


def test_a_mistake_ends_in_one_message() -> None:
    with pytest.raises(SystemExit) as ended:
        open_dataset("vmas/balanse-medium")
    message = str(ended.value.code)  # a text as the code is printed, and the exit code is 1
    assert message.startswith("Error: No dataset 'vmas/balanse-medium'. Nearest: vmas/balance")
    assert ended.value.__cause__ is None and ended.value.__suppress_context__


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError):
        multiply()


@pytest.mark.parametrize("bug", [lambda: int("x"), lambda: None + 1, lambda: {}["key"]])
def test_what_python_raises_is_no_mistake(bug: object) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)) as raised:
        bug()
    assert not is_mistake(raised.value)


def test_tracebacks_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHRL_LOGO_TRACEBACK", "1")
    with pytest.raises(ValueError, match="No dataset"):
        open_dataset("vmas/balanse-medium")


def test_every_kind_of_the_packages_errors_is_known(tmp_path: Path) -> None:
    uses = {
        ImportError: lambda: require("no_such_simulator", extra="mpe"),
        ValueError: lambda: make_env("vmas/balanse"),
        TypeError: lambda: make_env(3),
        FileNotFoundError: lambda: load_model(tmp_path),
        MissingKeyError: lambda: load_dataset(
            "vmas/balance-random", root=tmp_path, frames=200
        ).metadata["hsh"],
    }
    for kind, use in uses.items():
        with pytest.raises(kind) as raised:
            use()
        assert is_mistake(raised.value), kind


def load_model(folder: Path) -> object:
    from torchrl_logo.modules import LOGOWorldModel

    return LOGOWorldModel.load(folder / "no.pt")
