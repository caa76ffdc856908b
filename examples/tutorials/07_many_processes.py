"""
Many processes and machines
===========================

Seeds, methods and datasets are independent of each other, and run side by side without anything in
this package. Within one training, collection can be spread over processes, since it is TorchRL's,
and so can batches. :doc:`../scaling` has what is known of several machines, and what it costs.
"""

import functools

import torch
from torchrl.collectors import MultiSyncCollector

from torchrl_logo.data import collect
from torchrl_logo.envs import ImaginedEnv, make_env
from torchrl_logo.modules import LOGOWorldModel, make_gaussian_actor

torch.set_num_threads(1)

# %%
# Imagination in worker processes
# -------------------------------
#
# Each worker makes an imagined environment of its own from the same model and start states, with a
# seed of its own. TorchRL's collectors of several processes, and those that use Ray or RPC between
# machines, take such a list in the same way; only this one is run here.

dataset = collect(make_env("vmas/balance", num_envs=32), None, 1_000, seed=0)
model = LOGOWorldModel.from_dataset(dataset, hidden_size=32)
starts = dataset.data.select(("agents", "observation"), "state").clone()
actor = make_gaussian_actor(dataset.spec, hidden_sizes=(32,))

if __name__ == "__main__":  # worker processes import this file
    makers = [
        functools.partial(ImaginedEnv, model, starts, batch_size=16, horizon=5, seed=seed)
        for seed in range(2)
    ]
    collector = MultiSyncCollector(
        makers,
        actor,
        frames_per_batch=2 * 16 * 5,
        total_frames=2 * 2 * 16 * 5,
        auto_register_policy_transforms=False,
    )
    for rollouts in collector:
        first = rollouts["state"][:, 0]  # start states, which differ between the workers
        distinct = len(first.unique(dim=0))
        print("rollouts", tuple(rollouts.shape), "of", distinct, "start states")
    collector.shutdown()

# %%
# Batches shared by processes
# ---------------------------
#
# ``torchrun`` starts one process a device, on one machine or on several; each works on its share of
# every batch, and gradients are averaged (:mod:`torchrl_logo.trainers.data_parallel`)::
#
#     torchrun --nproc-per-node 2 examples/train_data_parallel.py

# %%
# Grids of trainings
# ------------------
#
# The examples are Hydra jobs; a launcher of Hydra's choice spreads them::
#
#     python examples/train_logo.py -m method=bc,macql,logo seed=0,1,2,3,4
#
# ``python -m benchmarks.paper run`` works on the paper's whole grid. Any number of processes that
# see the folder can be started and stopped at any time: each takes the next training that nobody
# has.
#
# Several processes may share a folder of datasets and one of MLflow runs: the first makes what is
# missing, the others wait. :doc:`../reliability` says what is promised.
