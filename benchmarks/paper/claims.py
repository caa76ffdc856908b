"""What the paper claims, and what this project set itself, held against the rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from benchmarks.paper.grid import METHODS, SUITES
from benchmarks.paper.scores import Scores
from torchrl_logo.evaluation import summarize

__all__ = ["CLAIMS", "GOALS", "Verdict"]

_REPRODUCED, _NOT_REPRODUCED = "reproduced", "not reproduced"
_NOT_TESTABLE, _NOT_YET_RUN = "not testable here", "not yet run"
_OWN = ("logo", "logo-mpc")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the rows say.

    Attributes:
        word: a claim is reproduced, not reproduced, not testable here or not yet run; a goal is
            met, missed or not yet run.
        evidence: the numbers, as a sentence.
    """

    word: str
    evidence: str


Judge = Callable[[Scores], Verdict]


def _rivals() -> list[str]:
    return [method for method in METHODS if method not in _OWN]


def _all_datasets(scores: Scores) -> list[str]:
    """Everything that was run with whole methods; ablations run on the same datasets."""
    return scores.datasets


def _of_quality(*qualities: str) -> Callable[[Scores], list[str]]:
    def select(scores: Scores) -> list[str]:
        return [d for d in scores.datasets if any(d.endswith(f"-{q}") for q in qualities)]

    return select


def _over_one(first: str, second: str, where: Callable[[Scores], list[str]]) -> Judge:
    """Whether one method is better than another: its interval must lie above one half."""

    def judge(scores: Scores) -> Verdict:
        found = scores.compare(first, second, where(scores))
        if found is None:
            return Verdict(_NOT_YET_RUN, f"{first} and {second} lack two seeds of one dataset")
        better = found.probability.low > 0.5
        note = "" if better or found.probability.high < 0.5 else "; undecided"
        return Verdict(
            _REPRODUCED if better else _NOT_REPRODUCED,
            f"P({first} > {second}) = {found.probability}, higher mean on {found.wins} of "
            f"{found.datasets} datasets, {found.seeds} seeds{note}",
        )

    return judge


def _no_worse(first: str, second: str, where: Callable[[Scores], list[str]]) -> Judge:
    """Whether one method is not behind another, by the point estimate."""

    def judge(scores: Scores) -> Verdict:
        strict = _over_one(first, second, where)(scores)
        found = scores.compare(first, second, where(scores))
        if found is None:
            return strict
        word = _REPRODUCED if found.probability.value >= 0.5 else _NOT_REPRODUCED
        return Verdict(word, f"{strict.evidence} (judged by the estimate: at least one half)")

    return judge


def _over_all(
    first: str, others: Callable[[], Iterable[str]], where: Callable[[Scores], list[str]]
) -> Judge:
    """Whether a method is better than each of the others."""

    def judge(scores: Scores) -> Verdict:
        found = {other: scores.compare(first, other, where(scores)) for other in others()}
        lacking = [other for other, comparison in found.items() if comparison is None]
        known = {other: c for other, c in found.items() if c is not None}
        if not known:
            return Verdict(_NOT_YET_RUN, f"nothing to compare {first} with")
        behind = [other for other, c in known.items() if c.probability.low <= 0.5]
        least = min(known, key=lambda other: known[other].probability.value)
        evidence = (
            f"above {len(known) - len(behind)} of {len(known)} (interval above one half); least "
            f"over {least}: {known[least].probability}"
        )
        if behind:
            return Verdict(_NOT_REPRODUCED, f"{evidence}; not above {', '.join(behind)}")
        if lacking:
            return Verdict(_NOT_YET_RUN, f"{evidence}; lacking: {', '.join(lacking)}")
        return Verdict(_REPRODUCED, evidence)

    return judge


def _variants(prefix: str, *but: str) -> Callable[[], list[str]]:
    from benchmarks.paper.variants import VARIANTS

    return lambda: [
        f"logo:{name}" for name in VARIANTS["logo"] if name.startswith(prefix) and name not in but
    ]


def _judge_starcraft(scores: Scores) -> Verdict:
    if any(row["task"].startswith("smac/") for row in scores.rows):
        return _over_all("logo", _rivals, lambda s: [
            d for d in s.datasets
            if any(r["dataset"] == d and r["task"].startswith("smac/") for r in s.rows)
        ])(scores)  # fmt: skip
    return Verdict(
        _NOT_TESTABLE, "needs StarCraft II and the authors' data; the same command runs them"
    )


