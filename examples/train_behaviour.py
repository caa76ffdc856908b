"""Trains the behaviour policies that the embedded datasets are collected with.

MAPPO from TorchRL's parts (``Collector``, ``GAE``, ``ClipPPOLoss``) on a simulator, keeping
snapshots of the actor on the way. At the end the snapshots become a *behaviour file*: the random
policy, a spread of policies up to the medium one, the medium one (about half of the expert's
normalised return) and the expert, each with its return measured over many episodes.

    python examples/train_behaviour.py --task vmas/balance --minutes 12

writes ``torchrl_logo/data/behaviour/vmas_balance.{pt,json}``, from which
``load_dataset("vmas/balance-<quality>")`` collects its data. The same command with ``--resume``
goes on where the last one stopped; ``--minutes 0 --resume`` only writes the files.

Each family of simulators has settings of its own (``PRESETS``); any of them can be given.
Where undirected exploration finds no reward within minutes (vmas/transport: the package is too
heavy to be moved by chance; mpe/simple_spread: the simulator makes a few hundred steps a second),
``--warm-start`` first fits the actor to a heuristic (VMAS' own, or the one below) with noise, and
the snapshots begin there.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers.samplers import SamplerWithoutReplacement
from torchrl.envs import EnvBase, ExplorationType, RewardSum, TransformedEnv, set_exploration_type
from torchrl.modules import MLP
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from torchrl_logo.data.behaviour_policies import make_behaviour_actor
from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.envs import make_env
from torchrl_logo.mistakes import explain_mistakes
from torchrl_logo.modules.normalizer import Normalizer

BEHAVIOUR_ROOT = Path(__file__).resolve().parents[1] / "torchrl_logo" / "data" / "behaviour"
N_REPLAY_POLICIES = 8
NOT_RECORDED = ("state", "resume", "output", "note")
# Transitions of a batch whose observations the normalisers are fitted on, and how many are kept.
SAMPLED, KEPT = 2_000, 200_000

PRESETS = {
    "vmas": {},
    "mpe": {"num_envs": 64, "minibatch": 1600, "reward_scale": 0.1, "entropy": 0.01},
    # Bodies differ between agents, and features between each other.
    "mamujoco": {
        "num_envs": 32,
        "rollout_steps": 256,
        "minibatch": 2048,
        "lr": 3e-4,
        "lmbda": 0.95,
        "entropy": 0.0,
        "unshared": True,
        "normalize": True,
        "snapshot_interval": 4,
        "episodes": 32,
    },
    "smax": {
        "num_envs": 128,
        "rollout_steps": 64,
        "minibatch": 2048,
        "epochs": 5,
        "entropy": 0.005,
        "reward_scale": 1.0,
        "hidden": [128, 128],
        "snapshot_interval": 4,
    },
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="vmas/balance")
    parser.add_argument("--minutes", type=float, default=12.0, help="training time")
    parser.add_argument("--num-envs", type=int, default=512)
    parser.add_argument("--rollout-steps", type=int, help="of a batch; default: an episode's")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--minibatch", type=int, default=4096)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--gamma", type=float, default=0.99)
    parser.add_argument("--lmbda", type=float, default=0.9)
    parser.add_argument("--entropy", type=float, default=1e-3)
    parser.add_argument("--reward-scale", type=float, default=0.1)
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 64])
    parser.add_argument("--unshared", action="store_true", help="weights of its own per agent")
    parser.add_argument("--normalize", action="store_true", help="standardise what networks see")
    parser.add_argument("--snapshot-interval", type=int, default=1, help="in iterations")
    parser.add_argument("--episodes", type=int, default=256, help="that measure a snapshot")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--warm-start", action="store_true", help="fit a heuristic first")
    parser.add_argument("--fit-steps", type=int, default=1500, help="of the warm start")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--state", type=Path, default=None, help="where progress is kept")
    parser.add_argument("--note", default="", help="what users should know of the expert")
    parser.add_argument("--output", type=Path, default=BEHAVIOUR_ROOT, help="folder of the files")
    family = parser.parse_known_args()[0].task.partition("/")[0]
    parser.set_defaults(**PRESETS.get(family, {}))
    return parser.parse_args()


@torch.no_grad()
def measure_return(policy: nn.Module | None, task: str, episodes: int, seed: int) -> float:
    """Mean return of whole episodes under the stochastic policy (``None``: uniform actions)."""
    env = make_env(task, num_envs=min(episodes, 256), seed=seed)
    torch.manual_seed(seed)
    returns: list[torch.Tensor] = []
    while sum(map(len, returns)) < episodes:
        tensordict = env.reset()
        total = torch.zeros(env.batch_size)
        running = torch.ones(env.batch_size, dtype=torch.bool)
        while running.any():  # the first episode of each simulation
            with set_exploration_type(ExplorationType.RANDOM):
                acted = env.rand_action(tensordict) if policy is None else policy(tensordict)
            stepped, tensordict = env.step_and_maybe_reset(acted)
            total += torch.where(running, stepped["next", "reward"].squeeze(-1), 0.0)
            running &= ~stepped["next", "done"].squeeze(-1)
        returns.append(total)
    env.close()
    return float(torch.cat(returns)[:episodes].mean())


def make_heuristic(task: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """A hand-written controller: all agents' observations ``[*, N, d_o]`` to their actions."""
    if task == "mpe/simple_spread":
        return spread_out
    module = importlib.import_module(f"vmas.scenarios.{task.partition('/')[2]}")
    heuristic = module.HeuristicPolicy(continuous_action=True)

    def act(observation: torch.Tensor) -> torch.Tensor:
        agents = observation.unbind(-2)
        return torch.stack([heuristic.compute_action(o, u_range=1.0) for o in agents], -2)

    return act


