"""Updates a second of the world model and of MACQL, against plain PyTorch and other models.

    python benchmarks/updates.py --batches 256 1024 --compiled
    python benchmarks/updates.py --compiled --device cuda

``plain`` makes the same update with the same numbers (checked before anything is timed) from
tensors and ``torch.nn`` alone; ``ensemble`` is the five-member ensemble at the same hidden size,
``cql`` TorchRL's ``CQLLoss`` of one agent with all observations and actions, and as many draws;
``vmapped`` is MACQL with a critic that it calls through ``torch.vmap``. An update is losses,
gradient, clipping, Adam and, for policies, the targets' step. On a GPU compiled updates are also
replayed as CUDA graphs. All take turns in one process, in an order that alternates; ratios are
medians over the rounds of wall-clock times, and of the processor's times in rows that end in
``_processor``, which other processes disturb less.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from tensordict.nn import CudaGraphModule, TensorDictModule
from torch import nn
from torch.nn import functional as F
from torchrl.data import Bounded
from torchrl.modules import MLP, NormalParamExtractor, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import CQLLoss, LossModule, SoftUpdate

from torchrl_logo.data import TaskSpec
from torchrl_logo.data.metadata import record_versions
from torchrl_logo.modules import (
    EnsembleWorldModel,
    LOGOWorldModel,
    make_centralized_critic,
    make_gaussian_actor,
)
from torchrl_logo.modules.centralized_critic import CentralizedCritic
from torchrl_logo.modules.logo_world_model import SMALLEST_ERROR
from torchrl_logo.objectives import MACQLLoss
from torchrl_logo.objectives.world_model import make_world_model_loss

RESULTS = Path(__file__).resolve().parent / "results" / "updates.json"
N, OBSERVATION, STATE, ACTION = 3, 16, 32, 2
HIDDEN, DRAWS, TAU, GAMMA, CLIP = 128, 4, 0.005, 0.99, 10.0
SPEC = TaskSpec(
    n_agents=N,
    observation_size=OBSERVATION,
    state_size=STATE,
    action_size=ACTION,
    action_low=(-1.0,) * ACTION,
    action_high=(1.0,) * ACTION,
)
Losses = Callable[[], torch.Tensor]


class VmappedCritic(CentralizedCritic):
    """The same critic, of which losses do not know that it can value a stack."""

    def forward(self, state: torch.Tensor, *local: torch.Tensor) -> torch.Tensor:
        return super().forward(state, *local)


def make_batch(rows: int, device: str = "cpu") -> TensorDict:
    def observe() -> dict[str, Any]:
        agents = {"observation": torch.randn(rows, N, OBSERVATION)}
        return {"agents": agents, "state": torch.randn(rows, STATE)}

    now = observe()
    now["agents"]["action"] = torch.rand(rows, N, ACTION) * 1.8 - 0.9
    terminated = torch.rand(rows, 1) < 0.05
    outcome = {"reward": torch.randn(rows, 1), "done": terminated, "terminated": terminated}
    return TensorDict({**now, "next": {**observe(), **outcome}}, [rows]).to(device)


def sum_losses(loss: Callable[[TensorDict], Any], batch: TensorDict) -> torch.Tensor:
    return torch.stack([v for k, v in loss(batch).items() if k.startswith("loss_")]).sum()


def write_plain_world_model(model: LOGOWorldModel, batch: TensorDict) -> Losses:
    """The LOGO model's loss, of tensors."""
    state, observation = batch["state"], batch["agents", "observation"]
    action = batch["agents", "action"]
    next_state, next_observation = batch["next", "state"], batch["next", "agents", "observation"]
    reward, terminated = batch["next", "reward"], batch["next", "terminated"].float()
    decoded_row = ((torch.arange(len(state), device=state.device) + 1) % 4 == 0)[:, None, None]

    def compute() -> torch.Tensor:
        s = model.state_normalizer(state)
        o = model.observation_normalizer(observation)
        s_next = model.state_normalizer(next_state)
        o_next = model.observation_normalizer(next_observation)
        state_delta = model.state_delta_normalizer(next_state - state)
        observation_delta = model.observation_delta_normalizer(next_observation - observation)
        scaled_reward = model.normalize_reward(reward, terminated)
        with torch.no_grad():
            read = torch.where(decoded_row, model.decode(s), o)
        agents = model.describe_agents(read, action)
        local = model.local_delta(s, agents)
        deduced = model.deduce(s, agents, action, local.detach())
        decoded = model.decode(s_next)
        with torch.no_grad():
            missed, missed_next = o - model.decode(s), o_next - decoded
            off = model.measure_changes(deduced.state_delta - state_delta)
            log_error = off.clamp_min(SMALLEST_ERROR).log()
        code = model.encode_directly(s, action)
        direct = model.direct_head(code)
        expected = model.expect_log_error(code, direct, deduced.state_delta)
        return (
            F.mse_loss(local, observation_delta)
            + F.mse_loss(deduced.state_delta, state_delta)
            + F.smooth_l1_loss(deduced.reward, scaled_reward)
            + F.binary_cross_entropy_with_logits(deduced.termination_logit, terminated)
            + F.mse_loss(decoded, o_next)
            + F.mse_loss(model.persistence * missed, missed_next)
            + F.mse_loss(direct, state_delta)
            + 0.1 * F.smooth_l1_loss(expected, log_error)
        )

    return compute


