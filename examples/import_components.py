"""The package's components in a TorchRL training loop of one's own, without its trainers.

A world model is trained, imagined rollouts are collected with the current policy, stored with
their uncertainty, and mixed with the dataset in every batch of an ordinary update loop.

    python examples/import_components.py
"""

from __future__ import annotations

import argparse

import torch
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.objectives import SoftUpdate

from torchrl_logo.data import UncertaintySampler, load_dataset, real_and_imagined_buffer
from torchrl_logo.envs import ImaginedEnv, make_env
from torchrl_logo.evaluation import evaluate
from torchrl_logo.mistakes import explain_mistakes
from torchrl_logo.modules import LOGOWorldModel, make_centralized_critic, make_gaussian_actor
from torchrl_logo.objectives import LOGOWorldModelLoss, MACQLLoss


@explain_mistakes
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="vmas/balance")
    parser.add_argument("--frames", type=int, default=100_000, help="size of the dataset")
    parser.add_argument("--model-updates", type=int, default=1000)
    parser.add_argument("--policy-updates", type=int, default=1000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    # An OfflineDataset is a TorchRL replay buffer.
    dataset = load_dataset(f"{args.task}-medium-replay", frames=args.frames)
    spec = dataset.spec

    # 1. The world model is a TensorDictModule, its loss a LossModule.
    model = LOGOWorldModel.from_dataset(dataset, hidden_size=128)
    model_loss = LOGOWorldModelLoss(model)
    optimizer = torch.optim.Adam(model_loss.parameters(), lr=2e-3)
    for _ in range(args.model_updates):
        losses = model_loss(dataset.sample(256))
        sum(value for key, value in losses.items() if key.startswith("loss_")).backward()
        optimizer.step()
        optimizer.zero_grad()
    print({key: round(float(value), 3) for key, value in losses.items()})

    # 2. Policy, critics and their loss; any TensorDictModule with these keys would do.
    actor, critic = make_gaussian_actor(spec), make_centralized_critic(spec)
    loss = MACQLLoss(actor, critic, action_spec=spec.action_spec(), bc_coeff=1.0, gamma=0.95)
    targets = SoftUpdate(loss, tau=0.005)
    optimizer = torch.optim.Adam(loss.parameters(), lr=5e-4)

    # 3. Imagination is an environment: an ordinary collector runs the policy in it.
    env = ImaginedEnv(model, dataset, batch_size=128, horizon=15, seed=0)
    collector = Collector(
        env,
        actor,
        frames_per_batch=128 * 15,
        total_frames=-1,
        auto_register_policy_transforms=False,
    )

    # 4. Half of each batch is real and uniform, half imagined and weighted by certainty.
    imagined = TensorDictReplayBuffer(
        storage=LazyTensorStorage(50_000),
        sampler=UncertaintySampler(50_000, C=5.0, temperature=1.5),
        priority_key="uncertainty",
        batch_size=256,
    )
    buffer = real_and_imagined_buffer(dataset, imagined, batch_size=256)

    updates = 0
    for rollouts in collector:
        transitions = rollouts.reshape(-1)
        # the uncertainty of a transition is that of the step that it predicts
        transitions.set("uncertainty", transitions.get(("next", "uncertainty")))
        buffer.extend(transitions.exclude(("next", "uncertainty"), "step", ("next", "step")))
        for _ in range(250):
            losses = loss(buffer.sample())
            sum(value for key, value in losses.items() if key.startswith("loss_")).backward()
            optimizer.step()
            optimizer.zero_grad()
            targets.step()
        updates += 250
        print(f"{updates} updates: {evaluate(actor, args.task, episodes=32).normalized:.1f}")
        if updates >= args.policy_updates:
            break
    collector.shutdown()
    final = evaluate(actor, make_env(args.task, num_envs=64, seed=1), episodes=64)
    print(f"final return {final.mean:.2f}, normalised {final.normalized:.1f}")


if __name__ == "__main__":
    main()
