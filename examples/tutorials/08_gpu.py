"""
On a GPU
========

.. note::

   This page is run on whatever device builds it, which is printed below; without a GPU that is the
   CPU. What is tested without one is said in :doc:`../limits`.

Every tensor is made on the device of what it is made from, and neither an update nor an imagined
step asks the device for a value. So it is enough to say once where things are.
"""

import torch

from torchrl_logo.data import collect
from torchrl_logo.envs import ImaginedEnv, make_env
from torchrl_logo.modules import LOGOWorldModel
from torchrl_logo.trainers import OfflineTrainer, WorldModelTrainer

torch.set_num_threads(1)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
print(device)

# %%
# VMAS simulates on the device too. A dataset lies on the CPU by default, memory-mapped, and the
# trainers hold a copy of what they draw from on their device.

dataset = collect(make_env("vmas/balance", num_envs=32, device=device), None, 3_000, seed=0)
model = LOGOWorldModel.from_dataset(dataset, hidden_size=64).to(device)
WorldModelTrainer(
    model, dataset, steps=100, evaluation_interval=50, progress_bar=False, device=device
).train()

# %%
# The imagined environment runs where its model is.

rollout = ImaginedEnv(model, dataset, batch_size=256, horizon=5).rollout(
    5, break_when_any_done=False
)
print(rollout.device, rollout["next", "state"].device)

trainer = OfflineTrainer(
    "logo",
    dataset,
    steps=50,
    world_model=model,
    imagined_envs=64,
    eval_interval=0,
    progress_bar=False,
    device=device,
)
policy = trainer.train().policy
print(next(policy.parameters()).device)

# %%
# On a GPU small networks wait for the host to start each kernel, so let updates be compiled::
#
#     OfflineTrainer("logo", dataset, steps=6000, device="cuda", compile=True)
#
# and make batches and imagined environments larger (``batch_size``, ``imagined_envs``). From the
# shell: ``python examples/train_logo.py device=cuda +trainer.compile=true``.
