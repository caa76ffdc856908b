"""One reward for the team, of rewards that were recorded for each agent."""

from __future__ import annotations

import numpy as np

from torchrl_logo.data.validation import DatasetError

__all__ = ["REWARD_RULES", "reduce_rewards"]

#: How agents' rewards that differ become the team's.
REWARD_RULES = ("mean", "sum")


def reduce_rewards(rewards: np.ndarray, rule: str | None, *, key: str = "rewards") -> np.ndarray:
    """Reduces the agents' rewards to the team's.

    Args:
        rewards (np.ndarray): ``[B, N]``.
        rule (str, optional): ``"mean"`` or ``"sum"`` over the agents. Without one the agents
            must have equal rewards, and theirs is the team's: a mean and a sum of unequal ones
            differ by a factor that only their owner knows to be right.
        key (str): how the error names them.

    Returns:
        ``[B, 1]`` float32.

    Raises:
        ValueError: if there is no such rule.
        DatasetError: if rewards differ and there is no rule.

    Examples:
        >>> reduce_rewards(np.array([[1.0, 3.0]]), "mean")
        array([[2.]], dtype=float32)
    """
    if rule is not None and rule not in REWARD_RULES:
        raise ValueError(f"reward_rule must be one of {REWARD_RULES} or None, found {rule!r}.")
    if rule == "mean":
        return rewards.mean(-1, keepdims=True).astype(np.float32)
    if rule == "sum":
        return rewards.sum(-1, keepdims=True).astype(np.float32)
    differ = (rewards != rewards[:, :1]).any(-1)
    if differ.any():
        row = int(differ.argmax())
        raise DatasetError(
            key,
            "one reward for the team (or a rule: reward_rule='mean' or 'sum')",
            f"other rewards for other agents, first {rewards[row].tolist()} in row {row}",
        )
    return rewards[:, :1].astype(np.float32)
