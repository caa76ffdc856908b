"""How far a world model's predictions are from the truth, and whether it knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from tensordict import TensorDict, TensorDictBase

from torchrl_logo.modules.accumulated_uncertainty import accumulate_along
from torchrl_logo.modules.world_model import WorldModel, next_key

if TYPE_CHECKING:
    from torchrl_logo.data.dataset import OfflineDataset

__all__ = [
    "evaluate_world_model",
    "find_windows",
    "imagine_open_loop",
    "measure_uncertainty",
    "trace_open_loop",
]

_REPORTED_STEPS = (1, 5, 10, 15)
_BLOCK = 8192


def find_windows(episode: torch.Tensor, length: int) -> torch.Tensor:
    """First rows of all windows of ``length`` consecutive rows within one episode.

    Args:
        episode (torch.Tensor): each row's episode, ``[B]`` i64, episodes contiguous.
        length (int): rows of a window, at least 1.

    Returns:
        ``[W]`` i64.

    Examples:
        >>> find_windows(torch.tensor([0, 0, 0, 1, 1]), length=2)
        tensor([0, 1, 3])
    """
    if length < 1:
        raise ValueError(f"length must be at least 1, found {length}.")
    last = episode.shape[0] - length + 1
    if last < 1:
        return torch.zeros(0, dtype=torch.int64, device=episode.device)
    return (episode[:last] == episode[length - 1 :]).nonzero().squeeze(-1)


@torch.no_grad()
def imagine_open_loop(world_model: WorldModel, windows: TensorDictBase) -> TensorDict:
    """Predicts along recorded actions, each step from the previous prediction.

    Args:
        world_model (WorldModel): the model.
        windows (TensorDictBase): recorded steps ``[W, L]``; of all but the first only actions
            are read.

    Returns:
        A TensorDict ``[W, L]`` with the predicted ``("next", ...)`` entries, the root
        ``"uncertainty"`` of each step, ``"termination_logit"`` and, for discrete actions,
        ``"action_mask_logit"``.
    """
    if windows.ndim != 2:
        raise ValueError(
            f"imagine_open_loop expected windows [W, L], found batch size "
            f"{tuple(windows.batch_size)}: dataset.sample_sequences(W, L) draws some."
        )
    # Named here: the networks below would speak of sizes of matrices.
    world_model.read_inputs(windows)
    keys = world_model.tensor_keys
    state, observation = windows.get(keys.state)[:, 0], windows.get(keys.observation)[:, 0]
    actions = windows.get(keys.action)
    steps = []
    for t in range(windows.shape[1]):
        prediction = world_model.predict(state, observation, actions[:, t])
        state, observation = prediction.state, prediction.observation
        step = TensorDict(batch_size=windows.shape[:1], device=windows.device)
        step.set(next_key(keys.state), state)
        step.set(next_key(keys.observation), observation)
        step.set(next_key(keys.reward), prediction.reward)
        step.set("termination_logit", prediction.termination_logit)
        if prediction.action_mask_logit is not None:
            step.set("action_mask_logit", prediction.action_mask_logit)
        step.set(keys.uncertainty, prediction.uncertainty)
        steps.append(step)
    return torch.stack(steps, 1)


@torch.no_grad()
def trace_open_loop(
    world_model: WorldModel,
    dataset: OfflineDataset | TensorDictBase,
    *,
    horizon: int = 15,
    windows: int = 1024,
    seed: int = 0,
) -> TensorDict:
    """Errors and uncertainty of every step of open loops along recorded actions.

    Args:
        world_model (WorldModel): the model.
        dataset (OfflineDataset or TensorDictBase): transitions, with ``"episode"``.

    Keyword Args:
        horizon (int): steps of the open loop. Defaults to ``15``.
        windows (int): at most as many windows are followed, drawn without replacement.
            Defaults to ``1024``.
        seed (int): seed of that draw.

    Returns:
        A TensorDict ``[W, horizon]`` of ``"state_error"``, ``"observation_error"``,
        ``"reward_error"`` (in the units of :func:`evaluate_world_model`), the step's
        ``"uncertainty"`` and ``"accumulated_uncertainty"``, as
        :func:`~torchrl_logo.modules.accumulate_uncertainty` adds it up, all ``[W, horizon]``.

    Raises:
        ValueError: if the dataset belongs to another task than the model, or no episode is as
            long as the horizon.
    """
    data = _read_data(world_model, dataset)
    device = world_model.observation_mask.device
    keys = world_model.tensor_keys
    starts = find_windows(data.get("episode"), horizon)
    if not len(starts):
        raise ValueError(
            f"No held-out episode has the {horizon} steps of the horizon: choose a smaller horizon."
        )
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(starts), generator=generator)[:windows].to(starts.device)
    rows = starts[chosen].unsqueeze(-1) + torch.arange(horizon, device=starts.device)
    truth = data[rows].to(device)  # [W, L]
    imagined = imagine_open_loop(world_model, truth)
    scales = {
        "state_error": (next_key(keys.state), world_model.state_normalizer.inverse_scale),
        "observation_error": (
            next_key(keys.observation),
            world_model.observation_normalizer.inverse_scale * world_model.observation_mask,
        ),
        "reward_error": (
            next_key(keys.reward),
            _inverse_spread(data.get(next_key(keys.reward))).to(device),
        ),
    }
    uncertainty = imagined.get(keys.uncertainty).squeeze(-1)
    return TensorDict(
        {
            **{
                name: _square_error(imagined, truth, key, scale)
                for name, (key, scale) in scales.items()
            },
            "uncertainty": uncertainty,
            "accumulated_uncertainty": accumulate_along(uncertainty),
        },
        batch_size=truth.batch_size,
        device=device,
    )


def measure_uncertainty(trace: TensorDictBase) -> dict[str, float]:
    """Whether the uncertain steps are those that are wrong, over all steps of a trace.

    Args:
        trace (TensorDictBase): from :func:`trace_open_loop`; several are pooled by concatenating
            them.

    Returns:
        By name: ``uncertainty_rho`` and ``accumulated_uncertainty_rho``, Spearman's correlation
        of the state error with the step's and the accumulated uncertainty, and
        ``kept_error_ratio``, the mean state error of the half with the least accumulated
        uncertainty over that of all.

    Examples:
        >>> trace = TensorDict({"state_error": torch.tensor([[1.0, 2.0], [3.0, 6.0]]),
        ...                     "uncertainty": torch.tensor([[0.1, 0.2], [0.3, 0.4]]),
        ...                     "accumulated_uncertainty": torch.tensor([[0.1, 0.3], [0.3, 0.7]])})
        >>> round(measure_uncertainty(trace)["kept_error_ratio"], 6)
        0.5
    """
    error, accumulated = trace.get("state_error"), trace.get("accumulated_uncertainty")
    return {
        "uncertainty_rho": rank_correlation(trace.get("uncertainty"), error),
        "accumulated_uncertainty_rho": rank_correlation(accumulated, error),
        "kept_error_ratio": kept_error_ratio(accumulated, error),
    }


@torch.no_grad()
def evaluate_world_model(
    world_model: WorldModel,
    dataset: OfflineDataset | TensorDictBase,
    *,
    horizon: int = 15,
    windows: int = 1024,
    seed: int = 0,
) -> dict[str, float]:
    """Measures a world model on episodes it was not trained on.

    Errors are mean squares in standard deviations of the training data (the reward's: of the
    data at hand), over features that vary. ``one_step/state_error`` is in those of the state's
    one-step change: 1 is as good as predicting the mean change. All others are in those of the
    values themselves, after ``k`` steps of an open loop from a true start along recorded actions:
    2 is as bad as an unrelated value. Nothing is clamped.

    Args:
        world_model (WorldModel): the model.
        dataset (OfflineDataset or TensorDictBase): held-out transitions, with ``"episode"``.

    Keyword Args:
        horizon (int): steps of the open loop. Defaults to ``15``.
        windows (int): at most as many windows are followed, drawn without replacement.
            Defaults to ``1024``.
        seed (int): seed of that draw.

    Returns:
        By name: ``one_step/state_error``, ``one_step/observation_error``,
        ``one_step/reward_error``; ``one_step/termination_auc`` if the data have both rows that
        terminate and others; ``one_step/action_mask_f1`` of the available actions, if actions
        are discrete; ``open_loop/state_error/<k>``, ``.../observation_error/<k>`` and
        ``.../reward_error/<k>`` for k = 1, 5, 10, 15 and the horizon;
        ``open_loop/state_error_p99/<k>``, the 99th percentile over windows, at the horizon; for
        models with an uncertainty, what :func:`measure_uncertainty` returns under
        ``open_loop/``.

    Raises:
        ValueError: if the dataset belongs to another task than the model, or no episode is as
            long as the horizon.
    """
    data = _read_data(world_model, dataset)
    device = world_model.observation_mask.device
    spread = _inverse_spread(data.get(next_key(world_model.tensor_keys.reward))).to(device)
    results = _measure_one_step(world_model, data, spread, device)
    trace = trace_open_loop(world_model, data, horizon=horizon, windows=windows, seed=seed)
    for k in sorted({*(k for k in _REPORTED_STEPS if k <= horizon), horizon}):
        for name in ("state_error", "observation_error", "reward_error"):
            results[f"open_loop/{name}/{k}"] = trace.get(name)[:, k - 1].mean().item()
    last = trace.get("state_error")[:, -1]
    results[f"open_loop/state_error_p99/{horizon}"] = last.quantile(0.99).item()
    if world_model.has_uncertainty:
        for name, value in measure_uncertainty(trace).items():
            results[f"open_loop/{name}"] = value
    return results


def _read_data(model: WorldModel, dataset: OfflineDataset | TensorDictBase) -> TensorDictBase:
    if isinstance(dataset, TensorDictBase):
        return dataset
    model.spec.require_match(dataset.spec, "The dataset to evaluate on")
    return dataset.data


def _measure_one_step(
    model: WorldModel, data: TensorDictBase, spread: torch.Tensor, device: torch.device
) -> dict[str, float]:
    keys = model.tensor_keys
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    logits = []
    # Of action masks: hits, predicted positives, true positives.
    counts = torch.zeros(3, dtype=torch.int64, device=device)
    for block in data.split(_BLOCK):
        block = block.to(device)
        window = imagine_open_loop(model, block.unsqueeze(1)).squeeze(1)
        scales = {
            next_key(keys.state): model.state_delta_normalizer.inverse_scale,
            # An observation that is decoded from the state does not build on the last one.
            next_key(keys.observation): model.observation_normalizer.inverse_scale
            * model.observation_mask,
            next_key(keys.reward): spread,
        }
        sums += torch.stack(
            [_square_error(window, block, key, scale).sum() for key, scale in scales.items()]
        )
        logits.append(window.get("termination_logit").flatten())
        if model.spec.discrete:
            available = block.get(next_key(keys.action_mask))
            predicted = window.get("action_mask_logit") > 0
            counts += torch.stack([(available & predicted).sum(), predicted.sum(), available.sum()])
    state, observation, reward = (sums / data.shape[0]).tolist()
    results = {
        "one_step/state_error": state,
        "one_step/observation_error": observation,
        "one_step/reward_error": reward,
    }
    ends = data.get(next_key(keys.terminated)).flatten().to(device)
    if ends.any() and not ends.all():
        results["one_step/termination_auc"] = area_under_roc(torch.cat(logits), ends)
    if model.spec.discrete:
        hits, positives, truths = counts.tolist()
        results["one_step/action_mask_f1"] = 2 * hits / max(positives + truths, 1)
    return results


def _inverse_spread(reward: torch.Tensor) -> torch.Tensor:
    """One over the standard deviation of all rewards, ends among them: ``[1]``; 0 if constant."""
    std = reward.std(correction=0).reshape(1)
    return torch.where(std > 0, 1.0 / std, torch.zeros_like(std))


def _square_error(
    predicted: TensorDictBase, truth: TensorDictBase, key: object, inverse_scale: torch.Tensor
) -> torch.Tensor:
    """Mean square over the features whose inverse scale is not 0: ``[*]``."""
    error = (predicted.get(key) - truth.get(key)) * inverse_scale
    features = error.ndim - predicted.ndim
    varying = (inverse_scale > 0).expand(error.shape[-features:]).sum().clamp_min(1)
    return error.square().flatten(-features).sum(-1) / varying


def rank_correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Spearman's rank correlation of two tensors of the same shape.

    Examples:
        >>> round(rank_correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 8.0, 9.0])), 6)
        1.0
    """
    ranks = torch.stack([_rank(a.flatten()), _rank(b.flatten())])
    return torch.corrcoef(ranks)[0, 1].item()


