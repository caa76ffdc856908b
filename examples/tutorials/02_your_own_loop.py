"""
Components in your own TorchRL loop
===================================

Nothing here needs this package's trainers. World models are TensorDict modules, losses are
:class:`~torchrl.objectives.LossModule` s, imagination is an environment, datasets are replay
buffers: each replaces its like in a loop that you have already.
"""

import matplotlib.pyplot as plt
import torch
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.objectives import SoftUpdate

from torchrl_logo.data import UncertaintySampler, collect, real_and_imagined_buffer
from torchrl_logo.envs import ImaginedEnv, make_env
from torchrl_logo.evaluation import evaluate
from torchrl_logo.modules import (
    LOGOWorldModel,
    make_centralized_critic,
    make_gaussian_actor,
)
from torchrl_logo.objectives import LOGOWorldModelLoss, MACQLLoss

torch.manual_seed(0)
torch.set_num_threads(1)

dataset = collect(make_env("vmas/balance", num_envs=32), None, frames=4_000, seed=0)
spec = dataset.spec  # sizes and bounds, from which networks and action specs are made


def update(loss, batch, optimizer):
    """One step of any optimiser on the sum of whatever starts with ``loss_``."""
    losses = loss(batch)
    sum(value for key, value in losses.items() if key.startswith("loss_")).backward()
    optimizer.step()
    optimizer.zero_grad()
    return {key: round(float(value.detach()), 3) for key, value in losses.items()}


# %%
# The world model
# ---------------

model = LOGOWorldModel.from_dataset(dataset, hidden_size=64)
model_loss = LOGOWorldModelLoss(model)
optimizer = torch.optim.Adam(model_loss.parameters(), lr=2e-3)
for _ in range(200):
    losses = update(model_loss, dataset.sample(256), optimizer)
print(losses)

# %%
# What the model reads and writes is in its ``in_keys`` and ``out_keys``; ``set_keys`` renames.

print(model.in_keys, "->", model.out_keys)

# %%
# The policy's parts
# ------------------
#
# Any actor and critic with these keys would do.

actor = make_gaussian_actor(spec, hidden_sizes=(64, 64))
critic = make_centralized_critic(spec, hidden_sizes=(64, 64))
loss = MACQLLoss(actor, critic, action_spec=spec.action_spec(), bc_coeff=1.0, gamma=0.95)
targets = SoftUpdate(loss, tau=0.005)
optimizer = torch.optim.Adam(loss.parameters(), lr=5e-4)

# %%
# Imagination, stored with its uncertainty
# ----------------------------------------
#
# An ordinary TorchRL collector runs the current policy in the imagined environment.

env = ImaginedEnv(model, dataset, batch_size=64, horizon=15, seed=0)
collector = Collector(
    env,
    actor,
    frames_per_batch=64 * 15,
    total_frames=3 * 64 * 15,
    auto_register_policy_transforms=False,
)
imagined = TensorDictReplayBuffer(
    storage=LazyTensorStorage(20_000),
    sampler=UncertaintySampler(20_000, C=5.0, temperature=1.5),
    priority_key="uncertainty",
)
buffer = real_and_imagined_buffer(dataset, imagined, batch_size=256)

# %%
# The loop
# --------

history = []
for rollouts in collector:
    transitions = rollouts.reshape(-1)
    # the uncertainty of a transition is that of the step that it predicts
    transitions["uncertainty"] = transitions["next", "uncertainty"]
    buffer.extend(transitions.exclude(("next", "uncertainty"), "step", ("next", "step")))
    for _ in range(50):
        losses = update(loss, buffer.sample(), optimizer)
        targets.step()
        history.append(losses)
    print({key: losses[key] for key in ("loss_qvalue", "loss_actor", "pred_value")})
collector.shutdown()

print(f"return {evaluate(actor, 'vmas/balance', episodes=16).mean:.1f}")

figure, axes = plt.subplots(1, 3, figsize=(8, 2.5), layout="constrained")
for panel, name in zip(axes, ("loss_qvalue", "loss_actor", "pred_value"), strict=True):
    panel.plot([losses[name] for losses in history])
    panel.set(xlabel="update", title=name)
plt.show()

# %%
# ``examples/import_components.py`` is the same at a size that learns something.
