"""
Discrete actions and masks
==========================

In SMAX (SMAC's battles without StarCraft II) an agent has ten actions, of which few are available
at a time. Masks go through all stages: a policy takes no unavailable action, neither in the task
nor in imagination.
"""

import matplotlib.pyplot as plt
import torch

from torchrl_logo.data import collect
from torchrl_logo.envs import ImaginedEnv, make_env
from torchrl_logo.evaluation import evaluate
from torchrl_logo.modules import LOGOWorldModel, make_categorical_actor
from torchrl_logo.trainers import OfflineTrainer, WorldModelTrainer

torch.manual_seed(0)
torch.set_num_threads(1)

# %%
# The data
# --------
#
# Random actions are drawn among the available ones.

env = make_env("smax/2s3z", num_envs=16)
dataset = collect(env, None, frames=1_500, quality="random", seed=0)
mask = dataset.data["agents", "action_mask"]
action = dataset.data["agents", "action"]
print("actions", tuple(action.shape), action.dtype, "masks", tuple(mask.shape), mask.dtype)
taken = mask.gather(-1, action.unsqueeze(-1))
print("every recorded action was available:", bool(taken.all()))

plt.figure(figsize=(6, 2.5), layout="constrained")
plt.imshow(mask.float().mean(0), vmin=0, vmax=1)
plt.colorbar(label="share of steps")
plt.xlabel("action")
plt.ylabel("agent")
plt.title("how often an action is available")
plt.show()

# %%
# The model predicts the next masks
# ---------------------------------

model = LOGOWorldModel.from_dataset(dataset, hidden_size=64)
result = WorldModelTrainer(
    model, dataset, steps=200, evaluation_interval=100, progress_bar=False
).train()
print({name: round(value, 3) for name, value in result.metrics.items() if "mask" in name})

# %%
# Policies
# --------
#
# Losses for utilities train :func:`~torchrl_logo.modules.make_agent_critic` and a mixer; actors are
# categorical, with their mask. :class:`~torchrl_logo.trainers.OfflineTrainer` chooses by the task.

actor = make_categorical_actor(dataset.spec, hidden_sizes=(64,))
print("reads", actor.in_keys)
imagined = ImaginedEnv(model, dataset, batch_size=32, horizon=5, seed=0)
rollout = imagined.rollout(5, policy=actor, break_when_any_done=False)
action, mask = rollout["agents", "action"], rollout["agents", "action_mask"]
taken = mask.gather(-1, action.unsqueeze(-1))
print("every imagined action was available:", bool(taken.all()))

trainer = OfflineTrainer(
    "macql", dataset, steps=100, hidden_sizes=(64,), eval_interval=0, progress_bar=False
)
policy = trainer.train().policy

# %%
# Battles that are won are counted.

final = evaluate(policy, env, episodes=16)
print(f"return {final.mean:.2f}, won {final.win_rate:.0%}")

# %%
# With memory: ``OfflineTrainer("macql", dataset, sequence_length=20, ...)`` trains recurrent
# networks on sequences; :doc:`../losses` says which losses can.