def _judge_reward_error(scores: Scores) -> Verdict:
    return Verdict(
        _NOT_TESTABLE, "these rows hold policies; `benchmarks/world_models.py` measures models"
    )


CLAIMS: list[tuple[str, Judge]] = [
    (
        "LOGO is better than every baseline, over all data",
        _over_all("logo", _rivals, _all_datasets),
    ),
    (
        "LOGO is better on medium and medium-replay data",
        _over_all("logo", _rivals, _of_quality("medium", "medium-replay")),
    ),
    ("Planning helps: LOGO-MPC is better than LOGO", _over_one("logo-mpc", "logo", _all_datasets)),
    (
        "Synthetic data help: LOGO is better than model-free MACQL",
        _over_one("logo", "macql", _all_datasets),
    ),
    (
        "MACQL is better with LOGO's world model than with a joint one",
        _over_one("macql:logo-model", "macql:joint-model", _all_datasets),
    ),
    (
        "MACQL is better with LOGO's world model than with an ensemble",
        _over_one("macql:logo-model", "macql:ensemble-model", _all_datasets),
    ),
    (
        "Drawing by uncertainty is better than a penalty on rewards",
        _over_all("logo", _variants("reward-penalty"), _all_datasets),
    ),
    (
        "Drawing by uncertainty is better than drawing uniformly",
        _over_one("logo", "logo:uniform", _all_datasets),
    ),
    (
        "One direct encoder tells uncertainty as well as an ensemble, or better",
        _no_worse("logo", "logo:uncertainty-ensemble", _all_datasets),
    ),
    (
        "Rollouts of 15 steps are the best",
        _over_all("logo:horizon-15", _variants("horizon-", "horizon-15"), _all_datasets),
    ),
    ("LOGO's rewards are predicted better than a joint model's", _judge_reward_error),
    ("The same holds on SMAC itself", _judge_starcraft),
]


def _goal_of_expert(scores: Scores) -> Verdict:
    datasets = [d for d in SUITES["vmas"].datasets if d.endswith("-medium-replay")]
    block = scores.find_block(["logo"], datasets, leave_out=False)
    if block is None or set(block.datasets) != set(datasets):
        return Verdict(_NOT_YET_RUN, "LOGO lacks two seeds of a dataset")
    iqm = summarize(block.scores)["logo"].iqm
    return Verdict("met" if iqm.value >= 90 else "missed", f"IQM {iqm}, {block.seeds} seeds")


def _goal_of_first_place(scores: Scores) -> Verdict:
    names = [m for m in METHODS if m != "logo-mpc"]
    block = scores.find_block(names, SUITES["vmas"].datasets, leave_out=False)
    if block is None or set(block.datasets) != set(SUITES["vmas"].datasets):
        done = 0 if block is None else len(block.datasets)
        return Verdict(_NOT_YET_RUN, f"{done} of 16 datasets have two seeds of all methods")
    iqms = {name: found.iqm.value for name, found in summarize(block.scores).items()}
    least, rival = min(
        (comparison.probability.value, name)
        for name in _rivals()
        if (comparison := scores.compare("logo", name, SUITES["vmas"].datasets)) is not None
    )
    met = max(iqms, key=lambda name: iqms[name]) == "logo" and least >= 0.6
    best = max((n for n in iqms if n != "logo"), key=lambda name: iqms[name])
    return Verdict(
        "met" if met else "missed",
        f"IQM {iqms['logo']:.1f}, next best {best} with {iqms[best]:.1f}; least probability of "
        f"improvement {least:.2f}, over {rival}",
    )


def _goal_over_macql(scores: Scores) -> Verdict:
    found = scores.compare("logo", "macql", scores.datasets)
    if found is None:
        return Verdict(_NOT_YET_RUN, "no dataset has two seeds of both")
    share = found.wins / found.datasets
    return Verdict(
        "met" if share >= 0.75 else "missed",
        f"higher mean on {found.wins} of {found.datasets} datasets ({found.seeds} seeds each)",
    )


GOALS: list[tuple[str, Judge]] = [
    ("From medium-replay data LOGO's IQM over VMAS is at least 90% of expert", _goal_of_expert),
    (
        "LOGO's IQM over VMAS is the highest, with a probability of improvement of 0.6 over each",
        _goal_of_first_place,
    ),
    ("LOGO is above MACQL on three quarters of all datasets", _goal_over_macql),
]
