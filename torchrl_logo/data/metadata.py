"""What is recorded of a dataset beside its transitions."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from torchrl_logo.argument_checks import MissingKeyError
from torchrl_logo.data.reference_returns import ReferenceReturns
from torchrl_logo.data.task_spec import TaskSpec

__all__ = ["DatasetMetadata", "describe_values", "record_versions"]

_QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}

# Packages whose version decides what the data are; module name to distribution name.
_LIBRARIES = {"torch": "torch", "tensordict": "tensordict", "torchrl": "torchrl"}
_SIMULATORS = {
    "vmas": "vmas",
    "pettingzoo": "pettingzoo",
    "mpe2": "mpe2",
    "gymnasium_robotics": "gymnasium-robotics",
    "mujoco": "mujoco",
    "gymnasium": "gymnasium",
    "jaxmarl": "jaxmarl",
    "jax": "jax",
    "smac": "smac",
}
# TorchRL imports MuJoCo wherever it is installed: what uses it here tells.
_USERS = {"mujoco": "gymnasium_robotics"}


@dataclasses.dataclass(frozen=True)
class DatasetMetadata(Mapping[str, Any]):
    """What is recorded of a dataset: ``metadata.hash`` and ``metadata["hash"]`` are the same.

    Attributes:
        task: name of the task, if it has one.
        quality: how good the behaviour was, for instance ``"medium-replay"``.
        spec: sizes and bounds of the task.
        episodes: number of episodes.
        transitions: number of transitions.
        return_statistics: ``mean``, ``std``, ``min``, ``max`` and quantiles (``q05``, ``q25``,
            ``median``, ``q75``, ``q95``) of the episodes' undiscounted returns.
        length_statistics: the same of the episodes' lengths, in steps.
        reference_returns: the random and the expert policy's returns, where known.
        hash: sha256 of the transitions (see :func:`torchrl_logo.data.content_hash.hash_content`).
        provenance: where the data come from: versions, seed, policies and their shares, recipe.

    Examples:
        >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=1,
        ...                 action_low=(-1.0,), action_high=(1.0,))
        >>> statistics = describe_values(torch.tensor([1.0, 3.0]))
        >>> metadata = DatasetMetadata(
        ...     task=None, quality="random", spec=spec, episodes=2, transitions=10,
        ...     return_statistics=statistics, length_statistics=statistics,
        ...     reference_returns=None, hash="00", provenance={})
        >>> metadata["quality"], metadata.return_statistics["mean"]
        ('random', 2.0)
        >>> DatasetMetadata.from_dict(metadata.to_dict()) == metadata
        True
    """

    task: str | None
    quality: str | None
    spec: TaskSpec
    episodes: int
    transitions: int
    return_statistics: dict[str, float]
    length_statistics: dict[str, float]
    reference_returns: ReferenceReturns | None
    hash: str
    provenance: dict[str, Any]

    def __getitem__(self, key: str) -> Any:
        if key not in self.__dataclass_fields__:
            raise MissingKeyError(f"No metadata {key!r}; expected one of {list(self)}.")
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dataclass_fields__)

    def __len__(self) -> int:
        return len(self.__dataclass_fields__)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as JSON holds it."""
        data = dict(self)
        data["spec"] = self.spec.to_dict()
        if self.reference_returns is not None:
            data["reference_returns"] = dataclasses.asdict(self.reference_returns)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DatasetMetadata:
        """Inverse of :meth:`to_dict`.

        Raises:
            ValueError: if a field is missing or unknown, or holds something else than it should.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"Dataset metadata: expected fields, found {data!r}.")
        expected = set(cls.__dataclass_fields__)
        if set(data) != expected:
            raise ValueError(
                f"Dataset metadata: missing {sorted(expected - set(data))}, "
                f"unknown {sorted(set(data) - expected)}."
            )
        fields = dict(data)
        for name in ("task", "quality"):
            if not isinstance(fields[name], str | None):
                raise ValueError(f"metadata.{name} must be a string, found {fields[name]!r}.")
        for name in ("episodes", "transitions"):
            if type(fields[name]) is not int or fields[name] < 1:
                raise ValueError(f"metadata.{name} must be positive, found {fields[name]!r}.")
        for name in ("return_statistics", "length_statistics"):
            _require_statistics(name, fields[name])
        if not isinstance(fields["hash"], str) or not isinstance(fields["provenance"], dict):
            raise ValueError("metadata.hash must be a string and metadata.provenance an object.")
        fields["spec"] = TaskSpec.from_dict(data["spec"])
        if data["reference_returns"] is not None:
            reference = data["reference_returns"]
            names = {field.name for field in dataclasses.fields(ReferenceReturns)}
            if not isinstance(reference, Mapping) or set(reference) != names:
                raise ValueError(
                    f"metadata.reference_returns needs {sorted(names)}, found {reference!r}."
                )
            if not all(isinstance(value, float | int) for value in reference.values()):
                raise ValueError(f"metadata.reference_returns must be numbers, found {reference}.")
            fields["reference_returns"] = ReferenceReturns(**reference)
        return cls(**fields)


def _require_statistics(name: str, found: Any) -> None:
    expected = {"mean", "std", "min", "max", *_QUANTILES}
    if not isinstance(found, dict) or set(found) != expected:
        raise ValueError(f"metadata.{name} needs {sorted(expected)}, found {found!r}.")
    if not all(isinstance(value, float) and math.isfinite(value) for value in found.values()):
        raise ValueError(f"metadata.{name} must be finite numbers, found {found}.")


def describe_values(values: torch.Tensor) -> dict[str, float]:
    """Mean, population standard deviation, extremes and quantiles.

    Args:
        values (torch.Tensor): ``[E]``, one an episode.

    Examples:
        >>> describe_values(torch.tensor([0.0, 1.0, 2.0]))["median"]
        1.0
    """
    values = values.to(torch.float64)
    statistics = {
        "mean": values.mean(),
        "std": values.std(correction=0),
        "min": values.min(),
        "max": values.max(),
    }
    levels = values.new_tensor(list(_QUANTILES.values()))
    statistics |= dict(zip(_QUANTILES, values.quantile(levels), strict=True))
    return {name: float(value) for name, value in statistics.items()}


def record_versions() -> dict[str, str]:
    """Versions of this package, of PyTorch's libraries and of the simulators in use.

    A simulator counts as in use once it has been imported.
    """
    names = {"torchrl_logo": "torchrl-logo", **_LIBRARIES}
    names |= {
        module: name
        for module, name in _SIMULATORS.items()
        if _USERS.get(module, module) in sys.modules
    }
    versions = {}
    for module, name in names.items():
        try:
            versions[module] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[module] = "not installed"
    return versions
