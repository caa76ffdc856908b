"""Updates a second of every loss of policies, for growing teams, eager and compiled.

    python benchmarks/losses.py --losses macql cfcql --agents 3 10 30

An update is a loss, its gradients and a step of Adam, on one thread; seconds are of processor time
(with ``--device cuda``, of the wall clock, and rows go to ``losses_cuda.json``).
The teams' sizes and, in the same rounds, behaviour cloning at each size take turns in one process,
so that what else the machine does falls on all of them; times and ratios are medians over the
rounds. Observations, states,
networks and batches have the same sizes whatever the team's, so that the exponent of the cost is
the agents' alone: it is the slope of the logarithm of seconds over that of agents, over all sizes
and from one size to the next. At a few agents an update is mostly the fixed cost of many small
operations.

What does not depend on the machine is counted besides: tensor operations of an update, which a
Python loop over agents would multiply, and the multiplications of its matrix products, with their
exponent at the largest sizes.

Each (loss, agents, compiled) is one row of ``results/losses.json``; the same command goes on where
it stopped (``--again`` measures anew). ``--compiled`` says at which sizes ``torch.compile``, which
takes minutes for some losses, is measured as well.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torchrl.objectives import LossModule, SoftUpdate

from torchrl_logo import modules, objectives
from torchrl_logo.data import TaskSpec
from torchrl_logo.data.metadata import record_versions

RESULTS = Path(__file__).resolve().parent / "results" / "losses.json"
SIZES: dict[str, Any] = {
    "batch_size": 64,
    "observation_size": 16,
    "state_size": 32,
    "action_size": 2,
    "actions": 10,
    "hidden_sizes": [64, 64],
}
Make = Callable[[TaskSpec], LossModule]
Cell = tuple[int, bool]  # agents, and whether compiled


@dataclasses.dataclass(frozen=True)
class Measured:
    """A loss to measure.

    Attributes:
        make: makes it with networks of the package.
        discrete: whether its actions are.
        factorised: whether it is made of the agents' own networks and a mixer of their values;
            otherwise of critics that see all of the joint action.
    """

    make: Make
    discrete: bool = False
    factorised: bool = True


def make_network(name: str, spec: TaskSpec) -> Any:
    return getattr(modules, f"make_{name}")(spec, hidden_sizes=SIZES["hidden_sizes"])


def make_with(
    name: str, *networks: str, bounded: bool = True, behaviour: str | None = None
) -> Make:
    """How a loss is made of the networks whose factories are named."""

    def make(spec: TaskSpec) -> LossModule:
        made: list[Any] = []
        for network in networks:
            if network in ("qmix", "vdn"):
                made.append(modules.make_mixer(spec, network))
            elif network == "linear_mixer":
                made.append(modules.make_linear_mixer(spec))
            elif network == "action_vae":
                made.extend(make_network(network, spec))
            else:
                made.append(make_network(network, spec))
        kwargs = {"action_spec": spec.action_spec()} if bounded else {}
        if behaviour is not None:
            kwargs["behaviour_network"] = make_network(behaviour, spec)
        return getattr(objectives, name)(*made, **kwargs)

    return make


def list_losses() -> dict[str, Measured]:
    actor, critic = "gaussian_actor", "centralized_critic"
    chooser, utilities = "categorical_actor", "action_value_network"
    found = {
        "bc": Measured(make_with("BCLoss", actor)),
        "omar": Measured(make_with("OMARLoss", actor, "agent_critic")),
        "omiga": Measured(
            make_with("OMIGALoss", actor, "agent_critic", "agent_value", "linear_mixer")
        ),
        "maicq": Measured(make_with("MAICQLoss", actor, "agent_critic", "linear_mixer")),
        "matd3bc": Measured(make_with("MATD3BCLoss", actor, critic), factorised=False),
        "mabcq": Measured(
            make_with("MABCQLoss", "action_vae", "perturbation_network", critic), factorised=False
        ),
        "macql": Measured(make_with("MACQLLoss", actor, critic), factorised=False),
        "cfcql": Measured(make_with("CFCQLLoss", actor, critic, behaviour=actor), factorised=False),
        "discrete_bc": Measured(make_with("BCLoss", chooser), discrete=True),
        "discrete_omiga": Measured(
            make_with("OMIGALoss", chooser, utilities, "agent_value", "linear_mixer"),
            discrete=True,
        ),
        "discrete_maicq": Measured(
            make_with("DiscreteMAICQLoss", chooser, utilities, "linear_mixer", bounded=False),
            discrete=True,
        ),
    }
    for mixer in ("vdn", "qmix"):
        found |= {
            f"discrete_mabcq_{mixer}": Measured(
                make_with("DiscreteMABCQLoss", chooser, utilities, mixer, bounded=False),
                discrete=True,
            ),
            f"discrete_macql_{mixer}": Measured(
                make_with("DiscreteMACQLLoss", utilities, mixer, bounded=False), discrete=True
            ),
            f"discrete_cfcql_{mixer}": Measured(
                make_with("DiscreteCFCQLLoss", utilities, mixer, bounded=False, behaviour=chooser),
                discrete=True,
            ),
        }
    return found


def make_spec(n_agents: int, *, discrete: bool) -> TaskSpec:
    sizes: dict[str, Any] = {
        "n_agents": n_agents,
        "observation_size": SIZES["observation_size"],
        "state_size": SIZES["state_size"],
    }
    if discrete:
        return TaskSpec(**sizes, action_size=SIZES["actions"], discrete=True)
    size = SIZES["action_size"]
    return TaskSpec(**sizes, action_size=size, action_low=(-1.0,) * size, action_high=(1.0,) * size)


def make_batch(spec: TaskSpec) -> TensorDict:
    rows, n_agents = SIZES["batch_size"], spec.n_agents

    def observe() -> dict[str, Any]:
        agents = {"observation": torch.randn(rows, n_agents, spec.observation_size)}
        if spec.discrete:
            agents["action"] = torch.randint(spec.action_size, (rows, n_agents))
            mask = torch.rand(rows, n_agents, spec.action_size) < 0.7
            agents["action_mask"] = mask.scatter(-1, agents["action"].unsqueeze(-1), True)
        else:
            agents["action"] = torch.rand(rows, n_agents, spec.action_size) * 2 - 1
        return {"agents": agents, "state": torch.randn(rows, spec.state_size)}

    terminated = torch.rand(rows, 1) < 0.05
    outcome = {"reward": torch.randn(rows, 1), "done": terminated, "terminated": terminated}
    outcome["action_recorded"] = ~terminated
    return TensorDict({**observe(), "next": {**observe(), **outcome}}, [rows])


def make_update(measured: Measured, n_agents: int, *, compiled: bool) -> Callable[[], None]:
    torch.manual_seed(0)
    spec = make_spec(n_agents, discrete=measured.discrete)
    loss, batch = measured.make(spec), make_batch(spec)
    if any(name.startswith("target_") for name, _ in loss.named_buffers()):
        SoftUpdate(loss, tau=0.005)  # or the loss warns that nothing moves its targets
    batch = batch.select(*loss.in_keys)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-4)
    compute = torch.compile(loss, fullgraph=True) if compiled else loss

    def update() -> None:
        losses = compute(batch)
        sum(value for key, value in losses.items() if key.startswith("loss_")).backward()
        optimizer.step()
        optimizer.zero_grad()

    return update


def measure(update: Callable[[], None], seconds: float) -> float:
    """Seconds an update takes, over ``seconds`` or one update, whichever is longer."""
    start, count = read_clock(), 0
    while count == 0 or read_clock() - start < seconds:
        update()
        count += 1
    return (read_clock() - start) / count


def read_clock() -> float:
    """Seconds of the process, which others do not have the processor for; by the wall on a GPU."""
    if torch.get_default_device().type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


class OperationCounter(TorchDispatchMode):
    """Counts tensor operations, and those on numbers in matrix products.

    :class:`~torch.utils.flop_counter.FlopCounterMode` also follows modules, which fails on those
    that tensordict holds parameters in.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operations += 1
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


