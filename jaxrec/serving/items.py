"""What is known of the items of a catalogue, in the forms in which rules look at it."""

import datetime
import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxrec.export.artefact import Artefact
from jaxrec.typing import UserError

_LARGEST_SECONDS = 1e11  # the year 5138; milliseconds of today are above


class ItemTable:
    """Ids and columns of items. Rows are item indices: V rows, of which row 0 is no item.

    Attributes:
      ids: (V,) the original id of each item, "" at 0.
      columns: the names of the columns.
      cells: gives the V - 1 cells of a column, from item 1 on; None where nothing is known.
      known: (V,) bool, the items that the model has learned; others are in the catalogue alone.
    """

    def __init__(
        self,
        ids: Sequence[str],
        columns: Sequence[str],
        read: Callable[[str], Sequence[Any]],
        known: np.ndarray | None = None,
    ) -> None:
        """Makes a table whose columns are read when they are asked for.

        Args:
          ids: (V,) texts, "" at 0.
          columns: names.
          read: gives the V - 1 cells of a column, from item 1 on; None where nothing is known.
          known: (V,) bool; all items by default.
        """
        self.ids, self.columns = list(ids), tuple(columns)
        self.known = np.arange(len(self.ids)) > 0 if known is None else known
        self._index = {text: index for index, text in enumerate(self.ids) if index}
        self._learned = {text: n for text, n in self._index.items() if self.known[n]}
        # Columns are kept in the form that was asked for: rules are loaded anew, items are not.
        self.cells = read
        self._known_values: dict[str, Values] = {}
        self._known_times: dict[str, np.ndarray] = {}

    @classmethod
    def of(cls, artefact: Artefact) -> "ItemTable":
        """Returns the table of an artefact, also when another one comes to lie in its place."""
        from pyarrow import parquet

        file = parquet.ParquetFile(artefact.path / "items.parquet")  # stays open

        def read(name: str) -> list[Any]:
            return file.read(columns=[name]).column(name).to_pylist()

        names = file.schema_arrow.names
        return cls(artefact.item_ids.tolist(), names, read, artefact.known_items)

    @classmethod
    def from_columns(cls, ids: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> "ItemTable":
        """Returns the table of some ids, from item 1 on, and of columns of the same length."""
        return cls(["", *ids], list(columns), columns.__getitem__)

    def __len__(self) -> int:
        return len(self.ids)

    def indices(self, ids: Iterable[str]) -> tuple[np.ndarray, list[str]]:
        """Returns the (n,) int32 items that are known, and the ids that are not."""
        ids = list(ids)
        known = [index for text in ids if (index := self._index.get(text))]
        return np.array(known, np.int32), [text for text in ids if text not in self._index]

    def known_indices(self, ids: Iterable[str]) -> tuple[np.ndarray, list[str]]:
        """Returns the (n,) int32 items that the model has learned, and the ids of all others."""
        ids = list(ids)
        known = [index for text in ids if (index := self._learned.get(text))]
        return np.array(known, np.int32), [text for text in ids if text not in self._learned]

    def known_index(self, text: str) -> int:
        """Returns the item of an id, or 0 when the model has not learned it."""
        return self._learned.get(text, 0)

    def index(self, text: str) -> int:
        """Returns the item of an id, or 0."""
        return self._index.get(text, 0)

    def check_column(self, name: str) -> None:
        """Raises UserError, naming the closest one, when there is no such column."""
        if name not in self.columns:
            close = difflib.get_close_matches(name, self.columns, n=1, cutoff=0.0)
            raise UserError(
                f"the items have no column {name!r}. "
                + (f"Did you mean {close[0]!r}? " if close else "")
                + f"They have: {', '.join(self.columns) or 'none'}."
            )

    def values(self, name: str) -> "Values":
        """Returns the values of a column, such as categories. Raises UserError without it."""
        self.check_column(name)
        if name not in self._known_values:
            self._known_values[name] = Values([(), *map(_split, self.cells(name))])
        return self._known_values[name]

    def times(self, name: str) -> np.ndarray:
        """Returns (V,) float64 Unix seconds of a column, NaN where nothing is known.

        Cells are dates, times, numbers of seconds, or texts as in ISO 8601; without a zone, UTC.

        Raises:
          UserError: when the column is absent, or holds something else.
        """
        self.check_column(name)
        if name in self._known_times:
            return self._known_times[name]
        times = [math.nan]
        for index, cell in enumerate(self.cells(name), 1):
            try:
                times.append(_to_seconds(cell))
            except ValueError:
                raise UserError(
                    f"column {name!r} is no column of times: item {self.ids[index]!r} has {cell!r}."
                    " Times are dates, Unix seconds, or texts such as 2024-05-31."
                ) from None
        self._known_times[name] = np.array(times, np.float64)
        return self._known_times[name]


class Values:
    """Texts that each item has, none or several of them.

    Attributes:
      names: the distinct values, by code.
    """

    def __init__(self, cells: Sequence[tuple[str, ...]]) -> None:
        self._codes_of: dict[str, int] = {}
        for cell in dict.fromkeys(cells):
            for name in cell:
                self._codes_of.setdefault(name, len(self._codes_of))
        coded = {cell: [self._codes_of[name] for name in cell] for cell in dict.fromkeys(cells)}
        counts = np.array([len(cell) for cell in cells], np.int64)
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        self._codes = np.array([code for cell in cells for code in coded[cell]], np.int32)
        self.names = tuple(self._codes_of)

    def of(self, item: int) -> list[int]:
        """Returns the codes of an item's values."""
        return self._codes[self._starts[item] : self._starts[item + 1]].tolist()

    def having(self, items: np.ndarray, names: Iterable[str]) -> np.ndarray:
        """Returns (n,) bool: whether each of n items has one of these values."""
        wanted = [self._codes_of[name] for name in names if name in self._codes_of]
        counts = self._starts[items + 1] - self._starts[items]
        rows = np.repeat(np.arange(len(items)), counts)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        codes = self._codes[self._starts[items][rows] + within]
        found = np.zeros(len(items), bool)
        found[rows[np.isin(codes, wanted)]] = True
        return found


def spell(value: Any) -> str:
    """Returns a value of a column, or of a rule about it, as text: true, 3 and 3.0 as 3."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _split(cell: Any) -> tuple[str, ...]:
    """Returns the distinct values in a cell: a list, or a text in which | stands between them."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ()
    if isinstance(cell, str):
        cell = cell.split("|")
    elif not isinstance(cell, list | tuple | np.ndarray):
        cell = [cell]
    parts = (spell(part).strip() for part in cell if part is not None)
    return tuple(dict.fromkeys(part for part in parts if part))


def _to_seconds(cell: Any) -> float:
    """Raises ValueError for what is no time."""
    if cell is None or cell == "":
        return math.nan
    if isinstance(cell, str):
        cell = datetime.datetime.fromisoformat(cell)
    elif isinstance(cell, datetime.date) and not isinstance(cell, datetime.datetime):
        cell = datetime.datetime(cell.year, cell.month, cell.day)
    if isinstance(cell, datetime.datetime):
        return (cell if cell.tzinfo else cell.replace(tzinfo=datetime.UTC)).timestamp()
    if isinstance(cell, bool) or not isinstance(cell, int | float) or abs(cell) > _LARGEST_SECONDS:
        raise ValueError
    return float(cell)
