"""Columns of events on their way: written once from front to back, then read in slices."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from jaxrec.data.report import Report

CHUNK_EVENTS = 1 << 20
DTYPES = {
    "user": np.int32,
    "item": np.int32,
    "time": np.int64,
    "label": np.float32,
    "split": np.uint8,
}


class Column(Protocol):
    """What can be read in slices: an array, a memory map, a sharded array or a file."""

    dtype: np.dtype

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice, /) -> np.ndarray: ...


class _FileColumn:
    # Read and not mapped: pages of a map would count as memory of this process.
    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.path, self.dtype = path, dtype
        path.touch()

    def append(self, values: np.ndarray) -> None:
        with self.path.open("ab") as file:
            file.write(np.ascontiguousarray(values, self.dtype).data)

    def __len__(self) -> int:
        return self.path.stat().st_size // self.dtype.itemsize

    def __getitem__(self, index: slice) -> np.ndarray:
        start, stop, _ = index.indices(len(self))
        offset = start * self.dtype.itemsize
        return np.fromfile(self.path, self.dtype, count=max(stop - start, 0), offset=offset)


class _MemoryColumn:
    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype
        self._parts: list[np.ndarray] = []

    def append(self, values: np.ndarray) -> None:
        self._parts.append(np.asarray(values, self.dtype))

    def _whole(self) -> np.ndarray:
        if len(self._parts) != 1:
            joined = np.concatenate(self._parts) if self._parts else np.empty(0, self.dtype)
            self._parts = [joined]
        return self._parts[0]

    def __len__(self) -> int:
        return len(self._whole())

    def __getitem__(self, index: slice) -> np.ndarray:
        return self._whole()[index]


class Spool:
    """Columns of equal length, in files of a directory or in memory.

    Args:
      directory: an existing directory for the files; None keeps the columns in memory.
      dtypes: name to dtype of each column.
    """

    def __init__(self, directory: Path | None, dtypes: Mapping[str, np.dtype | type]) -> None:
        kinds = {name: np.dtype(dtype) for name, dtype in dtypes.items()}
        self.columns: dict[str, _FileColumn | _MemoryColumn] = {
            name: _MemoryColumn(kind) if directory is None else _FileColumn(directory / name, kind)
            for name, kind in kinds.items()
        }

    def append(self, chunk: Mapping[str, np.ndarray]) -> None:
        """Adds the next rows. Raises OSError when the disk does not take them."""
        for name, column in self.columns.items():
            column.append(chunk[name])

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def remove(self) -> None:
        """Frees what the columns took."""
        for column in self.columns.values():
            if isinstance(column, _FileColumn):
                column.path.unlink()
        self.columns = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Log:
    """Events in order of user, time and source, as far as they have all that they need.

    Attributes:
      events: columns `user` and `item`, positions in the vocabularies from 0, and `time`, `label`
        and `split` as far as the recipe names them.
      users, items: the original ids as text; some may have no event that is left in the end.
      time_unit, time_source, day_first: as in `jaxrec.data.dataset.Manifest`.
      report: what was dropped so far.
    """

    events: Spool
    users: pd.Index
    items: pd.Index
    time_unit: str
    time_source: str
    day_first: bool | None
    report: Report


def read_chunk(columns: Mapping[str, Column], where: slice) -> dict[str, np.ndarray]:
    """Returns the same rows of several columns."""
    return {name: np.asarray(column[where]) for name, column in columns.items()}


def whole_users(users: Column, size: int = CHUNK_EVENTS) -> Iterator[slice]:
    """Cuts events into slices of about `size` that keep all events of a user together.

    Args:
      users: (N,) integers, ascending.
      size: events of a slice; one with a user of more events is longer.
    """
    start, count = 0, len(users)
    while start < count:
        stop = min(start + size, count)
        last = users[stop - 1 : stop][0]
        while stop < count:
            following = users[stop : min(stop + size, count)]
            same = int(np.searchsorted(following, last, side="right"))
            stop += same
            if same < len(following):
                break
        yield slice(start, stop)
        start = stop
