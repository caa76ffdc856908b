"""The alias table against the masses that it is made from."""

from __future__ import annotations

import pytest
import torch

from torchrl_logo.data.alias_table import make_alias_table


def read_table(keep, alias):
    """The distribution that a table stands for."""
    return (keep + torch.zeros_like(keep).index_add(0, alias, 1 - keep)) / len(keep)


def make_masses():
    generator = torch.Generator().manual_seed(0)
    for size in (1, 2, 3, 7, 256):
        yield torch.rand(size, generator=generator, dtype=torch.float64)
        yield torch.rand(size, generator=generator, dtype=torch.float64).mul(30).exp()
        yield torch.full((size,), 1 / 3, dtype=torch.float64)
        yield torch.zeros(size, dtype=torch.float64).index_fill(0, torch.tensor(size // 2), 5.0)
        few = torch.rand(size, generator=generator, dtype=torch.float64)
        few[torch.rand(size, generator=generator) < 0.7] = 0
        few[0] = 1e-12
        yield few


@pytest.mark.parametrize("mass", list(make_masses()), ids=lambda mass: f"{len(mass)}")
def test_table_stands_for_the_masses(mass):
    keep, alias = make_alias_table(mass)
    assert bool(((keep >= 0) & (keep <= 1)).all())
    expected = mass / mass.sum()
    found = read_table(keep, alias)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15 * len(mass))
    # Those of less than an average mass, however rare, are as exact as their mass: no sum over
    # others enters.
    light = expected < 1 / len(mass)
    torch.testing.assert_close(found[light], expected[light], rtol=1e-14, atol=0)
    assert bool((found[mass == 0] == 0).all())
