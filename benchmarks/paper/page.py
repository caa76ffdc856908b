"""The results' page, its figures and its summary, from the table alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paper.claims import CLAIMS, GOALS
from benchmarks.paper.figures import draw_estimates, draw_profiles, save_figure
from benchmarks.paper.grid import DISCRETE_METHODS, METHODS, SUITES, Suite
from benchmarks.paper.ranks import mean_ranks
from benchmarks.paper.rows import read_rows
from benchmarks.paper.scores import Block, Scores
from benchmarks.paper.variants import named_variants
from torchrl_logo.evaluation import Estimate, probability_of_improvement, summarize

__all__ = ["write_page", "write_report"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "results.md"

_HEAD = """# Results

<!-- Written by `make report` from benchmarks/results/paper/rows.jsonl. Do not edit. -->

The paper's experiment, as far as it was run here: final policies (never the best checkpoint),
normalised so that the uniformly random policy has 0 and the expert whose data are used 100.
Every number on this page is computed from
`benchmarks/results/paper/rows.jsonl`, which has a row for each training; `benchmarks/README.md`
says how to run it.
"""


def write_report(rows: Path, page: Path | None = None) -> None:
    """Writes the page, the figures beside it and ``summary.json`` beside the rows.

    Args:
        rows (Path): the table.
        page (Path, optional): Defaults to ``docs/results.md``.
    """
    page = page or PAGE
    scores = Scores(read_rows(rows))
    text, summary = write_page(scores, page.with_suffix(""))
    page.write_text(text)
    rows.parent.mkdir(parents=True, exist_ok=True)
    (rows.parent / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(f"Wrote {page.name} from {len(scores.rows)} rows.")


def write_page(scores: Scores, figures: Path) -> tuple[str, dict[str, Any]]:
    """The page's text, and its numbers as plain data.

    Args:
        scores (Scores): the finished cells.
        figures (Path): folder of the figures, which lies beside the page.
    """
    summary: dict[str, Any] = {}
    parts = [_HEAD, _describe_state(scores)]
    for name, suite in SUITES.items():
        if not suite.ablations:
            parts.append(_describe_suite(name, suite, scores, figures, summary))
    parts.append(_describe_other_datasets(scores))
    parts.append(_describe_ablations(scores, figures, summary))
    parts.append(_describe_verdicts(scores, summary))
    parts.append(_describe_costs(scores))
    text = "\n".join(part for part in parts if part)
    return re.sub("\n{3,}", "\n\n", text).rstrip() + "\n", summary


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _declared(suite: Suite) -> list[str]:
    if suite.ablations:
        return [f"{m}:{v}" if v else m for m, v in named_variants()]
    return list(DISCRETE_METHODS if suite.discrete else METHODS)


def _describe_state(scores: Scores) -> str:
    """What is done of what is declared."""
    lines = ["\n## What was run\n"]
    if scores.budget is not None:
        steps, model_steps = scores.budget
        episodes = sorted({row["episodes"] for row in scores.rows})
        lines.append(
            f"{len(scores.rows)} trainings of {steps} policy updates, with {model_steps} updates "
            f"of a world model where a method has one; {' or '.join(map(str, episodes))} episodes "
            f"an evaluation.\n"
        )
    if scores.other_budgets:
        lines.append(f"{scores.other_budgets} rows of other budgets are left out.\n")
    untuned = sorted({row["method"] for row in scores.rows if not row["tuned"]})
    if untuned:
        lines.append(f"With default settings, not searched for: {', '.join(untuned)}.\n")
    counts = []
    for name, suite in SUITES.items():
        wanted = len(suite.datasets) * len(_declared(suite)) * suite.seeds
        done = sum(
            min(len(scores.runs(dataset, method)), suite.seeds)
            for dataset in suite.datasets
            for method in _declared(suite)
        )
        absent = [d for d in suite.datasets if not any(scores.runs(d, m) for m in _declared(suite))]
        absent_text = ", ".join(absent) or "none"
        if len(absent) == len(suite.datasets):
            absent_text = f"all {len(absent)}"
        counts.append([name, f"{done} of {wanted}", absent_text])
    lines.append(_table(["suite", "cells done", "datasets without any run"], counts))
    for row in scores.failed:
        variant = f":{row['variant']}" if row["variant"] else ""
        lines.append(
            f"- Failed: {row['method']}{variant} on {row['dataset']}, seed {row['seed']}: "
            f"{row['error']}"
        )
    if scores.failed:
        lines.append("")
    return "\n".join(lines)


def _describe_suite(
    name: str, suite: Suite, scores: Scores, figures: Path, summary: dict[str, Any]
) -> str:
    lines = [f"\n## {name}\n"]
    present = [d for d in suite.datasets if scores.names_on(d)]
    if not present:
        return "\n".join([*lines, "Not yet run.\n"])
    block = scores.find_block(_declared(suite), present)
    if block is None:
        lines.append("No dataset has two seeds of two methods yet: there is nothing to sum up.\n")
    else:
        lines.append(_describe_block(name, block, figures, summary))
    for dataset in present:
        lines.append(_describe_dataset(dataset, _declared(suite), scores))
    return "\n".join(lines)


def _describe_block(name: str, block: Block, figures: Path, summary: dict[str, Any]) -> str:
    """Statistics over all datasets of a suite."""
    found, ranks = summarize(block.scores), mean_ranks(block.scores)
    better = {
        rival: probability_of_improvement(block.scores["logo"], scores)
        for rival, scores in block.scores.items()
        if rival != "logo" and "logo" in block.scores
    }
    order = sorted(found, key=lambda method: -found[method].iqm.value)
    text = (
        f"Over {len(block.datasets)} datasets with {block.seeds} seeds of each method "
        f"({', '.join(block.datasets)}): interquartile mean (IQM), mean, mean rank, and the "
        "probability that a run of LOGO is better, each with its 95% interval of a stratified "
        "bootstrap.\n\n"
    )
    if block.left_out:
        text += f"With too few runs to be compared: {', '.join(block.left_out)}.\n\n"
    text += _table(
        ["method", "IQM", "mean", "mean rank", "P(LOGO better)"],
        [
            [
                method,
                _show(found[method].iqm),
                _show(found[method].mean),
                _show(ranks[method], 2),
                _show(better[method], 2) if method in better else "",
            ]
            for method in order
        ],
    )
    save_figure(
        draw_estimates({m: found[m].iqm for m in order}, label="IQM of normalised scores"),
        figures / f"{name}_iqm.png",
    )
    save_figure(draw_profiles(block), figures / f"{name}_profiles.png")
    text += (
        f"\n![Interquartile means with their intervals]({figures.name}/{name}_iqm.png)\n"
        f"\n![Share of runs above each score]({figures.name}/{name}_profiles.png)\n"
    )
    if better:
        figure = draw_estimates(better, label="probability that LOGO is better", reference=0.5)
        save_figure(figure, figures / f"{name}_improvement.png")
        text += f"\n![Probability of improvement]({figures.name}/{name}_improvement.png)\n"
    summary[name] = {
        "datasets": block.datasets,
        "seeds": block.seeds,
        "methods": {
            method: {
                "iqm": _plain(found[method].iqm),
                "mean": _plain(found[method].mean),
                "mean_rank": _plain(ranks[method]),
                "logo_better": _plain(better[method]) if method in better else None,
            }
            for method in order
        },
    }
    return text


def _describe_dataset(dataset: str, names: list[str], scores: Scores) -> str:
    """All seeds of a dataset, and a sentence if LOGO is not the best."""
    rows = []
    wins_told = any(
        row.get("win_rate") is not None for n in names for row in scores.runs(dataset, n).values()
    )
    means = {}
    for name in names:
        runs = scores.runs(dataset, name)
        if not runs:
            continue
        raw = np.mean([row["return"] for row in runs.values()])
        values = scores.values(dataset, name)
        line = [name, f"{np.mean(list(values.values())):.1f}" if values else "", f"{raw:.4g}"]
        if wins_told:
            won = [row["win_rate"] for row in runs.values() if row["win_rate"] is not None]
            line.append(f"{100 * np.mean(won):.0f}%" if won else "")
        line.append(
            " ".join(f"{value:.1f}" for value in values.values())
            if values
            else " ".join(f"{row['return']:.4g}" for row in runs.values())
        )
        means[name] = float(np.mean(list(values.values()))) if values else float(raw)
        rows.append((means[name], line))
    rows.sort(key=lambda entry: -entry[0])
    first = next(row for name in names for row in scores.runs(dataset, name).values())
    reference = first["reference"]
    score = ""
    if reference is not None:
        gap = reference["expert"] - reference["random"]
        mean = 100 * (first["dataset_return"] - reference["random"]) / gap
        score = f", whose episodes score {mean:.1f}"
    head = ["method", "score", "return", *(["won"] if wins_told else []), "seeds"]
    text = (
        f"### {dataset}\n\n{first['transitions']:,} transitions{score} (hash "
        f"`{first['dataset_hash'][:12]}`).\n\n" + _table(head, [line for _, line in rows])
    )
    sentence = _tell_loss(dataset, means, scores)
    absent = [name for name in names if name not in means]
    if absent:
        sentence += f"\nNot yet run: {', '.join(absent)}.\n"
    return text + sentence


def _tell_loss(dataset: str, means: dict[str, float], scores: Scores) -> str:
    """A sentence for a dataset that LOGO does not win; planning with LOGO is no rival."""
    rivals = {name: value for name, value in means.items() if name not in ("logo", "logo-mpc")}
    if "logo" not in means or not rivals:
        return ""
    best = max(rivals, key=lambda name: rivals[name])
    if means["logo"] > rivals[best]:
        return ""
    ahead = sum(value >= means["logo"] for value in rivals.values())
    runs = [len(scores.runs(dataset, name)) for name in ("logo", best)]
    found = scores.compare("logo", best, [dataset])
    chance = (
        "" if found is None else f"; a run of LOGO is better with probability {found.probability}"
    )
    return (
        f"\n**LOGO does not win here**: with {means['logo']:.1f} ({runs[0]} seeds) it is behind "
        f"{best} with {rivals[best]:.1f} ({runs[1]} seeds){chance}. {ahead} of {len(rivals)} "
        "rivals are at or above it.\n"
    )


def _describe_other_datasets(scores: Scores) -> str:
    known = {dataset for suite in SUITES.values() for dataset in suite.datasets}
    others = [dataset for dataset in scores.datasets if dataset not in known]
    if not others:
        return ""
    tables = [_describe_dataset(d, scores.names_on(d), scores) for d in others]
    return "\n".join(["\n## Other datasets\n", *tables])


def _describe_ablations(scores: Scores, figures: Path, summary: dict[str, Any]) -> str:
    """Each variant beside the method that it changes, on the same datasets and seeds."""
    suite = SUITES["ablations"]
    pairs = [("logo", "logo-mpc"), ("macql", "logo")]
    pairs += [(method, f"{method}:{name}") for method, name in named_variants() if name]
    rows, drawn, told = [], {}, {}
    absent = []
    for method, variant in pairs:
        block = scores.find_block([method, variant], suite.datasets, leave_out=False)
        if block is None:
            absent.append(variant)
            continue
        found = summarize(block.scores)
        chance = probability_of_improvement(block.scores[variant], block.scores[method])
        drawn[variant] = chance
        told[variant] = {
            "over": method,
            "iqm": _plain(found[variant].iqm),
            "iqm_without": _plain(found[method].iqm),
            "probability": _plain(chance),
            "datasets": block.datasets,
            "seeds": block.seeds,
        }
        rows.append(
            [
                variant,
                _show(found[variant].iqm),
                f"{method}: {_show(found[method].iqm)}",
                _show(chance, 2),
                f"{len(block.datasets)} × {block.seeds}",
            ]
        )
    lines = ["\n## Ablations\n"]
    if rows:
        summary["ablations"] = told
        lines.append(
            "Each variant beside what it is a variant of, on the datasets and seeds that both "
            "have (`real-dynamics` imagines in the simulator itself: what a perfect world model "
            "would give).\n"
        )
        head = ["variant", "IQM", "compared with", "P(variant better)", "datasets × seeds"]
        lines.append(_table(head, rows))
        figure = draw_estimates(drawn, label="probability that the variant is better",
                                reference=0.5)  # fmt: skip
        save_figure(figure, figures / "ablations.png")
        lines.append(f"![Ablations]({figures.name}/ablations.png)\n")
    if absent:
        lines.append(f"Not yet run: {', '.join(absent)}.\n")
    return "\n".join(lines)


def _describe_verdicts(scores: Scores, summary: dict[str, Any]) -> str:
    lines = ["\n## The paper's claims\n"]
    lines.append(
        "Reproduced means that the whole 95% interval of the probability of improvement lies above "
        "one half. An interval that holds one half counts as not reproduced, and is marked "
        "undecided.\n"
    )
    for title, entries in (("claim", CLAIMS), ("goal", GOALS)):
        verdicts = [(text, judge(scores)) for text, judge in entries]
        if title == "goal":
            lines.append("## The project's own goals\n")
        lines.append(
            _table(
                [title, "verdict", "evidence"],
                [[text, verdict.word, verdict.evidence] for text, verdict in verdicts],
            )
        )
        summary[f"{title}s"] = {text: verdict.word for text, verdict in verdicts}
    return "\n".join(lines)


def _describe_costs(scores: Scores) -> str:
    """Minutes of a run, the world model's training among them."""
    names = list(dict.fromkeys(row["method"] for row in scores.rows if not row["variant"]))
    if not names:
        return ""
    rows = []
    for name in [method for method in METHODS if method in names]:
        runs = [row for row in scores.rows if row["method"] == name and not row["variant"]]
        minutes = [
            np.median([row[part] for row in runs]) / 60
            for part in ("world_model_seconds", "seconds", "evaluation_seconds")
        ]
        rows.append([name, *(f"{value:.1f}" for value in minutes), f"{sum(minutes):.1f}"])
    return (
        "\n## Cost\n\nMedian minutes of a run on one thread of the machine that ran it. A world "
        "model is trained once for a dataset and seed and shared; its time is counted in full for "
        "each method that uses it. MAMBA's is part of its training. Evaluation of LOGO-MPC is "
        "planning.\n\n"
        + _table(["method", "world model", "policy", "evaluation", "together"], rows)
    )


def _show(found: Estimate, digits: int = 1) -> str:
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def _plain(found: Estimate) -> list[float]:
    return [round(value, 4) for value in (found.value, found.low, found.high)]
