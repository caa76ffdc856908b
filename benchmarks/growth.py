"""How the cost of an update and of an imagined step grows with the team, the state and the batch.

    python benchmarks/growth.py

Measured are an update of LOGO's world model (loss and gradient), one of MACQL, and a step of
``ImaginedEnv``: processor seconds, the least of several rounds, and memory. An update's memory is
what its graph keeps for the gradient, each storage once; that of an imagined step, in which
nothing is kept, is what its operations write. Both are counted, and so the same on any machine.
One size varies at a time; ``exponent_at_largest`` is the slope between the last two sizes of
``cost ~ size ** exponent``, ``exponent`` that of a line through all of them.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torchrl_logo.data import TaskSpec
from torchrl_logo.data.metadata import record_versions
from torchrl_logo.envs import ImaginedEnv
from torchrl_logo.modules import LOGOWorldModel, make_centralized_critic, make_gaussian_actor
from torchrl_logo.objectives import MACQLLoss
from torchrl_logo.objectives.world_model import make_world_model_loss

RESULTS = Path(__file__).resolve().parent / "results" / "growth.json"
OBSERVATION, ACTION, HIDDEN = 16, 2, 128
SIZES: dict[str, list[int]] = {
    "agents": [2, 5, 10, 30, 100],
    "state_size": [10, 30, 100, 300, 1000],
    "batch": [64, 256, 1024, 4096, 16384, 65536],
}
FIXED = {"agents": 3, "state_size": 32, "batch": 256}
Action = Callable[[], Any]


class WrittenBytes(TorchDispatchMode):
    """Counts the bytes that operations write, views not among them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
            self.count += sum(tensor.nbytes for tensor in tensors)
        return out


def count_saved(compute: Callable[[], torch.Tensor]) -> int:
    """Bytes that the graph of a result keeps for its gradient, parameters among them."""
    saved: dict[int, int] = {}
    kept = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        kept.append(tensor)  # so that no address is given out twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        compute()
    return sum(saved.values())


def make_costs(agents: int, state_size: int, batch: int) -> dict[str, tuple[Action, int]]:
    """What is timed, by name, with its bytes."""
    torch.manual_seed(0)
    spec = TaskSpec(
        n_agents=agents,
        observation_size=OBSERVATION,
        state_size=state_size,
        action_size=ACTION,
        action_low=(-1.0,) * ACTION,
        action_high=(1.0,) * ACTION,
    )
    data = make_batch(spec, batch)
    model = LOGOWorldModel(spec, hidden_size=HIDDEN)
    model.fit_normalizers(data)
    actor = make_gaussian_actor(spec, hidden_sizes=[HIDDEN, HIDDEN])
    model_loss = make_world_model_loss(model)
    policy_loss = MACQLLoss(
        actor,
        make_centralized_critic(spec, hidden_sizes=[HIDDEN, HIDDEN]),
        action_spec=spec.action_spec(),
        num_samples=2,
        bc_coeff=0.25,
    )
    policy_loss.make_value_estimator(gamma=0.95)

    def compute(loss: Any) -> torch.Tensor:
        found = loss(data.clone(recurse=False))
        return torch.stack([v for k, v in found.items() if k.startswith("loss_")]).sum()

    env = ImaginedEnv(model, data, batch_size=batch, horizon=5)
    start = actor(env.reset())

    def imagine() -> None:
        env.step(start.clone(recurse=False))

    with WrittenBytes() as written:
        imagine()
    return {
        "world_model_update": (
            lambda: compute(model_loss).backward(),
            count_saved(lambda: compute(model_loss)),
        ),
        "macql_update": (
            lambda: compute(policy_loss).backward(),
            count_saved(lambda: compute(policy_loss)),
        ),
        "imagined_step": (imagine, written.count),
    }


def make_batch(spec: TaskSpec, rows: int) -> TensorDict:
    def observe() -> dict[str, Any]:
        observation = torch.randn(rows, spec.n_agents, OBSERVATION)
        return {"agents": {"observation": observation}, "state": torch.randn(rows, spec.state_size)}

    now = observe()
    now["agents"]["action"] = torch.rand(rows, spec.n_agents, ACTION) * 1.8 - 0.9
    terminated = torch.rand(rows, 1) < 0.05
    outcome = {"reward": torch.randn(rows, 1), "done": terminated, "terminated": terminated}
    return TensorDict({**now, "next": {**observe(), **outcome}}, [rows])


def measure(action: Action, rounds: int) -> float:
    """Processor seconds of an action: the least of ``rounds``, of at least 20 ms each."""
    action()
    least = math.inf
    for _ in range(rounds):
        start, count = time.process_time(), 0
        while not count or time.process_time() - start < 0.02:
            action()
            count += 1
        least = min(least, (time.process_time() - start) / count)
    return least


def fit(sizes: list[int], costs: list[float]) -> dict[str, float]:
    """Exponents of the growth."""
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    last = (y[-1] - y[-2]) / (x[-1] - x[-2])
    slope = statistics.linear_regression(x, y).slope
    return {"exponent": round(slope, 2), "exponent_at_largest": round(last, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--axes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--largest", type=int, help="leave larger sizes out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for axis in args.axes:
        sizes = [n for n in SIZES[axis] if args.largest is None or n <= args.largest]
        rows: dict[str, dict[str, list[float]]] = {}
        for size in sizes:
            for name, (action, memory) in make_costs(**{**FIXED, axis: size}).items():
                row = rows.setdefault(name, {"seconds": [], "bytes": []})
                row["seconds"].append(float(f"{measure(action, args.rounds):.3g}"))
                row["bytes"].append(memory)
        found[axis] = {
            name: {
                "sizes": sizes,
                **row,
                "seconds_growth": fit(sizes, row["seconds"]),
                "bytes_growth": fit(sizes, row["bytes"]),
            }
            for name, row in rows.items()
        }
        for name, row in found[axis].items():
            print(axis, name, row["seconds_growth"], row["bytes_growth"], flush=True)
    content = {
        "fixed": FIXED,
        "observation_size": OBSERVATION,
        "action_size": ACTION,
        "hidden_size": HIDDEN,
        "threads": 1,
        "versions": record_versions(),
        "growth": found,
    }
    args.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
