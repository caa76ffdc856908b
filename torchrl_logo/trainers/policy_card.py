"""What a trained policy is, how it was made, and how well it did."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torchrl_logo.data.dataset import OfflineDataset
from torchrl_logo.data.metadata import record_versions
from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.evaluation import Evaluation

__all__ = ["PolicyCard"]

_DATASET = ("quality", "hash", "episodes", "transitions", "return_mean")
_RETURNS = ("episodes", "mean", "std", "low", "high", "normalized")


@dataclasses.dataclass(frozen=True)
class PolicyCard:
    """What is known of a trained policy; plain data, as JSON holds them.

    Attributes:
        spec: sizes, bounds and name of the task.
        method: name of the method, or the loss's class.
        updates: number of updates made.
        seed: of the training.
        dataset: of the data that it was trained from ``quality``, ``hash``, ``episodes``,
            ``transitions`` and ``return_mean``, the mean return of their episodes.
        hyperparameters: the training's.
        versions: of this package, PyTorch's libraries and the simulators.
        returns: of the final evaluation, if there was one: ``episodes``, ``mean``, ``std``,
            ``low`` and ``high`` (the ends of the mean's 95% interval over episodes, ``None`` for
            a single one), ``normalized`` (``None`` where the task has no reference returns).

    Examples:
        >>> from torchrl_logo.data import collect
        >>> from torchrl_logo.envs import make_env
        >>> dataset = collect(make_env("vmas/balance", num_envs=4), None, 400, seed=0)
        >>> card = PolicyCard.from_training(dataset, "bc", updates=10, seed=0, hyperparameters={})
        >>> card.task, card.dataset["episodes"], card.returns
        ('vmas/balance', 6, None)
        >>> PolicyCard.from_dict(card.to_dict()) == card
        True
    """

    spec: TaskSpec
    method: str
    updates: int
    seed: int
    dataset: dict[str, Any]
    hyperparameters: dict[str, Any]
    versions: dict[str, str]
    returns: dict[str, Any] | None = None

    @classmethod
    def from_training(
        cls,
        dataset: OfflineDataset,
        method: str,
        *,
        updates: int,
        seed: int,
        hyperparameters: Mapping[str, Any],
    ) -> PolicyCard:
        """The card of a training that has just ended.

        Args:
            dataset (OfflineDataset): that it learnt from.
            method (str): name of the method, or the loss's class.

        Keyword Args:
            updates (int): number of updates made.
            seed (int): of the training.
            hyperparameters (mapping): what is no number, text or list of them is kept as text.
        """
        metadata = dataset.metadata
        return cls(
            spec=metadata.spec,
            method=method,
            updates=updates,
            seed=seed,
            dataset={
                "quality": metadata.quality,
                "hash": metadata.hash,
                "episodes": metadata.episodes,
                "transitions": metadata.transitions,
                "return_mean": metadata.return_statistics["mean"],
            },
            hyperparameters=_make_plain(hyperparameters),
            versions=record_versions(),
        )

    @property
    def task(self) -> str | None:
        """Name of the task, if it has one."""
        return self.spec.task

    def with_returns(self, evaluation: Evaluation) -> PolicyCard:
        """The same card with the returns of an evaluation.

        Args:
            evaluation (Evaluation): what :func:`~torchrl_logo.evaluation.evaluate` found.
        """
        episodes = len(evaluation.returns)
        low, high = (None, None) if episodes < 2 else evaluation.interval
        returns = {
            "episodes": episodes,
            "mean": evaluation.mean,
            "std": float(evaluation.returns.std(correction=0)),
            "low": low,
            "high": high,
            "normalized": evaluation.normalized,
        }
        return dataclasses.replace(self, returns=returns)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as JSON holds it."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**fields, "spec": self.spec.to_dict()}

    @classmethod
    def from_dict(cls, data: Any) -> PolicyCard:
        """Inverse of :meth:`to_dict`.

        Raises:
            ValueError: if a field is missing or unknown, or holds something else than it should.
        """
        expected = {field.name: field for field in dataclasses.fields(cls)}
        if not isinstance(data, dict) or set(data) != set(expected):
            found = sorted(map(str, data)) if isinstance(data, dict) else repr(data)
            raise ValueError(f"A policy's card needs {sorted(expected)}, found {found}.")
        kinds = {"method": str, "updates": int, "seed": int, "hyperparameters": dict}
        for name, kind in kinds.items():
            if type(data[name]) is not kind:
                raise ValueError(
                    f"A policy's card: {name} must be of type {kind.__name__}, found "
                    f"{data[name]!r}."
                )
        for name, keys, optional in (("dataset", _DATASET, False), ("returns", _RETURNS, True)):
            found = data[name]
            if optional and found is None:
                continue
            if not isinstance(found, dict) or sorted(found) != sorted(keys):
                raise ValueError(f"A policy's card: {name} needs {sorted(keys)}, found {found!r}.")
            wrong = {k: v for k, v in found.items() if not isinstance(v, int | float | str | None)}
            if wrong:
                raise ValueError(f"A policy's card: {name} must hold numbers, found {wrong}.")
        versions = data["versions"]
        if not isinstance(versions, dict) or not all(
            isinstance(version, str) for version in versions.values()
        ):
            raise ValueError(f"A policy's card: versions must be texts, found {versions!r}.")
        return cls(**{**data, "spec": TaskSpec.from_dict(data["spec"])})

    def describe(self) -> dict[str, str]:
        """The lines of a summary: what each is about, and what it says."""
        data, spec = self.dataset, self.spec
        kind = "actions" if spec.discrete else "action components"
        return {
            "task": f"{self.task or 'unnamed'}: {spec.n_agents} agents, {spec.observation_size} "
            f"observation features, {spec.action_size} {kind}",
            "made by": f"{self.method}, {self.updates:,} updates, seed {self.seed}",
            "return": self._describe_returns(),
            "data": f"{data['quality'] or 'unknown'} quality, {data['transitions']:,} transitions "
            f"in {data['episodes']:,} episodes of mean return {data['return_mean']:.2f}, "
            f"hash {data['hash']}",
        }

    def _describe_returns(self) -> str:
        if self.returns is None:
            return "not evaluated"
        mean, low, high = (self.returns[name] for name in ("mean", "low", "high"))
        interval = "" if low is None else f" [{low:.2f}, {high:.2f}]"
        normalized = self.returns["normalized"]
        score = "" if normalized is None else f", normalised {normalized:.1f}"
        return f"{mean:.2f}{interval} over {self.returns['episodes']} episodes{score}"

    def to_markdown(self) -> str:
        """The card as a page."""
        lines = [f"# {self.method} on {self.task or 'an unnamed task'}", ""]
        lines += [f"- {name}: {text}" for name, text in self.describe().items()]
        for title, values in (
            ("Hyperparameters", self.hyperparameters),
            ("Versions", self.versions),
        ):
            lines += ["", f"## {title}", ""]
            lines += [f"- {name}: {value}" for name, value in values.items()]
        return "\n".join(lines) + "\n"


def _make_plain(value: Any) -> Any:
    """The same of dicts, lists, numbers and texts alone, with anything else as text."""
    if isinstance(value, Mapping):
        return {str(key): _make_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_make_plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)
