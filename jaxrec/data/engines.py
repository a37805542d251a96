"""The engines that carry a log through its preparation: pandas here, DuckDB and Spark beside it.

The rules are written once, for Narwhals frames. An engine gives what lies at both ends: reading
files into a frame with the source order as a column, Python functions over chunks of a column, and
the sorted result in chunks. What a file holds is said by one reader, `jaxrec.data.readers`.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa

from jaxrec.data.readers import File, common_types, read_arrow
from jaxrec.data.recipe import choose
from jaxrec.typing import UserError

if TYPE_CHECKING:
    import narwhals as nw

type ChunkColumn = pd.Series | pa.Array

ENGINES = ("pandas", "duckdb", "spark")
ROWS_OF_A_FILE = 1 << 40  # row = file number * this + row in the file
_EXACT = {
    **{pa.int64(): pd.Int64Dtype(), pa.int32(): pd.Int32Dtype(), pa.int16(): pd.Int16Dtype()},
    **{pa.int8(): pd.Int8Dtype(), pa.uint64(): pd.UInt64Dtype(), pa.uint32(): pd.UInt32Dtype()},
}


class Conversion(NamedTuple):
    """A pure function of one column, applied chunk by chunk.

    Attributes:
      function: from a column to as many columns as there are outputs.
      outputs: the names and types of these; they may replace columns that are there.
    """

    function: Callable[[ChunkColumn], tuple[pa.Array, ...]]
    outputs: dict[str, pa.DataType]


class Engine(Protocol):
    """What the preparation asks of an engine. Frames are lazy where the engine is."""

    def scan(self, files: Sequence[File], columns: Mapping[str, str]) -> "nw.LazyFrame[Any]":
        """Reads columns, named by role, and adds `row`: the source order of each event."""

    def table(self, frame: pd.DataFrame) -> "nw.LazyFrame[Any]":
        """Takes a small table into the engine."""

    def convert(
        self, frame: "nw.LazyFrame[Any]", conversions: Mapping[str, Conversion]
    ) -> "nw.LazyFrame[Any]":
        """Adds or replaces columns by functions of columns, once: the result is kept."""

    def examine[T](
        self,
        frame: "nw.LazyFrame[Any]",
        column: str,
        function: Callable[[ChunkColumn, np.ndarray], T],
    ) -> list[T]:
        """Returns a function's value for each chunk of a column and of the column `row`."""

    def collect(self, frame: "nw.LazyFrame[Any]") -> pd.DataFrame:
        """Brings a small result into memory."""

    def in_order(self, frame: "nw.LazyFrame[Any]") -> Iterator[dict[str, np.ndarray]]:
        """Gives the columns of all events in chunks, sorted by user, time (if there) and row."""


class PandasEngine:
    """Everything in memory, in frames of pandas."""

    def scan(self, files: Sequence[File], columns: Mapping[str, str]) -> "nw.LazyFrame[Any]":
        names = list(columns.values())
        kinds = list(common_types(files, columns).values())
        parts = [_light_frame(read_arrow(file, names, kinds)) for file in files]
        frame = parts[0] if len(parts) == 1 else pd.concat(parts, ignore_index=True)
        rows = [i * ROWS_OF_A_FILE + np.arange(len(part)) for i, part in enumerate(parts)]
        return self._lazy(frame, columns, np.concatenate(rows))

    def of_frame(self, frame: pd.DataFrame, columns: Mapping[str, str]) -> "nw.LazyFrame[Any]":
        """Takes a log that is in memory; as `scan`."""
        return self._lazy(frame, columns, np.arange(len(frame)))

    def table(self, frame: pd.DataFrame) -> "nw.LazyFrame[Any]":
        import narwhals as nw

        return nw.from_native(frame).lazy()

    def convert(
        self, frame: "nw.LazyFrame[Any]", conversions: Mapping[str, Conversion]
    ) -> "nw.LazyFrame[Any]":
        native = self.collect(frame)
        changed = {}
        for name, conversion in conversions.items():
            found = conversion.function(native[name])
            for output, values in zip(conversion.outputs, found, strict=True):
                changed[output] = to_series(values).set_axis(native.index)
        return self.table(native.assign(**changed))

    def examine[T](
        self,
        frame: "nw.LazyFrame[Any]",
        column: str,
        function: Callable[[ChunkColumn, np.ndarray], T],
    ) -> list[T]:
        native = self.collect(frame.select(column, "row"))
        return [function(native[column], native["row"].to_numpy())]

    def collect(self, frame: "nw.LazyFrame[Any]") -> pd.DataFrame:
        return frame.collect().to_pandas()

    def in_order(self, frame: "nw.LazyFrame[Any]") -> Iterator[dict[str, np.ndarray]]:
        columns = to_arrays(self.collect(frame))
        order = _order(columns)
        yield {name: values[order] for name, values in columns.items()}

    def _lazy(
        self, frame: pd.DataFrame, columns: Mapping[str, str], rows: np.ndarray
    ) -> "nw.LazyFrame[Any]":
        chosen = {role: frame[column].array for role, column in columns.items()}
        return self.table(pd.DataFrame({**chosen, "row": rows}, copy=False))


