"""The search for each method's settings: as many of them for every method, on data held apart.

The continuous methods are searched on ``mpe/simple_spread-medium-replay``: a task of another
simulator, which no result is reported on. For discrete actions there is no such task with data
that ship: they are searched on transitions of SMAX 2s3z that were collected for it, of another
seed than the reported ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.paper.grid import DISCRETE_METHODS, METHODS, Budget, Cell
from benchmarks.paper.rows import latest_rows, read_rows
from benchmarks.paper.settings import BASE, CHOSEN, merge_settings

__all__ = ["HELD_APART", "SEARCH_SIZE", "SPACES", "choose_settings", "search_jobs"]

HELD_APART = {
    "continuous": "mpe/simple_spread-medium-replay",
    "discrete": "smax/2s3z-medium-replay?seed=1001",
}
# Settings of each method, one run each.
SEARCH_SIZE = 6


def _cross(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [merge_settings(a, b) for a in first for b in second]


def _losses(name: str, *values: float) -> list[dict[str, Any]]:
    return [{"loss_kwargs": {name: value}} for value in values]


def _with_centralized_critic(settings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same critic for every method that has a centralised one: the search is not about it."""
    return _cross([{"critic": "joint"}], settings)


_RATES = [{"lr": 2e-4}, {"lr": 5e-4}, {"lr": 1e-3}]
_SLOW, _FAST = {"lr": 5e-4, "tau": 0.005}, {"lr": 1e-3, "tau": 0.01}
# Every method is tried with slow and with fast learning, and the conservative ones with a weak and
# a strong penalty: LOGO gains from fast learning and a weak one, so rivals may.
_MILD, _STRONG = {"min_q_weight": 0.2}, {"min_q_weight": 1.0}
_CONSERVATIVE = _with_centralized_critic(
    [
        {"loss_kwargs": {**_STRONG, "bc_coeff": 0.25}},
        {**_FAST, "loss_kwargs": {**_MILD, "bc_coeff": 0.05}},
        {**_FAST, "loss_kwargs": {**_MILD, "bc_coeff": 0.25}},
        {**_FAST, "loss_kwargs": {**_STRONG, "bc_coeff": 0.25}},
        {**_FAST, "loss_kwargs": {**_STRONG, "bc_coeff": 0.5}},
        {**_FAST, "loss_kwargs": {**_STRONG, "bc_coeff": 1.0}},
    ]
)

