"""Wrong uses of environments, networks, losses, evaluation, planning and trainers."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tensordict import TensorDict

from tests.wrong_uses import parts
from tests.wrong_uses.case import WrongUse
from torchrl_logo.data import from_arrays
from torchrl_logo.envs import ImaginedEnv, known_termination, make_env
from torchrl_logo.evaluation import (
    bootstrap_interval,
    evaluate,
    evaluate_world_model,
    imagine_open_loop,
    interquartile_mean,
)
from torchrl_logo.modules import (
    JointWorldModel,
    LOGOWorldModel,
    Normalizer,
    make_action_value_network,
    make_categorical_actor,
    make_centralized_critic,
    make_gaussian_actor,
    make_latent_actor,
    make_mixer,
    make_recurrent_categorical_actor,
)
from torchrl_logo.objectives import BCLoss, LOGOWorldModelLoss, MACQLLoss, make_world_model_loss
from torchrl_logo.planning import LOGOMPC
from torchrl_logo.record import MLflowRun, render_episode, write_video
from torchrl_logo.trainers import (
    OfflineTrainer,
    TrainedPolicy,
    WorldModelTrainer,
    train_mamba,
    train_tracked,
)


def train_into_file(folder: Path) -> Any:
    (folder / "notes.txt").write_text("hello")
    return train("bc", checkpoint_dir=folder / "notes.txt")


def make_without_simulator(folder: Path) -> Any:
    """As where the extra is not installed."""
    imported = importlib.import_module

    def refuse(name: str, package: str | None = None) -> Any:
        if name.startswith("mpe2"):
            raise ModuleNotFoundError(f"No module named {name!r}", name="mpe2")
        return imported(name, package)

    with mock.patch("importlib.import_module", refuse):
        return make_env("mpe/simple_spread")


def imagine(**changed: Any) -> ImaginedEnv:
    arguments = {"start_states": parts.dataset(), "batch_size": 4, "horizon": 3, **changed}
    return ImaginedEnv(arguments.pop("world_model", parts.model()), **arguments)


def train(method: Any, dataset: Any = None, **changed: Any) -> Any:
    kwargs = {"steps": 5, "eval_interval": 0, "progress_bar": False, **changed}
    return OfflineTrainer(method, parts.dataset() if dataset is None else dataset, **kwargs)


def macql(**changed: Any) -> MACQLLoss:
    return MACQLLoss(parts.actor(), parts.critic(), action_spec=parts.action_spec(), **changed)


def bc(**changed: Any) -> BCLoss:
    return BCLoss(parts.actor(), action_spec=parts.action_spec(), **changed)


def load_other_model(folder: Path) -> Any:
    parts.model().save(folder / "model.pt")
    return LOGOWorldModel.load(folder / "model.pt")


def load_policy_of_model(folder: Path) -> Any:
    parts.model().save(folder / "model.pt")
    return TrainedPolicy.load(folder / "model.pt")


def load_text_model(folder: Path) -> Any:
    (folder / "model.pt").write_text("weights")
    return LOGOWorldModel.load(folder / "model.pt")


def observe(features: int, agents: int = 2) -> TensorDict:
    return TensorDict({("agents", "observation"): torch.zeros(5, agents, features)}, [5])


ENVIRONMENTS = [
    WrongUse(
        *("unknown scenario", lambda folder: make_env("vmas/balanc"), ValueError),
        *("'balanc'", "no team scenario", "Nearest: vmas/balance"),
    ),
    WrongUse(
        *("task without its simulator", lambda folder: make_env("balance"), ValueError),
        *("No task 'balance'", "Nearest: vmas/balance", "available_tasks() lists all"),
    ),
    WrongUse(
        *("number for a task", lambda folder: make_env(3), TypeError),
        *("found 3", "task must be a name", "'<simulator>/<scenario>'"),
    ),
    WrongUse(
        *("no simulation", lambda folder: make_env("vmas/balance", num_envs=0), ValueError),
        *("found 0", "num_envs", "positive integer"),
    ),
    WrongUse(
        *("unknown option", lambda folder: make_env("vmas/balance", n_agent=3), TypeError),
        *("n_agent", "beside num_envs, device and seed", "they take"),
    ),
    WrongUse(
        *("unknown device", lambda folder: make_env("vmas/balance", device="tpu9"), ValueError),
        *("No device 'tpu9'", "there are: cpu", 'Pass device="c'),
    ),
    WrongUse(
        *("missing extra", make_without_simulator, ImportError),
        *("mpe2", "is not installed", "Run: pip install torchrl-logo[mpe]"),
    ),
    WrongUse(
        "action of another size",
        lambda folder: parts.env().step(
            parts.env().reset().set(("agents", "action"), torch.zeros(2, 3, 7))
        ),
        *(ValueError, "found shape (2, 3, 7)", "of shape (2, 3, 2)", "A policy of this task"),
    ),
    WrongUse(
        *("step without an action", lambda folder: parts.env().step(parts.env().reset())),
        *(ValueError, "found none", "('agents', 'action') of shape (2, 3, 2)", "rand_action()"),
    ),
    WrongUse(
        *("horizon 0", lambda folder: imagine(horizon=0), ValueError),
        *("found 0", "horizon must be", "at least 1"),
    ),
    WrongUse(
        "model and data of two tasks",
        lambda folder: imagine(start_states=parts.other_dataset()),
        *(ValueError, "found 'vmas/transport'", "expected 'vmas/balance'", "Take one of the same"),
    ),
    WrongUse(
        "start states without a state",
        lambda folder: imagine(start_states=parts.batch(without="state")),
        *(
            KeyError,
            "found [\"('agents', 'action')\"",
            "start_states lack 'state'",
            "pass an OfflineDataset",
        ),
    ),
    WrongUse(
        "policy in place of a model",
        lambda folder: imagine(world_model=parts.actor()),
        *(TypeError, "a ProbabilisticTensorDictSequential", "WorldModel", "from_dataset(dataset)"),
    ),
    WrongUse(
        "name in place of a rule",
        lambda folder: imagine(termination="vmas/balance"),
        *(TypeError, "found 'vmas/balance'", "must be a rule", "known_termination(task)"),
    ),
    WrongUse(
        "imagining with a policy of another task",
        lambda folder: imagine().rollout(2, parts.actor(parts.other_dataset())),
        *(ValueError, "(4, 3, 16)", "made for 4 agents with 11 features", "Load or make one"),
    ),
    WrongUse(
        *("task without a rule", lambda folder: known_termination("vmas/flocking"), ValueError),
        *("'vmas/flocking'", "there are rules for", "Leave termination=None"),
    ),
]

EVALUATION = [
    WrongUse(
        "policy of another task",
        lambda folder: evaluate(parts.actor(parts.other_dataset()), "vmas/balance", episodes=2),
        *(ValueError, "(2, 3, 16)", "made for 4 agents with 11 features", "Load or make one"),
    ),
    WrongUse(
        "class of a policy",
        lambda folder: evaluate(type(parts.actor()), "vmas/balance", episodes=1),
        *(TypeError, "found the class Prob", "must act on a TensorDict", "pass a policy"),
    ),
    WrongUse(
        "text for a seed",
        lambda folder: evaluate(parts.actor(), "vmas/balance", episodes=1, seed="0"),
        *(TypeError, "found '0' (str)", "a whole number", "Pass seed=0"),
    ),
    WrongUse(
        *("name of a policy", lambda folder: evaluate("bc", parts.env(), episodes=2), TypeError),
        *("found 'bc' (str)", "must act on a TensorDict", "TrainedPolicy.load(path)"),
    ),
    WrongUse(
        *("no episode", lambda folder: evaluate(parts.actor(), parts.env(), episodes=0)),
        *(ValueError, "found 0", "episodes must be", "positive integer"),
    ),
    WrongUse(
        "no task",
        lambda folder: evaluate(parts.actor(), None, episodes=2),
        *(TypeError, "found None", "str or EnvBase", "make_env"),
    ),
    WrongUse(
        "model and data of two tasks",
        lambda folder: evaluate_world_model(parts.model(), parts.other_dataset()),
        *(ValueError, "found 'vmas/transport'", "expected 'vmas/balance'", "Take one of the same"),
    ),
    WrongUse(
        "horizon beyond all episodes",
        lambda folder: evaluate_world_model(parts.model(), parts.dataset(), horizon=1000),
        *(ValueError, "1000 steps", "No held-out episode has", "choose a smaller horizon"),
    ),
    WrongUse(
        "rows in place of windows",
        lambda folder: imagine_open_loop(parts.model(), parts.batch()),
        *(ValueError, "found batch size (8,)", "expected windows [W, L]", "sample_sequences"),
    ),
    WrongUse(
        *("no score", lambda folder: interquartile_mean([]), ValueError),
        *("found none", "expected scores", "pass one a run"),
    ),
    WrongUse(
        *("one seed", lambda folder: bootstrap_interval([3.0]), ValueError),
        *("found 1", "at least 2 seeds", "run more"),
    ),
    WrongUse(
        *("confidence of 95", lambda folder: bootstrap_interval([1.0, 2.0], confidence=95.0)),
        *(ValueError, "found 95.0", "confidence must be", "between 0 and 1"),
    ),
]

NETWORKS = [
    WrongUse(
        "continuous actor for discrete actions",
        lambda folder: make_gaussian_actor(parts.DISCRETE),
        *(ValueError, "the task's are discrete", "needs continuous", "see make_categorical_actor"),
    ),
    WrongUse(
        "discrete actor for continuous actions",
        lambda folder: make_categorical_actor(parts.dataset().spec),
        *(ValueError, "the task's are continuous", "needs discrete", "see make_gaussian_actor"),
    ),
    WrongUse(
        "centralised critic of discrete actions",
        lambda folder: make_centralized_critic(parts.DISCRETE),
        *(ValueError, "the task's are discrete", "needs continuous", "make_mixer"),
    ),
    WrongUse(
        "action values of continuous actions",
        lambda folder: make_action_value_network(parts.dataset().spec),
        *(ValueError, "the task's are continuous", "needs discrete", "see make_agent_critic"),
    ),
    WrongUse(
        "sizes as a dict",
        lambda folder: make_gaussian_actor(parts.DISCRETE.to_dict()),
        *(TypeError, "found a dict", "TaskSpec", "TaskSpec.from_env(env)"),
    ),
    WrongUse(
        *("unknown mixer", lambda folder: make_mixer(parts.DISCRETE, "qplex"), ValueError),
        *("found 'qplex'", "expected kind", "'qmix' or 'vdn'"),
    ),
    WrongUse(
        *("model without sizes", lambda folder: JointWorldModel(None), TypeError),
        *("found None", "TaskSpec", "dataset.spec"),
    ),
    WrongUse(
        *("no hidden unit", lambda folder: LOGOWorldModel(parts.DISCRETE, hidden_size=0)),
        *(ValueError, "found 0", "hidden_size", "at least 4"),
    ),
    WrongUse(
        "model without an action",
        lambda folder: parts.model()(parts.batch(without=("agents", "action"))),
        *(KeyError, "found [", "reads ('agents', 'action'), which is missing", "set_keys()"),
    ),
    WrongUse(
        "state of another shape",
        lambda folder: parts.model()(parts.batch(state=torch.zeros(8, 3))),
        *(ValueError, "found (8, 3)", "of shape (8, 42)", "of one task"),
    ),
    WrongUse(
        "doubles in a model of floats",
        lambda folder: parts.model()(parts.batch(state=torch.zeros(8, 42).double())),
        *(ValueError, "found torch.float64", "of torch.float32", "convert the data, or the model"),
    ),
    WrongUse(
        *("unknown key", lambda folder: parts.model().set_keys(rewards="r"), ValueError),
        *("'rewards' is not an accepted key", "expected ['action'", "'reward'"),
    ),
    WrongUse(
        *("missing file", lambda folder: LOGOWorldModel.load(folder / "no.pt"), FileNotFoundError),
        *("no.pt", "There is no file", "Is the path complete?"),
    ),
    WrongUse(
        *("text in place of weights", load_text_model, ValueError),
        *("found no archive of torch.save", "model.pt", "expected a whole file of weights"),
    ),
    WrongUse(
        *("model of another class", load_other_model, ValueError),
        *("holds a JointWorldModel", "expected a LOGOWorldModel", "JointWorldModel.load(path)"),
    ),
    WrongUse(
        "observations of another size",
        lambda folder: parts.actor()(observe(4)),
        *(ValueError, "(5, 2, 4)", "made for 3 agents with 16 features", "Load or make one"),
    ),
    WrongUse(
        "inputs on another device",
        lambda folder: make_gaussian_actor(parts.dataset().spec, device="meta")(
            parts.batch().select(("agents", "observation"))
        ),
        *(ValueError, "found inputs on cpu", "The network is on meta", ".to(device)"),
    ),
    WrongUse(
        "one width in place of one a layer",
        lambda folder: make_gaussian_actor(parts.dataset().spec, hidden_sizes=256),
        *(ValueError, "found 256", "for each hidden layer", "such as (128, 128)"),
    ),
    WrongUse(
        "discrete actor without a mask",
        lambda folder: make_categorical_actor(parts.DISCRETE)(observe(3)),
        *(ValueError, "found none", "a mask of available actions", "true everywhere if all are"),
    ),
    WrongUse(
        "memory without the first steps",
        lambda folder: make_recurrent_categorical_actor(parts.DISCRETE)(observe(3)),
        *(KeyError, "found [", "reads ['is_init']", "torchrl.envs.InitTracker"),
    ),
    WrongUse(
        "latent policy of a model without latents",
        lambda folder: make_latent_actor(parts.model()),
        *(TypeError, "a JointWorldModel", "RecurrentLatentWorldModel", "Get one from"),
    ),
    WrongUse(
        *(
            "data of other features",
            lambda folder: Normalizer(3).fit(torch.zeros(5, 4)),
            ValueError,
        ),
        *("found 4", "Normalizer", "expected 3 features"),
    ),
]

LOSSES = [
    WrongUse(
        *("no rewards", lambda folder: macql()(parts.batch(without=("next", "reward"))), KeyError),
        *("found [", "MACQLLoss reads [('next', 'reward')]", "set_keys()"),
    ),
    WrongUse(
        "rewards of another shape",
        lambda folder: macql()(parts.batch(next__reward=torch.zeros(8))),
        *(ValueError, "found (8,)", "('next', 'reward')", "of shape (8, 1)"),
    ),
    WrongUse(
        "actions of another task",
        lambda folder: bc()(parts.other_dataset().data[:8].clone()),
        *(ValueError, "found (8, 4, 2)", "('agents', 'action')", "of shape (8, 3, 2)"),
    ),
    WrongUse(
        "batch of no transition",
        lambda folder: bc()(parts.batch()[:0]),
        *(ValueError, "of size (0,)", "at least one transition", "batch_size=1 or more"),
    ),
    WrongUse(
        *("discount of two", lambda folder: macql(gamma=2.0), ValueError),
        *("found 2.0", "MACQLLoss: gamma", "[0, 1]"),
    ),
    WrongUse(
        *("negative penalty", lambda folder: macql(min_q_weight=-1.0), ValueError),
        *("found -1.0", "MACQLLoss: min_q_weight", "at least 0"),
    ),
    WrongUse(
        *("no samples", lambda folder: macql(num_samples=0), ValueError),
        *("found 0", "MACQLLoss: num_samples", "at least 1"),
    ),
    WrongUse(
        *("unknown reduction", lambda folder: bc(reduction="avg"), ValueError),
        *("found 'avg'", "BCLoss: reduction", "'none', 'mean' or 'sum'"),
    ),
    WrongUse(
        "spec of a whole environment",
        lambda folder: MACQLLoss(
            parts.actor(), parts.critic(), action_spec=parts.env().full_action_spec
        ),
        *(ValueError, "found Composite", "Bounded action_spec", "of shape [N, d_a]"),
    ),
    WrongUse(
        "loss of another model",
        lambda folder: LOGOWorldModelLoss(parts.model()),
        *(TypeError, "found a JointWorldModel", "LOGOWorldModelLoss", "trains a LOGOWorldModel"),
    ),
    WrongUse(
        "loss of no model",
        lambda folder: make_world_model_loss(parts.actor()),
        *(TypeError, "a ProbabilisticTensorDictSequential", "there are some for", "WorldModelLoss"),
    ),
]

TRAINING = [
    WrongUse(
        *("unknown method", lambda folder: train("mcql"), ValueError),
        *("No method 'mcql'", "There are: bc", "Nearest: macql"),
    ),
    WrongUse(
        *("class of a loss", lambda folder: train(BCLoss), TypeError),
        *("objectives.bc.BCLoss", "method must be", "make a LossModule"),
    ),
    WrongUse(
        *("name of a dataset", lambda folder: train("bc", "vmas/balance-medium"), TypeError),
        *("found 'vmas/balance-medium' (str)", "OfflineDataset", "load_dataset(name_or_path)"),
    ),
    WrongUse(
        *("no step", lambda folder: train("bc", steps=0), ValueError),
        *("found 0", "steps must be", "positive integer"),
    ),
    WrongUse(
        *("steps as a float", lambda folder: train("bc", steps=1e3), ValueError),
        *("found 1000.0", "steps must be", "positive integer"),
    ),
    WrongUse(
        "steps of a model as a float",
        lambda folder: WorldModelTrainer(parts.model(), parts.dataset(), steps=1e3),
        *(ValueError, "found 1000.0", "steps must be", "positive integer"),
    ),
    WrongUse(
        *("no seed", lambda folder: train("bc", seed=None), TypeError),
        *("found None", "a whole number", "Pass seed=0"),
    ),
    WrongUse(
        *("name of a logger", lambda folder: train("bc", logger="mlflow"), TypeError),
        *("found 'mlflow' (str)", "logger must be a TorchRL Logger", "MLflowRun(name)"),
    ),
    WrongUse(
        *("text for a learning rate", lambda folder: train("bc", lr="1e-3"), ValueError),
        *("found '1e-3'", "lr must be", "positive and finite"),
    ),
    WrongUse(
        *("no episode on the way", lambda folder: train("bc", eval_episodes=0), ValueError),
        *("found 0", "eval_episodes must be", "positive integer"),
    ),
    WrongUse(
        *("file for a folder", train_into_file, NotADirectoryError),
        *("notes.txt", "checkpoint_dir must be a folder", "Name another place"),
    ),
    WrongUse(
        *("empty batches", lambda folder: train("bc", batch_size=0), ValueError),
        *("found 0", "batch_size must be", "positive integer"),
    ),
    WrongUse(
        *("negative learning rate", lambda folder: train("bc", lr=-1.0), ValueError),
        *("found -1.0", "lr must be", "positive and finite"),
    ),
    WrongUse(
        *("discount of 1.5", lambda folder: train("macql", gamma=1.5), ValueError),
        *("found 1.5", "gamma must be", "[0, 1]"),
    ),
    WrongUse(
        "unknown argument of the loss",
        lambda folder: train("macql", loss_kwargs={"min_q": 1.0}),
        *(TypeError, "'min_q'", "MACQLLoss takes no", "min_q_weight"),
    ),
    WrongUse(
        *("share of reals above one", lambda folder: train("logo", real_fraction=2.0), ValueError),
        *("found 2.0", "real_fraction must be", "[0, 1]"),
    ),
    WrongUse(
        *("a critic that there is not", lambda folder: train("macql", critic="vdn"), ValueError),
        *("found 'vdn'", "critic must be one of", "'additive'"),
    ),
    WrongUse(
        "unknown argument of the trainer",
        lambda folder: train_tracked("bc", parts.dataset(), steps=2, runs_dir=folder, lrr=1.0),
        *(TypeError, "'lrr'", "OfflineTrainer takes no", "lr_decay"),
    ),
    WrongUse(
        "method without a form for the actions",
        lambda folder: OfflineTrainer("omar", _discrete_dataset(), steps=5, eval_interval=0),
        *(ValueError, "for discrete actions", "only for continuous ones", "Methods for discrete"),
    ),
    WrongUse(
        "horizon 0",
        lambda folder: train("logo", world_model=parts.model(), horizon=0),
        *(ValueError, "found 0", "horizon must be", "positive integer"),
    ),
    WrongUse(
        "negative C",
        lambda folder: train("logo", world_model=parts.model(), uncertainty_threshold=-1.0),
        *(ValueError, "found -1.0", "uncertainty_threshold must be", "positive and finite"),
    ),
    WrongUse(
        "model of another task",
        lambda folder: train("logo", world_model=parts.model(parts.other_dataset())),
        *(ValueError, "found 'vmas/balance'", "expected 'vmas/transport'", "Take one of the same"),
    ),
    WrongUse(
        "evaluation on another task",
        lambda folder: train("bc", eval_env="vmas/transport"),
        *(ValueError, "found 'vmas/transport'", "expected 'vmas/balance'", "Take one of the same"),
    ),
    WrongUse(
        "sequences of continuous actions",
        lambda folder: train("bc", sequence_length=5),
        *(ValueError, "continuous ones", "goes with the methods", "discrete actions"),
    ),
    WrongUse(
        "model for a method that takes none",
        lambda folder: train("maicq", world_model=parts.model()),
        *(ValueError, "'maicq'", "bootstraps from the data's next actions", "no world_model"),
    ),
    WrongUse(
        *("unknown device", lambda folder: train("bc", device="cuda:99"), ValueError),
        *("No device 'cuda:99'", "there are: cpu", 'Pass device="c'),
    ),
    WrongUse(
        "data without a task",
        lambda folder: train_tracked("bc", from_arrays(parts.arrays()), steps=2, runs_dir=folder),
        *(ValueError, "names no task, and eval_env is None", "pass eval_env", "name of a task"),
    ),
    WrongUse(
        "world model of another task",
        lambda folder: WorldModelTrainer(parts.model(), parts.other_dataset(), steps=2),
        *(ValueError, "found 'vmas/transport'", "expected 'vmas/balance'", "Take one of the same"),
    ),
    WrongUse(
        "policy in place of a world model",
        lambda folder: WorldModelTrainer(parts.actor(), parts.dataset(), steps=2),
        *(TypeError, "a ProbabilisticTensorDictSequential", "WorldModel", "from_dataset(dataset)"),
    ),
    WrongUse(
        *("unknown argument of MAMBA", lambda folder: train_mamba(parts.dataset(), steps=2)),
        *(TypeError, "'steps'", "train_mamba takes no", "world_model_steps"),
    ),
    WrongUse(
        *("world model in place of a policy", load_policy_of_model, ValueError),
        *("found ['class'", "a policy that TrainedPolicy.save wrote", "LOGOWorldModel.load(path)"),
    ),
    WrongUse(
        "model in place of its environment",
        lambda folder: LOGOMPC(parts.model(), parts.actor()),
        *(TypeError, "found JointWorldModel", "env must be", "an ImaginedEnv"),
    ),
    WrongUse(
        "planning further than imagining",
        lambda folder: LOGOMPC(imagine(batch_size=()), parts.actor(), planning_horizon=9),
        *(ValueError, "found 3", "environment's horizon", "must reach planning_horizon (9)"),
    ),
    WrongUse(
        *(
            "film of a name",
            lambda folder: render_episode("vmas/balance", parts.actor()),
            TypeError,
        ),
        *("found str", "only VMAS environments can be drawn", "make_env"),
    ),
    WrongUse(
        "film without frames",
        lambda folder: write_video(folder / "film.mp4", torch.zeros(3)),
        *(ValueError, "torch.float32 (3,)", "frames must be uint8", "[T, 3, H, W]"),
    ),
    WrongUse(
        "unknown behaviour without a server",
        lambda folder: MLflowRun("x", runs_dir=folder, when_unreachable="wait"),
        *(ValueError, "found 'wait'", "when_unreachable must be", "'raise' or 'offline'"),
    ),
]


def _discrete_dataset() -> Any:
    arrays = parts.arrays()
    arrays["agents/action"] = arrays["agents/action"][..., 0].astype("int64")
    for prefix in ("", "next/"):
        arrays[f"{prefix}agents/action_mask"] = torch.ones(6, 2, 3, dtype=torch.bool).numpy()
    return from_arrays(arrays)