def open_engine(
    name: str, *, memory_limit: str | None = None, directory: Path | None = None
) -> AbstractContextManager[Engine]:
    """Opens an engine for one preparation.

    Args:
      name: "pandas", "duckdb" or "spark".
      memory_limit: of DuckDB, such as "4GB"; None leaves its default, 80% of the memory.
      directory: where DuckDB writes what does not fit.

    Raises:
      UserError: for another name, an engine that is not installed, or a limit that is no size.
    """
    choose("engine", name, ENGINES)
    if memory_limit is not None and name != "duckdb":
        raise UserError(f"memory_limit is only read with engine=duckdb, not {name}.")
    if name == "pandas":
        return nullcontext(PandasEngine())
    try:
        importlib.import_module({"spark": "pyspark"}.get(name, name))
        module = importlib.import_module(f"jaxrec.data.{name}_engine")
        if name == "duckdb":
            return module.open_duckdb(memory_limit, directory)
        return module.open_spark()
    except ModuleNotFoundError as error:
        raise UserError(
            f"engine={name} needs the package {error.name!r}, which is not installed. "
            f"Install it with: pip install jaxrec[{name}]"
        ) from None


def convert_batch(batch: pa.RecordBatch, conversions: Mapping[str, Conversion]) -> pa.RecordBatch:
    """Applies conversions to a batch of Arrow; other columns pass untouched."""
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    for name, conversion in conversions.items():
        found = conversion.function(batch.column(name))
        columns |= dict(zip(conversion.outputs, found, strict=True))
    fields = [(name, column.type) for name, column in columns.items()]
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=pa.schema(fields))


def to_series(column: pa.Array | pa.ChunkedArray) -> pd.Series:
    """Returns a column of pandas, with integers that stay exact beside nulls."""
    return column.to_pandas(types_mapper=_EXACT.get)


def to_frame(table: pa.Table) -> pd.DataFrame:
    """Returns a frame of pandas, with integers that stay exact beside nulls."""
    return table.to_pandas(types_mapper=_EXACT.get)


def _light_frame(table: pa.Table) -> pd.DataFrame:
    """Returns what `to_frame` does, with plain integers where nothing is missing."""
    columns = {}
    for name in table.schema.names:
        column = table.column(name)
        columns[name] = to_series(column) if column.null_count else column.to_pandas()
    return pd.DataFrame(columns, copy=False)


def to_arrays(frame: pd.DataFrame | pa.RecordBatch) -> dict[str, np.ndarray]:
    """Returns the columns as arrays of NumPy; none may hold a null."""
    if isinstance(frame, pa.RecordBatch):
        names = frame.schema.names
        return {name: frame.column(name).to_numpy(zero_copy_only=False) for name in names}
    return {str(name): _plain(frame[name]) for name in frame}


def _plain(values: pd.Series) -> np.ndarray:
    if pd.api.types.is_extension_array_dtype(values.dtype):
        kinds = {"i": np.int64, "f": np.float32, "u": np.uint8}
        return values.to_numpy(kinds[values.dtype.kind])
    return values.to_numpy()


def _order(columns: Mapping[str, np.ndarray]) -> np.ndarray | slice:
    """Returns what sorts by user and time and keeps the order of rows otherwise."""
    users, rows = columns["user"].astype(np.int64), columns["row"]
    if len(rows) and not (rows[1:] > rows[:-1]).all():
        return np.lexsort((rows, columns.get("time", rows), users))
    if "time" not in columns:
        order = np.argsort(users, kind="stable")
    else:
        times = columns["time"]
        first, last = (int(times.min()), int(times.max())) if len(times) else (0, 0)
        if (int(users.max(initial=0)) + 1) * (last - first + 1) < 2**63:
            # One key is sorted in half the time of two.
            order = np.argsort(users * (last - first + 1) + (times - first), kind="stable")
        else:
            order = np.lexsort((times, users))
    return slice(None) if (order[1:] > order[:-1]).all() else order
