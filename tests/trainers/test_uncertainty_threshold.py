"""The uncertainty threshold, against an open loop that is written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torchrl_logo.data import OfflineDataset, collect
from torchrl_logo.envs.vmas import VmasTeamEnv
from torchrl_logo.evaluation.world_model import imagine_open_loop
from torchrl_logo.modules import JointWorldModel, LOGOWorldModel, accumulate_along
from torchrl_logo.trainers import find_uncertainty_threshold


@pytest.fixture(scope="module")
def dataset() -> OfflineDataset:
    return collect(VmasTeamEnv("transport", num_envs=8, max_steps=6, seed=0), None, 96, seed=0)


@pytest.fixture(scope="module")
def model(dataset: OfflineDataset) -> LOGOWorldModel:
    torch.manual_seed(0)
    return LOGOWorldModel.from_dataset(dataset, hidden_size=8)


def test_quantile_of_the_accumulated_uncertainty(
    dataset: OfflineDataset, model: LOGOWorldModel
) -> None:
    """Two windows fit an episode of six steps, so that all of them can be drawn many times."""
    data = dataset.data
    first = [i for i in range(len(data)) if int(data["step"][i]) + 5 <= 6]
    windows = torch.stack([data[i : i + 5] for i in first])
    assert windows.shape == (32, 5)
    accumulated = accumulate_along(imagine_open_loop(model, windows)["uncertainty"].squeeze(-1))
    values = np.sort(accumulated.detach().flatten().numpy())
    for quantile in (0.25, 0.5, 0.95):
        found = find_uncertainty_threshold(
            model, dataset, horizon=5, quantile=quantile, windows=4096, seed=1
        )
        low, high = np.quantile(values, [max(quantile - 0.03, 0), min(quantile + 0.03, 1)])
        assert low <= found <= high
    largest = find_uncertainty_threshold(model, dataset, horizon=5, quantile=1.0, windows=4096)
    assert largest == pytest.approx(float(values[-1]), rel=1e-4)


def test_horizon_is_cut_to_the_longest_episode(
    dataset: OfflineDataset, model: LOGOWorldModel
) -> None:
    arguments = {"windows": 64, "seed": 2}
    whole = find_uncertainty_threshold(model, dataset, horizon=6, **arguments)
    assert find_uncertainty_threshold(model, dataset, horizon=500, **arguments) == whole
    assert find_uncertainty_threshold(model, dataset, horizon=1, **arguments) < whole


def test_seed_decides_and_the_process_random_state_stays(
    dataset: OfflineDataset, model: LOGOWorldModel
) -> None:
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    first = find_uncertainty_threshold(model, dataset, horizon=3, windows=16, seed=4)
    assert torch.equal(torch.rand(2), expected)
    assert find_uncertainty_threshold(model, dataset, horizon=3, windows=16, seed=4) == first
    assert find_uncertainty_threshold(model, dataset, horizon=3, windows=16, seed=5) != first


def test_model_without_an_uncertainty(dataset: OfflineDataset) -> None:
    joint = JointWorldModel.from_dataset(dataset, hidden_size=8)
    with pytest.raises(ValueError, match="JointWorldModel reports no uncertainty"):
        find_uncertainty_threshold(joint, dataset, horizon=3, windows=16)


@pytest.mark.parametrize("quantile", [0.0, 1.5, float("nan")])
def test_quantile_out_of_range(
    quantile: float, dataset: OfflineDataset, model: LOGOWorldModel
) -> None:
    with pytest.raises(ValueError, match="quantile must be within"):
        find_uncertainty_threshold(model, dataset, horizon=3, quantile=quantile)