def count_operations(name: str, sizes: Iterable[int]) -> dict[str, Any]:
    """Tensor operations of an eager update at each size, and how its matrix products grow."""
    sizes = sorted(sizes)
    operations, flops = [], []
    for n_agents in sizes:
        update = make_update(list_losses()[name], n_agents, compiled=False)
        update()  # the optimizer's state is made at the first
        with OperationCounter() as counter:
            update()
        operations.append(counter.operations)
        flops.append(counter.flops)
    found: dict[str, Any] = {
        "agents": sizes,
        "tensor_operations": operations,
        "matrix_product_flops": flops,
    }
    if len(sizes) > 1:
        slope = math.log(flops[-1] / flops[-2]) / math.log(sizes[-1] / sizes[-2])
        found["exponent_at_largest"] = round(slope, 2)
    return found


def run(
    name: str, cells: Iterable[Cell], rounds: int, seconds: float, device: str = "cpu"
) -> list[dict[str, Any]]:
    """Measures one loss in all cells, in turns."""
    torch.set_num_threads(1)
    torch.set_default_device(device)
    every = list_losses()
    measured = every[name]
    reference = every["discrete_bc" if measured.discrete else "bc"]
    updates: dict[Cell, Callable[[], None]] = {}
    compile_seconds = {}
    for n_agents, compiled in cells:
        update = make_update(measured, n_agents, compiled=compiled)
        start = time.perf_counter()
        update()
        compile_seconds[n_agents, compiled] = time.perf_counter() - start
        update()
        updates[n_agents, compiled] = update
    sizes = sorted({n_agents for n_agents, _ in updates})
    references = {n: make_update(reference, n, compiled=False) for n in sizes}
    for update in references.values():
        update()
    times: dict[Cell, list[float]] = {cell: [] for cell in updates}
    reference_times: dict[int, list[float]] = {n: [] for n in sizes}
    for _ in range(rounds):
        for n_agents in sizes:
            reference_times[n_agents].append(measure(references[n_agents], seconds))
            for compiled in (False, True):
                if (n_agents, compiled) in updates:
                    found = measure(updates[n_agents, compiled], seconds)
                    times[n_agents, compiled].append(found)
    rows = []
    for (n_agents, compiled), taken in times.items():
        ratios = [a / b for a, b in zip(taken, reference_times[n_agents], strict=True)]
        row: dict[str, Any] = {
            "loss": name,
            "agents": n_agents,
            "compiled": compiled,
            "factorised": measured.factorised,
            "updates_per_second": _round(1 / statistics.median(taken)),
            "seconds_per_update": _round(statistics.median(taken)),
            "ratio_to_bc": _round(statistics.median(ratios)),
            "rounds": rounds,
        }
        if compiled:
            row["first_update_seconds"] = _round(compile_seconds[n_agents, compiled])
            eager = times.get((n_agents, False))
            if eager:
                speedups = [a / b for a, b in zip(eager, taken, strict=True)]
                row["speedup_over_eager"] = _round(statistics.median(speedups))
        rows.append(row)
    return rows


