"""Ways to damage files, from single bits to well-formed files with hostile content."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

Mutation = Callable[[random.Random, Path], None]

HUGE = (10**9, 10**12, 2**31, 2**40, 2**63 - 1, 2**63, 10**30)
VALUES: tuple[Any, ...] = (
    *HUGE, -1, 0, 1, 2, 3, True, None, "", "x", "../../outside", "/etc/passwd", "__class__",
    [], {}, [1, 2], 0.5, 1e308, float("nan"), float("inf"), "O", "torch.float64", "object",
    "NonTensorData", {"type": "TensorDict"},
)  # fmt: skip
DTYPES = ("<f8", "<f2", ">f4", "<i8", "<i4", "|u1", "|i1", "|b1", "<c8", "<u8", "<f4", "<u2")


class Shout:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.mark),))


def mutate(rng: random.Random, path: Path) -> tuple[str, bool]:
    """Damages a file or folder in one to three ways.

    Returns:
        The names of the ways, and whether all of them are mere damage, which a checksum tells.
    """
    done, damage = [], True
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        files = sorted(
            f for f in _all_files(path) if not f.is_symlink() and f.stat().st_mode & 0o100000
        )
        files = [f for f in files if f.is_file()]
        if not files:
            break
        file = rng.choice(files)
        kinds: dict[str, Mutation] = dict(DAMAGE)
        for is_kind, more in FORMATS:
            if is_kind(file):
                # Half of all are well-formed.
                kinds = kinds if rng.random() < 0.5 else dict(more)
                break
        if path.is_dir() and rng.random() < 0.1:
            kinds = dict(LINKS)
        name = rng.choice(sorted(kinds))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kinds[name](rng, file)
        except Exception as error:  # what an earlier mutation broke cannot be changed further
            name = f"{name} ({type(error).__name__})"
        damage &= name in DAMAGE
        done.append(f"{name}:{file.relative_to(path.parent)}")
    return ", ".join(done), damage


def _all_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else list(path.rglob("*"))


# -- bytes -----------------------------------------------------------------------------------------


def flip_bits(rng: random.Random, file: Path) -> None:
    content = bytearray(file.read_bytes())
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        place = rng.randrange(len(content))
        content[place] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def flip_header(rng: random.Random, file: Path) -> None:
    content = bytearray(file.read_bytes())
    for _ in range(rng.choice((1, 2, 4))):
        content[rng.randrange(min(len(content), 512))] = rng.randrange(256)
    file.write_bytes(content)


def truncate(rng: random.Random, file: Path) -> None:
    size = file.stat().st_size
    os.truncate(file, rng.choice((0, 1, size - 1, size // 2, rng.randrange(size))))


def overwrite(rng: random.Random, file: Path) -> None:
    content = bytearray(file.read_bytes())
    place = rng.randrange(len(content))
    value = rng.choice(
        (b"\xff" * 8, b"\0" * 8, struct.pack("<q", 2**62), rng.randbytes(16), b"../")
    )
    content[place : place + len(value)] = value
    file.write_bytes(content)


def insert(rng: random.Random, file: Path) -> None:
    content = file.read_bytes()
    place = rng.randrange(len(content) + 1)
    file.write_bytes(content[:place] + rng.randbytes(rng.choice((1, 8, 100))) + content[place:])


def cut_out(rng: random.Random, file: Path) -> None:
    content = file.read_bytes()
    place = rng.randrange(len(content))
    file.write_bytes(content[:place] + content[place + rng.choice((1, 8, 100)) :])


def repeat(rng: random.Random, file: Path) -> None:
    content = file.read_bytes()
    place = rng.randrange(len(content))
    part = content[place : place + rng.choice((4, 64, 1000))]
    file.write_bytes(content[:place] + part + content[place:])


def blank(rng: random.Random, file: Path) -> None:
    content = bytearray(file.read_bytes())
    place = rng.randrange(len(content))
    size = min(rng.choice((8, 512, 4096)), len(content) - place)
    content[place : place + size] = bytes(size)
    file.write_bytes(content)


def replace_by_noise(rng: random.Random, file: Path) -> None:
    file.write_bytes(rng.randbytes(rng.choice((1, 100, 5000))))


def replace_by_pickle(rng: random.Random, file: Path) -> None:
    file.write_bytes(pickle.dumps(Shout(_mark(file))))


def delete(rng: random.Random, file: Path) -> None:
    file.unlink()


DAMAGE: dict[str, Mutation] = {
    f.__name__: f
    for f in (flip_bits, flip_header, truncate, overwrite, insert, cut_out, repeat, blank,
              replace_by_noise, replace_by_pickle, delete)
}  # fmt: skip


def _mark(file: Path) -> Path:
    """Where code from a file would leave its mark: the case's folder."""
    return next(p for p in file.parents if p.name == "in").parent / "ran"


