"""Whole files of every kind that the package reads, and ways to damage them."""
