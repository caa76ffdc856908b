"""What is to be run: scenarios, qualities, methods, variants, and their order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

__all__ = [
    "DISCRETE_METHODS",
    "METHODS",
    "QUALITIES",
    "SUITES",
    "Budget",
    "Cell",
    "Suite",
    "order_cells",
]


@dataclasses.dataclass(frozen=True)
class Budget:
    """Updates of a policy, and of a world model where a method has one. The same for all."""

    steps: int = 5000
    world_model_steps: int = 3000


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training: a row of the results.

    Attributes:
        dataset: a name that :func:`torchrl_logo.data.load_dataset` knows, or a reference as
            :func:`benchmarks.paper.datasets.parse_reference` reads it.
        method: one of :data:`METHODS`.
        variant: one of :data:`benchmarks.paper.variants.VARIANTS` of the method; empty for the
            method as it is.
        seed: of networks, batches and imagination.
        budget: updates.
    """

    dataset: str
    method: str
    variant: str
    seed: int
    budget: Budget

    @property
    def key(self) -> tuple[str, str, str, int, int, int]:
        """What tells a row from all others."""
        budget = self.budget
        return (
            self.dataset,
            self.method,
            self.variant,
            self.seed,
            budget.steps,
            budget.world_model_steps,
        )

    @property
    def name(self) -> str:
        """The method, and its variant if there is one."""
        return f"{self.method}:{self.variant}" if self.variant else self.method

    def __str__(self) -> str:
        return f"{self.dataset} {self.name} seed {self.seed}"


@dataclasses.dataclass(frozen=True)
class Suite:
    """Scenarios that results are summed up over.

    Attributes:
        tasks: the cheap ones first.
        qualities: of their data, those first of which the paper's claims speak.
        discrete: whether actions are discrete.
        seeds: how many runs are declared.
        ablations: whether it runs the variants in place of the methods.
    """

    tasks: tuple[str, ...]
    qualities: tuple[str, ...]
    discrete: bool = False
    seeds: int = 5
    ablations: bool = False

    @property
    def datasets(self) -> list[str]:
        """All datasets, quality by quality."""
        return [f"{task}-{quality}" for quality in self.qualities for task in self.tasks]


QUALITIES = ("medium-replay", "medium", "expert", "mixed")

_VMAS = ("vmas/balance", "vmas/wheel", "vmas/navigation", "vmas/transport")

SUITES: dict[str, Suite] = {
    "vmas": Suite(_VMAS, QUALITIES),
    "mamujoco": Suite(
        (
            "mamujoco/hopper_3x1",
            "mamujoco/halfcheetah_2x3",
            "mamujoco/halfcheetah_6x1",
            "mamujoco/ant_2x4",
        ),
        QUALITIES,
        seeds=3,
    ),
    "smax": Suite(
        ("smax/2s3z", "smax/3s_vs_5z", "smax/5m_vs_6m", "smax/6h_vs_8z"),
        QUALITIES,
        discrete=True,
        seeds=3,
    ),
    "ablations": Suite(_VMAS, ("medium-replay",), seeds=3, ablations=True),
}

# Methods that share a world model, or the policy of another one, stand apart, so that processes
# do not wait for each other.
METHODS = (
    "logo",
    "mopo",
    "macql",
    "bc",
    "cfcql",
    "omar",
    "maicq",
    "omiga",
    "mabcq",
    "matd3bc",
    "mamba",
    "combo",
    "logo-mpc",
)
# MATD3+BC and OMAR are for continuous actions; MOPO and COMBO are compositions around the
# continuous actor-critic.
DISCRETE_METHODS = tuple(m for m in METHODS if m not in ("omar", "matd3bc", "mopo", "combo"))


def order_cells(
    datasets: Sequence[str],
    named: Iterable[tuple[str, str]],
    seeds: Iterable[int],
    budget: Budget,
    *,
    discrete: Iterable[str] = (),
) -> list[Cell]:
    """All cells, seed by seed and dataset by dataset.

    Stopped anywhere, what is there is a fair comparison: no method has more than one run more
    than another, and it has it on a dataset that is in work.

    Args:
        datasets (sequence of str): in the order in which they are run.
        named (iterable of tuple): methods and variants.
        seeds (iterable of int): of the runs.
        budget (Budget): updates.

    Keyword Args:
        discrete (iterable of str): which datasets have discrete actions: methods that have no
            form for these are left out there.

    Examples:
        >>> cells = order_cells(["a", "b"], [("logo", ""), ("omar", "")], [0, 1], Budget(),
        ...                     discrete=["b"])
        >>> [str(cell) for cell in cells][:4]
        ['a logo seed 0', 'a omar seed 0', 'b logo seed 0', 'a logo seed 1']
    """
    named, discrete = list(named), set(discrete)
    return [
        Cell(dataset, method, variant, seed, budget)
        for seed in seeds
        for dataset in datasets
        for method, variant in named
        if dataset not in discrete or method in DISCRETE_METHODS
    ]
