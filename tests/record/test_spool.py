"""What is kept for a server survives processes that end at any moment."""

from __future__ import annotations

import errno
import json

import pytest

from torchrl_logo.record.spool import Spool


def test_entries_outlive_the_process_in_order(tmp_path) -> None:
    spool = Spool(tmp_path, "run", {"exp_name": "tests"})
    for step in range(3):
        spool.append("metrics", [["loss", float("nan") if step == 1 else 0.5, 1000 + step, step]])
    spool.close()
    again = Spool(tmp_path, "run", {"exp_name": "other"})
    assert again.header == {"exp_name": "tests"}
    assert [content[0][3] for _, content in again.entries] == [0, 1, 2]
    again.drop(2)
    again.close()
    assert [c[0][3] for _, c in Spool(tmp_path, "run", {}).entries] == [2]


def test_a_line_that_was_cut_is_left_out_and_other_damage_is_named(tmp_path) -> None:
    spool = Spool(tmp_path, "run", {})
    spool.append("tags", {"a": "1"})
    spool.append("tags", {"b": "2"})
    content = spool.path.read_bytes()
    spool.close()
    spool.path.write_bytes(content[:-3])
    assert Spool.read(spool.path)[1] == [("tags", {"a": "1"})]
    spool.path.write_bytes(content.replace(b"tags", b'"', 1))
    with pytest.raises(ValueError, match=r"run\.jsonl: expected metrics"):
        Spool.read(spool.path)


def test_files_are_kept_until_they_are_delivered(tmp_path) -> None:
    spool = Spool(tmp_path / "spool", "run", {})
    (tmp_path / "figure.png").write_bytes(b"figure")
    kept = spool.keep_file(tmp_path / "figure.png")
    spool.append("artifact", {"path": kept, "folder": "figures"})
    (tmp_path / "figure.png").unlink()
    _, content = Spool.read(spool.path)[1][0]
    assert open(content["path"], "rb").read() == b"figure"
    spool.drop(1)
    assert not list((tmp_path / "spool").glob("run.files"))


def test_one_process_at_a_time(tmp_path) -> None:
    spool = Spool(tmp_path, "run", {})
    spool.append("tags", {})
    with pytest.raises(TimeoutError, match="at work on the run"):
        Spool(tmp_path, "run", {})
    spool.close()
    Spool(tmp_path, "run", {}).close()


def test_a_full_disk_is_an_error_and_leaves_whole_lines(small_disk) -> None:
    small_disk.resize(16 * 2**10)
    spool = Spool(small_disk.path, "run", {})
    with pytest.raises(OSError, match="Cannot write what MLflow has not got yet") as caught:
        for step in range(10_000):
            spool.append("metrics", [["loss", 0.5, 1000, step]])
    assert caught.value.errno == errno.ENOSPC
    assert Spool.read(spool.path)[1] == spool.entries and len(spool.entries) > 10
    assert all(json.loads(line) for line in spool.path.read_bytes().splitlines()[1:])