class PlainMACQL(nn.Module):
    """The same networks and weights, as layers and stacked tensors."""

    def __init__(self, loss: MACQLLoss) -> None:
        super().__init__()
        self.actor = nn.ParameterList(copy_layers(loss.actor_network_params))
        self.critic = nn.ParameterList(copy_layers(loss.qvalue_network_params))
        self.target = [p.detach().clone() for p in self.critic]

    def act(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        w = list(self.actor)
        hidden = F.linear(observation, w[0], w[1]).relu()
        hidden = F.linear(hidden, w[2], w[3]).relu()
        loc, scale = F.linear(hidden, w[4], w[5]).chunk(2, -1)
        bias = math.log(math.expm1(1.0 - 1e-2))
        return loc, F.softplus(scale + bias) + 1e-2

    def value(
        self, state: torch.Tensor, action: torch.Tensor, weights: list[torch.Tensor]
    ) -> torch.Tensor:
        """Values ``[2, *]`` of states ``[*, d_s]`` and joint actions ``[*, N, d_a]``."""
        shape = action.shape[:-2]
        x = torch.cat([state.expand(*shape, -1), action.flatten(-2)], -1).flatten(0, -2)
        w = [v.transpose(-1, -2) if v.ndim == 3 else v.unsqueeze(1) for v in weights]
        hidden = torch.baddbmm(w[1], x.expand(2, *x.shape), w[0]).relu()
        hidden = torch.baddbmm(w[3], hidden, w[2]).relu()
        return torch.baddbmm(w[5], hidden, w[4]).view(2, *shape)


def copy_layers(params: Any) -> list[torch.Tensor]:
    """Weights and biases, layer by layer."""
    flat = {".".join(map(str, k if isinstance(k, tuple) else (k,))): v
            for k, v in params.items(True, True) if v.is_floating_point()}  # fmt: skip
    weights = [k for k in sorted(flat) if k.endswith("weight")]
    names = [k.removesuffix("weight") + part for k in weights for part in ("weight", "bias")]
    return [flat[name].detach().clone() for name in names]


def draw(loc: torch.Tensor, scale: torch.Tensor, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Squashed actions, and the log-density of the joint one."""
    x = loc + scale * torch.randn(*shape, *loc.shape, device=loc.device)
    normal = -((x - loc) ** 2) / (2 * scale**2) - scale.log() - 0.5 * math.log(2 * math.pi)
    squash = 2 * (math.log(2) - x - F.softplus(-2 * x))
    return x.tanh(), (normal - squash).sum((-1, -2))


def write_plain_macql(plain: PlainMACQL, batch: TensorDict, bc_coeff: float) -> Losses:
    """MACQL's loss, of tensors."""
    state, observation = batch["state"], batch["agents", "observation"]
    action, next_state = batch["agents", "action"], batch["next", "state"]
    next_observation = batch["next", "agents", "observation"]
    reward = batch["next", "reward"].squeeze(-1)
    going_on = 1 - batch["next", "terminated"].float().squeeze(-1)

    def compute() -> torch.Tensor:
        loc, scale = plain.act(observation)
        chosen, _ = draw(loc, scale)
        x = action.clamp(-1 + 1e-3, 1 - 1e-3).atanh()
        normal = -((x - loc) ** 2) / (2 * scale**2) - scale.log() - 0.5 * math.log(2 * math.pi)
        recorded = (normal - 2 * (math.log(2) - x - F.softplus(-2 * x))).sum((-1, -2)) / N
        critic = list(plain.critic)
        with torch.no_grad():
            next_loc, next_scale = plain.act(next_observation)
            here, log_here = draw(loc, scale, DRAWS)
            there, log_there = draw(next_loc, next_scale, DRAWS)
            next_value = plain.value(next_state, there[0], plain.target).amin(0)
            target = reward + GAMMA * going_on * next_value
            uniform = -1 + torch.rand(DRAWS, *action.shape, device=action.device) * 2
            log_uniform = torch.full_like(log_here, -N * ACTION * math.log(2))
        actions = torch.cat([action.unsqueeze(0), uniform, here, there])
        values = plain.value(state, actions, critic)
        value, sampled = values[:, 0], values[:, 1:]
        density = torch.cat([log_uniform, log_here, log_there])
        soft = torch.logsumexp(sampled - density, 1) - math.log(3 * DRAWS)
        policy_value = plain.value(state, chosen, [p.detach() for p in critic]).amin(0)
        spread = sampled.detach().std(1).mean().clamp_min(1e-3)
        return (
            0.5 * (value - target).square().sum(0).mean()
            + 5.0 * (soft - value).sum(0).mean()
            - (policy_value / spread).mean()
            - bc_coeff * recorded.mean()
        )

    return compute


def make_cql(device: str) -> LossModule:
    """TorchRL's loss, for which the team is one agent."""
    observations, actions = N * OBSERVATION, N * ACTION
    spec = Bounded(-1, 1, (actions,), device=device)
    body = nn.Sequential(
        MLP(in_features=observations, out_features=2 * actions, num_cells=[HIDDEN] * 2,
            activation_class=nn.ReLU),
        NormalParamExtractor(),
    )  # fmt: skip
    actor = ProbabilisticActor(
        TensorDictModule(body, ["observation"], ["loc", "scale"]),
        spec=spec,
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
    )
    critic = ValueOperator(
        MLP(in_features=observations + actions, out_features=1, num_cells=[HIDDEN] * 2,
            activation_class=nn.ReLU),
        in_keys=["observation", "action"],
    )  # fmt: skip
    return CQLLoss(actor.to(device), critic.to(device), action_spec=spec, num_random=DRAWS)


def flatten_agents(batch: TensorDict) -> TensorDict:
    following = batch["next"].exclude("agents", "state")
    following["observation"] = batch["next", "agents", "observation"].flatten(1)
    now = {k: batch["agents", k].flatten(1) for k in ("observation", "action")}
    return TensorDict({**now, "next": following}, batch.batch_size)


def make_update(
    losses: Losses,
    parameters: list[nn.Parameter],
    move_targets: Callable[[], None] | None = None,
    *,
    compiled: bool = False,
    graphed: bool = False,
) -> Callable[[], None]:
    device = parameters[0].device.type
    optimizer = torch.optim.Adam(parameters, lr=1e-4, fused=True, capturable=device == "cuda")
    compute = torch.compile(losses) if compiled else losses

    def update() -> None:
        compute().backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=not graphed)
        if move_targets is not None:
            move_targets()

    # the first calls of a CudaGraphModule compile and allocate, one is recorded, others replay it
    return CudaGraphModule(update, warmup=5) if graphed else update


def make_all_updates(
    made: dict[str, Any], device: str, compiled: tuple[str, ...]
) -> dict[str, Callable[[], None]]:
    updates = {name: make_update(*parts) for name, parts in made.items()}
    for name in compiled:
        updates[f"{name}_compiled"] = make_update(*made[name], compiled=True)
        if device == "cuda":
            updates[f"{name}_graphed"] = make_update(*made[name], compiled=True, graphed=True)
    return updates


def list_trained(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def make_world_model_updates(
    rows: int, compiled: bool, device: str
) -> dict[str, Callable[[], None]]:
    torch.manual_seed(0)
    batch, model = make_batch(rows, device), LOGOWorldModel(SPEC).to(device)
    ensemble = EnsembleWorldModel(SPEC).to(device)
    for each in (model, ensemble):
        each.fit_normalizers(batch)
    twin = copy.deepcopy(model)
    loss, ensemble_loss = make_world_model_loss(model), make_world_model_loss(ensemble)
    plain = write_plain_world_model(twin, batch)
    torch.testing.assert_close(sum_losses(loss, batch), plain())
    made = {
        "package": (lambda: sum_losses(loss, batch), list_trained(loss)),
        "plain": (plain, list_trained(twin)),
        "ensemble": (lambda: sum_losses(ensemble_loss, batch), list_trained(ensemble_loss)),
    }
    return make_all_updates(made, device, ("package", "plain") if compiled else ())


def make_policy_updates(rows: int, compiled: bool, device: str) -> dict[str, Callable[[], None]]:
    torch.manual_seed(0)
    batch = make_batch(rows, device)
    sizes = {"hidden_sizes": (HIDDEN, HIDDEN), "device": device}
    critic = make_centralized_critic(SPEC, kind="state", **sizes)
    vmapped_critic = VmappedCritic(
        STATE, n_agents=N, action_size=ACTION, hidden_sizes=(HIDDEN, HIDDEN), device=device
    )
    loss, vmapped = (
        MACQLLoss(
            make_gaussian_actor(SPEC, **sizes),
            each,
            action_spec=SPEC.action_spec(device),
            num_samples=DRAWS,
            bc_coeff=1.0,
            gamma=GAMMA,
        )
        for each in (
            critic, TensorDictModule(vmapped_critic, critic.in_keys, critic.out_keys)
        )
    )  # fmt: skip
    plain_networks = PlainMACQL(loss)
    plain = write_plain_macql(plain_networks, batch, 1.0)
    torch.manual_seed(1)
    expected = sum_losses(loss, batch)
    torch.manual_seed(1)
    torch.testing.assert_close(plain(), expected, rtol=1e-4, atol=1e-4)
    cql, flat = make_cql(device), flatten_agents(batch)
    cql.make_value_estimator(gamma=GAMMA)
    targets = plain_networks.target

    @torch.no_grad()
    def move_plain_targets() -> None:
        torch._foreach_lerp_(targets, [p.data for p in plain_networks.critic], TAU)

    def describe(loss: LossModule, batch: TensorDict) -> tuple[Any, ...]:
        move_targets = SoftUpdate(loss, tau=TAU).step
        return lambda: sum_losses(loss, batch), list_trained(loss), move_targets

    made: dict[str, Any] = {
        "package": describe(loss, batch),
        "vmapped": describe(vmapped, batch),
        "plain": (plain, list_trained(plain_networks), move_plain_targets),
        "cql": describe(cql, flat),
    }
    return make_all_updates(made, device, ("package", "vmapped", "plain") if compiled else ())


def take_turns(
    updates: dict[str, Callable[[], None]], rounds: int, repeats: int, device: str
) -> dict[str, Any]:
    # wall-clock and processor seconds
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in updates}

    def read_clocks() -> tuple[float, float]:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    for update in updates.values():
        for _ in range(8):
            update()
    for number in range(rounds):
        for name in list(updates)[:: 1 if number % 2 == 0 else -1]:
            start = read_clocks()
            for _ in range(repeats):
                updates[name]()
            passed = (end - begin for end, begin in zip(read_clocks(), start, strict=True))
            times[name].append(tuple(seconds / repeats for seconds in passed))

    row: dict[str, Any] = {}

    def compare(a: str, b: str, name: str) -> None:
        pairs = list(zip(times[a], times[b], strict=True))
        for clock, suffix in enumerate(("", "_processor")):
            row[f"{name}{suffix}"] = statistics.median(x[clock] / y[clock] for x, y in pairs)

    for name, measured in times.items():
        for clock, suffix in enumerate(("", "_processor")):
            row[f"{name}{suffix}_ms"] = statistics.median(each[clock] for each in measured) * 1e3
    for name in updates:
        if name != "package" and not name.endswith(("_compiled", "_graphed")):
            compare("package", name, f"package_over_{name}")
    for name in ("package", "vmapped", "plain"):
        for form in ("compiled", "graphed"):
            if f"{name}_{form}" in updates:
                compare(f"{name}_{form}", f"plain_{form}", f"{name}_{form}_over_plain_{form}")
                compare(f"{name}_{form}", name, f"{name}_{form}_over_eager")
    return row


def plot_rows(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5))
    for axis, kind in zip(axes, ("world model", "policy"), strict=True):
        chosen = [row for row in rows if row["trained"] == kind]
        keys = {k for row in chosen for k in row if k.endswith("_ms")}
        for key in sorted(k for k in keys if not k.endswith("_processor_ms")):
            points = [(row["batch"], row[key]) for row in chosen if key in row]
            axis.loglog(*zip(*points, strict=True), "o-", label=key.removesuffix("_ms"))
        axis.set(title=kind, xlabel="batch", ylabel="ms an update")
        if chosen:
            axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compiled", action="store_true", help="measure compiled updates too")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--only", choices=["world model", "policy"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    kinds = {"world model": make_world_model_updates, "policy": make_policy_updates}
    for batch in options.batches:
        for kind, make in kinds.items():
            if options.only not in (None, kind):
                continue
            torch.compiler.reset()
            updates = make(batch, options.compiled, options.device)
            found = take_turns(updates, options.rounds, options.repeats, options.device)
            about = {"trained": kind, "batch": batch, "rounds": options.rounds}
            rows.append({**about, "device": options.device, **found})
            print(json.dumps(rows[-1]), flush=True)
            head = {"versions": record_versions(), "threads": 1, "cores": os.cpu_count()}
            options.out.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")
            plot_rows(rows, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
