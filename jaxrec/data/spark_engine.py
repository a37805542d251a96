"""Spark as the engine of a preparation: the log stays on the cluster until it is in order."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
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
from jaxrec.data.readers import MISSING_WORDS, is_parquet, separator_of
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

    def scan(self, paths: Sequence[Path], columns: Mapping[str, str]) -> nw.LazyFrame[Any]:
        frames = [self._file(path, columns, number) for number, path in enumerate(paths)]
        return nw.from_native(reduce(lambda one, other: one.unionByName(other), frames))

    def table(self, frame: pd.DataFrame) -> nw.LazyFrame[Any]:
        return nw.from_native(self.session.createDataFrame(pa.Table.from_pandas(frame)))

    def convert(
        self, frame: nw.LazyFrame[Any], conversions: Mapping[str, Conversion]
    ) -> nw.LazyFrame[Any]:
        native = frame.to_native()
        schema = native.schema
        for name, conversion in conversions.items():
            schema[name].dataType = _spark_type(conversion.type)
            schema[name].nullable = True

        def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            return (convert_batch(batch, conversions) for batch in batches)

        return nw.from_native(native.mapInArrow(work, schema).persist())

    def examine[T](
        self, frame: nw.LazyFrame[Any], column: str, function: Callable[[pd.Series], T]
    ) -> list[T]:
        import pickle

        def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in batches:
                found = pickle.dumps(function(to_series(batch.column(0))))
                yield pa.RecordBatch.from_arrays([pa.array([found], pa.binary())], names=["found"])

        rows = frame.select(column).to_native().mapInArrow(work, "found binary").collect()
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

    def _file(self, path: Path, columns: Mapping[str, str], number: int) -> Any:
        from pyspark.sql import functions as f

        where = path.resolve().as_uri()
        quoted = {role: f"`{name.replace('`', '``')}`" for role, name in columns.items()}
        if is_parquet(path):
            frame = self.session.read.parquet(where)
            row = f.col("_metadata.row_index")
            chosen = [f.col(name).alias(role) for role, name in quoted.items()]
        else:
            frame = self.session.read.csv(
                where,
                header=True,
                sep=separator_of(path),
                multiLine=True,
                escape='"',
                mode="FAILFAST",
            )
            row = f.monotonically_increasing_id()  # text that may hold line ends is one partition
            words = list(MISSING_WORDS)
            chosen = [
                f.when(~f.col(name).isin(words), f.col(name)).alias(role)
                for role, name in quoted.items()
            ]
        return frame.select(*chosen, (row + f.lit(number * ROWS_OF_A_FILE)).alias("row"))


def _spark_type(kind: pa.DataType) -> Any:
    from pyspark.sql.pandas.types import from_arrow_type

    return from_arrow_type(kind)