def kept_error_ratio(
    uncertainty: torch.Tensor, error: torch.Tensor, coverage: float = 0.5
) -> float:
    """Mean error of the least uncertain share over the mean error of all.

    Examples:
        >>> kept_error_ratio(torch.tensor([0.1, 0.9]), torch.tensor([1.0, 3.0]))
        0.5
    """
    error = error.flatten()
    order = uncertainty.flatten().argsort(stable=True)
    kept = order[: max(round(coverage * order.numel()), 1)]
    return (error[kept].mean() / error.mean()).item()


def area_under_roc(score: torch.Tensor, positive: torch.Tensor) -> float:
    """Probability that a positive scores above a negative, ties counting one half.

    Examples:
        >>> area_under_roc(torch.tensor([0.1, 0.4, 0.9]), torch.tensor([False, False, True]))
        1.0
    """
    count = positive.sum()
    rank_sum = _rank(score.flatten())[positive.flatten()].sum()
    wins = rank_sum - count * (count + 1) / 2
    return (wins / (count * (positive.numel() - count))).item()


def _rank(values: torch.Tensor) -> torch.Tensor:
    """Ranks from 1, ties sharing their mean rank: ``[n]`` f64."""
    ordered = values.sort().values
    below = torch.searchsorted(ordered, values, right=False)
    not_above = torch.searchsorted(ordered, values, right=True)
    return (below + not_above + 1).to(torch.float64) / 2
