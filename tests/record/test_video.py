"""Frames show where the simulator's entities are; videos are H.264 that browsers play."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
import torch
import vmas
from torchrl.envs.libs.vmas import VmasEnv

from torchrl_logo.record import render_episode, render_frame, write_video


def _find_colour(frame: torch.Tensor, colour: torch.Tensor) -> torch.Tensor:
    """Centre (column, row) in pixels of what has the colour."""
    distance = (frame / 255 - colour[:, None, None]).abs().amax(0)  # [H, W]
    rows, columns = (distance < 0.02).nonzero(as_tuple=True)
    assert len(rows), "the colour is not in the frame"
    return torch.stack([columns.float().mean(), rows.float().mean()])


def test_entities_are_drawn_where_the_simulator_has_them() -> None:
    simulation = vmas.make_env("transport", num_envs=2, seed=0)
    simulation.reset()
    goal = simulation.world.landmarks[0]
    others = [e for e in simulation.world.entities if e is not goal]
    for entity in others:
        entity.is_rendering[:] = False
    span = simulation.scenario.viewer_zoom**2  # the picture shows [-span, span] at both axes
    for position in ([0.0, 0.0], [0.5, -0.25]):
        goal.set_pos(torch.tensor(position), batch_index=1)
        colour = torch.tensor(goal.color)
        x, y = _find_colour(render_frame(simulation, env_index=1, height=200), colour).tolist()
        assert x == pytest.approx((1 + position[0] / span) * 100, abs=1.0)
        assert y == pytest.approx((1 - position[1] / span) * 100, abs=1.0)


def test_boxes_turn_with_their_rotation() -> None:
    simulation = vmas.make_env("balance", num_envs=1, seed=0)
    simulation.reset()
    line = next(e for e in simulation.world.landmarks if e.name == "line")
    for entity in simulation.world.entities:
        entity.is_rendering[:] = entity is line
    line.set_pos(torch.zeros(2), batch_index=0)
    extents = []
    for angle in (0.0, torch.pi / 2):
        line.set_rot(torch.tensor([angle]), batch_index=0)
        dark = render_frame(simulation, height=200).float().mean(0) < 128
        rows, columns = dark.nonzero(as_tuple=True)
        extents.append((int(columns.max() - columns.min()), int(rows.max() - rows.min())))
    (wide, thin), (thin_turned, tall) = extents
    expected = 200 * line.shape.length / (2 * simulation.scenario.viewer_zoom**2)
    assert wide == pytest.approx(expected, abs=4)
    assert tall == pytest.approx(expected, abs=4)
    assert max(thin, thin_turned) < 6


def test_agents_that_leave_stay_in_the_picture() -> None:
    simulation = vmas.make_env("wheel", num_envs=1, seed=0)
    simulation.reset()
    agent = simulation.agents[0]
    for entity in simulation.world.entities:
        entity.is_rendering[:] = entity is agent
    agent.set_pos(torch.tensor([9.0, 0.0]), batch_index=0)
    frame = render_frame(simulation, height=200)
    _, columns = (frame.float().mean(0) < 230).nonzero(as_tuple=True)
    assert 180 < columns.float().mean() < 199


@pytest.fixture
def env() -> VmasEnv:
    return VmasEnv("balance", num_envs=2, max_steps=4, seed=0)


def test_episode_has_a_frame_for_the_start_and_each_step(env: VmasEnv) -> None:
    steps = []

    def act(tensordict):
        steps.append(tensordict["agents", "observation"].clone())
        return tensordict.set(
            ("agents", "action"), torch.zeros_like(env.full_action_spec.rand()["agents", "action"])
        )

    frames = render_episode(env, act, max_steps=10, env_index=1, height=101)
    assert frames.shape == (5, 3, 100, 100)  # the episode ends after 4 steps; sides are even
    assert frames.dtype == torch.uint8
    assert len(steps) == 4
    assert not torch.equal(steps[0], steps[1]), "the policy must see the step before"
    assert not torch.equal(frames[0], frames[-1])


def test_what_cannot_be_drawn_is_refused(env: VmasEnv) -> None:
    with pytest.raises(TypeError, match="only VMAS environments can be drawn, found object"):
        render_frame(object())
    with pytest.raises(ValueError, match=r"env_index must be in \[0, 2\), found 2"):
        render_frame(env, env_index=2)


def test_video_is_h264_with_the_frames_given(tmp_path: Path) -> None:
    # Grey levels survive the colour format; odd sides are completed.
    levels = torch.arange(20, 220, 20, dtype=torch.uint8)
    frames = levels[:, None, None, None].expand(-1, 3, 63, 41)
    path = write_video(tmp_path / "grey.mp4", frames, fps=7)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == 7
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(decoded) == 10
    assert decoded[0].shape == (64, 42, 3)
    for image, level in zip(decoded, levels.tolist(), strict=True):
        assert abs(float(image.mean()) - level) < 4
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat"), "the index must come first"


def test_wrong_frames_are_refused(tmp_path: Path) -> None:
    good = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    for frames in (good.float(), good.permute(0, 2, 3, 1), good[0], good[:0]):
        with pytest.raises(ValueError, match="frames must be uint8"):
            write_video(tmp_path / "x.mp4", frames)
    with pytest.raises(ValueError, match="must end in .mp4"):
        write_video(tmp_path / "x.gif", good)
    assert list(tmp_path.iterdir()) == []
