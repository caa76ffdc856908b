"""Conversion in chunks gives what reading at once gives, and goes on when it was stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from torchrl_logo.data import (
    DatasetError,
    OfflineDataset,
    convert_dataset,
    from_arrays,
    load_dataset,
)
from torchrl_logo.data.formats.array_files import ArrayFilesReader
from torchrl_logo.data.formats.reader import find_reader, find_readers

Arrays = dict[str, np.ndarray]


def write_npz(arrays: Arrays, path: Path) -> Path:
    np.savez(path, **arrays)
    return path


def write_compressed(arrays: Arrays, path: Path) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def write_folder(arrays: Arrays, path: Path) -> Path:
    folder = path.with_suffix("")
    for key, value in arrays.items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{key}.npy", value)
    return folder


def write_fortran_folder(arrays: Arrays, path: Path) -> Path:
    return write_folder({k: np.asfortranarray(v) for k, v in arrays.items()}, path)


WRITERS = [write_npz, write_compressed, write_folder, write_fortran_folder]


def renumber(arrays: Arrays) -> Arrays:
    """Episodes counted from 0, as a conversion counts them."""
    _, episode = np.unique(arrays["episode"], return_inverse=True)
    return {**arrays, "episode": episode.astype(np.int64)}


def left_behind(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir() if not f.name.endswith(".lock"))


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("memory", [1, 2**29])
def test_chunks_of_any_size_give_the_arrays(
    arrays: Arrays, tmp_path: Path, write, memory: int
) -> None:
    path = write(arrays, tmp_path / "recorded.npz")
    (tmp_path / "out").mkdir()
    made = convert_dataset(path, tmp_path / "out" / "own", memory=memory, progress_bar=False)
    assert made.metadata.hash == from_arrays(renumber(arrays)).metadata.hash
    assert made.metadata.provenance["format"] == "arrays"
    assert left_behind(tmp_path / "out") == ["own"]
    # The hash was taken of the source; here it is compared with what was written.
    assert len(OfflineDataset.load(made.path)) == len(arrays["state"])


def test_discrete_without_masks(discrete_arrays: Arrays, tmp_path: Path) -> None:
    plain = {k: v for k, v in renumber(discrete_arrays).items() if "mask" not in k}
    path = write_npz(plain, tmp_path / "recorded.npz")
    made = convert_dataset(path, tmp_path / "own", n_actions=4, memory=1, progress_bar=False)
    assert made.metadata.hash == from_arrays(plain, n_actions=4).metadata.hash
    OfflineDataset.load(made.path)


def test_hash_of_arrays_that_are_cast(arrays: Arrays, tmp_path: Path) -> None:
    wide = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in arrays.items()}
    path = write_npz(wide, tmp_path / "recorded.npz")
    made = convert_dataset(path, tmp_path / "own", cast=True, progress_bar=False)
    assert made.metadata.hash == from_arrays(renumber(arrays)).metadata.hash
    OfflineDataset.load(made.path)


def test_files_that_change_meanwhile_leave_nothing(
    arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_folder(arrays, tmp_path / "recorded.npz")
    read = ArrayFilesReader.read

    def change(self: ArrayFilesReader, start: int, stop: int) -> Arrays:
        found = read(self, start, stop)
        np.save(path / "state.npy", arrays["state"] + 1)
        return found

    monkeypatch.setattr(ArrayFilesReader, "read", change)
    with pytest.raises(DatasetError, match="files that stay as they are"):
        convert_dataset(path, tmp_path / "own", progress_bar=False)
    assert left_behind(tmp_path) == ["recorded"]


def test_damage_explains_what_else_is_found(arrays: Arrays, tmp_path: Path) -> None:
    """A bit that makes a number NaN is no fault of the data."""
    path = write_npz(arrays, tmp_path / "recorded.npz")
    content = bytearray(path.read_bytes())
    place = content.index(arrays["next/state"].tobytes())
    content[place : place + 4] = np.float32(np.nan).tobytes()
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="'next/state': expected the CRC-32"):
        convert_dataset(path, tmp_path / "own", progress_bar=False)
    assert left_behind(tmp_path) == ["recorded.npz"]


def test_load_dataset_converts_once(arrays: Arrays, tmp_path: Path) -> None:
    path = write_npz(arrays, tmp_path / "recorded.npz")
    first = load_dataset(path, root=tmp_path / "cache", quality="medium", progress_bar=False)
    again = load_dataset(path, root=tmp_path / "cache", quality="medium", progress_bar=False)
    assert first.path == again.path and first.metadata.quality == "medium"
    arrays["next/reward"] += 1.0
    write_npz(arrays, path)
    other = load_dataset(path, root=tmp_path / "cache", quality="medium", progress_bar=False)
    assert other.path != first.path
    assert other.returns[0] == pytest.approx(float(first.returns[0]) + 4.0)


def test_options_are_for_conversions(tmp_path: Path, arrays: Arrays) -> None:
    made = from_arrays(arrays, root=tmp_path / "own")
    with pytest.raises(TypeError, match="reward_rule"):
        load_dataset(made.path, reward_rule="mean")


class Interrupted(Exception):
    pass


def test_interrupted_conversion_goes_on(
    arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_npz(arrays, tmp_path / "recorded.npz")
    read, asked = ArrayFilesReader.read, []

    def fail_at_the_second(self: ArrayFilesReader, start: int, stop: int) -> Arrays:
        if start == 1 and not asked:
            raise Interrupted
        asked.append(start)
        return read(self, start, stop)

    def fail(self: ArrayFilesReader, start: int, stop: int) -> Arrays:
        if start == 1:
            raise Interrupted
        return read(self, start, stop)

    monkeypatch.setattr(ArrayFilesReader, "read", fail)
    with pytest.raises(Interrupted):
        convert_dataset(path, tmp_path / "own", memory=1, progress_bar=False)
    assert not (tmp_path / "own").exists()
    monkeypatch.setattr(ArrayFilesReader, "read", fail_at_the_second)
    asked.append(-1)
    made = convert_dataset(path, tmp_path / "own", memory=1, progress_bar=False)
    assert asked == [-1, 1, 2]  # the first episode was not read again
    assert made.metadata.hash == from_arrays(renumber(arrays)).metadata.hash


def test_bad_data_leave_nothing_and_name_the_episode(arrays: Arrays, tmp_path: Path) -> None:
    arrays["state"][6, 2] = np.nan  # the third step of the second episode, 1
    arrays["next/state"][5, 2] = np.nan
    path = write_npz(arrays, tmp_path / "recorded.npz")
    with pytest.raises(DatasetError, match=r"'state'.*1 NaN.*\(episode 1 of .*recorded.npz\)"):
        convert_dataset(path, tmp_path / "own", progress_bar=False)
    assert left_behind(tmp_path) == ["recorded.npz"]


@pytest.mark.parametrize("write", [write_npz, write_compressed])
def test_cut_file(arrays: Arrays, tmp_path: Path, write) -> None:
    path = write(arrays, tmp_path / "recorded.npz")
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(DatasetError, match="recorded.npz"):
        convert_dataset(path, tmp_path / "own", progress_bar=False)
    assert left_behind(tmp_path) == ["recorded.npz"]


def test_cut_npy(arrays: Arrays, tmp_path: Path) -> None:
    folder = write_folder(arrays, tmp_path / "recorded.npz")
    state = folder / "state.npy"
    state.write_bytes(state.read_bytes()[:-8])
    with pytest.raises(DatasetError, match=r"state.npy.*300 bytes .*\[15, 5\].*found 292"):
        convert_dataset(folder, tmp_path / "own", progress_bar=False)


def test_objects_are_refused(tmp_path: Path, arrays: Arrays) -> None:
    arrays["state"] = arrays["state"].astype(object)
    path = write_npz(arrays, tmp_path / "recorded.npz")
    with pytest.raises(DatasetError, match="pickle"):
        convert_dataset(path, tmp_path / "own")


def test_pickles_are_refused_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "episode_0.pkl").write_bytes(b"cos\nsystem\n")
    with pytest.raises(DatasetError, match="numpy.savez"):
        find_reader(tmp_path)


def test_unknown_path_and_format(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing_here"):
        convert_dataset(tmp_path / "nothing_here", tmp_path / "own")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DatasetError, match="arrays"):
        load_dataset(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="No format 'csv'; there are: .*arrays"):
        find_reader(tmp_path / "notes.txt", "csv")
    assert "arrays" in find_readers()


def test_data_of_another_task(arrays: Arrays, tmp_path: Path) -> None:
    path = write_npz(arrays, tmp_path / "recorded.npz")
    with pytest.raises(ValueError, match="n_agents: expected 3, found 2"):
        convert_dataset(path, tmp_path / "own", task="vmas/balance")
    assert left_behind(tmp_path) == ["recorded.npz"]


MEMORY_TEST = """
import sys, threading
from torchrl_logo.data import convert_dataset

