"""Checkpoints that are whole or absent, compared as they are read, and rotated."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensordict import TensorDict
from torchrl.checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointLoadResult,
    CheckpointRotation,
    GlobalRNGState,
    StateDictCheckpointAdapter,
)
from torchrl.checkpoint._checkpoint import _decode_state_dict_value, _encode_state_dict_value

from torchrl_logo.data.contained_files import require_contained
from torchrl_logo.data.json_files import read_json
from torchrl_logo.data.mapped_files import map_tensordict, write_tensordict
from torchrl_logo.data.validation import DatasetError
from torchrl_logo.whole_files import explain_write_errors, publish_folder, write_file

__all__ = ["DurableCheckpoint", "DurableRotation"]

_SUMS = "checksums.json"


class _StateAdapter(StateDictCheckpointAdapter):
    """State dicts as tensor files that are written, not mapped, and a JSON file; no pickle."""

    adapter_id = "torchrl_logo.state_dict"

    def save(
        self, component: Any, path: Path, *, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        path.mkdir(parents=True, exist_ok=True)
        state = component.state_dict(*args, **kwargs)
        tensors: dict[str, Any] = {}
        schema = _encode_state_dict_value(state, tensors)
        cpu = TensorDict({key: value.cpu() for key, value in tensors.items()})
        write_tensordict(cpu, path / self.state_directory)
        (path / self.schema_filename).write_text(json.dumps(schema, separators=(",", ":")))
        return state

    def load(
        self,
        component: Any,
        path: Path,
        *,
        map_location: Any,
        tensor_load_kwargs: Mapping[str, Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        tensors = map_tensordict(path / self.state_directory)
        schema = read_json(path / self.schema_filename)
        # decoding copies each tensor, so that nothing goes on reading the files
        state = _decode_state_dict_value(schema, tensors, map_location)
        component.load_state_dict(state, *args, **kwargs)


class DurableCheckpoint(Checkpoint):
    """A :class:`torchrl.checkpoint.Checkpoint` that survives the end of its process or machine.

    It is written aside with the sha256 of each file, flushed to the disk, and then renamed. All
    components are stored by their state dicts, and the process' random states among them.

    Args:
        **components: as :class:`torchrl.checkpoint.Checkpoint` takes them.

    Examples:
        >>> import tempfile, torch
        >>> source, target = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        >>> folder = tempfile.mkdtemp() + "/checkpoint"
        >>> path = DurableCheckpoint(policy=source).save(folder)
        >>> DurableCheckpoint.verify(path)
        >>> _ = DurableCheckpoint(policy=target).load(path)
        >>> bool((source.weight == target.weight).all())
        True
    """

    def __init__(self, **components: Any) -> None:
        super().__init__(random_state=GlobalRNGState(), **components)
        self.register_adapter(object, _StateAdapter())

    def save(self, path: str | Path, **kwargs: Any) -> Path:
        """Saves as :meth:`torchrl.checkpoint.Checkpoint.save` does.

        Raises:
            OSError: if the disk is full or read-only; what was there before stays.
        """
        with explain_write_errors("the checkpoint", path):
            return super().save(path, **kwargs)

    @staticmethod
    def _publish_path(source: Path, destination: Path) -> None:
        sums = {
            file.relative_to(source).as_posix(): _describe(file)
            for file in sorted(source.rglob("*"))
            if file.is_file()
        }
        write_file("the checkpoint", source / _SUMS, json.dumps(sums, indent=1).encode())
        if destination.exists():
            # of the same update, and about to be written again; the one before it stays
            aside = destination.with_name(f".{source.name}.replaced")
            os.replace(destination, aside)
            shutil.rmtree(aside, ignore_errors=True)
        publish_folder(source, destination)

    @classmethod
    def verify(cls, path: str | Path) -> None:
        """Compares all files of a checkpoint with their checksums.

        Raises:
            CheckpointError: names the file that is missing, is not listed, or differs.
        """
        path = Path(path)
        try:
            require_contained(path)
            sums = read_json(path / _SUMS)
        except DatasetError as error:
            raise CheckpointError(f"{path} is no checkpoint with checksums: {error}") from error
        found = {
            file.relative_to(path).as_posix(): file
            for file in sorted(path.rglob("*"))
            if not file.is_dir() and file.name != _SUMS
        }
        if found.keys() != sums.keys():
            differ = sorted(found.keys() ^ sums.keys())
            raise CheckpointError(f"{path} lacks files, or has others: {differ[:3]}.")
        for name, file in found.items():
            listed = sums[name]
            # Sizes first: a file that was made to grow to terabytes is not read. Checkpoints of
            # earlier versions list no sizes.
            size = listed.get("bytes") if isinstance(listed, dict) else file.stat().st_size
            digest = listed.get("sha256") if isinstance(listed, dict) else listed
            if file.is_symlink() or file.stat().st_size != size or _sha256(file) != digest:
                raise CheckpointError(f"{file} is not what was written.")
        cls.manifest(path)


class DurableRotation(CheckpointRotation):
    """The newest checkpoints of a folder; of these, the newest that is whole is loaded.

    Args:
        directory (str or Path): the folder.

    Keyword Args:
        keep_last (int): checkpoints that are kept. Defaults to ``2``.

    Raises:
        NotADirectoryError: if ``directory`` is a file.

    Examples:
        >>> import tempfile
        >>> rotation = DurableRotation(tempfile.mkdtemp())
        >>> path = rotation.save(DurableCheckpoint(), step=3)
        >>> rotation.find_whole() == path
        True
    """

    def __init__(self, directory: str | Path, *, keep_last: int = 2) -> None:
        if Path(directory).is_file():
            raise NotADirectoryError(
                f"checkpoint_dir must be a folder, found the file {directory}. Name another place."
            )
        super().__init__(directory, keep_last=keep_last)

    def find_whole(self) -> Path | None:
        """The newest checkpoint whose checksums are right, or none if there is no checkpoint.

        A damaged one gets the ending ``.damaged``, with a warning.

        Raises:
            CheckpointError: if there are checkpoints and all are damaged.
        """
        errors = []
        for path in self._find_all():
            try:
                DurableCheckpoint.verify(path)
            except (CheckpointError, OSError, TypeError, ValueError) as error:
                errors.append(str(error))
                aside = path.with_name(f"{path.name}.damaged")
                if aside.exists():
                    shutil.rmtree(aside)
                path.rename(aside)
                text = f"A checkpoint is damaged, and the one before it is tried: {error}"
                warnings.warn(text, RuntimeWarning, stacklevel=2)
            else:
                return path
        if errors:
            raise CheckpointError(
                f"Every checkpoint in {self.directory} is damaged: {'; '.join(errors)} Start with "
                "another folder, or remove this one, to train from the beginning."
            )
        return None

    def load_latest(self, checkpoint: Checkpoint, **kwargs: Any) -> CheckpointLoadResult:
        """Restores the newest whole checkpoint.

        Raises:
            FileNotFoundError: if there is none.
            CheckpointError: if all are damaged.
        """
        path = self.find_whole()
        if path is None:
            raise FileNotFoundError(f"There is no checkpoint in {self.directory}.")
        return checkpoint.load(path, **kwargs)

    def remove_unfinished(self) -> None:
        """Removes what a process left that ended while it wrote. No other may be at work here."""
        if self.directory.is_dir():
            for path in self.directory.glob(f".{self.prefix}-*"):
                shutil.rmtree(path, ignore_errors=True)

    def _find_all(self) -> list[Path]:
        """All checkpoints, whole or not, newest first."""
        start = f"{self.prefix}-"
        if not self.directory.is_dir():
            return []
        found = [p for p in self.directory.iterdir() if p.name.startswith(start) and p.is_dir()]
        numbered = [p for p in found if p.name[len(start) :].isdigit()]
        return sorted(numbered, key=lambda path: int(path.name[len(start) :]), reverse=True)


def _describe(path: Path) -> dict[str, int | str]:
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
