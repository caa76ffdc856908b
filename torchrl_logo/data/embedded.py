"""Datasets by name, collected on first use from behaviour policies in the package, or by path."""

from __future__ import annotations

import contextlib
import difflib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from torchrl_logo.argument_checks import find_device, require_type
from torchrl_logo.data.behaviour_policies import (
    behaviour_digest,
    behaviour_tasks,
    load_behaviour_policy,
    read_recipe,
)
from torchrl_logo.data.collection import collect
from torchrl_logo.data.conversion import convert_dataset, fingerprint_source
from torchrl_logo.data.dataset import OfflineDataset
from torchrl_logo.file_locks import hold_lock
from torchrl_logo.whole_files import explain_write_errors

__all__ = ["available_datasets", "load_dataset"]

_DEFAULT_FRAMES = 100_000
_MOST_ENVS = 1000


def available_datasets() -> list[str]:
    """Names of the datasets that :func:`load_dataset` makes by itself.

    They are called ``<task>-<quality>``:

    - ``random``: uniformly random actions;
    - ``medium-replay``: a mixture of the policies seen in training up to the medium one;
    - ``medium``: a policy with about half of the expert's normalised return;
    - ``expert``: the best policy;
    - ``mixed``: medium and expert, half each.

    Examples:
        >>> all("-" in name for name in available_datasets())
        True
    """
    return [
        f"{task}-{quality}"
        for task in behaviour_tasks()
        for quality in read_recipe(task)["qualities"]
    ]


def load_dataset(
    name_or_path: str | Path,
    *,
    root: str | Path | None = None,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
    frames: int = _DEFAULT_FRAMES,
    seed: int = 0,
    verify: bool = True,
    lock_timeout: float = 3600.0,
    **options: Any,
) -> OfflineDataset:
    """Loads a dataset by its name, collecting it on first use, or from a file or folder.

    A file or folder of another format is recognised and converted on first use (see
    :func:`~torchrl_logo.data.convert_dataset`); the converted dataset is kept under ``root``, and
    is made anew when the files or the options change.

    Collecting takes seconds on one thread. The data are kept under ``root`` in a folder named
    after the dataset, ``frames``, ``seed`` and a digest of the behaviour policies, so that other
    settings or newer policies never meet old data. Processes that ask for the same dataset at
    once wait for the first one. On one machine the same name, ``frames`` and ``seed`` give the
    same hash.

    Args:
        name_or_path (str or Path): one of :func:`available_datasets`, the folder of a saved
            dataset, or a file or folder of another format.

    Keyword Args:
        root (str or Path, optional): where collected datasets are kept. Defaults to the
            environment variable ``TORCHRL_LOGO_DATA``, or else ``~/.cache/torchrl_logo``.
        batch_size (int, optional): transitions in a sample.
        device (torch.device or str): where the data lie. Defaults to ``"cpu"``, memory-mapped.
        frames (int): transitions to collect, rounded up to whole episodes. Defaults to
            ``100_000``. Ignored for a folder.
        seed (int): seed of the collection. Defaults to ``0``. Ignored for a folder.
        verify (bool): whether the content is compared with the recorded hash, which reads it
            once. Defaults to ``True``.
        lock_timeout (float): seconds to wait for another process that makes the same dataset.
            Defaults to an hour.
        **options: for files of another format, what
            :func:`~torchrl_logo.data.convert_dataset` and the format's reader take, such as
            ``task``, ``quality`` or ``reward_rule``.

    Raises:
        ValueError: if there is no such name or path; names the nearest datasets.
        TypeError: if options are given for a dataset that is not converted.
        DatasetError: if the folder's data do not fit their metadata.
        TimeoutError: if another process makes the same dataset for longer than ``lock_timeout``.
        OSError: if the disk is full or read-only.

    Examples:
        >>> load_dataset("vmas/balanse-medium")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: No dataset 'vmas/balanse-medium'. ...
    """
    require_type(name_or_path, (str, Path), "name_or_path", "available_datasets()")
    if type(frames) is not int or frames < 1:
        raise ValueError(f"frames must be a positive integer, found {frames!r}.")
    find_device(device)  # before anything is collected
    opening: dict[str, Any] = {"batch_size": batch_size, "device": device, "verify": verify}
    name = str(name_or_path)
    names = available_datasets()
    path = Path(name_or_path)
    named = isinstance(name_or_path, str) and name in names
    if not named and path.exists() and not OfflineDataset.is_saved(path):
        options = {**options, "lock_timeout": lock_timeout}
        return OfflineDataset.load(_convert_once(path, _find_root(root), options), **opening)
    if not named and not path.exists():
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.3)
        raise ValueError(
            f"No dataset {name!r}. Nearest: {', '.join(near) or 'none'}. "
            "torchrl_logo.data.available_datasets() lists all names, and there is no such file or "
            "folder."
        )
    if options:
        raise TypeError(
            f"load_dataset({name!r}) takes no options {sorted(options)}: they are for files of "
            "other formats."
        )
    if named:
        made = _generate_once(name, _find_root(root), frames, seed, lock_timeout)
        return OfflineDataset.load(made, **opening)
    return OfflineDataset.load(path, **opening)