def run_alone(
    name: str, cells: list[Cell], rounds: int, seconds: float, device: str
) -> list[dict[str, Any]]:
    """As :func:`run`, in a process of its own: what one compiles does not slow the next."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(run, name, cells, rounds, seconds, device).result()


def _round(value: float) -> float:
    return float(f"{value:.3g}")


def fit_exponents(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """How an eager update's seconds grow with the agents, ``seconds ~ agents ** exponent``."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if not row["compiled"]:
            curves.setdefault(row["loss"], []).append((row["agents"], row["seconds_per_update"]))
    found = {}
    for name, curve in curves.items():
        points = [(math.log(n), math.log(seconds)) for n, seconds in sorted(curve)]
        if len(points) < 2:
            continue
        agents = [n for n, _ in sorted(curve)]
        steps = [
            (later[1] - earlier[1]) / (later[0] - earlier[0])
            for earlier, later in itertools.pairwise(points)
        ]
        slope = statistics.linear_regression(*zip(*points, strict=True)).slope
        found[name] = {
            "factorised": list_losses()[name].factorised,
            "overall": round(slope, 2),
            **{
                f"{a}_to_{b}": round(step, 2)
                for (a, b), step in zip(itertools.pairwise(agents), steps, strict=True)
            },
        }
    return found


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 5), sharex=True, sharey=True)
    losses = list_losses()
    for axis, discrete in zip(axes, (False, True), strict=True):
        names = [name for name in losses if losses[name].discrete is discrete]
        for index, name in enumerate(names):
            style = {"color": f"C{index}", "label": name.removeprefix("discrete_")}
            for compiled, look in ((False, "o-"), (True, "^:")):
                curve = sorted(
                    (row["agents"], row["updates_per_second"])
                    for row in rows
                    if row["loss"] == name and row["compiled"] is compiled
                )
                if curve:
                    axis.plot(*zip(*curve, strict=True), look, **style)
                style.pop("label", None)
        axis.set(xscale="log", yscale="log", xlabel="agents")
        axis.set_title(f"{'discrete' if discrete else 'continuous'} actions")
        axis.grid(True, which="major", alpha=0.3)
        axis.legend(fontsize=8)
    sizes = sorted({row["agents"] for row in rows})
    axes[0].set_xticks(sizes, [str(size) for size in sizes])
    axes[0].set_ylabel("updates a second of one core (solid: eager, dotted: compiled)")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def write(rows: list[dict[str, Any]], counts: dict[str, dict[str, Any]], path: Path) -> None:
    order = list(list_losses())
    rows = sorted(rows, key=lambda row: (order.index(row["loss"]), row["agents"], row["compiled"]))
    table = {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": record_versions(),
        "sizes": SIZES,
        "exponents": fit_exponents(rows),
        "counts": counts,
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(table, indent=1) + "\n")
    unfinished.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--losses", nargs="+", default=list(list_losses()), choices=[*list_losses()]
    )
    parser.add_argument("--agents", nargs="+", type=int, default=[3, 10, 30, 100])
    parser.add_argument("--compiled", nargs="*", type=int, default=[3, 30], help="team sizes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.4, help="of a round, for each")
    parser.add_argument("--again", action="store_true", help="measure rows that are there anew")
    parser.add_argument("--quick", action="store_true", help="one short round, eager, nothing kept")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = RESULTS if args.device == "cpu" else RESULTS.with_stem("losses_cuda")
    if args.quick:
        for name in args.losses:
            eager = [(n, False) for n in args.agents]
            for row in run(name, eager, rounds=1, seconds=0.05, device=args.device):
                print(json.dumps(row), flush=True)
        return
    kept = json.loads(results.read_text()) if results.exists() else {"rows": []}
    rows = {(row["loss"], row["agents"], row["compiled"]): row for row in kept["rows"]}
    counts = kept.get("counts", {})
    failed = []
    for name in args.losses:
        # what a job measures, and what is kept of it: compiled updates take turns with eager ones
        eager = [(n, False) for n in args.agents]
        jobs = [(eager, eager), *[([(n, False), (n, True)], [(n, True)]) for n in args.compiled]]
        for cells, kept_cells in jobs:
            wanted = {(name, *cell) for cell in kept_cells}
            if not args.again and wanted <= set(rows):
                continue
            try:
                found = run_alone(name, cells, args.rounds, args.seconds, args.device)
            except Exception as error:
                failed.append(f"{name} {cells}: {type(error).__name__}: {error}")
                continue
            for row in found:
                if (name, row["agents"], row["compiled"]) in wanted:
                    rows[name, row["agents"], row["compiled"]] = row
                    print(json.dumps(row), flush=True)
            write(list(rows.values()), counts, results)
        sizes = {n for loss, n, compiled in rows if loss == name and not compiled}
        counts[name] = count_operations(name, sizes)
    write(list(rows.values()), counts, results)
    plot(list(rows.values()), results.with_suffix(".png"))
    if failed:
        raise SystemExit("Not measured:\n" + "\n".join(failed))


if __name__ == "__main__":
    main()
