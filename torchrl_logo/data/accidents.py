"""Finds what commonly goes wrong when offline data are recorded, converted or named."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from tensordict import NestedKey

from torchrl_logo.data.dataset import OfflineDataset
from torchrl_logo.data.task_spec import TaskSpec

__all__ = ["Accident", "find_accidents"]

_SHARE = 0.95
_SMOOTH = 0.15  # change of a step, beside the spread of all
_FEW = 20  # episodes below which a pattern may be chance


@dataclasses.dataclass(frozen=True)
class Accident:
    """Something that is probably wrong with a dataset.

    Attributes:
        kind: short name of the accident.
        key: the key at fault, or ``"dataset"``.
        found: what was found, in a sentence.
        advice: what to do about it.
    """

    kind: str
    key: str
    found: str
    advice: str

    def __str__(self) -> str:
        return f"{self.kind} ({self.key}): {self.found} {self.advice}"


def find_accidents(
    dataset: OfflineDataset,
    *,
    task: TaskSpec | None = None,
    others: Sequence[OfflineDataset] = (),
) -> list[Accident]:
    """Looks for accidents that the layout's own checks cannot refuse.

    - constant features: they carry nothing, and often come from padding or a broken reader;
    - time-outs stored as terminations: every terminated episode has the same, longest length;
    - next observations that cross episodes: an episode ends in the first state of the next one;
    - rewards that are returns: each episode has one reward in all of its rows, or rewards are
      the sums of later or of earlier ones;
    - dimensions that do not fit the environment (with ``task``);
    - two qualities with the same content (with ``others``): episodes that both have.

    What breaks the layout (infinities, unavailable actions, gaps between a row and its next) was
    refused when the dataset was made.

    Args:
        dataset (OfflineDataset): what is looked at.

    Keyword Args:
        task (TaskSpec, optional): the sizes of the environment that the data are said to be of.
        others (sequence of OfflineDataset): data of other qualities of the same task.

    Returns:
        A list of accidents, empty if none was found.

    Examples:
        >>> from torchrl_logo.data import collect
        >>> from torchrl_logo.envs import make_env
        >>> dataset = collect(make_env("vmas/balance", num_envs=4), None, 300, seed=0)
        >>> [accident.kind for accident in find_accidents(dataset, others=[dataset])]
        ['constant features', 'same content']
    """
    found = [
        *_constant_features(dataset),
        *_timeouts_as_terminals(dataset),
        *_crossing_episodes(dataset),
        *_rewards_as_returns(dataset),
    ]
    if task is not None:
        found += _other_dimensions(dataset, task)
    for other in others:
        found += _same_content(dataset, other)
    return found


def _constant_features(dataset: OfflineDataset) -> Iterator[Accident]:
    if len(dataset) < 2:
        return
    keys: list[NestedKey] = ["state", ("agents", "observation")]
    for key in keys:
        values = dataset.data.get(key)
        constant = values.amax(0) == values.amin(0)  # [d_s] or [N, d_o]
        if key != "state":
            # what pads a shorter observation is meant to be constant
            size = torch.tensor(dataset.spec.observation_sizes, device=values.device)
            feature = torch.arange(values.shape[-1], device=values.device)
            constant &= feature < size.unsqueeze(-1)
        if constant.any():
            places = constant.nonzero().tolist()
            shown = ", ".join(str(p[0] if len(p) == 1 else tuple(p)) for p in places[:8])
            name = "state" if key == "state" else "agents/observation"
            yield Accident(
                "constant features",
                name,
                f"{len(places)} of {constant.numel()} never change ({shown}"
                f"{', ...' if len(places) > 8 else ''}).",
                "World models learn nothing from them; check whether they are padding.",
            )


def _timeouts_as_terminals(dataset: OfflineDataset) -> Iterator[Accident]:
    last = dataset.episode_starts + dataset.episode_lengths - 1
    terminated = dataset.data.get(("next", "terminated"))[last].squeeze(-1)
    lengths = dataset.episode_lengths
    longest = lengths.max()
    if len(lengths) < _FEW or not terminated.any() or longest < 2:
        return
    at_longest = lengths[terminated] == longest
    if bool(at_longest.float().mean() >= _SHARE):
        yield Accident(
            "time-outs as terminations",
            "next/terminated",
            f"{int(at_longest.sum())} of {int(terminated.sum())} terminations are at step "
            f"{int(longest)}, the longest episode's last.",
            "If that is a time limit, mark these steps truncated: values bootstrap through them.",
        )


def _crossing_episodes(dataset: OfflineDataset) -> Iterator[Accident]:
    starts = dataset.episode_starts
    if len(starts) < 2:
        return
    last = starts[1:] - 1
    data = dataset.data
    ends, begins = data.get(("next", "state"))[last], data.get("state")[starts[1:]]
    same = (ends == begins).all(-1)
    constant = (begins == begins[0]).all()  # tasks that always start alike may end there too
    if bool(same.float().mean() >= 0.5) and not constant:
        yield Accident(
            "next observations cross episodes",
            "next/state",
            f"{int(same.sum())} of {len(last)} episodes end in the first state of the next one.",
            "The true last state is lost: leave these steps out, or record them anew.",
        )


def _rewards_as_returns(dataset: OfflineDataset) -> Iterator[Accident]:
    reward = dataset.data.get(("next", "reward")).squeeze(-1).double()
    lengths = dataset.episode_lengths
    if len(lengths) < 2 or lengths.max() < 3:
        return
    episode = torch.arange(len(lengths), device=reward.device).repeat_interleave(lengths)
    first = reward[dataset.episode_starts]
    flat = torch.ones(len(lengths), device=reward.device, dtype=torch.int64)
    flat = flat.scatter_reduce(0, episode, (reward == first[episode]).long(), "amin") == 1
    if bool(flat.all()) and len(first.unique()) > max(2, len(first) // 2):
        yield Accident(
            "rewards are returns",
            "next/reward",
            "Each episode has one reward in all of its rows, other episodes others.",
            "They look like the episodes' returns: the rewards of steps are needed.",
        )
        return
    # Sums of later rewards, or of earlier ones, change by the step's own reward, which is small
    # beside them, and are small themselves at one end of the episode.
    inside = episode[1:] == episode[:-1]
    change = (reward[1:] - reward[:-1])[inside]
    if not len(change) or reward.std() == 0:
        return
    last = dataset.episode_starts + lengths - 1
    begin, end = first.abs().mean(), reward[last].abs().mean()
    smooth = change.abs().mean() < _SMOOTH * reward.std()
    one_way = ((change >= 0).double().mean() - 0.5).abs() > 0.45
    if not bool(smooth & one_way):
        return
    for sums, where, small in (
        ("later", "fall smoothly to zero", end < 0.1 * begin),
        ("earlier", "rise or fall smoothly from zero", begin < 0.1 * end),
    ):
        if bool(small):
            yield Accident(
                "rewards are returns",
                "next/reward",
                f"Rewards {where} along each episode.",
                f"They look like sums of {sums} rewards: the rewards of steps are needed.",
            )


def _other_dimensions(dataset: OfflineDataset, task: TaskSpec) -> Iterator[Accident]:
    try:
        task.require_match(dataset.spec, "The dataset")
    except ValueError as error:
        yield Accident(
            "other dimensions",
            "dataset",
            str(error),
            "Data of another version of the simulator need that version for evaluation.",
        )


def _same_content(dataset: OfflineDataset, other: OfflineDataset) -> Iterator[Accident]:
    mine, theirs = _episode_keys(dataset), _episode_keys(other)
    if mine.shape[-1] != theirs.shape[-1]:
        return
    together = torch.cat([mine, theirs])
    _, index = together.unique(dim=0, return_inverse=True)
    shared = torch.isin(index[: len(mine)], index[len(mine) :])
    if shared.any():
        names = [str(d.metadata.quality or d.path or "unnamed") for d in (dataset, other)]
        yield Accident(
            "same content",
            "dataset",
            f"{int(shared.sum())} of {len(mine)} episodes of {names[0]!r} are in {names[1]!r} too.",
            "Mixtures share episodes with their parts; other qualities should not.",
        )


def _episode_keys(dataset: OfflineDataset) -> torch.Tensor:
    """What tells an episode from others: length, return, first and last state, ``[E, *]``."""
    data, starts = dataset.data, dataset.episode_starts
    last = starts + dataset.episode_lengths - 1
    columns = [
        dataset.episode_lengths.unsqueeze(-1).float(),
        dataset.returns.unsqueeze(-1),
        data.get("state")[starts],
        data.get(("next", "state"))[last],
    ]
    return torch.cat(columns, -1).cpu()
