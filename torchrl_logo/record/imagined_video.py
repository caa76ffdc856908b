"""A video of a team's imagined rollout beside what the simulator did with the same actions."""

from __future__ import annotations

import torch

from torchrl_logo.envs import make_env
from torchrl_logo.envs.vmas import VmasTeamEnv
from torchrl_logo.record.video import TeamCanvas, find_simulation

__all__ = ["render_imagined_beside_true", "render_states"]

_GAP = 4  # pixels between the two pictures


def render_states(
    task: str, states: torch.Tensor, *, caption: str = "", height: int = 240
) -> torch.Tensor:
    """Draws a VMAS task in recorded or imagined states.

    Args:
        task (str): name of a VMAS task, such as ``"vmas/balance"``.
        states (torch.Tensor): ``[T, 6 * entities]``.

    Keyword Args:
        caption (str): written on each frame, with the step.
        height (int): height in pixels; the width follows the scenario's window.

    Returns:
        torch.Tensor: uint8 frames ``[T, 3, H, W]``.

    Raises:
        TypeError: if the task is none of VMAS.
        ValueError: if the states are not of the task.

    Examples:
        >>> env = make_env("vmas/balance", seed=0)
        >>> states = env.rollout(2)["next", "state"][0]
        >>> render_states("vmas/balance", states, height=120).shape
        torch.Size([2, 3, 120, 120])
    """
    env = make_env(task, num_envs=len(states), seed=0)
    if not isinstance(env, VmasTeamEnv):
        raise TypeError(f"only VMAS tasks can be drawn, found {task!r}.")
    env.reset()
    env.put_state(states)
    # One canvas for all rows, each of which is one moment: its zoom does not jump.
    canvas = TeamCanvas(find_simulation(env), 0, height)
    frames = []
    for canvas.env_index in range(len(states)):
        frames.append(canvas.draw(f"{caption} step {canvas.env_index}".strip()))
    return torch.stack(frames)


def render_imagined_beside_true(
    task: str, true: torch.Tensor, imagined: torch.Tensor, *, height: int = 240
) -> torch.Tensor:
    """Draws two sequences of states beside each other: what happened, and what was imagined.

    Args:
        task (str): name of a VMAS task.
        true (torch.Tensor): recorded states ``[T, 6 * entities]``.
        imagined (torch.Tensor): a model's, from the same start along the same actions, as many.

    Keyword Args:
        height (int): height in pixels.

    Returns:
        torch.Tensor: uint8 frames ``[T, 3, H, 2 W + 4]``, what happened on the left.

    Raises:
        TypeError: if the task is none of VMAS.
        ValueError: if the shapes differ or are not of the task.
    """
    if true.shape != imagined.shape:
        raise ValueError(
            "true and imagined states must have the same shape [T, 6 * entities], found "
            f"{tuple(true.shape)} and {tuple(imagined.shape)}."
        )
    left = render_states(task, true, caption="true", height=height)
    right = render_states(task, imagined, caption="imagined", height=height)
    gap = torch.full((*left.shape[:-1], _GAP), 255, dtype=torch.uint8)
    return torch.cat([left, gap, right], -1)
