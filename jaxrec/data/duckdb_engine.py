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
    Conversion,
    convert_batch,
    to_arrays,
    to_frame,
    to_series,
)
from jaxrec.data.readers import is_parquet, read_batches
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

    def scan(self, paths: Sequence[Path], columns: Mapping[str, str]) -> nw.LazyFrame[Any]:
        if all(is_parquet(path) for path in paths):
            return nw.from_native(self._reading.sql(_select_parquet(paths, columns)))
        table = self._create(pa.schema([*((role, pa.string()) for role in columns), _ROW]))
        for number, path in enumerate(paths):
            first = number * ROWS_OF_A_FILE
            if is_parquet(path):
                selected = _select_parquet([path], columns, first=first)
                self._writing.execute(f"INSERT INTO {table} BY NAME {selected}")
                continue
            for batch in read_batches(path, list(columns.values())):
                rows = pa.array(first + np.arange(len(batch)))
                arrays = [*(batch.column(column) for column in columns.values()), rows]
                self._insert(table, pa.RecordBatch.from_arrays(arrays, names=[*columns, "row"]))
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
        kinds = {name: conversion.type for name, conversion in conversions.items()}
        fields = [(field.name, kinds.get(field.name, field.type)) for field in reader.schema]
        table = self._create(pa.schema(fields))
        for batch in reader:
            self._insert(table, convert_batch(batch, conversions))
        return self._frame(table)

    def examine[T](
        self, frame: nw.LazyFrame[Any], column: str, function: Callable[[pd.Series], T]
    ) -> list[T]:
        reader = frame.select(column).to_native().to_arrow_reader(_BATCH)
        return [function(to_series(batch.column(0))) for batch in reader]

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


def _select_parquet(paths: Sequence[Path], columns: Mapping[str, str], first: int = 0) -> str:
    chosen = ", ".join(f"{_identifier(column)} AS {role}" for role, column in columns.items())
    files = ", ".join(_literal(path) for path in paths)
    row = f"file_index::BIGINT * {ROWS_OF_A_FILE} + file_row_number + {first}"
    return f"SELECT {chosen}, {row} AS row FROM read_parquet([{files}], union_by_name=true)"


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
