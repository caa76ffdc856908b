"""Errors of imagined rollouts under the policy that was learnt in them, against the simulator.

    python benchmarks/policy_errors.py --tasks vmas/balance vmas/navigation

Along recorded actions a world model is where its data are; a policy that was trained in its
imagination goes elsewhere. For each task a world model and a LOGO policy are trained, the policy
acts deterministically in imagination from held-out states, and the simulator, set to the same
states, is given the same actions. One row a task and seed in ``results/policy_errors.jsonl``:
state errors by horizon (mean squares in standard deviations of the data), of the same model along
recorded actions from the same starts, and the rank correlation of accumulated uncertainty with
the error under the policy.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type

from benchmarks.paper.simulator_world_model import SimulatorWorldModel
from torchrl_logo.data import load_dataset
from torchrl_logo.data.metadata import record_versions
from torchrl_logo.evaluation import evaluate, imagine_open_loop
from torchrl_logo.evaluation.world_model import find_windows, rank_correlation
from torchrl_logo.modules import LOGOWorldModel, accumulate_along
from torchrl_logo.trainers import OfflineTrainer, WorldModelTrainer

RESULTS = Path(__file__).resolve().parent / "results" / "policy_errors.jsonl"
STEPS = (1, 5, 10, 15)


@torch.no_grad()
def follow_policy(model: Any, policy: Any, starts: TensorDict, horizon: int) -> TensorDict:
    """What a model predicts under a policy that acts on its predictions: ``[W, T]``."""
    state, observation = starts["state"], starts["agents", "observation"]
    steps = []
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        for _ in range(horizon):
            read = TensorDict({"agents": {"observation": observation}, "state": state}, len(state))
            action = policy(read)["agents", "action"]
            found = model.predict(state, observation, action)
            steps.append(
                TensorDict(
                    {"state": found.state, "action": action, "uncertainty": found.uncertainty},
                    len(state),
                )
            )
            state, observation = found.state, found.observation
    return torch.stack(steps, 1)


@torch.no_grad()
def replay(simulator: SimulatorWorldModel, starts: TensorDict, actions: torch.Tensor) -> Any:
    """The simulator's states ``[W, T, d_s]`` from the same starts along the same actions."""
    state, observation = starts["state"], starts["agents", "observation"]
    states = []
    for action in actions.unbind(1):
        found = simulator.predict(state, observation, action)
        state, observation = found.state, found.observation
        states.append(state)
    return torch.stack(states, 1)


def measure(task: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    dataset = load_dataset(f"{task}-{args.quality}")
    torch.manual_seed(seed)
    model = LOGOWorldModel.from_dataset(dataset)
    trainer = WorldModelTrainer(
        model, dataset, steps=args.world_model_steps, seed=seed, progress_bar=False
    )
    trainer.train()
    learner = OfflineTrainer(
        "logo", dataset, steps=args.steps, seed=seed, world_model=model, progress_bar=False
    )
    policy = learner.train().policy
    data, horizon = trainer.held_out.data, max(STEPS)
    windows = find_windows(data["episode"], horizon)
    chosen = windows[torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))]
    rows = chosen[: args.windows].unsqueeze(-1) + torch.arange(horizon)
    recorded = data[rows]
    starts = recorded[:, 0]
    scale = model.state_normalizer.inverse_scale

    imagined = follow_policy(model, policy, starts, horizon)
    simulator = SimulatorWorldModel(dataset.spec)
    true = replay(simulator, starts, imagined["action"])
    error = ((imagined["state"] - true) * scale).square().sum(-1) / (scale > 0).sum()
    along = imagine_open_loop(model, recorded)["next", "state"] - recorded["next", "state"]
    along_error = (along * scale).square().sum(-1) / (scale > 0).sum()
    # What the replay itself misses: recorded actions against recorded states.
    again = replay(simulator, starts, recorded["agents", "action"]) - recorded["next", "state"]
    uncertainty = accumulate_along(imagined["uncertainty"].squeeze(-1))
    evaluation = evaluate(policy, task, episodes=64, seed=seed + 1)
    return {
        "task": task,
        "seed": seed,
        "dataset_hash": dataset.metadata.hash,
        "world_model_steps": args.world_model_steps,
        "steps": args.steps,
        "windows": len(rows),
        "policy_normalized": evaluation.normalized,
        "policy_error": {k: float(error[:, k - 1].mean()) for k in STEPS},
        "recorded_actions_error": {k: float(along_error[:, k - 1].mean()) for k in STEPS},
        "replay_error_15": float(
            ((again * scale).square().sum(-1) / (scale > 0).sum())[:, -1].mean()
        ),
        "uncertainty_rho_under_policy": rank_correlation(uncertainty, error),
        "versions": record_versions(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["vmas/balance", "vmas/navigation"])
    parser.add_argument("--quality", default="medium-replay")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=1500, help="updates of the policy")
    parser.add_argument("--world-model-steps", type=int, default=1500)
    parser.add_argument("--windows", type=int, default=512)
    args = parser.parse_args()
    torch.set_num_threads(1)
    done = set()
    if RESULTS.exists():
        rows = [json.loads(line) for line in RESULTS.read_text().splitlines() if line]
        done = {(row["task"], row["seed"]) for row in rows}
    for seed in args.seeds:
        for task in args.tasks:
            if (task, seed) in done:
                continue
            row = measure(task, seed, args)
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps({k: v for k, v in row.items() if k != "versions"}), flush=True)


if __name__ == "__main__":
    main()
