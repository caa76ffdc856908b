"""
From data to a policy
=====================

The whole method, a stage at a time: recorded data, a world model, imagination, weights by
uncertainty, a policy, and its returns. :doc:`../pipeline` has the same stages as a picture.
"""

import matplotlib.pyplot as plt
import torch
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from torchrl_logo.data import UncertaintySampler, collect, real_and_imagined_buffer
from torchrl_logo.data.behaviour_policies import load_behaviour_policy
from torchrl_logo.envs import ImaginedEnv, make_env
from torchrl_logo.evaluation import evaluate, trace_open_loop
from torchrl_logo.modules import LOGOWorldModel
from torchrl_logo.trainers import OfflineTrainer, WorldModelTrainer

torch.manual_seed(0)
torch.set_num_threads(1)

# %%
# Data
# ----
#
# Three agents balance a ball on a beam. A policy of medium quality, which ships with the package,
# and uniformly random actions have recorded half of the data each.
# :func:`~torchrl_logo.data.load_dataset` gives whole datasets by name; here is how one is made.

behaviour = load_behaviour_policy("vmas/balance", "medium")
dataset = collect(
    make_env("vmas/balance", num_envs=32),
    [(behaviour, 0.5), (None, 0.5)],
    frames=6_000,
    quality="tutorial",
    seed=0,
)
print(dataset)

# %%
# A sample is a TensorDict of transitions ``[B]``, as TorchRL has them.

batch = dataset.sample(4)
for key in sorted(batch.keys(include_nested=True, leaves_only=True), key=str):
    print(f"{key!s:40} {tuple(batch[key].shape)} {batch[key].dtype}")

# %%
# World model
# -----------
#
# Whole episodes are held out by :class:`~torchrl_logo.trainers.WorldModelTrainer`. Errors are
# shares of the variance: a model that always predicts the mean has 1.

model = LOGOWorldModel.from_dataset(dataset, hidden_size=64)
trainer = WorldModelTrainer(
    model, dataset, steps=300, evaluation_interval=100, progress_bar=False, seed=0
)
result = trainer.train()
for name in ("one_step/state_error", "one_step/reward_error"):
    print(f"{name}: {result.metrics[name]:.3f}")

# %%
# How the errors grow when the model predicts from its own predictions, and whether its uncertainty
# tells:

trace = trace_open_loop(model, trainer.held_out, horizon=15, windows=256)
figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
axes[0].plot(range(1, 16), trace["state_error"].mean(0))
axes[0].set(xlabel="step", ylabel="error of the state", ylim=(0, None))
uncertainty, error = trace["accumulated_uncertainty"], trace["state_error"]
axes[1].scatter(uncertainty.flatten(), error.flatten(), s=2)
axes[1].set(xlabel="accumulated uncertainty", ylabel="error of the state", yscale="log")
plt.show()

# %%
# Imagination
# -----------
#
# :class:`~torchrl_logo.envs.ImaginedEnv` is an environment like any other: rollouts start in states
# of the dataset, and each step carries the uncertainty that has accumulated so far.

imagined_env = ImaginedEnv(model, dataset, batch_size=64, horizon=15, seed=0)
rollout = imagined_env.rollout(15, policy=behaviour, break_when_any_done=False)
uncertainty = rollout["next", "uncertainty"].mean(0).squeeze(-1)
print(rollout.batch_size, "after 1, 5, 10 and 15 steps", uncertainty[[0, 4, 9, 14]])

# %%
# Weights
# -------
#
# Imagined transitions are drawn with a probability that falls with their uncertainty, as
# :math:`\exp(\max(C - u, 0) / T)`; real ones are drawn uniformly, and make up half of a batch.

threshold = float(rollout["next", "uncertainty"].quantile(0.95))
imagined = TensorDictReplayBuffer(
    storage=LazyTensorStorage(10_000),
    sampler=UncertaintySampler(10_000, C=threshold, temperature=threshold / 3),
    priority_key="uncertainty",
)
transitions = rollout.reshape(-1)
transitions["uncertainty"] = transitions["next", "uncertainty"]
imagined.extend(transitions.exclude(("next", "uncertainty"), "step", ("next", "step")))
batch = real_and_imagined_buffer(dataset, imagined, batch_size=256).sample()
print("imagined:", batch["imagined"].float().mean().item())

# %%
# Policy
# ------
#
# :class:`~torchrl_logo.trainers.OfflineTrainer` puts all of this together: a TorchRL trainer whose
# collector runs the current policy in the imagined environment. Its first argument is a method's
# name, or a loss of your own.

policy_trainer = OfflineTrainer(
    "logo",
    dataset,
    steps=300,
    world_model=model,
    imagined_envs=64,
    hidden_sizes=(64, 64),
    imagine_interval=100,
    eval_interval=100,
    eval_episodes=8,
    progress_bar=False,
    seed=0,
)
trained = policy_trainer.train()
updates, returns = zip(*trained.history["eval/return"], strict=True)
print("returns on the way:", [round(value, 1) for value in returns])

# %%
# Evaluation
# ----------
#
# Final policies act deterministically, for whole episodes. A score of 0 is that of uniformly random
# actions and 100 that of the expert of the task's datasets.

final = evaluate(trained.policy, "vmas/balance", episodes=32, seed=1)
low, high = final.interval
print(f"return {final.mean:.1f}, 95% interval {low:.1f} to {high:.1f}")
print(f"score {final.normalized:.1f}")
print(f"data's mean return {dataset.returns.mean():.1f}")
