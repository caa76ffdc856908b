"""Damaged and hostile files for every reader; ``benchmarks/fuzz.py`` has many more."""

from __future__ import annotations

import functools
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchrl.checkpoint import CheckpointError

h5py = pytest.importorskip("h5py")
pytest.importorskip("minari")
pytest.importorskip("tensorstore")

from benchmarks.fuzz import BAD, run_case  # noqa: E402
from benchmarks.fuzzing.mutations import Shout  # noqa: E402
from benchmarks.fuzzing.targets import TARGETS, make_arrays, make_dataset  # noqa: E402
from torchrl_logo.data import DatasetError, OfflineDataset, convert_dataset  # noqa: E402
from torchrl_logo.data.formats.hdf5_files import open_hdf5  # noqa: E402

# Of benchmarks/fuzz.py: files that once were read wrongly, or ended in an error that said nothing.
FOUND = [
    ("arrays-npy", 16),  # a header that NumPy's tokenizer gives up on
    ("arrays-npy", 26),
    ("memmap", 23),  # a link to itself
    ("dataset", 644),  # metadata linked to /proc/self/mem
    ("sampler", 5),  # a state without its keys
    ("sampler", 97),
    ("sampler", 121),
]


@functools.cache
def whole_file(name: str, folder: Path) -> tuple[Path, str]:
    """The target's whole file, and the hash of what is read from it."""
    start = folder / name / "start"
    start.mkdir(parents=True)
    whole = TARGETS[name].write(start)
    copy = folder / name / "copy"
    shutil.copytree(start, copy / "in")
    (copy / "out").mkdir()
    return whole, TARGETS[name].read(copy / "in" / whole.relative_to(start), copy / "out")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def read_damaged(name: str, number: int, folder: Path) -> tuple[str, str]:
    whole, expected = whole_file(name, folder)
    return run_case(TARGETS[name], whole, expected, number, folder / "case")


@pytest.mark.parametrize(("name", "number"), FOUND)
def test_what_was_found_stays_mended(name: str, number: int, folder: Path) -> None:
    outcome, how = read_damaged(name, number, folder)
    assert outcome not in BAD, how


@pytest.mark.parametrize("name", sorted(TARGETS))
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,  # what is new is looked for by benchmarks/fuzz.py
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(number=st.integers(10**6, 10**9))
def test_damage_is_a_clear_error_or_leaves_a_whole_dataset(name, number, folder) -> None:
    outcome, how = read_damaged(name, number, folder)
    assert outcome not in BAD, f"python benchmarks/fuzz.py --target {name} --first {number}: {how}"


# -- no code ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_pickle_in_the_place_of_any_file_does_not_run(name, folder, tmp_path) -> None:
    whole, _ = whole_file(name, folder)
    files = [whole] if whole.is_file() else [f for f in sorted(whole.rglob("*")) if f.is_file()]
    mark = tmp_path / "ran"
    for index, file in enumerate(files):
        case = tmp_path / str(index)
        shutil.copytree(whole.parent, case / "in")
        (case / "out").mkdir()
        (case / "in" / file.relative_to(whole.parent)).write_bytes(pickle.dumps(Shout(mark)))
        try:
            TARGETS[name].read(case / "in" / whole.name, case / "out")
        except Exception:
            pass
        else:  # a file that nothing is read from
            assert file.suffix != ".pkl"
        assert not mark.exists(), file
    pickle.loads(pickle.dumps(Shout(mark)))
    assert mark.exists(), "the pickle runs code where it is loaded"


# -- what leaves the file, or asks for too much ----------------------------------------------------


def link_external(file: h5py.File, other: Path) -> None:
    del file["s"]
    file["s"] = h5py.ExternalLink(str(other), "s")


def link_soft(file: h5py.File, other: Path) -> None:
    file["hidden"] = file["s"]
    del file["s"]
    file["s"] = h5py.SoftLink("/hidden")


def store_externally(file: h5py.File, other: Path) -> None:
    shape, dtype = file["s"].shape, file["s"].dtype
    del file["s"]
    file.create_dataset("s", shape, dtype, external=[(str(other), 0, h5py.h5f.UNLIMITED)])


def read_virtually(file: h5py.File, other: Path) -> None:
    layout = h5py.VirtualLayout(file["s"].shape, file["s"].dtype)
    layout[...] = h5py.VirtualSource(str(other), "s", file["s"].shape)
    del file["s"]
    file.create_virtual_dataset("s", layout)


