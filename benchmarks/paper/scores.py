"""Scores of finished cells, arranged as statistics need them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from benchmarks.paper.rows import Row, latest_rows
from torchrl_logo.evaluation import Estimate, probability_of_improvement

__all__ = ["Block", "Comparison", "Scores"]

FloatArray = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Block:
    """Scores ``[seeds, datasets]`` of several methods on the same datasets and seeds.

    Attributes:
        scores: by method.
        datasets: the columns.
        seeds: number of rows.
        left_out: methods with too few runs to be compared.
    """

    scores: dict[str, FloatArray]
    datasets: list[str]
    seeds: int
    left_out: list[str]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One method against another on all datasets that both have run on.

    Attributes:
        probability: that a run of the first beats one of the second.
        wins: datasets on which the first has the higher mean.
        datasets: that were compared.
        seeds: of each.
    """

    probability: Estimate
    wins: int
    datasets: int
    seeds: int


class Scores:
    """Normalised scores of final policies: by dataset, method and seed.

    Runs without reference returns have no normalised score: they are in tables, not in sums.

    Args:
        rows (list of Row): of any budgets; of a repeated run the newest counts, and of several
            budgets the one that most rows have.
    """

    def __init__(self, rows: list[Row]) -> None:
        newest = list(latest_rows(rows).values())
        budgets = [(row["steps"], row["world_model_steps"]) for row in newest]
        self.budget = max(sorted(set(budgets)), key=budgets.count) if budgets else None
        chosen = [r for r in newest if (r["steps"], r["world_model_steps"]) == self.budget]
        self.other_budgets = len(newest) - len(chosen)
        self.failed = [row for row in chosen if "error" in row]
        self.rows = [row for row in chosen if "error" not in row]
        self._by_name: dict[tuple[str, str], dict[int, Row]] = {}
        for row in self.rows:
            name = f"{row['method']}:{row['variant']}" if row["variant"] else row["method"]
            self._by_name.setdefault((row["dataset"], name), {})[row["seed"]] = row

    @property
    def datasets(self) -> list[str]:
        """All datasets with a run, in the order of the rows."""
        return list(dict.fromkeys(dataset for dataset, _ in self._by_name))

    def names_on(self, dataset: str) -> list[str]:
        """Methods and variants with a run on a dataset."""
        return [name for other, name in self._by_name if other == dataset]

    def runs(self, dataset: str, name: str) -> dict[int, Row]:
        """The rows of a method on a dataset, by seed."""
        return dict(sorted(self._by_name.get((dataset, name), {}).items()))

    def values(self, dataset: str, name: str) -> dict[int, float]:
        """Normalised scores by seed."""
        return {
            seed: float(row["normalized"])
            for seed, row in self.runs(dataset, name).items()
            if row["normalized"] is not None
        }

    def find_block(
        self, names: Sequence[str], datasets: Iterable[str], *, leave_out: bool = True
    ) -> Block | None:
        """The largest table without gaps: all methods, the same seeds, on the same datasets.

        Methods on less than half of the datasets of the method with most of them would empty the
        table and are left out. Of the numbers of seeds, from two on, that one is taken which keeps
        most runs; a dataset with more seeds contributes its first ones.

        Args:
            names (sequence of str): methods and variants.
            datasets (iterable of str): to choose from.

        Keyword Args:
            leave_out (bool): whether methods may be left out. Defaults to ``True``.

        Returns:
            ``None`` if no dataset has two seeds of all methods.
        """
        datasets = list(datasets)
        covered = {
            name: sum(len(self.values(dataset, name)) >= 2 for dataset in datasets)
            for name in names
        }
        most = max(covered.values(), default=0)
        if not most:
            return None
        kept = list(names)
        if leave_out:
            kept = [name for name in names if covered[name] and 2 * covered[name] >= most]
        common = {
            dataset: sorted(set.intersection(*(set(self.values(dataset, n)) for n in kept)))
            for dataset in datasets
        }
        sizes = [len(seeds) for seeds in common.values() if len(seeds) >= 2]
        if not sizes:
            return None
        # of equally large tables, the one with more datasets
        seeds = max(sorted(set(sizes)), key=lambda n: n * sum(size >= n for size in sizes))
        columns = [dataset for dataset in datasets if len(common[dataset]) >= seeds]
        scores = {
            name: np.array(
                [[self.values(d, name)[s] for s in common[d][:seeds]] for d in columns]
            ).T
            for name in kept
        }
        return Block(scores, columns, seeds, [name for name in names if name not in kept])

    def compare(self, first: str, second: str, datasets: Iterable[str]) -> Comparison | None:
        """Compares two methods, if there is a dataset with two seeds of both."""
        block = self.find_block([first, second], datasets, leave_out=False)
        if block is None:
            return None
        a, b = block.scores[first], block.scores[second]
        return Comparison(
            probability_of_improvement(a, b),
            int((a.mean(0) > b.mean(0)).sum()),
            len(block.datasets),
            block.seeds,
        )
