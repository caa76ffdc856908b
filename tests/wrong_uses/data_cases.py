"""Wrong uses of ``torchrl_logo.data``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.wrong_uses import parts
from tests.wrong_uses.case import WrongUse
from torchrl_logo.data import (
    DatasetError,
    OfflineDataset,
    ReferenceReturns,
    TaskSpec,
    UncertaintySampler,
    add_next_actions,
    collect,
    convert_dataset,
    from_arrays,
    load_dataset,
    real_and_imagined_buffer,
    sequence_buffer,
    write_pymarl_hdf5,
)
from torchrl_logo.data.behaviour_policies import load_behaviour_policy


def load_text(folder: Path) -> Any:
    (folder / "notes.txt").write_text("hello")
    return load_dataset(folder / "notes.txt", root=folder / "converted")


def convert_npz(folder: Path, without: str | None = None, **options: Any) -> Any:
    np.savez(folder / "recorded.npz", **parts.arrays(without))
    return convert_dataset(folder / "recorded.npz", folder / "own", progress_bar=False, **options)


def save_twice(folder: Path) -> None:
    parts.dataset().save(folder / "dataset")
    parts.dataset().save(folder / "dataset")


def make_spec(**changed: Any) -> TaskSpec:
    sizes = {"n_agents": 2, "observation_size": 3, "state_size": 4, "action_size": 1}
    bounds = {"action_low": (-1.0,), "action_high": (1.0,)}
    return TaskSpec(**{**sizes, **bounds, **changed})


CASES = [
    WrongUse(
        *("unknown dataset", lambda folder: load_dataset("vmas/balanse-medium"), ValueError),
        *("No dataset 'vmas/balanse-medium'", "Nearest: vmas/balance-medium", "available_datasets"),
    ),
    WrongUse(
        *("missing file", lambda folder: load_dataset(folder / "no.h5"), ValueError),
        *("no.h5'", "no such file or folder", "available_datasets() lists all names"),
    ),
    WrongUse(
        "missing file with an option",
        lambda folder: load_dataset(folder / "no.h5", reward_rule="mean"),
        *(ValueError, "no.h5'", "no such file or folder", "available_datasets() lists all names"),
    ),
    WrongUse(
        *("number for a dataset", lambda folder: load_dataset(3), TypeError),
        *("found 3 (int)", "str or Path", "available_datasets()"),
    ),
    WrongUse(
        *("no frames", lambda folder: load_dataset("vmas/balance-random", frames=0), ValueError),
        *("found 0", "frames must be", "positive integer"),
    ),
    WrongUse(
        "unknown device",
        lambda folder: load_dataset("vmas/balance-random", device="gpu"),
        *(ValueError, "No device 'gpu'", "there are: cpu", 'Pass device="c'),
    ),
    WrongUse(
        "option of no format",
        lambda folder: load_dataset("vmas/balance-medium", reward_rule="mean"),
        *(TypeError, "['reward_rule']", "takes no options", "files of other formats"),
    ),
    WrongUse(
        *("unknown format", load_text, DatasetError),
        *("notes.txt", "one of the formats arrays", "from_arrays"),
    ),
    WrongUse(
        "unknown name of a format",
        lambda folder: convert_npz(folder, format="parquet"),
        *(ValueError, "No format 'parquet'", "there are: arrays", "pymarl-hdf5"),
    ),
    WrongUse(
        "unknown option of a format",
        lambda folder: convert_npz(folder, action_bound=(-1, 1)),
        *(TypeError, "'action_bound'", "format 'arrays' takes", "action_bounds"),
    ),
    WrongUse(
        "file without actions",
        lambda folder: convert_npz(folder, without="agents/action"),
        *(DatasetError, "found no such key", "'agents/action': expected an array", "(keys: agents"),
    ),
    WrongUse(
        *(
            "folder without a dataset",
            lambda folder: OfflineDataset.load(folder),
            FileNotFoundError,
        ),
        *("metadata.json is missing", "OfflineDataset.save writes", "load_dataset opens"),
    ),
    WrongUse(
        *("folder that exists", save_twice, FileExistsError),
        *("dataset: it exists already", "Cannot save", "Choose another folder"),
    ),
    WrongUse(
        *("share above one", lambda folder: parts.dataset().split(1.5), ValueError),
        *("found 1.5", "fraction", "between 0 and 1"),
    ),
    WrongUse(
        "splitting one episode",
        lambda folder: from_arrays({k: v[:3] for k, v in parts.arrays().items()}).split(0.5),
        *(ValueError, "found 1", "at least 2 episodes", "collect or load more"),
    ),
    WrongUse(
        "windows longer than episodes",
        lambda folder: parts.dataset().sample_sequences(4, length=1000),
        *(ValueError, "1000 steps asked for", "the longest has 100", "choose a smaller length"),
    ),
    WrongUse(
        "no window",
        lambda folder: parts.dataset().sample_sequences(0, length=5),
        *(ValueError, "found 0 and 5", "batch_size and length", "positive"),
    ),
    WrongUse(
        "sampling without a size",
        lambda folder: parts.dataset().sample(),
        *(RuntimeError, "batch_size not specified", "specify the batch_size", "to the sample"),
    ),
    WrongUse(
        "negative batch size",
        lambda folder: (
            parts.dataset()
            .split(0.5)[0]
            .__class__(parts.dataset().data, parts.dataset().metadata, batch_size=-4)
        ),
        *(ValueError, "found -4", "positive integer", "or None to pass one to sample()"),
    ),
    WrongUse(
        "sequences longer than episodes",
        lambda folder: sequence_buffer(parts.dataset(), slice_len=1000, batch_size=4),
        *(ValueError, "slice_len=1000", "the longest 100", "Choose a smaller slice_len"),
    ),
    WrongUse(
        *("no rewards", lambda folder: from_arrays(parts.arrays("next/reward")), DatasetError),
        *("found no such key", "'next/reward': expected an array", "(keys: agents/action"),
    ),
    WrongUse(
        "fewer rows in one array",
        lambda folder: from_arrays(parts.arrays(state=lambda a: a[:3])),
        *(DatasetError, "found 3", "expected 6 rows", "as 'agents/observation' has"),
    ),
    WrongUse(
        "strings for actions",
        lambda folder: from_arrays(parts.arrays(agents__action=lambda a: a.astype(str))),
        *(DatasetError, "found dtype <U32", "'agents/action'", "numbers or flags"),
    ),
    WrongUse(
        "doubles",
        lambda folder: from_arrays(parts.arrays(state=lambda a: a.astype(float))),
        *(DatasetError, "found float64", "'state'", "expected float32"),
    ),
    WrongUse(
        "no transition",
        lambda folder: from_arrays({k: v[:0] for k, v in parts.arrays().items()}),
        *(DatasetError, "found none", "dataset", "at least one transition"),
    ),
    WrongUse(
        "rewards that are no number",
        lambda folder: from_arrays(parts.arrays(next__reward=lambda a: a * np.nan)),
        *(DatasetError, "6 NaN", "'next/reward': expected finite", "first in row 0"),
    ),
    WrongUse(
        "unknown array",
        lambda folder: from_arrays({**parts.arrays(), "rewards": np.zeros(6)}),
        *(DatasetError, "'rewards'", "a key of the layout", "such as 'next/reward'"),
    ),
    WrongUse(
        "rewards of another shape",
        lambda folder: from_arrays(parts.arrays(next__reward=lambda a: a[:, 0])),
        *(DatasetError, "found shape [6]", "'next/reward'", "expected shape [6, 1]"),
    ),
    WrongUse(
        "actions out of bounds",
        lambda folder: from_arrays(
            parts.arrays(agents__action=lambda a: a + 5), action_bounds=(-1, 1)
        ),
        *(DatasetError, "found 5 in row 0", "'agents/action'", "within [-1] and [1]"),
    ),
    WrongUse(
        "next states that are not the next ones",
        lambda folder: from_arrays(parts.arrays(next__state=lambda a: a + 5)),
        *(DatasetError, "in row 0 (episode 0)", "'next/state'", "the same as 'state' of the next"),
    ),
    WrongUse(
        "one agent without its dimension",
        lambda folder: from_arrays(parts.arrays(agents__observation=lambda a: a[:, 0])),
        *(DatasetError, "found shape [6, 3]", "'agents/observation'", "[B, N, d_o]"),
    ),
    WrongUse(
        "data of another task",
        lambda folder: OfflineDataset.from_transitions(
            parts.dataset().data.clone(), parts.other_dataset().spec
        ),
        *(DatasetError, "found 3 (shape", "'agents/observation'", "expected 4 agents (shape"),
    ),
    WrongUse(
        *("name in place of an environment", lambda folder: collect("vmas/balance", None, 100)),
        *(TypeError, "found 'vmas/balance' (str)", "EnvBase", "make_env"),
    ),
    WrongUse(
        *("no frames to collect", lambda folder: collect(parts.env(), None, 0), ValueError),
        *("found 0", "frames must be", "positive integer"),
    ),
    WrongUse(
        *("half a frame", lambda folder: collect(parts.env(), None, 10.5), ValueError),
        *("found 10.5", "frames must be", "positive integer"),
    ),
    WrongUse(
        *("name of a policy", lambda folder: collect(parts.env(), "expert", 100), TypeError),
        *("the name 'expert'", "must act on a TensorDict", "load_behaviour_policy"),
    ),
    WrongUse(
        "policy of another task",
        lambda folder: collect(parts.env(), parts.actor(parts.other_dataset()), 100),
        *(ValueError, "(2, 3, 16)", "made for 4 agents with 11 features", "Load or make one"),
    ),
    WrongUse(
        *("negative share", lambda folder: collect(parts.env(), [(None, -1.0)], 100), ValueError),
        *("shares [-1.0]", "policies with", "positive shares"),
    ),
    WrongUse(
        "unknown shipped policy",
        lambda folder: load_behaviour_policy("vmas/balance", "expret"),
        *(ValueError, "'expret'", "expected 'random' or one of", "'expert'"),
    ),
    WrongUse(
        "task without shipped policies",
        lambda folder: load_behaviour_policy("vmas/flocking", "expert"),
        *(ValueError, "'vmas/flocking'", "No behaviour policies ship", "there are some for"),
    ),
    WrongUse(
        "unknown field of the metadata",
        lambda folder: parts.dataset().metadata["retrun"],
        *(KeyError, "'retrun'", "expected one of", "'return_statistics'"),
    ),
    WrongUse(
        "equal reference returns",
        lambda folder: ReferenceReturns(random=1.0, expert=1.0),
        *(ValueError, "found 1.0 for both", "ReferenceReturns.expert", "must differ from"),
    ),
    WrongUse(
        *("no agents", lambda folder: make_spec(n_agents=0), ValueError),
        *("found 0", "TaskSpec.n_agents", "positive integer"),
    ),
    WrongUse(
        *("no bounds", lambda folder: make_spec(action_low=()), ValueError),
        *("found 0", "TaskSpec.action_low", "needs 1 values"),
    ),
    WrongUse(
        *("bounds the wrong way round", lambda folder: make_spec(action_low=(2.0,)), ValueError),
        *("found 2.0 and 1.0", "action_low and action_high", "the first not above the second"),
    ),
    WrongUse(
        "negative C",
        lambda folder: UncertaintySampler(100, C=-1.0, temperature=1.0),
        *(ValueError, "found -1.0", "C must be", "positive and finite"),
    ),
    WrongUse(
        "no C",
        lambda folder: UncertaintySampler(100, C=None),  # type: ignore[arg-type]
        *(ValueError, "found None", "C must be", "find_uncertainty_threshold"),
    ),
    WrongUse(
        "a list of arrays",
        lambda folder: from_arrays([np.zeros(3)]),  # type: ignore[arg-type]
        *(TypeError, "(list)", "arrays must be of type Mapping", "a dict of arrays"),
    ),
    WrongUse(
        "no temperature",
        lambda folder: UncertaintySampler(100, C=1.0, temperature=0.0),
        *(ValueError, "found 0.0", "temperature must be", "positive and finite"),
    ),
    WrongUse(
        "nothing to mix with",
        lambda folder: real_and_imagined_buffer(parts.dataset(), None, batch_size=8),
        *(TypeError, "found None", "TensorDictReplayBuffer", "UncertaintySampler"),
    ),
    WrongUse(
        "share of real data above one",
        lambda folder: real_and_imagined_buffer(
            parts.dataset(), parts.dataset(), batch_size=8, real_fraction=2.0
        ),
        *(ValueError, "found 2.0", "real_fraction", "within 0 and 1"),
    ),
    WrongUse(
        "next actions without episodes",
        lambda folder: add_next_actions(parts.batch(without="episode")),
        *(DatasetError, "found no such key", "'episode'", "expected an entry"),
    ),
    WrongUse(
        "continuous actions in a format of discrete ones",
        lambda folder: write_pymarl_hdf5(parts.dataset(), folder / "out.h5"),
        *(ValueError, "are continuous", "PyMARL's HDF5", "holds discrete actions"),
    ),
    WrongUse(
        "uncertainty below zero",
        lambda folder: UncertaintySampler(8, C=1.0, temperature=1.0).update_priority(
            torch.arange(2), torch.tensor([0.5, -1.0])
        ),
        *(ValueError, "found 1 of 2 that are not", "finite and not negative", "for instance -1.0"),
    ),
]
