"""Trains the behaviour policies that the embedded datasets are collected with.

MAPPO from TorchRL's parts (``Collector``, ``GAE``, ``ClipPPOLoss``) on a simulator, keeping a
snapshot of the actor after each iteration. At the end the snapshots become a *behaviour file*:
the random policy, a spread of policies up to the medium one, the medium one (about half of the
expert's normalised return) and the expert, each with its return measured over many episodes.

    python examples/train_behaviour.py --task vmas/balance --minutes 12

writes ``torchrl_logo/data/behaviour/vmas_balance.{pt,json}``, from which
``load_dataset("vmas/balance-<quality>")`` collects its data. The same command with ``--resume``
goes on where the last one stopped.

Where undirected exploration finds no reward within minutes (transport: the package is too heavy
to be moved by chance), ``--warm-start`` first fits the actor to VMAS' own heuristic with noise,
and the snapshots begin there.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import time
from pathlib import Path

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers.samplers import SamplerWithoutReplacement
from torchrl.envs import EnvBase, ExplorationType, set_exploration_type
from torchrl.modules import MLP
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.envs import make_env
from torchrl_logo.modules.actors import make_gaussian_actor

BEHAVIOUR_ROOT = Path(__file__).resolve().parents[1] / "torchrl_logo" / "data" / "behaviour"
N_REPLAY_POLICIES = 8


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="vmas/balance")
    parser.add_argument("--minutes", type=float, default=12.0, help="training time")
    parser.add_argument("--num-envs", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--minibatch", type=int, default=4096)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--gamma", type=float, default=0.99)
    parser.add_argument("--lmbda", type=float, default=0.9)
    parser.add_argument("--entropy", type=float, default=1e-3)
    parser.add_argument("--reward-scale", type=float, default=0.1)
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 64])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--warm-start", action="store_true", help="fit VMAS' heuristic first")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--state", type=Path, default=None, help="where progress is kept")
    return parser.parse_args()


@torch.no_grad()
def measure_return(policy: nn.Module | None, task: str, episodes: int, seed: int) -> TensorDict:
    """Returns of whole episodes under the stochastic policy (``None``: uniform actions)."""
    env = make_env(task, num_envs=episodes, seed=seed)
    with set_exploration_type(ExplorationType.RANDOM):
        rollout = env.rollout(env.max_steps, policy, break_when_any_done=False)
    ended = rollout["next", "done"].squeeze(-1).cumsum(-1)
    alive = (ended - rollout["next", "done"].squeeze(-1).long()) == 0  # the first episode only
    return (rollout["next", "reward"].squeeze(-1) * alive).sum(-1)


def fit_heuristic(actor: TensorDictModule, env: EnvBase, steps: int = 1500) -> list[dict]:
    """Fits the actor to the scenario's heuristic, whose actions get noise of scale 0.3."""
    module = importlib.import_module(f"vmas.scenarios.{env.task.partition('/')[2]}")
    heuristic = module.HeuristicPolicy(continuous_action=True)

    def act(tensordict: TensorDictBase) -> TensorDictBase:
        observations = tensordict["agents", "observation"].unbind(-2)
        action = torch.stack([heuristic.compute_action(o, u_range=1.0) for o in observations], -2)
        noisy = action + 0.3 * torch.randn_like(action)
        return tensordict.set(("agents", "action"), noisy.clamp(-0.99, 0.99))

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


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    env = make_env(args.task, num_envs=args.num_envs, seed=args.seed)
    spec = TaskSpec.from_env(env)
    actor = make_gaussian_actor(spec, hidden_sizes=args.hidden, activation_class=nn.Tanh)
    critic = TensorDictModule(
        MLP(in_features=spec.state_size, out_features=1, num_cells=[128, 128]),
        in_keys=["state"],
        out_keys=["state_value"],
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
    frames = args.num_envs * env.max_steps
    minibatches = TensorDictReplayBuffer(
        storage=LazyTensorStorage(frames),
        sampler=SamplerWithoutReplacement(),
        batch_size=args.minibatch,
    )
    history: list[dict] = []
    name = args.task.replace("/", "_")
    state_file = args.state or Path("runs") / "behaviour" / f"{name}.pt"
    if args.resume and state_file.exists():
        saved = torch.load(state_file, weights_only=True)
        loss.load_state_dict(saved["loss"])
        optimizer.load_state_dict(saved["optimizer"])
        history = saved["history"]
    elif args.warm_start:
        history = fit_heuristic(actor, env)

    collector = Collector(env, actor, frames_per_batch=frames, total_frames=-1)
    start = time.monotonic()
    for data in collector:
        # [envs, steps]; the critic and GAE work on the team, the ratio on each agent
        data["next", "reward"] *= args.reward_scale
        with torch.no_grad():
            gae(data)
            advantage = data["advantage"]
            advantage = (advantage - advantage.mean()) / advantage.std().clamp_min(1e-6)
        data["agents", "advantage"] = advantage.unsqueeze(-2).expand(*data.shape, spec.n_agents, 1)
        ends = data["next", "done"].sum().clamp_min(1)
        mean_return = float(data["next", "reward"].sum() / args.reward_scale / ends)
        history.append(
            {
                "frames": (history[-1]["frames"] if history else 0) + frames,
                "return": mean_return,
                "actor": copy.deepcopy(actor.state_dict()),
            }
        )
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
        elapsed = time.monotonic() - start
        print(
            f"{args.task} iteration {len(history)} frames {history[-1]['frames']:,} "
            f"return {mean_return:.2f} ({elapsed:.0f} s)",
            flush=True,
        )
        if len(history) % 10 == 0 or elapsed > args.minutes * 60:
            state_file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(
                {
                    "loss": loss.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "history": history,
                },
                state_file,
            )
        if elapsed > args.minutes * 60:
            break
    collector.shutdown()
    history.append({"frames": history[-1]["frames"], "actor": copy.deepcopy(actor.state_dict())})
    write_behaviour_file(args, spec, history)


def write_behaviour_file(args: argparse.Namespace, spec: TaskSpec, history: list[dict]) -> None:
    """Measures the snapshots and writes the ones that the datasets need."""
    actor = make_gaussian_actor(spec, hidden_sizes=args.hidden, activation_class=nn.Tanh)

    def measure(index: int, episodes: int = 256) -> float:
        actor.load_state_dict(history[index]["actor"])
        return float(measure_return(actor, args.task, episodes, seed=10_000).mean())

    random_return = float(measure_return(None, args.task, 1024, seed=10_000).mean())
    # The expert is the best of the last snapshots by a first measurement, and its reference
    # return is measured again on other episodes, so that the choice does not flatter it.
    last = range(max(0, len(history) - 5), len(history))
    expert = max(last, key=measure)
    expert_return = float(measure_return_of(actor, history[expert], args.task))
    # Medium: the first snapshot at half of the expert's normalised return or above.
    measured: dict[int, float] = {}
    medium = expert
    for index in range(len(history)):
        measured[index] = measure(index)
        if measured[index] >= random_return + 0.5 * (expert_return - random_return):
            medium = index
            break
    replay = sorted({round(i * medium / (N_REPLAY_POLICIES - 1)) for i in range(N_REPLAY_POLICIES)})
    chosen = {f"replay_{k}": index for k, index in enumerate(replay)}
    chosen |= {"medium": medium, "expert": expert}
    policies = {key: history[index]["actor"] for key, index in chosen.items()}
    returns = {key: measured.get(i, expert_return) for key, i in chosen.items()}
    BEHAVIOUR_ROOT.mkdir(parents=True, exist_ok=True)
    name = args.task.replace("/", "_")
    torch.save(policies, BEHAVIOUR_ROOT / f"{name}.pt")
    recipe = {
        "task": args.task,
        "spec": spec.to_dict(),
        "hidden_sizes": list(args.hidden),
        "returns": {"random": random_return, **returns},
        "frames": {key: history[index]["frames"] for key, index in chosen.items()},
        "qualities": {
            "random": ["random"],
            "medium-replay": [f"replay_{k}" for k in range(len(replay))],
            "medium": ["medium"],
            "expert": ["expert"],
            "mixed": ["medium", "expert"],
        },
        "training": {k: v for k, v in vars(args).items() if k not in ("state", "resume")},
    }
    text = json.dumps(recipe, indent=2, sort_keys=True)
    (BEHAVIOUR_ROOT / f"{name}.json").write_text(text + "\n")
    print(json.dumps(recipe["returns"], indent=2))


def measure_return_of(actor: nn.Module, snapshot: dict, task: str) -> float:
    """The reference return of a snapshot: 1,024 episodes."""
    actor.load_state_dict(snapshot["actor"])
    return float(measure_return(actor, task, 1024, seed=20_000).mean())


if __name__ == "__main__":
    main()
