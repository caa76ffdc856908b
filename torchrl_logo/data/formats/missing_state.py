"""The global state of data that were recorded without one: an explicit choice."""

from __future__ import annotations

import numpy as np

from torchrl_logo.data.validation import DatasetError

__all__ = ["STATE_CHOICES", "replace_state"]

#: What can stand in for a global state that files do not have.
STATE_CHOICES = ("concatenate",)


def replace_state(
    observations: np.ndarray, choice: str | None, *, sizes: tuple[int, ...] = (), key: str = "state"
) -> np.ndarray:
    """Makes a state of the agents' observations, if that was asked for.

    Args:
        observations (np.ndarray): ``[B, N, d_o]``.
        choice (str, optional): ``"concatenate"`` puts the observations one after the other.
        sizes (tuple of int): true sizes of padded observations; what pads is left out.
        key (str): how the error names the state.

    Returns:
        ``[B, d_s]`` float32.

    Raises:
        ValueError: if there is no such choice.
        DatasetError: if nothing was chosen: local observations are not the simulator's state.

    Examples:
        >>> replace_state(np.array([[[1.0, 0.0], [2.0, 3.0]]]), "concatenate", sizes=(1, 2))
        array([[1., 2., 3.]], dtype=float32)
    """
    if choice is not None and choice not in STATE_CHOICES:
        raise ValueError(f"state must be one of {STATE_CHOICES} or None, found {choice!r}.")
    if choice is None:
        raise DatasetError(
            key,
            "the simulator's global state (state='concatenate' takes the observations instead)",
            "none in the files",
        )
    rows, agents, size = observations.shape
    flat = observations.reshape(rows, agents * size).astype(np.float32, copy=False)
    if not sizes or set(sizes) == {size}:
        return flat
    kept = [i * size + j for i, own in enumerate(sizes) for j in range(own)]
    return flat[:, kept]
