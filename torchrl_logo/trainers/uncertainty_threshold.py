"""Where certainty ends: the threshold of the uncertainty weights, from data."""

from __future__ import annotations

import torch
from torchrl.envs.utils import step_mdp

from torchrl_logo.data.dataset import OfflineDataset
from torchrl_logo.envs.imagined import ImaginedEnv
from torchrl_logo.modules.world_model import WorldModel

__all__ = ["find_uncertainty_threshold"]


@torch.no_grad()
def find_uncertainty_threshold(
    world_model: WorldModel,
    dataset: OfflineDataset,
    *,
    horizon: int,
    quantile: float = 0.95,
    windows: int = 1024,
    seed: int = 0,
) -> float:
    """A quantile of the model's accumulated uncertainty along recorded actions.

    The model runs open loop from states of the dataset under the actions that were recorded
    there. What it reports on those rollouts is what it reports on the data's own ground: the
    quantile is the natural scale of the sampler's threshold ``C``, whatever the task. On episodes
    that the model was trained on it may be sure of too much: pass those that were held out.

    Args:
        world_model (WorldModel): a trained model with an uncertainty.
        dataset (OfflineDataset): episodes, best those of :func:`find_held_out`.

    Keyword Args:
        horizon (int): steps of a rollout; shortened to the longest episode if that is shorter.
        quantile (float): within (0, 1]. Defaults to ``0.95``.
        windows (int): number of rollouts. Defaults to ``1024``.
        seed (int): which windows are drawn.

    Returns:
        The quantile over all steps of all rollouts; positive.

    Raises:
        ValueError: if the quantile is out of range, or the model reports no uncertainty at all.
    """
    if not 0.0 < quantile <= 1.0:
        raise ValueError(f"quantile must be within (0, 1], found {quantile}.")
    horizon = min(horizon, int(dataset.episode_lengths.max()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sequences = dataset.sample_sequences(windows, horizon)
    env = ImaginedEnv(world_model, dataset, batch_size=windows, horizon=horizon)
    sequences = sequences.to(env.device)
    step = env.reset(sequences[:, 0].select(*env.observation_spec.keys(True, True), strict=False)
                     .exclude("step"))  # fmt: skip
    reported = []
    for t in range(horizon):
        step.set(env.action_key, sequences[:, t].get(env.action_key))
        step = env.step(step)
        reported.append(step.get(("next", "uncertainty")))
        step = step_mdp(step)
    values = torch.cat(reported).flatten()
    threshold = float(values[values.isfinite()].quantile(quantile))
    if not threshold > 0:
        raise ValueError(
            f"{type(world_model).__name__} reports no uncertainty on the dataset: its imagined "
            "transitions cannot be weighted. Use a LOGOWorldModel or an EnsembleWorldModel, or "
            "pass uncertainty_threshold."
        )
    return threshold
