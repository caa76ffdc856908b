"""What a user sees of trained runs on MLflow's own pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from docs.mlflow_pages import MLflowPages, find_chromium, open_pages
from torchrl_logo.data import load_dataset
from torchrl_logo.trainers import train_tracked

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="needs Chromium"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A few updates of three runs: what they learn does not matter here."""
    runs_dir = tmp_path_factory.mktemp("runs")
    dataset = load_dataset("vmas/balance-medium-replay")
    runs = {
        f"{method}-medium-replay-seed{seed}": train_tracked(
            method,
            dataset,
            steps=20,
            seed=seed,
            eval_interval=10,
            eval_episodes=4,
            experiment="pages",
            runs_dir=runs_dir,
            **({"world_model_steps": 10} if method == "logo" else {}),
        )
        for method, seed in [("bc", 0), ("bc", 1), ("logo", 0)]
    }
    return SimpleNamespace(runs=runs, store=f"sqlite:///{runs_dir}/mlflow.db", folder=runs_dir)


@pytest.fixture(scope="module")
def pages(trained: SimpleNamespace) -> Iterator[MLflowPages]:
    pytest.importorskip("playwright", reason="needs the extra 'test'")
    with open_pages(trained.store, "pages") as opened:
        yield opened


def test_the_list_sorts_by_return_under_readable_names(pages, trained) -> None:
    pages.open_runs()
    assert set(pages.list_run_names()) == set(trained.runs)
    pages.sort_by("final/return")
    best_first = sorted(trained.runs, key=lambda name: -trained.runs[name].evaluation.mean)
    assert pages.list_run_names() == best_first


def test_charts_draw_what_was_logged_over_updates(pages, trained) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(trained.store)
    pages.open_charts()
    chart = pages.read_charts()["eval/return"]
    assert chart["x"] == "Step"
    assert set(chart["points"]) == set(trained.runs)
    assert len(set(chart["colors"].values())) == len(trained.runs)
    for name, run in trained.runs.items():
        logged = client.get_metric_history(run.run_id, "eval/return")
        assert [[m.step, m.value] for m in logged] == chart["points"][name]
        assert logged[-1].step == 20  # updates


def test_a_figure_is_shown(pages, trained) -> None:
    run = trained.runs["logo-medium-replay-seed0"]
    pages.open_artifact(run.run_id, "figures/open_loop_state.png")
    width, height = pages.measure_picture()
    assert width > 600 and height > 300
    path = pages.page.get_by_text("Path:").first
    assert path.is_visible()
    pages.hide_path()
    assert not path.is_visible(), "the docs' pictures show no folder of this machine"


def test_the_video_of_the_final_policy_plays(pages, trained) -> None:
    run = trained.runs["bc-medium-replay-seed1"]
    pages.open_artifact(run.run_id, "videos/final_policy.mp4")
    played = pages.play_video(0.5)
    assert played["width"] > 200
    assert 0.5 <= played["time"] <= played["duration"]


def test_a_store_without_the_experiment_is_named(trained: SimpleNamespace, tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="no experiment 'elsewhere'"),
        open_pages(trained.store, "elsewhere"),
    ):
        pass
