"""What the benchmark of growth counts and fits, against numbers made by hand."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.growth import WrittenBytes, count_saved, fit

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "growth.py"


def test_exponents_of_a_bent_line() -> None:
    found = fit([1, 10, 100], [2.0, 2.0, 200.0])
    assert found == {"exponent": 1.0, "exponent_at_largest": 2.0}


def test_what_a_graph_keeps_is_counted_once() -> None:
    x = torch.ones(100, requires_grad=True)
    factor = torch.ones(100)
    # the product keeps the factor, for the gradient of x; the exponential its own result
    assert count_saved(lambda: ((x * factor).exp() * 2).sum()) == 2 * 400
    assert count_saved(lambda: (x * factor * factor).sum()) == 400


def test_views_write_nothing() -> None:
    with WrittenBytes() as written:
        torch.ones(10, 4).reshape(4, 10)[1:].add(1.0)
    assert written.count == 160 + 120


@pytest.mark.slow
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "growth.json"
    arguments = ["--axes", "agents", "--largest", "5", "--rounds", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    found = json.loads(out.read_text())["growth"]["agents"]
    assert set(found) == {"world_model_update", "macql_update", "imagined_step"}
    for row in found.values():
        assert row["sizes"] == [2, 5]
        assert row["bytes"][0] < row["bytes"][1] < row["bytes"][0] * 4
