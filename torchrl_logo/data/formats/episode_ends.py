"""Episodes of formats that do not hold the observations an episode ends with."""

from __future__ import annotations

import dataclasses

import numpy as np

__all__ = ["END_CHOICES", "EpisodePlan", "plan_episodes"]

#: What becomes of an episode's last row, whose next observation the files do not have.
END_CHOICES = ("keep", "drop")


@dataclasses.dataclass(frozen=True)
class EpisodePlan:
    """Which rows make up the episodes.

    Attributes:
        first: first row of each episode, ``[E]``.
        lengths: transitions of each episode, ``[E]``.
        own_end: whether the episode keeps a last transition whose next observations are made up
            of its own ones, ``[E]``. It is terminated, so that nothing is bootstrapped from them.
        left_out: rows that begin no transition.
    """

    first: np.ndarray
    lengths: np.ndarray
    own_end: np.ndarray
    left_out: int

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of transitions of these episodes, the rows after them, and which are the last.

        Returns:
            ``[B]`` each: row of the observations and actions, row of the next observations, and
            whether the transition ends its episode.
        """
        first, lengths = self.first[start:stop], self.lengths[start:stop]
        ends = lengths.cumsum()
        step = np.arange(int(lengths.sum())) - (ends - lengths).repeat(lengths)
        row = first.repeat(lengths) + step
        last = step == lengths.repeat(lengths) - 1
        own = last & self.own_end[start:stop].repeat(lengths)
        return row, np.where(own, row, row + 1), last


def plan_episodes(terminated: np.ndarray, truncated: np.ndarray, ends: str) -> EpisodePlan:
    """Finds the episodes of rows whose next observations are the following rows'.

    Where an episode's last row is terminated, ``"keep"`` makes a transition of it whose next
    observations are its own: its reward and its termination are in the data, and nothing
    bootstraps from what follows. ``"drop"`` leaves it out. In all other cases (and where the rows
    stop without an end) the last row only serves as what the transition before it leads to, and
    that transition is truncated.

    Args:
        terminated (np.ndarray): whether the step that begins in a row terminates, ``[R]`` bool.
        truncated (np.ndarray): whether it truncates, ``[R]`` bool.
        ends (str): ``"keep"`` or ``"drop"``.

    Raises:
        ValueError: if there is no such choice.

    Examples:
        >>> terminated = np.array([False, False, True, False, False])
        >>> truncated = np.array([False, False, False, False, True])
        >>> plan_episodes(terminated, truncated, "keep").lengths
        array([3, 1])
        >>> plan_episodes(terminated, truncated, "drop").lengths
        array([2, 1])
    """
    if ends not in END_CHOICES:
        raise ValueError(f"ends must be one of {END_CHOICES}, found {ends!r}.")
    rows = len(terminated)
    stops = np.flatnonzero(terminated | truncated) + 1
    if rows and (not len(stops) or stops[-1] != rows):
        stops = np.append(stops, rows)  # a recording that was cut
    first = np.concatenate([[0], stops[:-1]]).astype(np.int64)
    own_end = terminated[stops - 1] & (ends == "keep")
    lengths = stops - first - ~own_end
    kept = lengths > 0
    return EpisodePlan(first[kept], lengths[kept], own_end[kept], rows - int(lengths[kept].sum()))
