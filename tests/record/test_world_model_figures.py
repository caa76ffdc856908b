"""Pictures of world models show the numbers they are given."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torchrl_logo.envs import make_env, state_groups
from torchrl_logo.record import (
    plot_error_by_horizon,
    plot_reliability,
    plot_risk_coverage,
    render_frame,
    render_imagined_beside_true,
    render_states,
)


def test_error_by_horizon() -> None:
    error = torch.linspace(0, 1, 11).unsqueeze(-1) * torch.tensor([1.0, 2.0, 4.0])  # [W, T]
    figure = plot_error_by_horizon({"position": error, "velocity": -2 * error})
    for axes, factor in zip(figure.axes, (1.0, 2.0), strict=True):
        median, square = (line.get_ydata() for line in axes.lines)
        assert axes.lines[0].get_xdata().tolist() == [1, 2, 3]
        assert np.allclose(median, factor * np.array([0.5, 1.0, 2.0]))
        root = np.sqrt(np.mean(np.linspace(0, 1, 11) ** 2))
        assert np.allclose(square, factor * root * np.array([1.0, 2.0, 4.0]))
    with pytest.raises(ValueError, match=r"\[W, T\] each, found .*'flat': \(3,\)"):
        plot_error_by_horizon({"flat": torch.ones(3)})


def test_reliability() -> None:
    uncertainty = torch.tensor([0.1, 0.1, 0.4, 0.4]).repeat(10)
    error = torch.tensor([0.3, 0.3, 0.1, 0.7]).repeat(10)
    axes = plot_reliability(uncertainty, error, bins=2).axes[0]
    assert np.allclose(axes.lines[0].get_xdata(), [0.1, 0.4])
    assert np.allclose(axes.lines[0].get_ydata(), [0.3, np.sqrt((0.01 + 0.49) / 2)])
    with pytest.raises(ValueError, match="negative or NaN"):
        plot_reliability(uncertainty, error.log())


def test_risk_coverage() -> None:
    uncertainty = torch.tensor([1.0, 2.0, 3.0, 4.0])
    error = torch.tensor([0.0, 6.0, 2.0, 8.0])
    axes = plot_risk_coverage({"a": (uncertainty, error)}, shares=4).axes[0]
    assert np.allclose(axes.lines[0].get_ydata(), [0.0, 3 / 4, 2 / 3, 1.0])
    assert np.allclose(axes.lines[1].get_ydata(), [0.0, 1 / 4, 2 / 3, 1.0])


def test_states_are_drawn_as_the_simulator_draws_them() -> None:
    env = make_env("vmas/wheel", num_envs=2, seed=0)
    env.reset()
    env.put_state(env.rollout(3)["next", "state"][:, -1])
    state = env._read_state()[1:]
    drawn = render_states("vmas/wheel", state, height=120)
    # The picture of the environment itself, without the caption in its corner.
    expected = render_frame(env, env_index=1, height=120)
    assert torch.equal(drawn[0, :, 20:], expected[:, 20:])
    both = render_imagined_beside_true("vmas/wheel", state, state, height=120)
    assert torch.equal(both[..., 20:, :120], both[..., 20:, -120:])
    with pytest.raises(ValueError, match="same shape"):
        render_imagined_beside_true("vmas/wheel", state, state[:, 1:])
    with pytest.raises(ValueError, match=r"6 values for each of .* found \[1, 3\]"):
        render_states("vmas/wheel", state[:, :3])
    with pytest.raises(TypeError, match="VMAS"):
        render_states("mpe/simple_spread", state)


@pytest.mark.parametrize(
    ("task", "size", "sizes"),
    [
        ("vmas/balance", 30, [10, 10, 5, 5]),
        ("mamujoco/halfcheetah_2x3", 17, [8, 9]),
        ("mamujoco/ant_2x4", 105, [13, 14, 78]),
        ("mamujoco/swimmer_10x2", 44, [21, 23]),
        ("smax/2s3z", 7, [7]),
    ],
)
def test_each_feature_is_in_one_group(task: str, size: int, sizes: list[int]) -> None:
    groups = state_groups(task, size)
    assert [len(places) for places in groups.values()] == sizes
    assert sorted(i for places in groups.values() for i in places) == list(range(size))


def test_a_group_is_what_its_name_says() -> None:
    """Of a team at rest that is pushed, only positions and velocities change."""
    env = make_env("vmas/wheel", num_envs=1, seed=0)
    state = env.reset()["state"]
    groups = state_groups("vmas/wheel", state.shape[-1])
    assert state[:, groups["velocity"]].eq(0).all()
    pushed = env.rollout(3)["next", "state"][:, -1]
    assert pushed[:, groups["velocity"]].ne(0).any()
    robot = make_env("mamujoco/halfcheetah_2x3", seed=0)
    state = robot.reset()["state"]
    groups = state_groups("mamujoco/halfcheetah_2x3", state.shape[-1])
    # The first position is the root's height, from which the simulator starts near 0.
    assert state[:, groups["position"]].abs().max() < 0.5
