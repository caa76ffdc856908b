"""Videos of VMAS teams, drawn without a display, and written as files that browsers play."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type, step_mdp

# matplotlib and av take a second to import, which trainings without videos need not wait for.
if TYPE_CHECKING:
    from matplotlib.patches import Circle, Polygon

__all__ = ["render_episode", "render_frame", "write_video"]

_DPI = 100
_LINE_WIDTH = 1.5  # points, for what VMAS draws as lines and outlines


class TeamCanvas:
    """Draws the entities of one VMAS simulation as VMAS' own window does.

    VMAS renders through OpenGL, which needs a display or a graphics driver. This needs neither.

    Args:
        simulation (vmas.simulator.environment.Environment): the simulation.
        env_index (int): which of the batch is drawn.
        height (int): height of the frames in pixels; the width follows the scenario's window.
    """

    def __init__(self, simulation: Any, env_index: int, height: int) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        if not 0 <= env_index < simulation.num_envs:
            raise ValueError(f"env_index must be in [0, {simulation.num_envs}), found {env_index}.")
        self.simulation = simulation
        self.env_index = env_index
        window_width, window_height = simulation.scenario.viewer_size
        self.aspect = window_width / window_height
        # Even sizes, as the video format stores colours of 2 x 2 pixels together.
        width = 2 * round(height * self.aspect / 2)
        height = 2 * round(height / 2)
        self.figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
        self.canvas = FigureCanvasAgg(self.figure)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_axis_off()
        self.axes.set_aspect("equal")
        self.caption = self.axes.text(
            0.02, 0.98, "", transform=self.axes.transAxes, va="top", fontsize=9, zorder=10
        )
        # Squared, as in VMAS: the scenarios' zooms are chosen for it.
        self.zoom = float(simulation.scenario.viewer_zoom) ** 2
        self._draw_borders()
        agents = set(simulation.world.agents)
        self.artists = [
            (entity, self._make_artist(entity, in_front=entity in agents))
            for entity in simulation.world.entities
        ]

    def _draw_borders(self) -> None:
        world, far = self.simulation.world, 100.0
        if not self.simulation.scenario.visualize_semidims:
            return
        x, y = world.x_semidim, world.y_semidim
        style: dict[str, Any] = {"color": "gray", "linewidth": 1.0, "zorder": 0}
        if y is not None:
            for level in (-y, y):
                self.axes.plot([-(x or far), x or far], [level, level], **style)
        if x is not None:
            for level in (-x, x):
                self.axes.plot([level, level], [-(y or far), y or far], **style)

    def _make_artist(self, entity: Any, in_front: bool) -> Circle | Polygon:
        from matplotlib.patches import Circle, Polygon

        shape = entity.shape
        common: dict[str, Any] = {"zorder": 3 if in_front else 2, "linewidth": _LINE_WIDTH}
        if hasattr(shape, "radius"):
            artist: Circle | Polygon = Circle((0, 0), shape.radius, **common)
        else:
            artist = Polygon(np.zeros((4, 2)), closed=True, **common)
        self.axes.add_patch(artist)
        return artist

    def _place(self, entity: Any, artist: Circle | Polygon) -> None:
        i = self.env_index
        artist.set_visible(bool(entity.is_rendering[i]))
        x, y = entity.state.pos[i].tolist()
        if hasattr(artist, "set_center"):
            artist.set_center((x, y))
        else:
            artist.set_xy(_corners(entity.shape, x, y, entity.state.rot[i].item()))
        color = entity.color
        if isinstance(color, torch.Tensor):
            color = (color[i] if color.ndim > 1 else color).tolist()
        face = (*color[:3], getattr(entity, "_alpha", 1.0))
        hollow = getattr(entity.shape, "hollow", False)
        artist.set_facecolor("none" if hollow else face)
        artist.set_edgecolor(color[:3])

    def _look(self) -> None:
        """Zooms out until every agent is seen; never in again, which would shake the picture."""
        i, scenario = self.env_index, self.simulation.scenario
        origin = np.asarray([float(v) for v in scenario.render_origin])
        agents = self.simulation.world.agents
        positions = np.asarray([agent.state.pos[i].tolist() for agent in agents])  # [N, 2]
        margin = 2 * max(agent.shape.circumscribed_radius() for agent in agents)
        reach = np.abs(positions - origin).max(axis=0) + margin  # [2]
        shape = np.asarray([max(self.aspect, 1.0), max(1 / self.aspect, 1.0)])
        self.zoom = max(self.zoom, float((reach / shape).max()))
        half = self.zoom * shape
        self.axes.set_xlim(origin[0] - half[0], origin[0] + half[0])
        self.axes.set_ylim(origin[1] - half[1], origin[1] + half[1])

    def draw(self, caption: str = "") -> torch.Tensor:
        """Draws the simulation as it is now: uint8 ``[3, H, W]``."""
        for entity, artist in self.artists:
            self._place(entity, artist)
        self._look()
        self.caption.set_text(caption)
        self.canvas.draw()
        pixels = np.asarray(self.canvas.buffer_rgba())[..., :3]  # [H, W, 3]
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous()


def _corners(shape: Any, x: float, y: float, angle: float) -> np.ndarray:
    """Returns the corners ``[4, 2]`` of a box, or of a line as a box without width."""
    half_length = shape.length / 2
    # A Line's width is in pixels; its outline gives it that.
    half_width = shape.width / 2 if hasattr(shape, "hollow") else 0.0
    corners = np.array(
        [
            [-half_length, -half_width],
            [half_length, -half_width],
            [half_length, half_width],
            [-half_length, half_width],
        ]
    )
    cos, sin = math.cos(angle), math.sin(angle)
    return corners @ np.array([[cos, sin], [-sin, cos]]) + [x, y]


def find_simulation(env: Any) -> Any:
    """Returns the VMAS simulation inside an environment, through transforms and wrappers."""
    inner = env
    while inner is not None and not hasattr(inner, "world"):
        inner = getattr(inner, "base_env", None) or getattr(inner, "_env", None)
    if inner is None:
        raise TypeError(
            f"only VMAS environments can be drawn, found {type(env).__name__}: make one by "
            "make_env('vmas/...')."
        )
    return inner


def render_frame(env: Any, *, env_index: int = 0, height: int = 360) -> torch.Tensor:
    """Draws a VMAS environment as it is now.

    Args:
        env (EnvBase or vmas Environment): the environment, with or without TorchRL around it.

    Keyword Args:
        env_index (int): which of the batch of simulations is drawn.
        height (int): height in pixels; the width follows the scenario's window.

    Returns:
        Tensor: uint8 ``[3, H, W]``.

    Raises:
        TypeError: if there is no VMAS simulation inside.

    Examples:
        >>> from torchrl_logo.envs import make_env
        >>> env = make_env("vmas/balance", seed=0)
        >>> _ = env.reset()
        >>> render_frame(env, height=120).shape
        torch.Size([3, 120, 120])
    """
    return TeamCanvas(find_simulation(env), env_index, height).draw()


def render_episode(
    env: EnvBase,
    policy: Callable[[TensorDictBase], TensorDictBase] | None = None,
    max_steps: int = 200,
    *,
    env_index: int = 0,
    height: int = 360,
) -> torch.Tensor:
    """Lets a policy act deterministically for one episode and draws it.

    Args:
        env (EnvBase): a TorchRL environment around VMAS, reset here.
        policy (callable, optional): reads and writes the tensordict, as in ``env.rollout``.
            Defaults to random actions.
        max_steps (int): the longest episode. Ends earlier if the environment is done.

    Keyword Args:
        env_index (int): which of the batch of simulations is drawn.
        height (int): height in pixels; the width follows the scenario's window.

    Returns:
        Tensor: uint8 frames ``[T, 3, H, W]``: the start and one for each step, with the step and
        the return so far written on each.

    Raises:
        TypeError: if there is no VMAS simulation inside.

    Examples:
        >>> from torchrl_logo.envs import make_env
        >>> render_episode(make_env("vmas/balance", seed=0), max_steps=3, height=120).shape
        torch.Size([4, 3, 120, 120])
    """
    simulation = find_simulation(env)
    act = env.rand_action if policy is None else policy
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        tensordict = env.reset()
        canvas = TeamCanvas(simulation, env_index, height)
        frames = [canvas.draw("step 0")]
        team_return = 0.0
        for step in range(1, max_steps + 1):
            tensordict = env.step(act(tensordict))
            # [E, ...] -> the one simulation; a mean where each agent has its own reward.
            reward = tensordict["next"][env.reward_key].reshape(simulation.num_envs, -1)[env_index]
            team_return += float(reward.mean())
            frames.append(canvas.draw(f"step {step}   return {team_return:.2f}"))
            done = tensordict["next", "done"].reshape(simulation.num_envs, -1)[env_index]
            if bool(done.any()):
                break
            tensordict = step_mdp(tensordict)
    return torch.stack(frames)


def write_video(path: str | Path, frames: torch.Tensor, *, fps: int = 15) -> Path:
    """Writes frames as an H.264 video in an mp4 file, which browsers play.

    The encoder comes with the ``av`` package: no FFmpeg needs to be installed.

    Args:
        path (str or Path): the file to write, ending in ``.mp4``.
        frames (Tensor): uint8 ``[T, 3, H, W]`` on any device. If a side is odd, its last row or
            column of pixels is repeated, since the format stores pairs.

    Keyword Args:
        fps (int): frames per second.

    Returns:
        Path: the file.

    Raises:
        ValueError: if the frames are not uint8 ``[T, 3, H, W]`` with at least one frame, or the
            file's name does not end in ``.mp4``.
    """
    path = Path(path)
    if path.suffix != ".mp4":
        raise ValueError(f"a video's name must end in .mp4, found {path.name!r}.")
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3 or not len(frames):
        raise ValueError(
            "frames must be uint8 of shape [T, 3, H, W] with T >= 1, "
            f"found {frames.dtype} {tuple(frames.shape)}."
        )
    pixels = frames.permute(0, 2, 3, 1).cpu().numpy()  # [T, H, W, 3]
    odd = [(0, side % 2) for side in pixels.shape[1:3]]
    pixels = np.pad(pixels, [(0, 0), *odd, (0, 0)], mode="edge")
    import av

    # With the index in front (faststart), a browser can play before it has the whole file.
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream: Any = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt = "yuv420p"  # the only colour format that all browsers decode
        for image in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path
