"""The figures show the numbers they are given."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from torchrl_logo.record import (
    plot_histogram,
    plot_learning_curves,
    plot_open_loop,
    plot_uncertainty_against_error,
)


class TestLearningCurves:
    def test_each_panel_has_its_points_and_labels(self) -> None:
        metrics = {"loss": [(0, 3.0), (10, 2.0), (20, 1.5)], "return": [(20, -4.0)]}
        figure = plot_learning_curves(metrics, step_name="updates")
        for axes, (name, points) in zip(figure.axes, metrics.items(), strict=True):
            assert axes.get_title() == name
            assert axes.get_xlabel() == "updates"
            assert axes.lines[0].get_xydata().tolist() == [list(point) for point in points]

    def test_scale_is_logarithmic_only_for_wide_positive_values(self) -> None:
        figure = plot_learning_curves(
            {
                "wide": [(0, 1e4), (1, 1.0)],
                "narrow": [(0, 50.0), (1, 1.0)],
                "signed": [(0, 1e4), (1, -1.0)],
            }
        )
        assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear", "linear"]

    def test_values_that_are_not_finite_are_gaps_and_counted(self) -> None:
        points = [(0, 1.0), (1, float("nan")), (2, float("inf")), (3, 2.0)]
        axes = plot_learning_curves({"q": points}).axes[0]
        assert axes.get_title() == "q (2 not finite)"
        assert np.isnan(axes.lines[0].get_ydata()).tolist() == [False, True, True, False]

    @pytest.mark.parametrize("metrics", [{}, {"loss": []}])
    def test_nothing_to_plot_is_refused(self, metrics: dict) -> None:
        with pytest.raises(ValueError, match="nothing to plot"):
            plot_learning_curves(metrics)


class TestOpenLoop:
    @pytest.fixture
    def true(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        scale = torch.tensor([1.0, 100.0, 10.0])
        return torch.randn(5, 15, 3, generator=generator) * scale  # [E, T, d]

    def test_rows_are_the_worst_median_and_best_episode(self, true: torch.Tensor) -> None:
        # In units of each feature's spread, episode 3 is worst, 0 the median, 4 the best: the
        # large feature alone would name episode 1 as the worst.
        offsets = torch.zeros(5, 1, 3)
        offsets[:, 0, 0] = torch.tensor([0.3, 0.2, 0.5, 2.0, 0.0])
        offsets[1, 0, 1] = 10.0
        figure = plot_open_loop(true, true + offsets, names=["small", "large", "middle"])
        panels = np.asarray(figure.axes).reshape(3, 3)
        assert [axes.get_title() for axes in panels[0]] == ["large", "middle", "small"]
        for row, (rank, episode) in enumerate({"worst": 3, "median": 0, "best": 4}.items()):
            assert panels[row, 0].get_ylabel().startswith(f"{rank} episode")
            for column, feature in enumerate([1, 2, 0]):
                drawn_true, drawn_model = panels[row, column].lines
                expected = true[episode, :, feature]
                np.testing.assert_allclose(drawn_true.get_ydata(), expected)
                np.testing.assert_allclose(
                    drawn_model.get_ydata(), expected + offsets[episode, 0, feature], rtol=1e-5
                )
        assert panels[0, 0].lines[0].get_xdata().tolist() == list(range(1, 16))

    def test_error_in_the_label_is_in_standard_deviations(self, true: torch.Tensor) -> None:
        off = true.std(dim=(0, 1), unbiased=False)  # each feature wrong by one deviation
        figure = plot_open_loop(true, true + off)
        assert "(error 1 sd)" in figure.axes[0].get_ylabel()

    def test_a_rollout_that_blew_up_is_the_worst(self, true: torch.Tensor) -> None:
        predicted = true.clone()
        predicted[2, 4:] = float("nan")
        axes = plot_open_loop(true, predicted).axes[0]
        assert "error inf" in axes.get_ylabel()
        assert np.isnan(axes.lines[1].get_ydata()).tolist() == [False] * 4 + [True] * 11

    def test_bad_input_is_refused(self, true: torch.Tensor) -> None:
        with pytest.raises(ValueError, match=r"\(5, 15, 3\) and \(5, 14, 3\)"):
            plot_open_loop(true, true[:, 1:])
        with pytest.raises(ValueError, match="3 feature names, found 2"):
            plot_open_loop(true, true, names=["a", "b"])
        with pytest.raises(ValueError, match="finite"):
            plot_open_loop(true / 0.0, true)


class TestUncertaintyAgainstError:
    def test_title_has_the_rank_correlation_of_all_pairs(self) -> None:
        generator = torch.Generator().manual_seed(1)
        u = torch.rand(8000, generator=generator)
        e = u * torch.randn(8000, generator=generator).exp()
        figure = plot_uncertainty_against_error(u.reshape(80, 100), e.reshape(80, 100))
        axes = figure.axes[0]
        rho = spearmanr(u.numpy(), e.numpy()).statistic
        assert axes.get_title() == f"Spearman rank correlation {rho:.2f} (8000 pairs)"
        assert axes.get_xscale() == axes.get_yscale() == "log"
        assert len(axes.collections[0].get_offsets()) == 5000

    def test_line_is_the_median_of_equally_filled_bins(self) -> None:
        u = torch.arange(1.0, 31.0)  # 15 bins of 2
        axes = plot_uncertainty_against_error(u, 10 * u).axes[0]
        centres = np.arange(1.5, 30.0, 2.0)
        np.testing.assert_allclose(axes.lines[0].get_xydata(), np.c_[centres, 10 * centres])

    def test_zeros_count_but_are_not_drawn(self) -> None:
        u = torch.tensor([0.0, 1.0, 2.0])
        axes = plot_uncertainty_against_error(u, u).axes[0]
        assert "(3 pairs)" in axes.get_title()
        assert axes.collections[0].get_offsets().tolist() == [[1.0, 1.0], [2.0, 2.0]]

    def test_bad_input_is_refused(self) -> None:
        good = torch.ones(3)
        with pytest.raises(ValueError, match="same shape"):
            plot_uncertainty_against_error(good, torch.ones(4))
        with pytest.raises(ValueError, match="error must not be negative or NaN"):
            plot_uncertainty_against_error(good, torch.tensor([1.0, float("nan"), 1.0]))


def test_histogram_counts_finite_values() -> None:
    values = torch.tensor([[0.1, 0.2], [0.9, float("nan")]])
    axes = plot_histogram(values, name="return", bins=[0.0, 0.5, 1.0]).axes[0]
    assert [bar.get_height() for bar in axes.patches] == [2, 1]
    assert axes.get_title() == "4 values, 1 not finite"
