"""DuckDB as the engine of a preparation: what does not fit in memory goes to a directory."""

import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
import pyarrow as pa

from jaxrec.data.engines import (
    ROWS_OF_A_FILE,
    ChunkColumn,
    Conversion,
    convert_batch,
    to_arrays,
    to_frame,
)
from jaxrec.data.readers import File, ParquetFile, common_types
from jaxrec.typing import UserError

_BATCH = 1 << 18
_ROW = ("row", pa.int64())
_SIZE = r"\d+(\.\d+)?\s*([KMGT]i?B)"


@contextmanager
def open_duckdb(memory_limit: str | None, directory: Path | None) -> Iterator["DuckDBEngine"]:
    """Opens a database in memory that spills to a directory.

    Raises:
      UserError: for a memory limit that is no size or is too small, or a file it cannot read.
      OSError: when the disk takes no more.
    """
    import duckdb

    config: dict[str, Any] = {"preserve_insertion_order": False}
    if directory is not None:
        config["temp_directory"] = str(directory)
    if memory_limit is not None:
        if not re.fullmatch(_SIZE, memory_limit, re.IGNORECASE):
            raise UserError(f"memory_limit={memory_limit!r} is no size. Write it like 4GB.")
        config["memory_limit"] = memory_limit
    connection = duckdb.connect(config=config)
    try:
        yield DuckDBEngine(connection)
    except duckdb.Error as error:
        raise _translated(error, memory_limit) from error
    finally:
        connection.close()


class DuckDBEngine:
    """Narwhals over relations of one connection; what is kept lies in tables of the database."""

    def __init__(self, connection: Any) -> None:
        self._reading = connection
        self._writing = connection.cursor()  # a query ends the results of its own cursor
        self._names = (f"kept_{number}" for number in count())

    def scan(self, files: Sequence[File], columns: Mapping[str, str]) -> nw.LazyFrame[Any]:
        if all(_is_native(file, columns) for file in files):
            return nw.from_native(self._reading.sql(_select_parquet(files, columns)))
        kinds = common_types(files, columns)
        table = self._create(pa.schema([*kinds.items(), _ROW]))
        for number, file in enumerate(files):
            first = number * ROWS_OF_A_FILE
            for batch in file.batches(list(columns.values())):
                rows = pa.array(first + np.arange(len(batch)))
                pairs = zip(batch.columns, kinds.values(), strict=True)
                arrays = [values.cast(kind) for values, kind in pairs]
                names = [*columns, "row"]
                self._insert(table, pa.RecordBatch.from_arrays([*arrays, rows], names=names))
                first += len(batch)
        return self._frame(table)

    def table(self, frame: pd.DataFrame) -> nw.LazyFrame[Any]:
        arrow = pa.Table.from_pandas(frame, preserve_index=False)
        table = self._create(arrow.schema)
        self._insert(table, arrow)
        return self._frame(table)

    def convert(
        self, frame: nw.LazyFrame[Any], conversions: Mapping[str, Conversion]
    ) -> nw.LazyFrame[Any]:
        reader = frame.to_native().to_arrow_reader(_BATCH)
        kinds = {field.name: field.type for field in reader.schema}
        for conversion in conversions.values():
            kinds |= conversion.outputs
        table = self._create(pa.schema(list(kinds.items())))
        for batch in reader:
            self._insert(table, convert_batch(batch, conversions))
        return self._frame(table)

    def examine[T](
        self,
        frame: nw.LazyFrame[Any],
        column: str,
        function: Callable[[ChunkColumn, np.ndarray], T],
    ) -> list[T]:
        reader = frame.select(column, "row").to_native().to_arrow_reader(_BATCH)
        return [function(batch.column(0), batch.column(1).to_numpy()) for batch in reader]

    def collect(self, frame: nw.LazyFrame[Any]) -> pd.DataFrame:
        return to_frame(frame.to_native().to_arrow_table())

    def in_order(self, frame: nw.LazyFrame[Any]) -> Iterator[dict[str, np.ndarray]]:
        keys = [name for name in ("user", "time", "row") if name in frame.collect_schema()]
        for batch in frame.sort(*keys).to_native().to_arrow_reader(_BATCH):
            yield to_arrays(batch)

    def _create(self, schema: pa.Schema) -> str:
        table = next(self._names)
        self._writing.register("chunk", schema.empty_table())
        self._writing.execute(f"CREATE TABLE {table} AS SELECT * FROM chunk")
        return table

    def _insert(self, table: str, chunk: pa.RecordBatch | pa.Table) -> None:
        whole = pa.Table.from_batches([chunk]) if isinstance(chunk, pa.RecordBatch) else chunk
        self._writing.register("chunk", whole)
        self._writing.execute(f"INSERT INTO {table} SELECT * FROM chunk")

    def _frame(self, table: str) -> nw.LazyFrame[Any]:
        return nw.from_native(self._reading.table(table))


def _select_parquet(files: Sequence[File], columns: Mapping[str, str]) -> str:
    chosen = ", ".join(f"{_identifier(column)} AS {role}" for role, column in columns.items())
    paths = ", ".join(_literal(_no_glob(file.path)) for file in files)
    row = f"file_index::BIGINT * {ROWS_OF_A_FILE} + file_row_number"
    read = f"read_parquet([{paths}], union_by_name=true, hive_partitioning=false)"
    return f"SELECT {chosen}, {row} AS row FROM {read}"


def _is_native(file: File, columns: Mapping[str, str]) -> bool:
    """Whether DuckDB reads the columns of a file itself, and as Arrow does.

    Its names have no case, and some types, such as UUID, are others to it.
    """
    if not isinstance(file, ParquetFile) or "\\" in str(file.path):
        return False
    names = [name.casefold() for name in file.names]
    taken = {"file_index", "file_row_number", "filename"}
    return all(
        names.count(name.casefold()) == 1
        and name.casefold() not in taken
        and _is_simple(file.type_of(name))
        for name in columns.values()
    ) and not taken & set(names)


def _is_simple(kind: pa.DataType) -> bool:
    return (
        (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_string(kind))
        and kind != pa.float16()
    ) or pa.types.is_timestamp(kind)


def _no_glob(path: Path) -> str:
    """Returns a path of which no character is a pattern."""
    return re.sub(r"([\[*?])", r"[\1]", str(path.resolve()))


def _translated(error: Exception, memory_limit: str | None) -> Exception:
    """Returns the exception that a full disk, a full memory or a damaged file should be."""
    words = str(error)
    reason = words.strip().splitlines()[0][:200]
    for number in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        if os.strerror(number) in words or "max_temp_directory_size" in words:
            return OSError(number, os.strerror(number))
    if "OutOfMemory" in type(error).__name__:
        return UserError(
            f"DuckDB needs more memory than its limit ({memory_limit or '80% of the memory'}): "
            f"{reason}. Raise --memory_limit."
        )
    return UserError(f"DuckDB cannot prepare this log ({reason}). A file may be damaged.")


def _literal(value: object) -> str:
    return "'" + str(value).replace("'", "''") + "'"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