def spread_out(observation: torch.Tensor) -> torch.Tensor:
    """For mpe/simple_spread: each agent brakes onto its landmark of the shortest assignment.

    All agents read the same distances, so each finds the same assignment by itself.
    """
    n = observation.shape[-2]
    velocity = observation[..., :2]
    landmarks = observation[..., 4 : 4 + 2 * n].unflatten(-1, (n, 2))  # [*, N, N, 2], relative
    orders = torch.tensor(list(itertools.permutations(range(n))), device=observation.device)
    agents = torch.arange(n, device=observation.device)
    lengths = landmarks.norm(dim=-1)[..., agents, orders].sum(-1)  # [*, N!]
    goal = orders[lengths.argmin(-1)]  # [*, N]
    index = goal[..., None, None].expand(*goal.shape, 1, 2)
    error = landmarks.gather(-2, index).squeeze(-2)  # [*, N, 2]
    # A step moves by velocity / 10, damps it to 3/4 and adds half the force to it.
    force = ((5.0 * error - 1.5 * velocity) / 0.5).clamp(-1.0, 1.0)
    right, up = force.unbind(-1)
    still = torch.full_like(right, 0.5)
    pushes = [still, (1 - right) / 2, (1 + right) / 2, (1 - up) / 2, (1 + up) / 2]
    return torch.stack(pushes, -1)


