"""What a user does first, in an environment that has the wheel and nothing else of this project.

Run by ``make wheel`` from another folder, with the interpreter of that environment::

    python smoke_test.py <folder of the examples> [--shared]

``--shared`` says that dependencies come from an environment that may have extras, too.
"""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torchrl_logo

EXTRAS = ("h5py", "minari", "jax", "mpe2", "gymnasium_robotics", "ray", "pytest", "sphinx")


def check_installation(shared: bool) -> None:
    """The wheel's package is the one that is imported, and no extra is there."""
    where = Path(torchrl_logo.__file__).parent
    assert "site-packages" in where.parts, f"imported from {where}, and not the wheel"
    assert torchrl_logo.__version__ == version("torchrl-logo")
    assert (where / "py.typed").is_file()
    present = (
        [] if shared else [name for name in EXTRAS if importlib.util.find_spec(name) is not None]
    )
    assert not present, f"the environment is not empty: it has {present}"


def import_all() -> int:
    """Every module can be imported without extras."""
    modules = list(pkgutil.walk_packages(torchrl_logo.__path__, "torchrl_logo."))
    for module in modules:
        importlib.import_module(module.name)
    return len(modules)


def use_main_path(folder: Path, shared: bool) -> None:
    """From data to a policy, with the smallest budgets."""
    from torchrl_logo.data import load_dataset
    from torchrl_logo.envs import make_env
    from torchrl_logo.evaluation import evaluate
    from torchrl_logo.modules import LOGOWorldModel
    from torchrl_logo.trainers import TrainedPolicy, train_tracked

    dataset = load_dataset("vmas/balance-medium-replay", root=folder / "data", frames=1000)
    model = LOGOWorldModel.from_dataset(dataset, hidden_size=16)
    model.save(folder / "model.pt")
    tracked = train_tracked(
        "logo",
        dataset,
        steps=10,
        world_model=LOGOWorldModel.load(folder / "model.pt"),
        imagined_envs=8,
        horizon=2,
        eval_episodes=4,
        eval_interval=0,
        progress_bar=False,
        runs_dir=folder / "runs",
    )
    tracked.result.policy.save(folder / "policy.pt")
    policy = TrainedPolicy.load(folder / "policy.pt")
    assert evaluate(policy, "vmas/balance", episodes=2).returns.isfinite().all()
    if shared:
        return
    try:
        make_env("mamujoco/ant_2x4")
    except ImportError as error:
        assert "torchrl-logo[mamujoco]" in str(error), error
    else:
        raise AssertionError("an extra that is not installed was not missed")


def ask_for_help(examples: Path, folder: Path) -> int:
    """Every example says what it takes."""
    scripts = sorted(examples.glob("*.py"))
    for script in scripts:
        done = subprocess.run(
            [sys.executable, str(script), "--help"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{script.name} --help:\n{done.stderr[-2000:]}"
    return len(scripts)


if __name__ == "__main__":
    shared = "--shared" in sys.argv[2:]
    check_installation(shared)
    print(f"imported {import_all()} modules")
    with tempfile.TemporaryDirectory() as name:
        use_main_path(Path(name), shared)
        print("trained and evaluated a policy")
        print(f"{ask_for_help(Path(sys.argv[1]).resolve(), Path(name))} examples have their --help")
