from __future__ import annotations

import re

from torchrl_logo.record.run_color import pick_run_color
from torchrl_logo.trainers.methods import METHODS


def test_methods_and_three_seeds_of_each_are_told_apart() -> None:
    colors = [pick_run_color(family, seed) for family in range(len(METHODS)) for seed in range(3)]
    assert len(set(colors)) == len(colors)
    assert all(re.fullmatch("#[0-9a-f]{6}", color) for color in colors)
    other = pick_run_color(len(METHODS))  # a loss of one's own
    assert other not in colors