def fit_heuristic(actor: TensorDictModule, env: EnvBase, steps: int) -> list[dict]:
    """Fits the actor to the heuristic, whose actions get noise.

    Returns snapshots of the actor on the way.
    """
    heuristic = make_heuristic(env.task)
    low, high = env.full_action_spec["agents", "action"].space
    margin = 0.005 * (high - low)

    def act(tensordict: TensorDictBase) -> TensorDictBase:
        action = heuristic(tensordict["agents", "observation"])
        noisy = action + 0.15 * (high - low) * torch.randn_like(action)
        return tensordict.set(("agents", "action"), noisy.clamp(low + margin, high - margin))

    with torch.no_grad():
        data = env.rollout(env.max_steps, act, break_when_any_done=False).reshape(-1)
    optimizer = torch.optim.Adam(actor.parameters(), lr=1e-3)
    snapshots = []
    for step in range(steps):
        if step % (steps // 20) == 0:
            snapshots.append({"frames": 0, "actor": copy.deepcopy(actor.state_dict())})
        batch = data[torch.randint(len(data), (2048,))]
        inputs = batch.select(("agents", "observation"))
        loss = -actor.get_dist(inputs).log_prob(batch["agents", "action"]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return snapshots


class RunningFit:
    """Fits the normalisers on a growing sample of what was seen."""

    def __init__(self, actor: nn.Module, critic: nn.Module) -> None:
        networks = {("agents", "observation"): actor, "state": critic}
        self.normalizers = {
            key: [m for m in network.modules() if isinstance(m, Normalizer)]
            for key, network in networks.items()
        }
        self.seen: dict = {key: [] for key in networks}

    def update(self, data: TensorDictBase) -> None:
        rows = data.reshape(-1)
        rows = rows[torch.randperm(len(rows))[:SAMPLED]]
        for key, normalizers in self.normalizers.items():
            value = rows.get(key)
            self.seen[key].append(value.reshape(-1, value.shape[-1]).clone())
            self.seen[key] = self.seen[key][-(KEPT // SAMPLED) :]
            for normalizer in normalizers:
                normalizer.fit(torch.cat(self.seen[key]))


@explain_mistakes
def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    env = make_env(args.task, num_envs=args.num_envs, seed=args.seed)
    spec = TaskSpec.from_env(env)
    actor = make_actor(args, spec)
    critic_net: list[nn.Module] = [
        MLP(in_features=spec.state_size, out_features=1, num_cells=[128, 128])
    ]
    if args.normalize:
        critic_net.insert(0, Normalizer(spec.state_size))
    critic = TensorDictModule(
        nn.Sequential(*critic_net), in_keys=["state"], out_keys=["state_value"]
    )
    loss = ClipPPOLoss(
        actor, critic, clip_epsilon=0.2, entropy_coeff=args.entropy, normalize_advantage=False
    )
    loss.set_keys(
        action=("agents", "action"),
        sample_log_prob=("agents", "action_log_prob"),
        advantage=("agents", "advantage"),
    )
    gae = GAE(gamma=args.gamma, lmbda=args.lmbda, value_network=critic)
    optimizer = torch.optim.Adam(loss.parameters(), lr=args.lr)
    frames = args.num_envs * (args.rollout_steps or env.max_steps)
    if not 0 < args.minibatch <= frames:
        raise ValueError(
            f"--minibatch must be in [1, {frames}], the frames of a batch; found {args.minibatch}."
        )
    minibatches = TensorDictReplayBuffer(
        storage=LazyTensorStorage(frames),
        sampler=SamplerWithoutReplacement(),
        batch_size=args.minibatch,
    )
    fit = RunningFit(actor, critic)
    history: list[dict] = []
    iteration = total_frames = 0
    name = args.task.replace("/", "_")
    state_file = args.state or Path("runs") / "behaviour" / f"{name}.pt"
    if args.resume and state_file.exists():
        saved = torch.load(state_file, weights_only=True)
        loss.load_state_dict(saved["loss"])
        actor.load_state_dict(saved["actor"])
        critic.load_state_dict(saved["critic"])
        optimizer.load_state_dict(saved["optimizer"])
        history, iteration = saved["history"], saved["iteration"]
        total_frames, fit.seen = saved["frames"], saved["seen"]
    elif args.warm_start:
        history = fit_heuristic(actor, env, args.fit_steps)
    if args.minutes <= 0:
        write_behaviour_file(args, spec, history)
        return

    collector = Collector(
        TransformedEnv(env, RewardSum()),
        actor,
        frames_per_batch=frames,
        total_frames=-1,
        auto_register_policy_transforms=False,
    )
    start = time.monotonic()
    latest = float("nan")
    for data in collector:
        iteration += 1
        total_frames += frames
        ended = data["next", "done"]
        if ended.any():
            latest = float(data["next", "episode_reward"][ended].mean())
        if iteration % args.snapshot_interval == 0:
            actor_state = copy.deepcopy(actor.state_dict())
            history.append({"frames": total_frames, "return": latest, "actor": actor_state})
        # [envs, steps]; the critic and GAE work on the team, the ratio on each agent
        data["next", "reward"] *= args.reward_scale
        with torch.no_grad():
            gae(data)
            advantage = data["advantage"]
            advantage = (advantage - advantage.mean()) / advantage.std().clamp_min(1e-6)
        data["agents", "advantage"] = advantage.unsqueeze(-2).expand(*data.shape, spec.n_agents, 1)
        for _ in range(args.epochs):
            minibatches.empty()
            minibatches.extend(data.reshape(-1))
            for _ in range(frames // args.minibatch):
                batch = minibatches.sample()
                losses = loss(batch)
                total = sum(losses[k] for k in losses.keys() if k.startswith("loss_"))
                optimizer.zero_grad()
                total.backward()
                nn.utils.clip_grad_norm_(loss.parameters(), 1.0)
                optimizer.step()
        if args.normalize:  # after the updates: log-probabilities of the data hold until here
            fit.update(data)
        elapsed = time.monotonic() - start
        won = data.get(("next", "battle_won"), None)
        wins = "" if won is None or not ended.any() else f" won {won[ended].float().mean():.0%}"
        print(
            f"{args.task} iteration {iteration} frames {total_frames:,} "
            f"return {latest:.2f}{wins} ({elapsed:.0f} s)",
            flush=True,
        )
        finished = elapsed > args.minutes * 60
        if iteration % 20 == 0 or finished:
            state_file.parent.mkdir(parents=True, exist_ok=True)
            state = {
                "loss": loss.state_dict(),
                "actor": actor.state_dict(),
                "critic": critic.state_dict(),
                "optimizer": optimizer.state_dict(),
                "history": history,
                "iteration": iteration,
                "frames": total_frames,
                "seen": fit.seen,
            }
            torch.save(state, state_file.with_suffix(".part"))
            state_file.with_suffix(".part").replace(state_file)
        if finished:
            break
    collector.shutdown()
    final = {"frames": total_frames, "actor": copy.deepcopy(actor.state_dict()), "return": latest}
    write_behaviour_file(args, spec, [*history, final])


def make_actor(args: argparse.Namespace, spec: TaskSpec) -> nn.Module:
    return make_behaviour_actor(
        spec, hidden_sizes=args.hidden, share_params=not args.unshared, normalize=args.normalize
    )


def write_behaviour_file(args: argparse.Namespace, spec: TaskSpec, history: list[dict]) -> None:
    """Measures the snapshots and writes the ones that the datasets need."""
    actor = make_actor(args, spec)
    known: dict[int, float] = {}

    def measure(index: int) -> float:
        if index not in known:
            actor.load_state_dict(history[index]["actor"])
            known[index] = measure_return(actor, args.task, args.episodes, seed=10_000)
        return known[index]

    random_return = measure_return(None, args.task, 4 * args.episodes, seed=10_000)
    # The expert is the best of the last snapshots by a first measurement, and its reference
    # return is measured again on other episodes, so that the choice does not flatter it.
    last = range(max(0, len(history) - 5), len(history))
    expert = max(last, key=measure)
    actor.load_state_dict(history[expert]["actor"])
    expert_return = measure_return(actor, args.task, 4 * args.episodes, seed=20_000)
    # Medium: the first snapshot at half of the expert's normalised return or above, among those
    # whose (noisier) return in training comes near it.
    half = random_return + 0.5 * (expert_return - random_return)
    near = random_return + 0.4 * (expert_return - random_return)
    medium = next(
        (
            index
            for index, snapshot in enumerate(history)
            if not snapshot.get("return", near) < near and measure(index) >= half
        ),
        expert,
    )
    replay = sorted({round(i * medium / (N_REPLAY_POLICIES - 1)) for i in range(N_REPLAY_POLICIES)})
    chosen = {f"replay_{k}": index for k, index in enumerate(replay)}
    chosen |= {"medium": medium, "expert": expert}
    returns = {key: measure(index) for key, index in chosen.items()}
    returns |= {"random": random_return, "expert": expert_return}
    args.output.mkdir(parents=True, exist_ok=True)
    name = args.task.replace("/", "_")
    policies = {key: history[index]["actor"] for key, index in chosen.items()}
    torch.save(policies, args.output / f"{name}.pt")
    recipe = {
        "task": args.task,
        "spec": spec.to_dict(),
        "hidden_sizes": list(args.hidden),
        "share_params": not args.unshared,
        "normalize": args.normalize,
        "returns": returns,
        "frames": {key: history[index]["frames"] for key, index in chosen.items()},
        "qualities": {
            "random": ["random"],
            "medium-replay": [f"replay_{k}" for k in range(len(replay))],
            "medium": ["medium"],
            "expert": ["expert"],
            "mixed": ["medium", "expert"],
        },
        "note": args.note,
        "training": {k: v for k, v in vars(args).items() if k not in NOT_RECORDED},
    }
    text = json.dumps(recipe, indent=2, sort_keys=True)
    (args.output / f"{name}.json").write_text(text + "\n")
    print(json.dumps(recipe["returns"], indent=2))


if __name__ == "__main__":
    main()
