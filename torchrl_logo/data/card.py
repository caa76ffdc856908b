"""Dataset cards: what a dataset is, in a page that people read before they use it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from torchrl_logo.data.accidents import Accident, find_accidents
from torchrl_logo.data.dataset import OfflineDataset

__all__ = ["ActionCoverage", "make_card", "measure_coverage"]

_BINS = 8


@dataclasses.dataclass(frozen=True)
class ActionCoverage:
    """How much of the action space a dataset covers.

    Each continuous action component is cut into eight equal bins between its bounds; a discrete
    action is a bin of its own.

    Attributes:
        per_agent: share of an agent's bins that hold at least one action, ``[N]``, of all action
            components one by one.
        joint: number of joint actions that the data are worth: two to the power of their entropy
            in bits, where an action component counts by which half of its range it lies in.
        joint_possible: number of such joint actions there are.
    """

    per_agent: tuple[float, ...]
    joint: float
    joint_possible: int


def measure_coverage(dataset: OfflineDataset) -> ActionCoverage:
    """Measures how much of the agents' and of the joint action space is covered.

    Args:
        dataset (OfflineDataset): with continuous actions of finite bounds, or discrete ones.

    Examples:
        >>> from torchrl_logo.data import collect
        >>> from torchrl_logo.envs import make_env
        >>> random = collect(make_env("vmas/balance", num_envs=8), None, 2000, seed=0)
        >>> coverage = measure_coverage(random)
        >>> coverage.per_agent, coverage.joint_possible  # 2 halves, 3 agents of 2 components
        ((1.0, 1.0, 1.0), 64)
        >>> 60 < coverage.joint <= 64
        True
    """
    spec = dataset.spec
    action = dataset.data.get(("agents", "action")).cpu()
    if spec.discrete:
        bins, halves = action.unsqueeze(-1), action  # [B, N, 1], [B, N]
        n_bins = base = spec.action_size
    else:
        low, high = torch.tensor(spec.action_low), torch.tensor(spec.action_high)
        share = ((action - low) / (high - low)).clamp(0, 1 - 1e-6)
        bins = (share * _BINS).long()  # [B, N, d_a]
        halves = (share >= 0.5).long().flatten(1)  # [B, N * d_a]
        n_bins, base = _BINS, 2
    hit = torch.zeros(*bins.shape[1:], n_bins, dtype=torch.bool)  # [N, d_a, bins]
    hit.scatter_(-1, bins.permute(1, 2, 0), True)
    counts = halves.unique(dim=0, return_counts=True)[1].double()
    shares = counts / counts.sum()
    entropy = -(shares * shares.log2()).sum()
    return ActionCoverage(
        per_agent=tuple(hit.float().flatten(1).mean(-1).tolist()),
        joint=float(2.0**entropy),
        joint_possible=base ** halves.shape[-1],
    )


def make_card(dataset: OfflineDataset, *, accidents: list[Accident] | None = None) -> str:
    """A dataset's card as Markdown.

    Args:
        dataset (OfflineDataset): what is described.

    Keyword Args:
        accidents (list of Accident, optional): what
            :func:`~torchrl_logo.data.find_accidents` found; by default it is called.

    Examples:
        >>> from torchrl_logo.data import collect
        >>> from torchrl_logo.envs import make_env
        >>> dataset = collect(make_env("vmas/balance", num_envs=8), None, 2000, seed=0)
        >>> print(make_card(dataset).splitlines()[0])
        # vmas/balance, unknown quality
    """
    metadata, spec = dataset.metadata, dataset.spec
    coverage = measure_coverage(dataset)
    if accidents is None:
        accidents = find_accidents(dataset)
    flags = dataset.data.select(("next", "terminated"), ("next", "truncated"))
    ends = dataset.episode_starts + dataset.episode_lengths - 1
    terminated = float(flags.get(("next", "terminated"))[ends].float().mean())
    kind = "available actions" if spec.discrete else "action components"
    lines = [
        f"# {metadata.task or 'Unnamed task'}, {metadata.quality or 'unknown'} quality",
        "",
        f"- {metadata.transitions:,} transitions in {metadata.episodes:,} episodes, "
        f"{terminated:.0%} of which terminate (the others are truncated)",
        f"- {spec.n_agents} agents, {spec.observation_size} observation features "
        f"(true sizes {', '.join(map(str, spec.observation_sizes))}), {spec.state_size} state "
        f"features, {spec.action_size} {kind}",
        f"- {_count_bytes(dataset) / 2**20:,.1f} MiB, content hash `{metadata.hash}`",
        "",
        "| | mean | std | min | 5% | median | 95% | max |",
        "|---|---|---|---|---|---|---|---|",
        _row("return", metadata.return_statistics),
        _row("length", metadata.length_statistics),
        "",
    ]
    reference = metadata.reference_returns
    if reference is not None:
        score = reference.normalize(metadata.return_statistics["mean"])
        lines += [
            f"Normalised: {score:.1f} (0 is the random policy's return, {reference.random:.4g}; "
            f"100 the expert's, {reference.expert:.4g}).",
            "",
        ]
    lines += [
        "Actions: "
        + ", ".join(f"agent {i} {share:.0%}" for i, share in enumerate(coverage.per_agent))
        + f" of the bins; joint actions worth {coverage.joint:,.1f} of "
        f"{coverage.joint_possible:,}.",
        "",
        "## Provenance",
        "",
        *_list(metadata.provenance),
        "",
        "## Checks",
        "",
        *([f"- {accident}" for accident in accidents] or ["No accident was found."]),
    ]
    return "\n".join(lines) + "\n"


def _row(name: str, statistics: Mapping[str, float]) -> str:
    columns = ("mean", "std", "min", "q05", "median", "q95", "max")
    return f"| {name} | " + " | ".join(f"{statistics[c]:.4g}" for c in columns) + " |"


def _list(record: Mapping[str, Any], indent: str = "") -> list[str]:
    lines = []
    for key, value in record.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}- {key}:", *_list(value, indent + "  ")]
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            entries = ["; ".join(f"{k} {_short(v)}" for k, v in item.items()) for item in value]
            lines += [f"{indent}- {key}:", *(f"{indent}  - {entry}" for entry in entries)]
        else:
            lines.append(f"{indent}- {key}: {_short(value)}")
    return lines


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _count_bytes(dataset: OfflineDataset) -> int:
    first = dataset[:1]
    row = sum(v.numel() * v.element_size() for v in first.values(True, True))
    return row * len(dataset)