@pytest.mark.parametrize("change", [link_external, link_soft, store_externally, read_virtually])
def test_hdf5_is_read_from_its_own_file_alone(change, tmp_path) -> None:
    path = TARGETS["omiga-hdf5"].write(tmp_path)
    other = tmp_path / "other.hdf5"
    shutil.copy(path, other)
    with h5py.File(path, "r+") as file:
        change(file, other)
    with pytest.raises(DatasetError, match="/s'.*(a link|other files)"):
        convert_dataset(path, tmp_path / "own", progress_bar=False)


def test_an_hdf5_file_of_terabytes_is_refused(tmp_path) -> None:
    path = TARGETS["omiga-hdf5"].write(tmp_path)
    with h5py.File(path, "r+") as file:
        for key in list(file):
            shape, dtype = file[key].shape, file[key].dtype
            del file[key]
            file.create_dataset(key, (10**12, *shape[1:]), dtype, chunks=(1000, *shape[1:]))
    assert path.stat().st_size < 10**6
    with pytest.raises(DatasetError, match="as memory allows"):
        convert_dataset(path, tmp_path / "own", progress_bar=False)
    with h5py.File(path, "r+") as file:
        del file["s"]
        file.create_dataset("s", (10, 2**29), "f8", chunks=(1, 2**28), compression="gzip")
    with pytest.raises(DatasetError, match="chunks of at most"):
        open_hdf5(path).array("s")


def test_a_zip_bomb_is_refused(tmp_path) -> None:
    arrays = make_arrays()
    np.savez(tmp_path / "recorded.npz", **arrays)
    content = (tmp_path / "recorded.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for key in arrays:
            archive.writestr(f"{key}.npy", b"\0" * 1000)
    # The list at the end of the archive says that each member is 4 GB.
    bomb = bytearray((tmp_path / "bomb.npz").read_bytes())
    place = bomb.find(b"PK\x01\x02")
    while place >= 0:
        bomb[place + 24 : place + 28] = (2**32 - 2).to_bytes(4, "little")
        place = bomb.find(b"PK\x01\x02", place + 1)
    (tmp_path / "bomb.npz").write_bytes(bomb)
    with pytest.raises(DatasetError, match=r"bomb\.npz"):
        convert_dataset(tmp_path / "bomb.npz", tmp_path / "own", progress_bar=False)
    assert (tmp_path / "recorded.npz").read_bytes() == content


def test_a_flipped_bit_in_an_npz_is_found(tmp_path) -> None:
    arrays = make_arrays()
    np.savez(tmp_path / "recorded.npz", **arrays)
    content = bytearray((tmp_path / "recorded.npz").read_bytes())
    place = content.index(arrays["next/state"].tobytes())
    content[place + 2] ^= 1
    (tmp_path / "recorded.npz").write_bytes(content)
    with pytest.raises(DatasetError, match="CRC-32"):
        convert_dataset(tmp_path / "recorded.npz", tmp_path / "own", progress_bar=False)


def test_a_file_that_was_made_to_grow_to_terabytes_is_not_read(tmp_path) -> None:
    """Only says that it is that large: reading it would take hours."""
    for name in ("checkpoint", "dataset"):
        start = tmp_path / name / "in"
        start.mkdir(parents=True)
        whole = TARGETS[name].write(start)
        os.truncate(sorted(whole.rglob("*.memmap"))[0], 2**42)
        with pytest.raises((DatasetError, CheckpointError), match=r"bytes|not what was written"):
            TARGETS[name].read(whole, tmp_path)


def test_links_and_pipes_in_folders_are_refused(tmp_path) -> None:
    make_dataset().save(tmp_path / "own")
    file = tmp_path / "own" / "data" / "state.memmap"
    shutil.copy(file, tmp_path / "secret")
    file.unlink()
    file.symlink_to(tmp_path / "secret")
    with pytest.raises(DatasetError, match="state.memmap.*a link to"):
        OfflineDataset.load(tmp_path / "own")
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(DatasetError, match="state.memmap.*pipe"):
        OfflineDataset.load(tmp_path / "own")
    file.unlink()
    shutil.copy(tmp_path / "secret", file)
    (tmp_path / "way").symlink_to(tmp_path / "own")
    assert len(OfflineDataset.load(tmp_path / "way")), "the folder itself may be a link"
