"""Arrays of a dataset that lie in one file or, when they are long, in several."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np


class ShardedArray:
    """A one-dimensional array whose parts lie behind one another in several arrays.

    It is indexed as an array is, by integers, slices, integer arrays and boolean arrays, and the
    result is a plain array of the chosen elements. Nothing else is copied; `np.asarray` copies all.

    Args:
      parts: one-dimensional arrays of one dtype, such as memory maps; at least one.
    """

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        assert parts, "an array has at least one part"
        self.parts = tuple(parts)
        self.dtype = self.parts[0].dtype
        assert all(part.dtype == self.dtype and part.ndim == 1 for part in self.parts)
        self._ends = np.cumsum([len(part) for part in self.parts])
        self.shape = (int(self._ends[-1]),)
        self.ndim = 1

    @property
    def size(self) -> int:
        return self.shape[0]

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        for part in self.parts:
            yield from part

    def __repr__(self) -> str:
        return f"ShardedArray(shape={self.shape}, dtype={self.dtype}, parts={len(self.parts)})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("a sharded array becomes one array only by a copy")
        return np.concatenate(self.parts).astype(dtype or self.dtype, copy=False)

    def __eq__(self, other: object) -> Any:
        return np.asarray(self) == other

    def __ne__(self, other: object) -> Any:
        return np.asarray(self) != other

    __hash__ = None  # type: ignore[assignment] # as arrays: compared element by element

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int | np.integer):
            position = range(len(self))[int(index)]
            part = int(np.searchsorted(self._ends, position, side="right"))
            return self.parts[part][position - self._start(part)]
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return (
                self._slice(start, stop)
                if step == 1
                else self._take(np.arange(*(start, stop, step)))
            )
        chosen = np.asarray(index)
        if chosen.dtype == bool:
            return self._mask(chosen)
        return self._take(chosen)

    def _start(self, part: int) -> int:
        return int(self._ends[part]) - len(self.parts[part])

    def _slice(self, start: int, stop: int) -> np.ndarray:
        pieces = []
        for number, part in enumerate(self.parts):
            begin = self._start(number)
            piece = part[max(start - begin, 0) : max(stop - begin, 0)]
            if len(piece):
                pieces.append(piece)
        return np.concatenate(pieces) if pieces else np.empty(0, self.dtype)

    def _mask(self, where: np.ndarray) -> np.ndarray:
        if where.shape != self.shape:
            raise IndexError(f"a mask of shape {where.shape} for an array of shape {self.shape}")
        starts = (self._start(number) for number in range(len(self.parts)))
        return np.concatenate(
            [
                part[where[start : start + len(part)]]
                for start, part in zip(starts, self.parts, strict=True)
            ]
        )

    def _take(self, index: np.ndarray) -> np.ndarray:
        index = (
            index.astype(np.int64, copy=False) if index.size else np.zeros(index.shape, np.int64)
        )
        if index.size and (index.min() < -len(self) or index.max() >= len(self)):
            raise IndexError(f"an index is out of bounds for an array of {len(self)} elements")
        index = np.where(index < 0, index + len(self), index)
        owner = np.searchsorted(self._ends, index, side="right")
        result = np.empty(index.shape, self.dtype)
        for number in np.unique(owner):
            mine = owner == number
            result[mine] = self.parts[number][index[mine] - self._start(number)]
        return result


def shard_names(name: str, shards: int) -> list[str]:
    """Returns the files of an array: items.npy, or items-00000-of-00003.npy and so on."""
    if shards == 1:
        return [f"{name}.npy"]
    return [f"{name}-{i:05}-of-{shards:05}.npy" for i in range(shards)]


class ArrayWriter:
    """Writes an array from front to back into its files, in the format of np.save.

    Args:
      directory: where the files are made.
      name: what `shard_names` makes of it.
      dtype: of the elements.
      length: of the whole array, known from the start.
      shard_events: elements of each file but the last.
    """

    def __init__(
        self, directory: Path, name: str, dtype: np.dtype, length: int, shard_events: int
    ) -> None:
        self.dtype, self.length, self.shard_events = np.dtype(dtype), length, shard_events
        self.paths = [directory / n for n in shard_names(name, num_shards(length, shard_events))]
        self.written = 0
        for number, path in enumerate(self.paths):
            size = min(shard_events, length - number * shard_events)
            header = {"descr": self.dtype.str, "fortran_order": False, "shape": (max(size, 0),)}
            with path.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)

    def append(self, values: np.ndarray) -> None:
        """Writes the next elements. Raises OSError when the disk does not take them."""
        values = np.ascontiguousarray(values, self.dtype)
        assert self.written + len(values) <= self.length
        while len(values):
            number, filled = divmod(self.written, self.shard_events)
            head, values = np.split(values, [self.shard_events - filled])
            # Unlike ndarray.tofile, a full disk keeps its error number here.
            with self.paths[number].open("ab") as file:
                file.write(head.data)
            self.written += len(head)


def num_shards(length: int, shard_events: int) -> int:
    """Returns how many files an array takes."""
    return max(1, -(-length // shard_events))
