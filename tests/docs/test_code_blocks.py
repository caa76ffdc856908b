"""Code blocks of README and docs run, with budgets cut; commands name what there is.

Blocks with prompts (``>>>``) are doctests, and run as they are.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import torchrl_logo.data
from torchrl_logo.data import OfflineDataset, load_dataset
from torchrl_logo.modules import LOGOWorldModel, make_centralized_critic, make_gaussian_actor
from torchrl_logo.objectives import MACQLLoss

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Instead of the numbers of updates and episodes that pages recommend.
BUDGETS = {r"\bsteps=[\d_]+": "steps=4, **TINY", r"\bepisodes=[\d_]+": "episodes=2"}
TINY = {"world_model_steps": 4, "imagined_envs": 8, "horizon": 2, "eval_interval": 0}


def find_blocks(page: Path, language: str) -> Iterator[str]:
    fences = re.findall(rf"^( *)```{language}\n(.*?)^\1```", page.read_text(), re.M | re.S)
    return (block for _, block in fences)


def find_code(page: Path) -> list[str]:
    return [block for block in find_blocks(page, "python") if ">>>" not in block]


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def small_data(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> OfflineDataset:
    """Datasets that are asked for by name are small ones; files go to a folder of the test."""
    monkeypatch.setenv("TORCHRL_LOGO_DATA", str(data_folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    small = functools.partial(load_dataset, frames=1000)
    monkeypatch.setattr(torchrl_logo.data, "load_dataset", small)
    return small("vmas/balance-medium-replay")


def make_given(dataset: OfflineDataset) -> dict[str, Any]:
    """What pages speak of without making it."""
    spec = dataset.spec
    actor = make_gaussian_actor(spec, hidden_sizes=(8,))
    critic = make_centralized_critic(spec, hidden_sizes=(8,))
    return {
        "TINY": TINY,
        "dataset": dataset,
        "world_model": LOGOWorldModel.from_dataset(dataset, hidden_size=8),
        "policy": actor,
        "my_loss": MACQLLoss(actor, critic, action_spec=spec.action_spec()),
    }


WITH_CODE = [page for page in PAGES if find_code(page)]


def test_pages_with_code_are_found() -> None:
    assert {"README.md", "quickstart.md", "planning.md"} <= {page.name for page in WITH_CODE}


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_code_runs(page: Path, small_data: OfflineDataset) -> None:
    namespace = make_given(small_data)
    for block in find_code(page):
        for pattern, budget in BUDGETS.items():
            block = re.sub(pattern, budget, block)
        exec(compile(block, str(page), "exec"), namespace)


def find_commands(page: Path) -> list[str]:
    lines = (line for block in find_blocks(page, "(?:bash|sh)") for line in block.splitlines())
    indented = re.findall(r"^ {4}((?:python|make) .*)$", page.read_text(), re.M)
    return [line.partition("#")[0].strip() for line in lines] + indented


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_name_what_there_is(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for command in find_commands(page):
        for script in re.findall(r"python (\S+\.py)", command):
            assert (ROOT / script).is_file(), command
        if command.startswith("make "):
            assert set(re.findall(r" ([a-z-]+)(?= |$)", command)) <= targets, command
