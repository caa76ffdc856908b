"""The paper's experiment: runs cells, searches for settings, and writes the results' page.

    python -m benchmarks.paper run --suite vmas --processes 2 --time-limit 60
    python -m benchmarks.paper run --datasets "5m=data/5m.h5?task=smac/5m_vs_6m" --seeds 0 1 2
    python -m benchmarks.paper tune continuous --processes 2
    python -m benchmarks.paper list --suite vmas
    python -m benchmarks.paper report

A cell is one training: a dataset, a method (or a variant of one) and a seed. Each is a row of
``benchmarks/results/paper/rows.jsonl``, written as soon as it is done; the same command goes on
where it stopped, and may run several times at once.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.paper.grid import METHODS, SUITES, Budget, order_cells

RESULTS = Path(__file__).resolve().parents[1] / "results" / "paper"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    running = argparse.ArgumentParser(add_help=False)
    running.add_argument("--processes", type=int, default=1, help="of one thread each")
    running.add_argument("--time-limit", type=float, metavar="MINUTES", help="begin none after")
    running.add_argument("--steps", type=int, default=Budget.steps, help="updates of a policy")
    running.add_argument("--world-model-steps", type=int, default=Budget.world_model_steps)
    running.add_argument("--episodes", type=int, default=64, help="of the final evaluation")
    running.add_argument("--folder", type=Path, default=Path("runs/paper"), help="for models")
    running.add_argument("--rows", type=Path, help="the table, instead of the committed one")
    running.add_argument("--no-mlflow", action="store_true")
    running.add_argument("--retry", action="store_true", help="run again what failed")
    selecting = argparse.ArgumentParser(add_help=False)
    selecting.add_argument("--suite", choices=list(SUITES), nargs="+", default=[])
    selecting.add_argument("--datasets", nargs="+", metavar="[LABEL=]NAME_OR_PATH[?OPTIONS]")
    selecting.add_argument("--methods", nargs="+", choices=METHODS)
    selecting.add_argument("--variants", nargs="+", metavar="METHOD:VARIANT")
    selecting.add_argument("--seeds", nargs="+", type=int)
    commands.add_parser("run", parents=[running, selecting], help="run cells of the grid")
    commands.add_parser("list", parents=[running, selecting], help="show what is to be run")
    tune = commands.add_parser("tune", parents=[running], help="search for methods' settings")
    tune.add_argument("kind", choices=["continuous", "discrete"])
    tune.add_argument("--dataset", help="to search on, which must not be a reported one")
    tune.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    tune.add_argument("--seed", type=int, default=1000)
    report = commands.add_parser("report", help="write figures, summary and page")
    report.add_argument("--rows", type=Path, default=RESULTS / "rows.jsonl")
    report.add_argument("--page", type=Path, help="instead of docs/results.md")
    return parser.parse_args(arguments)


def select_jobs(args: argparse.Namespace) -> list[tuple[Any, None]]:
    """The cells that the arguments name, suite by suite."""
    from benchmarks.paper.datasets import is_available, is_discrete
    from benchmarks.paper.variants import VARIANTS, named_variants

    budget = Budget(args.steps, args.world_model_steps)
    pairs: list[tuple[str, str]] | None = None
    if args.methods or args.variants:
        pairs = [(method, "") for method in args.methods or []]
        for text in args.variants or []:
            method, _, variant = text.partition(":")
            if variant not in VARIANTS.get(method, {}):
                known = [f"{m}:{v}" for m, names in VARIANTS.items() for v in names]
                raise SystemExit(f"No variant {text!r}; there are: {', '.join(known)}.")
            pairs.append((method, variant))
    jobs = []
    suites = args.suite or ([None] if args.datasets else list(SUITES))
    for name in suites:
        suite = None if name is None else SUITES[name]
        datasets = args.datasets or (suite.datasets if suite else [])
        missing = [text for text in datasets if not is_available(text)]
        if missing and args.datasets:
            raise SystemExit(f"There are no such datasets, and nothing at such a path: {missing}.")
        if missing:
            print(f"Not available here: {', '.join(missing)}.", file=sys.stderr)
        datasets = [text for text in datasets if text not in missing]
        own = named_variants() if suite and suite.ablations else [(m, "") for m in METHODS]
        jobs += order_cells(
            datasets,
            pairs or own,
            args.seeds or range(suite.seeds if suite else 5),
            budget,
            discrete=[text for text in datasets if is_discrete(text)],
        )
    # Cells that two suites share are run with the first.
    return [(cell, None) for cell in dict.fromkeys(jobs)]


def run(args: argparse.Namespace) -> None:
    from benchmarks.paper.cells import RunOptions
    from benchmarks.paper.workers import run_cells

    options = RunOptions(args.episodes, args.folder, not args.no_mlflow)
    run_cells(
        select_jobs(args),
        args.rows or RESULTS / "rows.jsonl",
        options,
        processes=args.processes,
        minutes=args.time_limit,
        retry=args.retry,
    )


def show(args: argparse.Namespace) -> None:
    from benchmarks.paper.workers import find_open_cells

    jobs = select_jobs(args)
    still = find_open_cells(jobs, args.rows or RESULTS / "rows.jsonl", retry=args.retry)
    for cell, _ in still:
        print(cell)
    print(f"{len(jobs) - len(still)} of {len(jobs)} cells are done.", file=sys.stderr)


def tune(args: argparse.Namespace) -> None:
    from benchmarks.paper.cells import RunOptions
    from benchmarks.paper.datasets import is_available
    from benchmarks.paper.tuning import HELD_APART, choose_settings, search_jobs
    from benchmarks.paper.workers import run_cells

    dataset = args.dataset or HELD_APART[args.kind]
    if dataset in [name for suite in SUITES.values() for name in suite.datasets]:
        raise SystemExit(f"{dataset!r} is reported on: settings must be found on other data.")
    if not is_available(dataset):
        raise SystemExit(f"{dataset!r} is not available here; name another one with --dataset.")
    rows = args.rows or RESULTS / "tuning.jsonl"
    budget = Budget(args.steps, args.world_model_steps)
    run_cells(
        search_jobs(args.kind, dataset, args.methods, args.seed, budget),
        rows,
        RunOptions(args.episodes, args.folder, not args.no_mlflow),
        processes=args.processes,
        minutes=args.time_limit,
        retry=args.retry,
    )
    chosen = choose_settings(args.kind, dataset, rows)
    print(f"Settings are chosen for {sorted(chosen)}.")


def main() -> None:
    args = parse_arguments()
    if args.command == "report":
        from benchmarks.paper.page import write_report

        write_report(args.rows, page=args.page)
        return
    {"run": run, "list": show, "tune": tune}[args.command](args)


if __name__ == "__main__":
    main()
