"""Datasets by name or path, with options, written as one word."""

from __future__ import annotations

import dataclasses
import json
import urllib.parse
from pathlib import Path
from typing import Any

from torchrl_logo.data import OfflineDataset, available_datasets, load_dataset

__all__ = ["Reference", "is_available", "is_discrete", "open_dataset", "parse_reference"]


@dataclasses.dataclass(frozen=True)
class Reference:
    """Where a dataset is.

    Attributes:
        label: what it is called in results.
        source: what :func:`torchrl_logo.data.load_dataset` takes.
        options: its keyword arguments.
    """

    label: str
    source: str
    options: dict[str, Any]


def parse_reference(text: str) -> Reference:
    """Reads ``[label=]source[?option=value&...]``; values are JSON, or else plain text.

    Examples:
        >>> parse_reference("vmas/balance-medium").label
        'vmas/balance-medium'
        >>> parse_reference("5m=data/5m.h5?task=smac/5m_vs_6m&quality=good")
        Reference(label='5m', source='data/5m.h5', options={'task': 'smac/5m_vs_6m', 'quality': 'good'})
    """  # noqa: E501
    address, _, query = text.partition("?")
    label, equals, source = address.partition("=")
    options: dict[str, Any] = {}
    for name, value in urllib.parse.parse_qsl(query, strict_parsing=bool(query)):
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return Reference(label if equals else text, source if equals else address, options)


def open_dataset(text: str) -> OfflineDataset:
    """Loads a dataset, collecting or converting it on first use.

    Raises:
        ValueError: if there is no such dataset, or it does not say which task it is of.
    """
    reference = parse_reference(text)
    dataset = load_dataset(reference.source, **reference.options)
    if dataset.spec.task is None:
        raise ValueError(
            f"The dataset {reference.label!r} does not say where policies are to be evaluated: "
            "add ?task=<simulator>/<scenario>."
        )
    return dataset


def is_available(text: str) -> bool:
    """Whether a dataset can be made or found here; nothing is loaded."""
    source = parse_reference(text).source
    return source in available_datasets() or Path(source).exists()


def is_discrete(text: str) -> bool:
    """Whether a dataset's actions are discrete; loads it unless it is a named one."""
    from torchrl_logo.data.behaviour_policies import behaviour_tasks, read_recipe

    source = parse_reference(text).source
    for task in behaviour_tasks():
        if source.startswith(f"{task}-"):
            return bool(read_recipe(task)["spec"].get("discrete", False))
    return open_dataset(text).spec.discrete
