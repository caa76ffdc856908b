"""What a user looks at to judge a world model, logged to a run."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tensordict import TensorDictBase

from torchrl_logo.data.dataset import OfflineDataset
from torchrl_logo.envs.state_groups import state_groups
from torchrl_logo.evaluation.world_model import imagine_open_loop
from torchrl_logo.modules.accumulated_uncertainty import accumulate_along
from torchrl_logo.modules.world_model import WorldModel, next_key
from torchrl_logo.record.horizon_plot import plot_error_by_horizon
from torchrl_logo.record.imagined_video import render_imagined_beside_true
from torchrl_logo.record.mlflow_logger import MLflowRun
from torchrl_logo.record.plots import plot_open_loop, plot_uncertainty_against_error
from torchrl_logo.record.uncertainty_plots import plot_reliability, plot_risk_coverage

__all__ = ["log_world_model_figures"]

_SHOWN_FEATURES = 4


@torch.no_grad()
def log_world_model_figures(
    run: MLflowRun,
    world_model: WorldModel,
    episodes: OfflineDataset,
    *,
    horizon: int = 15,
    windows: int = 256,
    video: bool = True,
    others: Mapping[str, OfflineDataset] | None = None,
) -> None:
    """Logs pictures of a world model's open loops along recorded actions.

    - ``open_loop_state``: true and imagined states of the worst, the median and the best window;
    - ``error_by_horizon``: how errors grow, by group of features (see
      :func:`~torchrl_logo.envs.state_groups`), of the observations and of the reward;
    - for models with an uncertainty, ``uncertainty_against_error``, ``reliability`` and
      ``risk_coverage``, of uncertainty accumulated along the rollout;
    - of VMAS tasks the video ``imagined_beside_true`` of the median window: on the left what the
      simulator did, on the right what the model imagines for the same actions.

    Args:
        run (MLflowRun): where they are logged.
        world_model (WorldModel): the model.
        episodes (OfflineDataset): recorded episodes, best such as the model has not seen.

    Keyword Args:
        horizon (int): steps of an open loop; no longer than the longest episode. Defaults to 15.
        windows (int): how many are drawn. Defaults to ``256``.
        video (bool): whether the video is made, where there can be one.
        others (dict, optional): further datasets by name, for ``risk_coverage`` alone.
    """
    horizon = min(horizon, int(episodes.episode_lengths.max()))
    true, imagined = _imagine(world_model, episodes, horizon, windows)
    keys = world_model.tensor_keys
    state = next_key(keys.state)
    scale = world_model.state_normalizer.inverse_scale
    error = (imagined.get(state) - true.get(state)) * scale  # [W, T, d_s]
    distance = _root_mean(error, scale > 0)  # [W, T]

    # The features that move within a rollout, not those that differ between episodes (goals).
    moved = ((true.get(state)[:, -1] - true.get(state)[:, 0]) * scale).square().mean(0)  # [d_s]
    shown = moved.topk(min(_SHOWN_FEATURES, len(moved))).indices.sort().values
    figure = plot_open_loop(
        true.get(state)[..., shown].cpu(),
        imagined.get(state)[..., shown].cpu(),
        names=[f"state {index}" for index in shown.tolist()],
    )
    run.log_figure("open_loop_state", figure)

    errors = {
        name: _root_mean(error[..., places], scale[places] > 0)
        for name, places in state_groups(world_model.spec.task, len(scale)).items()
        if (scale[places] > 0).any()
    }
    observation, present = next_key(keys.observation), world_model.observation_mask
    own_scale = world_model.observation_normalizer.inverse_scale * present  # [N, d_o]
    missed = (imagined.get(observation) - true.get(observation)) * own_scale
    errors["observation"] = _root_mean(missed.flatten(-2), own_scale.flatten() > 0)
    reward = next_key(keys.reward)
    spread = true.get(reward).std().clamp_min(1e-12)
    errors["reward"] = ((imagined.get(reward) - true.get(reward)) / spread).squeeze(-1).abs()
    run.log_figure("error_by_horizon", plot_error_by_horizon(errors))

    if world_model.has_uncertainty:
        uncertainty = _accumulate(imagined, world_model)
        run.log_figure(
            "uncertainty_against_error",
            plot_uncertainty_against_error(uncertainty.cpu(), distance.cpu()),
        )
        run.log_figure("reliability", plot_reliability(uncertainty, distance))
        pairs = {str(episodes.metadata.quality): (uncertainty, distance.square())}
        for name, dataset in (others or {}).items():
            there, guess = _imagine(world_model, dataset, horizon, windows)
            wrong = _root_mean((guess.get(state) - there.get(state)) * scale, scale > 0)
            pairs[name] = (_accumulate(guess, world_model), wrong.square())
        run.log_figure("risk_coverage", plot_risk_coverage(pairs))

    task = world_model.spec.task or ""
    if video and task.startswith("vmas/"):
        order = distance.square().mean(1).argsort()
        middle = int(order[(len(order) - 1) // 2])
        frames = render_imagined_beside_true(
            task, true.get(state)[middle].cpu(), imagined.get(state)[middle].cpu()
        )
        run.log_video("imagined_beside_true", frames, fps=5)


def _imagine(
    model: WorldModel, episodes: OfflineDataset, horizon: int, windows: int
) -> tuple[TensorDictBase, TensorDictBase]:
    """Recorded windows ``[W, T]`` and what the model makes of their starts and actions."""
    device = model.observation_mask.device
    true = episodes.sample_sequences(windows, horizon).to(device)
    return true, imagine_open_loop(model, true)


def _root_mean(error: torch.Tensor, varies: torch.Tensor) -> torch.Tensor:
    """Root of the mean square over the features that vary: ``[*, d]`` to ``[*]``."""
    return (error.square().sum(-1) / varies.sum().clamp_min(1)).sqrt()


def _accumulate(imagined: TensorDictBase, model: WorldModel) -> torch.Tensor:
    step = imagined.get(model.tensor_keys.uncertainty).squeeze(-1)
    return accumulate_along(step)
