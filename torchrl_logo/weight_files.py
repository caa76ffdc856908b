"""Files of tensors, written whole and read without running code from them."""

from __future__ import annotations

import io
import pickletools
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from torchrl_logo.whole_files import explain_write_errors, write_file

__all__ = ["load_weights", "save_weights"]

# What files of tensors, numbers and names refer to. torch.load(weights_only=True) allows more,
# such as bytearray, which a file of a few bytes can ask for terabytes of.
_REBUILT = {
    "collections OrderedDict",
    "torch Size",
    "torch device",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
}
_STORAGES = {
    f"torch {kind}Storage"
    for kind in (
        "BFloat16 Bool Byte Char ComplexDouble ComplexFloat Double Float Half Int Long Short"
    ).split()
}
_DTYPES = {
    str(value).replace(".", " ") for value in vars(torch).values() if type(value) is torch.dtype
}
_ALLOWED = _REBUILT | _STORAGES | _DTYPES


def save_weights(content: dict[str, Any], path: str | Path, *, what: str = "the weights") -> None:
    """Writes tensors, numbers, strings and containers of them into one file.

    The file is written aside and put in its place: an earlier one is there until then.

    Args:
        content (dict): what is written, as ``torch.save`` takes it.
        path (str or Path): the file.

    Keyword Args:
        what (str): how errors name it.

    Raises:
        OSError: if the disk is full or read-only.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "weights.pt")
        >>> save_weights({"bias": torch.zeros(2)}, path)
        >>> load_weights(path)
        {'bias': tensor([0., 0.])}
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with explain_write_errors(what, path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_file(what, path, buffer.getvalue())


def load_weights(path: str | Path, *, device: torch.device | str | None = None) -> dict[str, Any]:
    """Reads what :func:`save_weights` wrote (or ``torch.save``, of the same kinds of content).

    No code runs and no name is looked up: what the file refers to must be one of the few things
    that tensors are made of. Checksums are compared, and no tensor may claim to be larger than
    what the file holds.

    Args:
        path (str or Path): the file.

    Keyword Args:
        device (torch.device, optional): where the tensors are put. Defaults to the cpu.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, compressed or holds anything else; says what.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}. Is the path complete?")
    if not path.is_file():
        raise ValueError(f"{path}: expected a file of weights, found something else.")
    content = path.read_bytes()
    try:
        _check_archive(content)
        stored = torch.load(io.BytesIO(content), map_location=device or "cpu", weights_only=True)
        if not isinstance(stored, dict):
            raise ValueError(f"a {type(stored).__name__} and no dict")
        for tensor in _tensors(stored):
            if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
                raise ValueError(f"a tensor of shape {list(tensor.shape)} with fewer numbers")
    # A stranger's file can break PyTorch's reader in many ways; all of them mean the same.
    except Exception as error:
        found = f"{error}".strip().split("\n")[0] or repr(error)
        raise ValueError(f"{path}: expected a whole file of weights, found {found}.") from error
    return stored


def _check_archive(content: bytes) -> None:
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
    except zipfile.BadZipFile as error:
        raise ValueError(f"no archive of torch.save ({error})") from error
    members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("compressed content")
    if sum(member.file_size for member in members) > len(content):
        raise ValueError("content that claims to be larger than the file")
    try:
        damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise ValueError(str(error)) from error
    if damaged is not None:
        raise ValueError(f"a wrong checksum of {damaged!r}")
    for member in members:
        if member.filename.rpartition("/")[2].endswith(".pkl"):
            _check_names(archive.read(member))


def _check_names(pickled: bytes) -> None:
    """Refuses names other than those of tensors' parts; takes the opcodes apart, runs none."""
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            raise ValueError(f"the opcode {opcode.name}, which runs code")
        if opcode.name == "GLOBAL" and argument not in _ALLOWED:
            raise ValueError(f"the name {argument!r}, which is no part of a tensor")


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    left = [value]
    while left:
        found = left.pop()
        if isinstance(found, torch.Tensor):
            yield found
        elif isinstance(found, dict):
            left.extend(found.values())
        elif isinstance(found, list | tuple):
            left.extend(found)
