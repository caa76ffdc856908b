"""
Following runs in MLflow
========================

:func:`~torchrl_logo.trainers.train_tracked` trains one method, evaluates its final policy, and
keeps all of it as one MLflow run: parameters, the dataset's hash, metrics by update, figures, a
video, weights. :class:`~torchrl_logo.record.MLflowRun` is the TorchRL logger below it, for loops of
your own.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from mlflow import MlflowClient

from torchrl_logo.data import collect
from torchrl_logo.envs import make_env
from torchrl_logo.record import MLflowRun
from torchrl_logo.trainers import train_tracked

torch.set_num_threads(1)
runs = Path(tempfile.mkdtemp())  # "runs" by default
env = make_env("vmas/balance", num_envs=32)
dataset = collect(env, None, 3_000, quality="random", seed=0)

# %%
# A whole training
# ----------------

tracked = train_tracked(
    "bc",
    dataset,
    steps=100,
    eval_episodes=8,
    runs_dir=runs,
    video=False,
    eval_interval=50,
    log_interval=25,
    progress_bar=False,
)
print("look at it with:", tracked.ui_command.replace(str(runs), "runs"))

# %%
# What the run has; :doc:`../metrics` has a line for each metric.

client = MlflowClient(f"sqlite:///{runs}/mlflow.db")
run = client.get_run(tracked.run_id)
print(run.info.run_name, run.info.status)
for name, value in sorted(run.data.metrics.items()):
    print(f"{name:20} {value:10.3f}")
print([file.path for file in client.list_artifacts(tracked.run_id)])

# %%
# A metric's history is read with MLflow's client; its pages draw the same curve.

curve = client.get_metric_history(tracked.run_id, "loss_actor")
figure, axes = plt.subplots(figsize=(4, 2.5), layout="constrained")
axes.plot([point.step for point in curve], [point.value for point in curve], marker="o")
axes.set(xlabel="update", title="loss_actor")
plt.show()

# %%
# A loop of your own
# ------------------
#
# The run ends as ``FAILED`` if the block raises, and as ``FINISHED`` otherwise. Metrics are sent in
# batches, so that a slow server does not slow the loop.

with MLflowRun("my-experiment", run_name="by-hand", runs_dir=runs) as logger:
    logger.log_hparams({"task": "vmas/balance", "seed": 0})
    for step in range(3):
        logger.log_metrics({"loss_value": 1.0 / (1 + step)}, step=step)
history = client.get_metric_history(logger.run_id, "loss_value")
print([(point.step, round(point.value, 2)) for point in history])

# %%
# Any TorchRL trainer takes it: ``Trainer(logger=logger, ...)``.