def _find_root(root: str | Path | None) -> Path:
    if root is None:
        root = os.environ.get("TORCHRL_LOGO_DATA") or Path("~/.cache/torchrl_logo")
    return Path(root).expanduser()


def _convert_once(path: Path, root: Path, options: dict[str, Any]) -> Path:
    """Converts files of another format unless that was done; returns the folder."""
    ways = ("memory", "progress_bar", "lock_timeout")  # to the same data
    chosen = {k: v for k, v in options.items() if k not in ways}
    folder = root / f"{path.stem}-{fingerprint_source(path, chosen)[:12]}"
    if not folder.exists():
        # another process may make it in the meantime
        with contextlib.suppress(FileExistsError):
            convert_dataset(path, folder, **options)
    return folder


def _generate_once(name: str, root: Path, frames: int, seed: int, lock_timeout: float) -> Path:
    """Collects a named dataset unless it is there; returns its folder."""
    task = max((t for t in behaviour_tasks() if name.startswith(f"{t}-")), key=len)
    quality = name.removeprefix(f"{task}-")
    folder = f"{name.replace('/', '_')}-{frames}-seed{seed}-{behaviour_digest(task)}"
    path = root / folder
    if path.exists():
        return path
    with explain_write_errors(f"the dataset {name}", root):
        root.mkdir(parents=True, exist_ok=True)
    with hold_lock(root / f".{folder}.lock", lock_timeout, f"the dataset {name}"):
        if not path.exists():  # another process may have made it in the meantime
            _generate(task, quality, path, frames, seed)
    return path


def _generate(task: str, quality: str, path: Path, frames: int, seed: int) -> None:
    # Not at the top of the file: environments import this package.
    from torchrl_logo.envs import make_env

    recipe = read_recipe(task)
    names = recipe["qualities"][quality]
    policies = [(load_behaviour_policy(task, name), 1.0) for name in names]
    steps = recipe["spec"]["max_steps"] or 1
    # Twice as many simulations as a policy has episodes of full length: one round of them is
    # then mostly enough, and a step of a small batch costs as much as one of a larger batch.
    num_envs = min(2 * math.ceil(frames / len(names) / steps), _MOST_ENVS)
    provenance = {
        "recipe": f"load_dataset({f'{task}-{quality}'!r}, frames={frames}, seed={seed})",
        "policies": [
            {"policy": name, "share": 1 / len(names), "return": recipe["returns"][name]}
            for name in names
        ],
        "behaviour_digest": behaviour_digest(task),
    }
    with _one_thread():
        env = make_env(task, num_envs=num_envs, seed=seed)
        collect(env, policies, frames, quality=quality, seed=seed, root=path, provenance=provenance)
        env.close()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Runs on one thread: sums are then in the same order whatever the caller's setting is."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