SPACES: dict[str, dict[str, list[dict[str, Any]]]] = {
    "continuous": {
        "bc": _cross(_RATES, [{"hidden_sizes": [128, 128]}, {"hidden_sizes": [256, 256]}]),
        "macql": _CONSERVATIVE,
        "cfcql": _CONSERVATIVE,
        "mabcq": _with_centralized_critic(_cross(_RATES, _losses("phi", 0.05, 0.2))),
        "matd3bc": _with_centralized_critic(
            _cross([_FAST, {"lr": 5e-4}], _losses("alpha", 1.0, 2.5, 10.0))
        ),
        "omar": [
            merge_settings(BASE["omar"], learning, {"loss_kwargs": {**penalty, **rectification}})
            for learning, penalty, rectification in [
                ({}, _STRONG, {"rectification_coeff": 0.5}),
                (_FAST, _MILD, {"rectification_coeff": 0.5}),
                (_FAST, _MILD, {"rectification_coeff": 0.9}),
                (_FAST, _STRONG, {"rectification_coeff": 0.5}),
                (_FAST, _STRONG, {"rectification_coeff": 0.7}),
                (_FAST, _STRONG, {"rectification_coeff": 0.9}),
            ]
        ],
        "omiga": _cross([_FAST, {"lr": 5e-4}], _losses("alpha", 1.0, 5.0, 10.0)),
        "maicq": _cross(_RATES, _losses("actor_temperature", 0.1, 1.0)),
        "mopo": _with_centralized_critic(
            _cross(
                [{**_FAST, "horizon": 5}, {"horizon": 5}],
                [{"reward_penalty": penalty} for penalty in (0.5, 1.0, 2.5)],
            )
        ),
        "combo": _CONSERVATIVE,
        "mamba": _cross(
            [{"lr": 2e-4}, {"lr": 5e-4}],
            [{"behaviour_coeff": coefficient} for coefficient in (0.05, 0.1, 0.3)],
        ),
        "logo": _with_centralized_critic(
            [
                {**_SLOW, "loss_kwargs": {**_STRONG, "bc_coeff": 0.2}},
                {**_FAST, "loss_kwargs": {**_STRONG, "bc_coeff": 0.2}},
                {**_FAST, "loss_kwargs": {**_MILD, "bc_coeff": 0.05}},
                {
                    **_FAST,
                    "loss_kwargs": {"min_q_weight": 0.0, "bc_coeff": 0.0, "entropy_coeff": 0.01},
                },
                {**_FAST, "horizon": 5, "loss_kwargs": {**_STRONG, "bc_coeff": 0.2}},
                {**_FAST, "horizon": 5, "loss_kwargs": {**_MILD, "bc_coeff": 0.05}},
            ]
        ),
    },
    "discrete": {
        "bc": _cross(_RATES, [{"hidden_sizes": [128, 128]}, {"hidden_sizes": [256, 256]}]),
        "macql": _cross(_RATES, _losses("min_q_weight", 0.5, 2.0)),
        "cfcql": _cross(_RATES, _losses("min_q_weight", 0.5, 2.0)),
        "mabcq": _cross(_RATES, _losses("threshold", 0.2, 0.4)),
        "omiga": _cross([{"lr": 2e-4}, {"lr": 5e-4}], _losses("alpha", 1.0, 5.0, 10.0)),
        "maicq": _cross(_RATES, _losses("actor_temperature", 0.1, 1.0)),
        "mamba": _cross(
            [{"lr": 2e-4}, {"lr": 5e-4}],
            [{"behaviour_coeff": coefficient} for coefficient in (0.05, 0.1, 0.3)],
        ),
        "logo": _cross(
            [_SLOW, {**_SLOW, "horizon": 5}, {**_FAST, "horizon": 5}],
            _losses("min_q_weight", 0.5, 2.0),
        ),
    },
}


def search_jobs(
    kind: str, dataset: str, methods: list[str], seed: int, budget: Budget
) -> list[tuple[Cell, dict[str, Any]]]:
    """The search's runs: the first setting of every method, then the second, and so on.

    Args:
        kind (str): ``"continuous"`` or ``"discrete"``.
        dataset (str): what to search on.
        methods (list of str): whose settings to search for.
        seed (int): of all runs.
        budget (Budget): of a run, the same as in the grid.
    """
    spaces = SPACES[kind]
    return [
        (Cell(dataset, method, f"setting-{index}", seed, budget), spaces[method][index])
        for index in range(SEARCH_SIZE)
        for method in methods
        if method in spaces
    ]


def choose_settings(kind: str, dataset: str, rows: Path, path: Path = CHOSEN) -> dict[str, Any]:
    """Writes the best setting of each method that has been searched whole, and returns them.

    Args:
        kind (str): ``"continuous"`` or ``"discrete"``.
        dataset (str): that was searched on.
        rows (Path): the search's rows.
        path (Path): where choices are written; other choices in it are kept.
    """
    chosen = json.loads(path.read_text()) if path.exists() else {}
    found = chosen.setdefault(kind, {})
    runs = [row for row in latest_rows(read_rows(rows)).values() if row["dataset"] == dataset]
    for method in METHODS if kind == "continuous" else DISCRETE_METHODS:
        # A setting that failed has been tried, too.
        tried = {row["variant"]: row for row in runs if row["method"] == method}
        scored = {name: row for name, row in tried.items() if "error" not in row}
        if len(tried) < SEARCH_SIZE or not scored:
            continue
        name = max(sorted(scored), key=lambda name: scored[name]["return"])
        best = scored[name]
        found[method] = {
            "settings": best["settings"],
            "dataset": dataset,
            "dataset_hash": best["dataset_hash"],
            "steps": best["steps"],
            "world_model_steps": best["world_model_steps"],
            "seed": best["seed"],
            "returns": {name: row.get("return") for name, row in sorted(tried.items())},
        }
    path.write_text(json.dumps(chosen, indent=2, sort_keys=True) + "\n")
    return found
