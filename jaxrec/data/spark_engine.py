"""Spark as the engine of a preparation: the log stays on the cluster until it is in order."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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


@contextmanager
def open_spark() -> Iterator["SparkEngine"]:
    """Takes the session that is running, or starts one as the environment says.

    Raises:
      UserError: when Spark cannot start or cannot read a file.
    """
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # else whatever python3 there is
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Spark's own about the newest pandas
            yield SparkEngine(SparkSession.builder.getOrCreate())
    except (PySparkException, RuntimeError) as error:
        words = str(error).strip() or type(error).__name__
        raise UserError(
            f"Spark cannot prepare this log ({words.splitlines()[0][:200]})."
        ) from error


class SparkEngine:
    """Narwhals over data frames of one session."""

    def __init__(self, session: Any) -> None:
        self.session = session

    def scan(self, files: Sequence[File], columns: Mapping[str, str]) -> nw.LazyFrame[Any]:
        """Reads text file by file and Parquet group by group, each a task of its own."""
        tasks: list[tuple[File, int | None, int]] = []
        for number, file in enumerate(files):
            first = number * ROWS_OF_A_FILE
            if not isinstance(file, ParquetFile):
                tasks.append((file, None, first))
                continue
            for group, rows in enumerate(file.group_rows()):
                tasks.append((file, group, first))
                first += rows
        names = list(columns.values())
        common = common_types(files, columns)
        kinds = {role: _simple_type(kind) for role, kind in common.items()}

        def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in batches:
                for task in batch.column(0).to_pylist():
                    file, group, first = tasks[task]
                    parts = (
                        file.batches(names, group=group)
                        if isinstance(file, ParquetFile)
                        else file.batches(names)
                    )
                    for part in parts:
                        rows = pa.array(first + np.arange(len(part)))
                        arrays = [
                            _simple(values.cast(kind))
                            for values, kind in zip(part.columns, common.values(), strict=True)
                        ]
                        yield pa.RecordBatch.from_arrays([*arrays, rows], names=[*kinds, "row"])
                        first += len(part)

        schema = _spark_schema(kinds | {"row": pa.int64()})
        numbers = self.session.range(0, len(tasks), 1, max(len(tasks), 1))
        return nw.from_native(numbers.mapInArrow(work, schema).persist())

    def table(self, frame: pd.DataFrame) -> nw.LazyFrame[Any]:
        return nw.from_native(self.session.createDataFrame(pa.Table.from_pandas(frame)))

    def convert(
        self, frame: nw.LazyFrame[Any], conversions: Mapping[str, Conversion]
    ) -> nw.LazyFrame[Any]:
        native = frame.to_native()
        kinds = {field.name: field.dataType for field in native.schema}
        for conversion in conversions.values():
            kinds |= {name: _spark_type(kind) for name, kind in conversion.outputs.items()}
        schema = _structure(kinds)

        def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            return (convert_batch(batch, conversions) for batch in batches)

        return nw.from_native(native.mapInArrow(work, schema).persist())

    def examine[T](
        self,
        frame: nw.LazyFrame[Any],
        column: str,
        function: Callable[[ChunkColumn, np.ndarray], T],
    ) -> list[T]:
        import pickle

        def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in batches:
                found = pickle.dumps(function(batch.column(0), batch.column(1).to_numpy()))
                yield pa.RecordBatch.from_arrays([pa.array([found], pa.binary())], names=["found"])

        rows = frame.select(column, "row").to_native().mapInArrow(work, "found binary").collect()
        return [pickle.loads(row.found) for row in rows]

    def collect(self, frame: nw.LazyFrame[Any]) -> pd.DataFrame:
        return to_frame(frame.to_native().toArrow())

    def in_order(self, frame: nw.LazyFrame[Any]) -> Iterator[dict[str, np.ndarray]]:
        keys = [name for name in ("user", "time", "row") if name in frame.collect_schema()]

        def packed(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            # A batch travels as one value: row by row would take minutes for some millions.
            for batch in batches:
                stream = pa.BufferOutputStream()
                with pa.ipc.new_stream(stream, batch.schema) as writer:
                    writer.write_batch(batch)
                value = pa.array([stream.getvalue().to_pybytes()], pa.binary())
                yield pa.RecordBatch.from_arrays([value], names=["batch"])

        rows = frame.sort(*keys).to_native().mapInArrow(packed, "batch binary")
        for row in rows.toLocalIterator():
            yield from map(to_arrays, pa.ipc.open_stream(row.batch))


def _simple_type(kind: pa.DataType) -> pa.DataType:
    """Returns a type that Spark has and that holds every value of another one as it is.

    Moments become text, since Spark cuts them to microseconds.
    """
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return pa.int64()
    if kind in (pa.float32(), pa.float64(), pa.bool_(), pa.binary()):
        return kind
    return pa.float32() if kind == pa.float16() else pa.string()


def _simple(values: pa.Array) -> pa.Array:
    kind = _simple_type(values.type)
    if kind == pa.string() and pa.types.is_nested(values.type):
        return pa.array([None if v is None else str(v) for v in values.to_pylist()], kind)
    return values.cast(kind)


def _spark_schema(kinds: Mapping[str, pa.DataType]) -> Any:
    return _structure({name: _spark_type(kind) for name, kind in kinds.items()})


def _structure(kinds: Mapping[str, Any]) -> Any:
    from pyspark.sql.types import StructField, StructType

    return StructType([StructField(name, kind, True) for name, kind in kinds.items()])


def _spark_type(kind: pa.DataType) -> Any:
    from pyspark.sql.pandas.types import from_arrow_type

    return from_arrow_type(kind)
