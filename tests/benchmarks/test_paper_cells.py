"""Cells of the grid run from dataset to row, at sizes that take seconds."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.paper import sweep
from benchmarks.paper.borrowed_uncertainty import BorrowedUncertainty
from benchmarks.paper.cells import RunOptions, run_cell
from benchmarks.paper.grid import Budget, Cell
from benchmarks.paper.planner import PLANNING
from benchmarks.paper.rows import read_rows
from benchmarks.paper.variants import Variant
from benchmarks.paper.world_models import share_world_model
from torchrl_logo.data import load_dataset
from torchrl_logo.modules import EnsembleWorldModel, LOGOWorldModel

DATASET = "vmas/wheel-medium?frames=2000"
SMALL = {"imagined_envs": 8, "horizon": 3, "batch_size": 32, "hidden_sizes": [16]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("paper")


@pytest.fixture(autouse=True)
def own_data(folder, monkeypatch):
    monkeypatch.setenv("TORCHRL_LOGO_DATA", str(folder / "data"))
    small = {"planning_horizon": 2, "num_candidates": 4, "num_elites": 2, "iterations": 1}
    for name, value in small.items():
        monkeypatch.setitem(PLANNING, name, value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def run(folder, method, variant="", seed=0, track=False):
    cell = Cell(DATASET, method, variant, seed, Budget(4, 10))
    return run_cell(cell, RunOptions(episodes=4, folder=folder, track=track), SMALL)


def test_a_planner_acts_with_the_policy_and_model_that_were_trained_before(folder):
    policy = run(folder, "logo")
    record = next((folder / "policies").glob("*.json"))
    record.write_text(json.dumps({"seconds": 123.0}))
    planner = run(folder, "logo-mpc")
    assert planner["seconds"] == 123.0  # not trained again
    assert planner["world_model_seconds"] == policy["world_model_seconds"] > 0
    assert planner["return"] != policy["return"]
    assert len(list((folder / "world_models").glob("*.pt"))) == 1
    assert policy["episodes"] == 4
    assert policy["interval"][0] <= policy["return"] <= policy["interval"][1]
    low, high = (policy["reference"][name] for name in ("random", "expert"))
    score = 100 * (policy["return"] - low) / (high - low)
    assert policy["normalized"] == pytest.approx(score, abs=1e-2)
    assert policy["dataset_hash"] == load_dataset("vmas/wheel-medium", frames=2000).metadata.hash
    assert run(folder, "logo")["return"] == policy["return"]  # from the kept weights


def test_variants_change_what_they_say(folder):
    uniform = run(folder, "logo", "uniform")["hyperparameters"]
    assert (uniform["uncertainty_weights"], uniform["reward_penalty"]) == (False, 0.0)
    penalised = run(folder, "logo", "reward-penalty")["hyperparameters"]
    assert not penalised["uncertainty_weights"] and penalised["reward_penalty"] > 0
    assert run(folder, "logo", "real-0.75")["hyperparameters"]["real_fraction"] == 0.75
    wide = run(folder, "logo", "C-3.0")["hyperparameters"]
    usual = run(folder, "logo")["hyperparameters"]
    assert wide["uncertainty_threshold"] == pytest.approx(3 * usual["uncertainty_threshold"])
    assert wide["temperature"] == pytest.approx(usual["temperature"])
    steep = run(folder, "logo", "log-odds-6.0")["hyperparameters"]
    assert steep["temperature"] == pytest.approx(usual["temperature"] / 2)
    alone = run(folder, "logo", "no-synthetic")["hyperparameters"]
    assert "world_model" not in alone
    assert (alone["lr"], alone["loss"]) == (usual["lr"], usual["loss"])
    real = run(folder, "logo", "real-dynamics")
    assert real["hyperparameters"]["world_model"] == "SimulatorWorldModel"
    assert run(folder, "macql", "joint-model")["hyperparameters"]["world_model"] == (
        "JointWorldModel"
    )
    with pytest.raises(ValueError, match="no variant 'horizon-7'"):
        run(folder, "logo", "horizon-7")


def test_a_borrowed_uncertainty_leaves_predictions_alone(folder):
    dataset = load_dataset("vmas/wheel-medium", frames=2000)
    arguments = {"steps": 10, "seed": 0, "folder": folder / "world_models"}
    model, seconds, _ = share_world_model("logo", dataset, Variant(judge="ensemble"), **arguments)
    assert isinstance(model, BorrowedUncertainty)
    own, own_seconds, _ = share_world_model("logo", dataset, Variant(), **arguments)
    judge, judge_seconds, _ = share_world_model("ensemble", dataset, Variant(), **arguments)
    assert isinstance(own, LOGOWorldModel) and isinstance(judge, EnsembleWorldModel)
    assert seconds == own_seconds + judge_seconds
    rows = dataset.data[:50]
    inputs = rows["state"], rows["agents", "observation"], rows["agents", "action"]
    found, expected = model.predict(*inputs), own.predict(*inputs)
    assert torch.equal(found.state, expected.state) and torch.equal(found.reward, expected.reward)
    assert torch.equal(found.uncertainty, judge.predict(*inputs).uncertainty)
    bounds = model.state_normalizer.clamp(rows["state"] + 100, 0.5)
    assert torch.equal(bounds, own.state_normalizer.clamp(rows["state"] + 100, 0.5))


def test_a_loss_that_is_off_trains_another_model(folder):
    dataset = load_dataset("vmas/wheel-medium", frames=2000)
    arguments = {"steps": 10, "seed": 0, "folder": folder / "world_models"}
    variant = Variant(model_loss={"direct": 0.0})
    off, _, _ = share_world_model("logo", dataset, variant, **arguments)
    on, _, _ = share_world_model("logo", dataset, Variant(), **arguments)
    inputs = [dataset.data[:9][k] for k in ("state", ("agents", "observation"))]
    inputs.append(dataset.data[:9]["agents", "action"])
    assert not torch.equal(off.predict(*inputs).uncertainty, on.predict(*inputs).uncertainty)


def test_a_hydra_job_writes_its_row_once(folder, monkeypatch):
    table = folder / "swept.jsonl"
    overrides = [f'dataset="{DATASET}"', "method=bc", "steps=2", "episodes=2"]
    overrides += [f"folder={folder}", f"rows={table}", "mlflow=false", f"hydra.run.dir={folder}/h"]
    monkeypatch.setattr("sys.argv", ["sweep", *overrides])
    for _ in range(2):
        sweep.main()
    (row,) = read_rows(table)
    assert (row["dataset"], row["method"], row["steps"]) == (DATASET, "bc", 2)


def test_seeds_are_nested_runs_of_one_parent(folder):
    from mlflow import MlflowClient

    for seed in (0, 1):
        run(folder, "bc", seed=seed, track=True)
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("paper")
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {f"{DATASET} bc", f"{DATASET} bc seed 0", f"{DATASET} bc seed 1"}
    parent = runs[f"{DATASET} bc"].info.run_id
    for seed in (0, 1):
        child = runs[f"{DATASET} bc seed {seed}"]
        assert child.data.tags["mlflow.parentRunId"] == parent
        assert child.info.status == "FINISHED"
        assert "final/normalized" in child.data.metrics
        assert child.data.params["steps"] == "4"
