"""How far a recurrent latent world model's open loops are from the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from tensordict import TensorDictBase

from torchrl_logo.evaluation.world_model import find_windows
from torchrl_logo.modules.recurrent_latent_world_model import RecurrentLatentWorldModel

if TYPE_CHECKING:
    from torchrl_logo.data.dataset import OfflineDataset

__all__ = ["evaluate_latent_world_model"]

_REPORTED_STEPS = (1, 5, 10, 15)


@torch.no_grad()
def evaluate_latent_world_model(
    world_model: RecurrentLatentWorldModel,
    dataset: OfflineDataset | TensorDictBase,
    *,
    horizon: int = 15,
    context: int = 5,
    windows: int = 1024,
    seed: int = 0,
) -> dict[str, float]:
    """Measures open loops in latents, in the units of other models' open loops.

    The model filters ``context`` observations, the last of which other models are given as their
    start, and then goes on along recorded actions alone, its codes drawn. Errors are the
    ``open_loop`` ones of :func:`~torchrl_logo.evaluation.evaluate_world_model`: mean squares in
    standard deviations of the values, over features that vary, where 2 is as bad as an unrelated
    value; those of the state are its head's.

    Args:
        world_model (RecurrentLatentWorldModel): the model.
        dataset (OfflineDataset or TensorDictBase): held-out transitions, with ``"episode"``.

    Keyword Args:
        horizon (int): steps of the open loop. Defaults to ``15``.
        context (int): observations that are filtered first, at least 1. Defaults to ``5``.
        windows (int): at most as many windows are followed. Defaults to ``1024``.
        seed (int): of the draw of windows and of codes.

    Returns:
        ``open_loop/state_error/<k>``, ``.../observation_error/<k>`` and ``.../reward_error/<k>``
        for k = 1, 5, 10, 15 and the horizon.

    Raises:
        ValueError: if the dataset belongs to another task than the model, ``context`` is not
            positive, or no episode is as long as context and horizon.
    """
    if context < 1:
        raise ValueError(f"context must be at least 1, found {context}.")
    if isinstance(dataset, TensorDictBase):
        data: TensorDictBase = dataset
    else:
        world_model.spec.require_match(dataset.spec, "The dataset to evaluate on")
        data = dataset.data
    length = context + horizon - 1
    starts = find_windows(data.get("episode"), length)
    if not len(starts):
        raise ValueError(f"No held-out episode has the {length} steps of context and horizon.")
    device = world_model.observation_mask.device
    draws = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(starts), generator=draws)[:windows].to(starts.device)
    rows = starts[chosen].unsqueeze(-1) + torch.arange(length, device=starts.device)
    truth = data[rows].to(device)  # [W, L]
    generator = torch.Generator(device=device).manual_seed(seed)

    def standardise(*key: str) -> torch.Tensor:
        return world_model.standardise(truth.get((*key, "agents", "observation")))

    action = world_model.encode_action(truth.get(("agents", "action")))
    filtered = world_model.unroll(
        standardise()[:, :context], action[:, :context], standardise("next")[:, :context]
    )
    latent, latents = filtered.latent[:, -1], []
    for t in range(context - 1, length):
        latent = world_model.imagine_step(latent, action[:, t], generator=generator)
        latents.append(latent)
    decoded = world_model.decode(torch.stack(latents, 1))  # [W, horizon]
    ahead = slice(context - 1, length)
    following = truth.get("next")[:, ahead]
    reward = world_model.expect_reward(decoded.reward, decoded.termination_logit)
    spread = data.get(("next", "reward")).std(correction=0).to(device)
    observation_scale = (
        world_model.observation_normalizer.inverse_scale * world_model.observation_mask
    )
    errors = {
        "state": _mean_square(
            decoded.state - world_model.state_normalizer.normalize(following.get("state")),
            world_model.state_normalizer.inverse_scale > 0,
        ),
        "observation": _mean_square(
            (decoded.observation - standardise("next")[:, ahead]).flatten(-2),
            (observation_scale > 0).flatten(),
        ),
        "reward": _mean_square(
            (reward - following.get("reward")) / spread.clamp_min(1e-12),
            torch.ones(1, dtype=torch.bool, device=device),
        ),
    }
    reported = sorted({*(k for k in _REPORTED_STEPS if k <= horizon), horizon})
    return {
        f"open_loop/{name}_error/{k}": error[k - 1].item()
        for name, error in errors.items()
        for k in reported
    }


def _mean_square(error: torch.Tensor, varies: torch.Tensor) -> torch.Tensor:
    """Mean over windows and the features that vary: ``[W, T, d]`` to ``[T]``."""
    return (error.square() * varies).sum(-1).mean(0) / varies.sum().clamp_min(1)
