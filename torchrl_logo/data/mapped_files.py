"""Writes and opens the files of a memory-mapped TensorDict, which are neither changed nor run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase

from torchrl_logo.data.contained_files import require_contained
from torchrl_logo.data.json_files import read_json
from torchrl_logo.data.validation import DatasetError
from torchrl_logo.whole_files import write_all

__all__ = ["count_bytes", "file_of", "map_tensordict", "write_rows", "write_tensordict"]

_WRITTEN_AT_ONCE = 65_536  # rows

_DTYPES = {
    str(dtype): dtype
    for dtype in (
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}


def map_tensordict(folder: str | Path) -> TensorDict:
    """Maps the tensors of a folder that ``TensorDict.memmap`` wrote; reads none of them.

    ``TensorDict.load_memmap`` writes the folder's ``meta.json`` anew as it opens it: another
    process that opens the dataset at that moment finds half a file, and a dataset that cannot be
    written to cannot be opened. It also falls back on pickle for what is no tensor. Here files
    are only read. Mappings are private: what is written into a tensor is not written to its file.

    Args:
        folder (str or Path): with ``meta.json`` and a file for each tensor.

    Returns:
        A locked TensorDict on CPU.

    Raises:
        DatasetError: if ``meta.json`` is missing or broken, describes anything but tensors and
            TensorDicts of them, or a tensor's file has not the size it should.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> _ = TensorDict({"a": {"b": torch.arange(3)}}, [3]).memmap(folder)
        >>> map_tensordict(folder)["a", "b"]
        tensor([0, 1, 2])
    """
    require_contained(Path(folder))
    return _map_folder(Path(folder)).lock_()


def write_tensordict(data: TensorDictBase, folder: str | Path) -> None:
    """Writes what :func:`map_tensordict` opens, as ``TensorDict.memmap`` lays it out.

    ``memmap`` writes through mappings, and where the disk is full the system ends a process that
    does so (SIGBUS). Here files are written to, so that a full disk is an error like any other.

    Args:
        data (TensorDictBase): tensors.
        folder (str or Path): is made.

    Raises:
        DatasetError: if an entry is no tensor.
        OSError: if the disk refuses.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> write_tensordict(TensorDict({"a": {"b": torch.arange(3)}}, [3]), folder)
        >>> map_tensordict(folder)["a", "b"]
        tensor([0, 1, 2])
    """
    folder = Path(folder)
    for key, value in data.items(True, True):
        if not isinstance(value, torch.Tensor):
            raise DatasetError(key, "a tensor", type(value).__name__)
    data.memmap_like(str(folder))
    for key, value in data.items(True, True):
        if value.ndim == 0:
            value = value.unsqueeze(0)
        for start in range(0, len(value), _WRITTEN_AT_ONCE):
            write_rows(file_of(folder, key), start, value[start : start + _WRITTEN_AT_ONCE])


def write_rows(path: Path, row: int, value: torch.Tensor) -> None:
    """Writes rows into a tensor's file, from some row on.

    Args:
        path (Path): the file (see :func:`file_of`), which has room for them.
        row (int): first row that is written.
        value (torch.Tensor): ``[rows, ...]``.
    """
    content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    if not content.size:
        return
    with path.open("rb+", buffering=0) as file:
        file.seek(row * (content.nbytes // len(value)))
        write_all(file.fileno(), content.data)


def file_of(folder: Path, key: NestedKey) -> Path:
    """The file of a tensor in a folder of :func:`write_tensordict`."""
    parts = (key,) if isinstance(key, str) else key
    return folder.joinpath(*parts[:-1]) / f"{parts[-1]}.memmap"


def count_bytes(data: TensorDictBase) -> int:
    """Bytes of all tensors.

    Examples:
        >>> count_bytes(TensorDict({"a": torch.zeros(3, 2)}, [3]))
        24
    """
    return sum(value.numel() * value.element_size() for value in data.values(True, True))


def _map_folder(folder: Path) -> TensorDict:
    path = folder / "meta.json"
    meta = read_json(path)
    try:
        shape = _read_shape(meta.pop("shape"))
        entries = {k: v for k, v in meta.items() if isinstance(v, dict)}
    except (ValueError, KeyError) as error:
        raise DatasetError(str(path), "a description of a TensorDict", repr(error)) from error
    found: dict[str, Any] = {}
    for key, entry in entries.items():
        if not key or key in (".", "..") or "/" in key or "\\" in key or "\0" in key:
            raise DatasetError(str(path), "names of keys", repr(key))
        if "type" in entry:
            if entry["type"] != "TensorDict":
                raise DatasetError(f"{folder / key}", "a TensorDict", repr(entry["type"]))
            found[key] = _map_folder(folder / key)
        else:
            found[key] = _map_tensor(folder / f"{key}.memmap", entry)
    try:
        return TensorDict(found, batch_size=shape, device="cpu")
    except RuntimeError as error:
        raise DatasetError(str(path), f"entries of batch size {list(shape)}", str(error)) from error


def _map_tensor(path: Path, entry: dict[str, Any]) -> torch.Tensor:
    try:
        shape, dtype = _read_shape(entry["shape"]), _DTYPES[entry["dtype"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(str(path), "a shape and a dtype of numbers", repr(entry)) from error
    if entry.get("is_nested"):
        raise DatasetError(str(path), "a tensor of one shape", "a nested tensor")
    size = math.prod(shape) * dtype.itemsize
    found = path.stat().st_size if path.is_file() else None
    if found != size:
        raise DatasetError(
            str(path), f"{size} bytes", "no file" if found is None else f"{found} bytes"
        )
    if not size:
        return torch.empty(shape, dtype=dtype)
    return torch.from_file(str(path), shared=False, size=math.prod(shape), dtype=dtype).view(shape)


def _read_shape(value: Any) -> torch.Size:
    if not isinstance(value, list) or not all(type(n) is int and n >= 0 for n in value):
        raise ValueError(f"no shape: {value!r}")
    return torch.Size(value)
