"""Files of weights: whole or refused, and no code from them."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from torchrl_logo.weight_files import load_weights, save_weights

CONTENT = {
    "config": {"width": 8, "carry": True, "name": "a", "rate": 0.5, "none": None},
    "state_dict": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([True, False])},
}


class Shout:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


def rewrite(path: Path, change=lambda name, data: data, compression=zipfile.ZIP_STORED) -> None:
    """Writes an archive anew, with correct checksums."""
    with zipfile.ZipFile(path) as archive:
        members = [(m.filename, archive.read(m)) for m in archive.infolist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, change(name, data))


def test_content_returns(tmp_path) -> None:
    save_weights(CONTENT, tmp_path / "w.pt")
    found = load_weights(tmp_path / "w.pt")
    assert found["config"] == CONTENT["config"]
    for name, value in CONTENT["state_dict"].items():
        assert torch.equal(found["state_dict"][name], value)
    torch.save(CONTENT, tmp_path / "plain.pt")
    assert load_weights(tmp_path / "plain.pt")["config"] == CONTENT["config"]


def test_every_flipped_bit_of_the_numbers_is_found(tmp_path) -> None:
    save_weights(CONTENT, tmp_path / "w.pt")
    content = (tmp_path / "w.pt").read_bytes()
    numbers = CONTENT["state_dict"]["a"].numpy().tobytes()
    place = content.index(numbers)
    for bit in range(len(numbers) * 8):
        changed = bytearray(content)
        changed[place + bit // 8] ^= 1 << bit % 8
        (tmp_path / "w.pt").write_bytes(changed)
        with pytest.raises(ValueError, match="checksum"):
            load_weights(tmp_path / "w.pt")


def test_code_is_refused_before_it_runs(tmp_path) -> None:
    mark = tmp_path / "ran"
    for name, write in {
        "archive": lambda path: torch.save({"a": Shout(mark)}, path),
        "legacy": lambda path: torch.save(
            {"a": Shout(mark)}, path, _use_new_zipfile_serialization=False
        ),
        "pickle": lambda path: path.write_bytes(pickle.dumps(Shout(mark))),
    }.items():
        write(tmp_path / name)
        with pytest.raises(ValueError, match="expected a whole file of weights"):
            load_weights(tmp_path / name)
        assert not mark.exists()


def test_what_asks_for_terabytes_is_refused(tmp_path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"a": torch.zeros(1).expand(10**12)}, path)
    with pytest.raises(ValueError, match="fewer numbers"):
        load_weights(path)
    torch.save({"a": bytearray(8)}, path)
    with pytest.raises(ValueError, match="bytearray"):
        load_weights(path)
    save_weights({"a": torch.zeros(1_000_000)}, path)
    rewrite(path, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed"):
        load_weights(path)


def test_other_files_are_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing.pt"):
        load_weights(tmp_path / "nothing.pt")
    with pytest.raises(ValueError, match="something else"):
        load_weights(tmp_path)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="list and no dict"):
        load_weights(tmp_path / "list.pt")
    buffer = io.BytesIO()
    torch.save(CONTENT, buffer)
    for length in (0, 1, 100, len(buffer.getvalue()) - 1):
        (tmp_path / "cut.pt").write_bytes(buffer.getvalue()[:length])
        with pytest.raises(ValueError, match=r"cut\.pt: expected a whole file"):
            load_weights(tmp_path / "cut.pt")
