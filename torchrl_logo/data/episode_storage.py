"""The storage of an immutable dataset, or of some of its episodes without copying them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.data import TensorStorage

from torchrl_logo.data.json_files import read_json
from torchrl_logo.data.row_gathering import gather_rows
from torchrl_logo.whole_files import write_file

__all__ = ["EpisodeStorage"]

_READ_ONLY = "Offline datasets are immutable: their storage cannot be written to."


class EpisodeStorage(TensorStorage):
    """A read-only :class:`~torchrl.data.TensorStorage` over all or some rows of a dataset.

    With ``rows``, index ``i`` reads row ``rows[i]``: a split shares its parent's
    (memory-mapped) tensors. A checkpoint holds the content's hash instead of the data, which
    never change: loading one into other data raises.

    Args:
        data (TensorDictBase): transitions ``[B]``.

    Keyword Args:
        content_hash (str): hash of the rows that the storage shows.
        rows (torch.Tensor, optional): ``[n]`` i64, the rows shown. Defaults to all.

    Examples:
        >>> from tensordict import TensorDict
        >>> data = TensorDict({"x": torch.arange(5)}, [5])
        >>> storage = EpisodeStorage(data, content_hash="", rows=torch.tensor([1, 4]))
        >>> len(storage), storage[:]["x"]
        (2, tensor([1, 4]))
    """

    def __init__(
        self,
        data: TensorDictBase,
        *,
        content_hash: str,
        rows: torch.Tensor | None = None,
    ) -> None:
        super().__init__(data, device=data.device if data.device is not None else "cpu")
        self.content_hash = content_hash
        self.rows = rows
        if rows is not None:
            self.max_size = self._len = len(rows)
            self.__dict__["_total_shape_value"] = torch.Size([len(rows)])

    def get(self, index: Any) -> TensorDictBase:
        """Reads rows by an index, a slice, or a tensor of indices of any shape."""
        if self.rows is not None:
            index = self.rows[index]
        if isinstance(index, torch.Tensor) and index.dtype == torch.int64 and index.ndim == 1:
            # Elsewhere, to look for negative numbers would wait for the device.
            if index.device.type == "cpu" and len(index) and int(index.min()) >= 0:
                return gather_rows(self._storage, index)
        return self._storage[index]

    def read_evenly(self, most: int) -> TensorDictBase:
        """All rows, or ``most`` of them at even distances: for statistics of data of any size."""
        if len(self) <= most:
            return self.get(slice(None))
        # whole numbers: floats could not tell rows apart
        return self.get(torch.arange(most, device=self.device) * len(self) // most)

    def get_column(self, key: Any) -> torch.Tensor:
        """One key of all rows shown; a view unless the storage shows some rows only."""
        column = self._storage.get(key)
        return column if self.rows is None else column[self.rows]

    def set(self, *args: Any, **kwargs: Any) -> None:
        """Raises: the data are immutable."""
        raise RuntimeError(_READ_ONLY)

    def _empty(self) -> None:
        raise RuntimeError(_READ_ONLY)

    def state_dict(self) -> dict[str, Any]:
        """The content's hash, and not the data."""
        return {"content_hash": self.content_hash}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Checks that the state belongs to these data; raises ``ValueError`` if it does not."""
        found = state_dict.get("content_hash")
        if found != self.content_hash:
            raise ValueError(
                "The checkpoint belongs to other data: expected the dataset with hash "
                f"{self.content_hash}, found {found}."
            )

    def dumps(self, path: str | Path) -> None:
        """Writes :meth:`state_dict` into a folder."""
        Path(path).mkdir(exist_ok=True, parents=True)
        content = json.dumps(self.state_dict()).encode()
        write_file("the dataset's hash", Path(path) / "dataset.json", content)

    def loads(self, path: str | Path) -> None:
        """Inverse of :meth:`dumps`: checks that the folder belongs to these data."""
        self.load_state_dict(read_json(Path(path) / "dataset.json"))

    def __repr__(self) -> str:
        shown = "all" if self.rows is None else f"{len(self)} of {len(self._storage)}"
        return f"{type(self).__name__}({shown} rows, hash={self.content_hash[:12]})"