# -- links -----------------------------------------------------------------------------------------


def link_outside(rng: random.Random, file: Path) -> None:
    copy = next(p for p in file.parents if p.name == "in").parent / "secret"
    if not copy.exists():
        shutil.copy(file, copy)
    file.unlink()
    file.symlink_to(copy)


def link_to_system(rng: random.Random, file: Path) -> None:
    file.unlink()
    file.symlink_to(rng.choice(("/etc/passwd", "/dev/zero", "/dev/stdin", "/proc/self/mem")))


def link_in_circle(rng: random.Random, file: Path) -> None:
    file.unlink()
    file.symlink_to(file)


def pipe(rng: random.Random, file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def folder_instead(rng: random.Random, file: Path) -> None:
    file.unlink()
    file.mkdir()


def folder_outside(rng: random.Random, file: Path) -> None:
    if file.parent.name == "in":
        raise ValueError("the root")
    outside = next(p for p in file.parents if p.name == "in").parent / "secret_folder"
    shutil.move(file.parent, outside)
    file.parent.symlink_to(outside)


LINKS: dict[str, Mutation] = {
    f.__name__: f
    for f in (link_outside, link_to_system, link_in_circle, pipe, folder_instead, folder_outside)
}


# -- JSON ------------------------------------------------------------------------------------------


def change_json(rng: random.Random, file: Path) -> None:
    content = json.loads(file.read_text())
    places: list[tuple[Any, Any]] = []
    left = [content]
    while left:
        found = left.pop()
        keys = found.keys() if isinstance(found, dict) else range(len(found))
        for key in keys:
            places.append((found, key))
            if isinstance(found[key], dict | list):
                left.append(found[key])
    container, key = rng.choice(places)
    what = rng.randrange(5)
    if what == 0:
        del container[key]
    elif what == 1 and isinstance(container, dict):
        container[rng.choice(("../x", "", ".", "a/b", "type", "\0", "__init__"))] = container[key]
    elif what == 2 and isinstance(container[key], int | float):
        container[key] += rng.choice((1, -1, 0.5))
    elif what == 3 and isinstance(container[key], str):
        container[key] = rng.choice(
            ("(9999999999999, 2)", "(1, -2)", "((1,),)", "('a',)", "(" * 5000)
        )
    else:
        container[key] = rng.choice(VALUES)
    file.write_text(json.dumps(content))
    _sign(file)


def nest_json(rng: random.Random, file: Path) -> None:
    depth = rng.choice((500, 5000, 100_000))
    file.write_text('{"a":' * depth + "1" + "}" * depth)


def long_number(rng: random.Random, file: Path) -> None:
    file.write_text('{"format": ' + "9" * 100_000 + "}")


JSON: dict[str, Mutation] = {
    "change_json": change_json, "change_json_too": change_json, "nest_json": nest_json,
    "long_number": long_number,
}  # fmt: skip


def _sign(file: Path) -> None:
    """Makes checksums right again, as somebody who means harm would."""
    content = json.loads(file.read_text())
    if file.name == "metadata.json" and "checksum" in content:
        del content["checksum"]
        text = json.dumps(content, sort_keys=True).encode()
        content["checksum"] = hashlib.sha256(text).hexdigest()
        file.write_text(json.dumps(content))
    for folder in file.parents:
        sums = folder / "checksums.json"
        if sums.is_file() and sums != file:
            listed = json.loads(sums.read_text())
            name = file.relative_to(folder).as_posix()
            content = file.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            listed[name] = {"bytes": len(content), "sha256": digest}
            sums.write_text(json.dumps(listed))


# -- NumPy -----------------------------------------------------------------------------------------


def _npy_header(rng: random.Random, content: bytes) -> bytes:
    """The file with another header, of a well-formed kind."""
    buffer = io.BytesIO(content)
    np.lib.format.read_magic(buffer)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(buffer)
    data = buffer.read()
    sizes, text = list(shape), repr(np.lib.format.dtype_to_descr(dtype))
    what = rng.randrange(6)
    if what == 0 and sizes:
        sizes[rng.randrange(len(sizes))] = rng.choice((*HUGE, -1, 0))
    elif what == 1:
        sizes.append(rng.choice((1, 2, 10**6)))
    elif what == 2 and sizes:
        sizes.pop()
    elif what == 3:
        text = repr(rng.choice((*DTYPES, "|O", "<U4", "|V4", "|S0", "<M8[s]", "x")))
    elif what == 4:
        text = rng.choice(("[('a', '<f4')]", "(" * 3000, "__import__('os')", "('<f4', (10**6,))"))
    else:
        fortran = not fortran
    shape_text = "(" + ", ".join(map(str, sizes)) + ("," if len(sizes) == 1 else "") + ")"
    header = f"{{'descr': {text}, 'fortran_order': {fortran}, 'shape': {shape_text}, }}"
    padded = header.ljust((len(header) + 10 + 64) // 64 * 64 - 11) + "\n"
    version = rng.choice((b"\x01\x00",) * 9 + (b"\x03\x00",))
    return b"\x93NUMPY" + version + struct.pack("<H", len(padded)) + padded.encode() + data


def _npy_values(rng: random.Random, content: bytes) -> bytes:
    """The file with other numbers, dtype or rows, all of it whole."""
    value = np.load(io.BytesIO(content))
    what = rng.randrange(5)
    if what == 0:
        value = value.astype(rng.choice(DTYPES))
    elif what == 1:
        value = value[: rng.randrange(len(value) + 1)]
    elif what == 2:
        value = np.concatenate([value, value])
    elif what == 3:
        flat = value.astype(np.float32).reshape(-1)
        flat[rng.randrange(len(flat))] = rng.choice((np.nan, np.inf, -np.inf, 1e30, -1, 7, 0.5))
        value = flat.reshape(value.shape)
    else:
        value = np.array([Shout(Path("/nowhere"))] * len(value))
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=True)
    return buffer.getvalue()


def change_npy_header(rng: random.Random, file: Path) -> None:
    file.write_bytes(_npy_header(rng, file.read_bytes()))


def change_npy_values(rng: random.Random, file: Path) -> None:
    file.write_bytes(_npy_values(rng, file.read_bytes()))


NPY: dict[str, Mutation] = {f.__name__: f for f in (change_npy_header, change_npy_values)}


# -- zip -------------------------------------------------------------------------------------------


@functools.cache
def _zeros(size: int) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (size // 4, 1)}
    )
    return header.getvalue() + bytes(size)


def change_npz(rng: random.Random, file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        members = [(m.filename, archive.read(m), m.compress_type) for m in archive.infolist()]
    index = rng.randrange(len(members))
    name, content, method = members[index]
    what = rng.randrange(8)
    if what == 0:
        members[index] = (name, _npy_header(rng, content), method)
    elif what == 1:
        members[index] = (name, _npy_values(rng, content), method)
    elif what == 2:
        members.append((rng.choice(("../../outside.npy", "/etc/x.npy", "a.npy")), content, method))
    elif what == 3:
        members.append((name, content, method))
    elif what == 4:
        members[index] = (name, _zeros(rng.choice((2**20, 2**26))), zipfile.ZIP_DEFLATED)
    elif what == 5:
        members[index] = (name, pickle.dumps(Shout(_mark(file))), method)
    elif what == 6:
        members[index] = (name, content, rng.choice((zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)))
    else:
        del members[index]
    with zipfile.ZipFile(file, "w") as archive:
        for name, content, method in members:
            archive.writestr(name, content, method)


def lie_in_zip(rng: random.Random, file: Path) -> None:
    """Other sizes in the list of members at the end of the archive."""
    content = bytearray(file.read_bytes())
    place = content.rindex(b"PK\x01\x02") if rng.random() < 0.5 else content.index(b"PK\x01\x02")
    offset, size = rng.choice(((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (42, 4)))
    value = rng.choice((0, 1, 2**16 - 1, 2**32 - 2, 2**31, rng.randrange(2**32)))
    content[place + offset : place + offset + size] = (value % 256**size).to_bytes(size, "little")
    file.write_bytes(content)


NPZ: dict[str, Mutation] = {f.__name__: f for f in (change_npz, lie_in_zip)}


# -- PyTorch ---------------------------------------------------------------------------------------


def change_weights(rng: random.Random, file: Path) -> None:
    """Another content, written by PyTorch itself."""
    content = torch.load(file, weights_only=True)
    part = content[rng.choice(sorted(content))] if isinstance(content, dict) else content
    what = rng.randrange(7)
    if not isinstance(part, dict) or what == 0:
        content[rng.choice(sorted(content))] = rng.choice(VALUES)
    else:
        key = rng.choice(sorted(part))
        value = part[key]
        if what == 1:
            del part[key]
        elif what == 2:
            part[rng.choice(("../x", "__class__", "device", "spec", "forward"))] = value
        elif isinstance(value, torch.Tensor):
            part[key] = rng.choice(
                (
                    value.double(), value.flatten()[:-1], value.unsqueeze(0), torch.zeros(0),
                    torch.zeros(1).expand(10**12), value.half(), value.to_sparse(), [1.0],
                    torch.zeros(1).expand(*value.shape),
                )
            )  # fmt: skip
        else:
            part[key] = rng.choice(VALUES)
    torch.save(content, file)


def hide_code(rng: random.Random, file: Path) -> None:
    content = torch.load(file, weights_only=True)
    content[rng.choice(sorted(content))] = rng.choice(
        (Shout(_mark(file)), bytearray(9), {1, 2}, np.zeros(2), torch.nn.Linear(1, 1))
    )
    torch.save(content, file, _use_new_zipfile_serialization=rng.random() < 0.7)


def repack(rng: random.Random, file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        members = [(m.filename, archive.read(m)) for m in archive.infolist()]
    index = rng.randrange(len(members))
    name, content = members[index]
    what = rng.randrange(4)
    method = zipfile.ZIP_STORED
    if what == 0:
        method = zipfile.ZIP_DEFLATED
    elif what == 1:
        changed = bytearray(content)
        for _ in range(rng.choice((1, 3))):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        members[index] = (name, bytes(changed))
    elif what == 2:
        del members[index]
    else:
        members[index] = (name, content[: rng.randrange(len(content) + 1)])
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)


TORCH: dict[str, Mutation] = {
    f.__name__: f for f in (change_weights, hide_code, repack, lie_in_zip)
}


# -- HDF5 ------------------------------------------------------------------------------------------


def change_hdf5(rng: random.Random, file: Path) -> None:
    """Another object in the place of one, written by h5py itself."""
    with h5py.File(file, "r+") as content:
        names: list[str] = []
        content.visititems(lambda name, found: names.append(name))
        name = rng.choice(names)
        found = content[name]
        if isinstance(found, h5py.Group):
            what = rng.randrange(4)
            if what == 0:
                del content[name]
                content[name] = np.zeros(3)
            elif what == 1:
                found[rng.choice(("extra", "episode_99", "episode_x", "state"))] = np.zeros(3)
            elif what == 2:
                content.move(name, rng.choice((f"{name}0", "episode_007", "a")))
            else:
                del content[name]
                content[name] = h5py.SoftLink("/")
            return
        value = found[...]
        del content[name]
        what = rng.randrange(13)
        if what == 0:
            size = rng.choice((10**9, 10**12, 2**40))
            shape = [
                size if i == rng.randrange(value.ndim) else n for i, n in enumerate(value.shape)
            ]
            content.create_dataset(name, shape, value.dtype, chunks=(1,) * value.ndim)
        elif what == 1:
            shape = (rng.choice((10**7, 10**8)), *value.shape[1:])
            content.create_dataset(
                name, shape, value.dtype, chunks=(2**16 // value[0].size, *value.shape[1:]),
                compression="gzip",
            )  # fmt: skip
        elif what == 2:
            other = file.with_name("other.h5")
            with h5py.File(other, "w") as made:
                made["x"] = value
            content[name] = h5py.ExternalLink(
                rng.choice((str(other), "../../etc/passwd", "other.h5")), "/x"
            )
        elif what == 3:
            content[name] = h5py.SoftLink(rng.choice((f"/{name}", "/", "/nowhere")))
        elif what == 4:
            external = [("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
            content.create_dataset(name, value.shape, value.dtype, external=external)
        elif what == 5:
            layout = h5py.VirtualLayout(value.shape, value.dtype)
            layout[...] = h5py.VirtualSource("/etc/passwd", "x", value.shape)
            content.create_virtual_dataset(name, layout)
        elif what == 6:
            kinds = (h5py.string_dtype(), h5py.vlen_dtype(np.int32), h5py.ref_dtype,
                     np.dtype([("a", "f4")]), np.dtype("S5"), np.dtype(("f4", (3,))))  # fmt: skip
            content.create_dataset(name, value.shape, rng.choice(kinds))
        elif what == 7:
            content[name] = value.astype(rng.choice(DTYPES))
        elif what == 8:
            flat = value.astype(np.float64).reshape(-1)
            flat[rng.randrange(len(flat))] = rng.choice((np.nan, np.inf, 1e300, -1, 7, 0.5, 2**53))
            content[name] = flat.reshape(value.shape)
        elif what == 9:
            doubled = np.concatenate([value, value], -1)
            others = (value[:-1], value[None], value[..., :0], value.T, value[:0], doubled)
            content[name] = rng.choice(others)
        elif what == 10:
            content.create_group(name)
        elif what == 11:
            content[name] = rng.choice((np.float32(1), h5py.Empty("f4")))
        # what == 12: it is missing


HDF5: dict[str, Mutation] = {"change_hdf5": change_hdf5}


# -- tensors ---------------------------------------------------------------------------------------


def grow_sparsely(rng: random.Random, file: Path) -> None:
    os.truncate(file, rng.choice((2**30, 2**40)))


MEMMAP: dict[str, Mutation] = {"grow_sparsely": grow_sparsely, "flip_bits": flip_bits}

FORMATS: tuple[tuple[Callable[[Path], bool], dict[str, Mutation]], ...] = (
    (lambda f: f.suffix == ".json", JSON),
    (lambda f: f.suffix == ".npy", NPY),
    (lambda f: f.suffix == ".npz", NPZ),
    (lambda f: f.suffix == ".pt", TORCH),
    (lambda f: f.suffix in (".h5", ".hdf5"), HDF5),
    (lambda f: f.suffix == ".memmap", MEMMAP),
)
