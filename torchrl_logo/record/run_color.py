"""Colours of runs in MLflow's charts."""

from __future__ import annotations

__all__ = ["RUN_COLOR_TAG", "pick_run_color"]

#: The tag that MLflow's pages read a run's colour from. Without it they take one by the run's id,
#: often the same for several of a handful of runs.
RUN_COLOR_TAG = "mlflow.runColor"

_PALETTE = (
    (127, 127, 127),
    (31, 119, 180),
    (23, 190, 207),
    (140, 86, 75),
    (227, 119, 194),
    (148, 103, 189),
    (188, 189, 34),
    (44, 160, 44),
    (214, 39, 40),
    (255, 127, 14),
    (61, 61, 130),
    (0, 100, 80),
)
_SHARES_OF_WHITE = (0.0, 0.3, 0.5)


def pick_run_color(family: int, member: int = 0) -> str:
    """Picks a colour: one hue a family, such as a method, and a shade a member, such as a seed.

    Args:
        family (int): the first twelve have hues of their own.
        member (int): three have shades of their own. Defaults to ``0``.

    Examples:
        >>> pick_run_color(8), pick_run_color(8, member=1), pick_run_color(1)
        ('#d62728', '#e26868', '#1f77b4')
    """
    white = _SHARES_OF_WHITE[member % len(_SHARES_OF_WHITE)]
    parts = [round(part + (255 - part) * white) for part in _PALETTE[family % len(_PALETTE)]]
    return "#" + "".join(f"{part:02x}" for part in parts)
