"""The report's statistics against hand-made numbers, and its page from made-up rows."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, trim_mean

from benchmarks.paper.claims import CLAIMS, GOALS
from benchmarks.paper.grid import METHODS, SUITES
from benchmarks.paper.page import write_report
from benchmarks.paper.ranks import mean_ranks
from benchmarks.paper.scores import Scores
from torchrl_logo.evaluation import probability_of_improvement, summarize


def make_row(dataset, name, seed, score, **values):
    method, _, variant = name.partition(":")
    return {
        "dataset": dataset,
        "method": method,
        "variant": variant,
        "seed": seed,
        "steps": 100,
        "world_model_steps": 50,
        "task": dataset.rpartition("-")[0],
        "return": score / 10,
        "normalized": score,
        "win_rate": None,
        "episodes": 100,
        "reference": {"random": 0.0, "expert": 10.0},
        "dataset_return": 4.0,
        "dataset_hash": "0123456789abcdef",
        "transitions": 1000,
        "tuned": method != "bc",
        "seconds": 60.0,
        "world_model_seconds": 30.0,
        "evaluation_seconds": 6.0,
        **values,
    }


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_vmas_rows(seeds=3):
    """LOGO is the best everywhere but on one dataset, where BC is."""
    rows = []
    for place, dataset in enumerate(SUITES["vmas"].datasets):
        for index, method in enumerate(METHODS):
            for seed in range(seeds):
                score = 95.0 - 5 * index - place + 0.1 * seed
                if dataset == "vmas/wheel-expert" and method == "bc":
                    score = 99.0 + 0.1 * seed
                rows.append(make_row(dataset, method, seed, score))
    return rows


def test_mean_ranks_by_hand():
    # means: a 10, 1, 4; b 5, 5, 4; c 0, 9, 9 -> ranks a 1, 3, 2.5; b 2, 2, 2.5; c 3, 1, 1
    a = [[9.0, 1.0, 3.0], [11.0, 1.0, 5.0]]
    b = [[5.0, 4.0, 4.0], [5.0, 6.0, 4.0]]
    c = [[0.0, 9.0, 9.0], [0.0, 9.0, 9.0]]
    ranks = mean_ranks({"a": a, "b": b, "c": c})
    assert ranks["a"].value == pytest.approx(6.5 / 3)
    assert ranks["b"].value == pytest.approx(6.5 / 3)
    assert ranks["c"].value == pytest.approx(5 / 3)
    # only the third dataset changes with the draw: a has 3, 4 or 5 there, b always 4
    assert (ranks["a"].low, ranks["a"].high) == pytest.approx((6 / 3, 7 / 3))
    assert ranks["c"].low == ranks["c"].high == pytest.approx(5 / 3)


def test_statistics_against_scipy():
    rng = np.random.default_rng(0)
    x, y = rng.normal(1, 1, (8, 3)), rng.normal(0, 1, (5, 3))
    assert summarize({"x": x})["x"].iqm.value == pytest.approx(trim_mean(x.ravel(), 0.25))
    wins = [mannwhitneyu(x[:, d], y[:, d]).statistic / 40 for d in range(3)]
    assert probability_of_improvement(x, y).value == pytest.approx(np.mean(wins))
    # the bootstrap's interval against one of independent draws, loop by loop
    samples = []
    for _ in range(3000):
        drawn = np.stack([rng.choice(x[:, d], 8) for d in range(3)], 1)
        samples.append(trim_mean(drawn.ravel(), 0.25))
    found = summarize({"x": x})["x"].iqm
    assert (found.low, found.high) == pytest.approx(np.quantile(samples, [0.025, 0.975]), abs=0.06)


def test_a_block_has_no_gaps_and_leaves_out_who_lacks_most():
    rows = [make_row(d, m, s, 1.0 * s) for d in "abcd" for m in ("x", "y") for s in range(3)]
    rows = [r for r in rows if (r["dataset"], r["method"], r["seed"]) != ("d", "y", 0)]
    rows += [make_row("a", "z", s, 9.0) for s in range(3)]
    scores = Scores(rows)
    block = scores.find_block(["x", "y", "z"], "abcd")
    assert (block.datasets, block.seeds, block.left_out) == (["a", "b", "c"], 3, ["z"])
    assert block.scores["x"].tolist() == [[0.0] * 3, [1.0] * 3, [2.0] * 3]
    # two seeds of four datasets are less than three of three, but more than three of two
    scores = Scores([r for r in rows if r["dataset"] != "c" or r["seed"] != 2])
    block = scores.find_block(["x", "y"], "abcd")
    assert (block.datasets, block.seeds) == (["a", "b", "c", "d"], 2)
    # the common seeds of d are the later two
    assert block.scores["x"][:, 3].tolist() == [1.0, 2.0]
    assert scores.find_block(["x", "z"], "bcd") is not None  # x alone
    assert scores.compare("x", "z", "bcd") is None
    assert scores.compare("z", "x", "abcd").wins == 1


def test_of_repeated_runs_the_newest_counts_and_of_budgets_the_commonest():
    rows = [make_row("a", "x", 0, 1.0), make_row("a", "x", 1, 2.0), make_row("a", "x", 0, 5.0)]
    rows += [make_row("a", "x", 0, 7.0, steps=7), make_row("a", "y", 0, 0.0, error="diverged")]
    scores = Scores(rows)
    assert scores.values("a", "x") == {0: 5.0, 1: 2.0}
    assert (scores.other_budgets, len(scores.failed)) == (1, 1)


def report(tmp_path, rows):
    table = tmp_path / "rows.jsonl"
    write_rows(table, rows)
    write_report(table, tmp_path / "results.md")
    summary = json.loads((tmp_path / "summary.json").read_text())
    return (tmp_path / "results.md").read_text(), summary


def test_the_page_of_an_empty_table_says_that_nothing_was_run(tmp_path):
    text, summary = report(tmp_path, [])
    assert "| vmas | 0 of 1040 |" in text
    words = {*summary["claims"].values(), *summary["goals"].values()}
    assert words == {"not yet run", "not testable here"}


def test_the_page_tells_sums_losses_gaps_and_verdicts(tmp_path):
    rows = make_vmas_rows()
    ablated = SUITES["ablations"].datasets
    rows += [make_row(d, "logo:uniform", s, 20.0 + s) for d in ablated for s in range(3)]
    rows += [make_row("smax/2s3z-medium", "logo", 0, 50.0, win_rate=0.25)]
    rows += [make_row("my own", "bc", 0, 5.0, normalized=None, reference=None)]
    rows += [make_row(ablated[0], "logo:horizon-1", 0, 0.0, error="RuntimeError: diverged")]
    text, summary = report(tmp_path, rows)
    suite = summary["vmas"]
    assert (len(suite["datasets"]), suite["seeds"]) == (16, 3)
    scores = [95.0 - place + 0.1 * seed for place in range(16) for seed in range(3)]
    assert suite["methods"]["logo"]["iqm"][0] == pytest.approx(trim_mean(scores, 0.25), abs=1e-4)
    # first on 15 datasets, second on one
    assert suite["methods"]["logo"]["mean_rank"][0] == pytest.approx(17 / 16)
    assert suite["methods"]["bc"]["logo_better"][0] == pytest.approx(15 / 16)
    assert text.count("**LOGO does not win here**") == 1
    assert "it is behind bc with 99.1 (3 seeds)" in text
    assert "With default settings, not searched for: bc." in text
    assert "| vmas | 624 of 1040 | none |" in text
    assert "Failed: logo:horizon-1 on vmas/balance-medium-replay, seed 0: RuntimeError" in text
    assert "### my own" in text and "### smax/2s3z-medium" in text
    assert "| logo | 50.0 | 5 | 25% | 50.0 |" in text
    assert summary["ablations"]["logo:uniform"]["probability"][0] == 0.0
    assert "logo:real-dynamics" in text.split("Not yet run: logo:no-synthetic")[1]
    claims = summary["claims"]
    assert claims["LOGO is better than every baseline, over all data"] == "reproduced"
    assert claims["Drawing by uncertainty is better than drawing uniformly"] == "reproduced"
    assert claims["Planning helps: LOGO-MPC is better than LOGO"] == "not reproduced"
    assert claims["Rollouts of 15 steps are the best"] == "not yet run"
    assert claims["The same holds on SMAC itself"] == "not testable here"
    assert set(claims) == {text for text, _ in CLAIMS}
    goals = [summary["goals"][text] for text, _ in GOALS]
    assert goals == ["met", "met", "met"]
    for name in ("vmas_iqm", "vmas_profiles", "vmas_improvement", "ablations"):
        assert (tmp_path / "results" / f"{name}.png").stat().st_size > 1000
        assert f"(results/{name}.png)" in text
    # nothing depends on when or where it is written
    again, _ = report(tmp_path, rows)
    assert again == text


def test_goals_are_missed_by_weaker_scores(tmp_path):
    rows = [
        {**r, "normalized": r["normalized"] - 60.0} if r["method"] == "logo" else r
        for r in make_vmas_rows(2)
    ]
    text, summary = report(tmp_path, rows)
    assert list(summary["goals"].values()) == ["missed", "missed", "missed"]
    assert summary["claims"]["LOGO is better than every baseline, over all data"] == (
        "not reproduced"
    )
    assert text.count("**LOGO does not win here**") == 16