def own_and_mapped():
    with open("/proc/self/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    return int(lines["RssAnon"].split()[0]), int(lines["RssFile"].split()[0])

before, peak, ended = own_and_mapped(), [0, 0], threading.Event()
def watch():
    while not ended.wait(0.002):
        peak[:] = [max(a, b - c) for a, b, c in zip(peak, own_and_mapped(), before)]
watcher = threading.Thread(target=watch)
watcher.start()
convert_dataset(sys.argv[1], sys.argv[2], memory=16 * 2**20, progress_bar=False)
ended.set()
watcher.join()
print("peak", *peak)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux' /proc")
def test_memory_is_bounded(tmp_path: Path) -> None:
    rows, length = 100_000, 100
    state = np.random.default_rng(0).normal(size=(rows, 150)).astype(np.float32)
    following = np.roll(state, -1, 0)
    end = (np.arange(rows) % length == length - 1)[:, None]
    made = {
        "agents/observation": np.ascontiguousarray(state.reshape(rows, 3, 50)),
        "next/agents/observation": np.ascontiguousarray(following.reshape(rows, 3, 50)),
        "agents/action": np.zeros((rows, 3, 2), np.float32),
        "state": state,
        "next/state": following,
        "next/reward": np.ones((rows, 1), np.float32),
        "next/done": end,
        "next/terminated": np.zeros_like(end),
        "next/truncated": end,
    }
    np.savez(tmp_path / "large.npz", **made)
    size = (tmp_path / "large.npz").stat().st_size
    assert size > 230e6
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_TEST, str(tmp_path / "large.npz"), str(tmp_path / "own")],
        capture_output=True,
        text=True,
        check=True,
    )
    kilobytes = [int(n) for n in done.stdout.split()[-2:]]
    assert max(kilobytes) * 1024 < 64 * 2**20, done.stdout
    assert json.loads((tmp_path / "own" / "metadata.json").read_text())["transitions"] == rows
