"""
Planning at decision time
=========================

:class:`~torchrl_logo.planning.LOGOMPC` searches the world model for a better joint action than the
policy's at each real step. It is a policy like any other. :doc:`../planning` describes it.
"""

import time

import matplotlib.pyplot as plt
import torch

from torchrl_logo.data import collect
from torchrl_logo.data.behaviour_policies import load_behaviour_policy
from torchrl_logo.envs import ImaginedEnv, make_env
from torchrl_logo.evaluation import evaluate
from torchrl_logo.modules import LOGOWorldModel
from torchrl_logo.planning import LOGOMPC
from torchrl_logo.trainers import OfflineTrainer, WorldModelTrainer

torch.manual_seed(0)
torch.set_num_threads(1)

# %%
# A model and a policy
# --------------------

behaviour = load_behaviour_policy("vmas/balance", "medium")
dataset = collect(
    make_env("vmas/balance", num_envs=32), [(behaviour, 0.7), (None, 0.3)], 6_000, seed=0
)
model = LOGOWorldModel.from_dataset(dataset, hidden_size=64)
trainer = WorldModelTrainer(model, dataset, steps=300, evaluation_interval=100, progress_bar=False)
trainer.train()
trainer = OfflineTrainer("bc", dataset, steps=200, eval_interval=0, progress_bar=False)
policy = trainer.train().policy

# %%
# The planner
# -----------
#
# ``batch_size=()`` leaves the batch to the planner: environments and candidates are imagined at
# once. The policy's own rollout is always a candidate, and doubtful futures cost something.

env = ImaginedEnv(model, dataset, batch_size=())
planner = LOGOMPC(
    env,
    policy,
    planning_horizon=5,
    num_candidates=16,
    num_elites=4,
    iterations=2,
    uncertainty_penalty=0.1,
)
plan = planner.plan(dataset.sample(4))
print("score", plan.score.squeeze(-1))
print("followed", plan.planned.squeeze(-1))

# %%
# Does it help?
# -------------
#
# With a model and a policy of a few hundred updates, and eight episodes, this shows how to ask, and
# not the answer.

returns = {}
for name, actor in (("policy", policy), ("planner", planner)):
    start = time.perf_counter()
    result = evaluate(actor, "vmas/balance", episodes=8, seed=1)
    returns[name] = result.returns.tolist()
    steps = int(result.lengths.max())
    each = (time.perf_counter() - start) / steps * 1000
    print(f"{name:8} return {result.mean:6.1f}   {each:5.1f} ms a step of 8 teams")

figure, axes = plt.subplots(figsize=(4, 2.5), layout="constrained")
axes.boxplot(list(returns.values()), tick_labels=list(returns), orientation="horizontal")
axes.set(xlabel="return of an episode")
plt.show()
