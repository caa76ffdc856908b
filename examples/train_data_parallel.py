"""A world model and a policy, each trained by several processes that share every batch.

    torchrun --nproc-per-node 2 examples/train_data_parallel.py

Every process makes the same dataset, networks and draws, takes its share of each batch, and
averages its gradients with the others'; all end with the same weights. Started without
``torchrun``, one process does it all, and prints the same losses.
"""

from __future__ import annotations

import argparse
import os
import time

import torch
from torch import distributed

from torchrl_logo.data import collect
from torchrl_logo.envs import make_env
from torchrl_logo.modules import LOGOWorldModel
from torchrl_logo.trainers import OfflineTrainer, WorldModelTrainer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--task", default="vmas/balance")
parser.add_argument("--method", default="bc", help="a method without a world model")
parser.add_argument("--frames", type=int, default=2000)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--batch-size", type=int, default=1024, help="of all processes together")
args = parser.parse_args()

shared = "RANK" in os.environ  # torchrun sets it
if shared:
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
device = "cuda" if torch.cuda.is_available() else "cpu"
first = not shared or distributed.get_rank() == 0

dataset = collect(make_env(args.task, num_envs=20, seed=0), None, args.frames, seed=0)
settings = {
    "steps": args.steps,
    "batch_size": args.batch_size,
    "seed": 0,
    "progress_bar": False,
    "device": device,
    "data_parallel": shared,
}
torch.manual_seed(0)
model = LOGOWorldModel(dataset.spec, hidden_size=64)

start = time.perf_counter()
held_out = WorldModelTrainer(model, dataset, **settings).train().metrics["held_out_loss"]
middle = time.perf_counter()
result = OfflineTrainer(args.method, dataset, eval_interval=0, **settings).train()
end = time.perf_counter()
if first:
    losses = {name: points[-1][1] for name, points in result.history.items() if "loss" in name}
    print(
        f"world model: held-out loss {held_out:.6f}, {args.steps / (middle - start):.1f} updates/s"
    )
    print(f"{args.method}: {losses} of this share, {args.steps / (end - middle):.1f} updates/s")
if shared:
    distributed.destroy_process_group()
