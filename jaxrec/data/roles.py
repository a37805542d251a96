"""Columns of a log that have no role: what the report says, and whether one is the times."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from jaxrec.data.readers import File, ParquetFile
from jaxrec.data.report import sample
from jaxrec.data.spelling import Column
from jaxrec.data.times import UNITS, examine
from jaxrec.typing import UserError

_ROWS = 1000  # that are looked at
_INDEX = re.compile(r"__index_level_\d+__")  # what pandas adds to a Parquet file
_TIME_NAMES = {
    *("time", "times", "timestamp", "timestamps", "ts", "date", "dates", "datetime", "t", "when"),
    *("created", "updated", "modified", "occurred", "unixtime", "epoch"),
}
_ID_NAMES = {"id", "ids", "key", "code", "uid", "hash", "number", "no", "count", "zip", "phone"}
_YEARS = (10**9, 2 * 10**9)  # 2001 to 2033, in seconds: of these, numbers of ids are rare


def unused_columns(names: Sequence[str], columns: Mapping[str, str]) -> list[str]:
    """Returns the columns of a log that no role names."""
    return [name for name in names if name not in columns.values() and not _INDEX.fullmatch(name)]


def note_unused(unused: Sequence[str], count: int) -> list[str]:
    """Returns what the report says of columns without a role."""
    if not unused:
        return []
    return [f"columns without a role, {len(unused)} of {count}: {sample(list(unused))}"]


def check_no_times(log: pd.DataFrame | Sequence[File], unused: Sequence[str]) -> None:
    """Raises UserError when a column without a role looks like times.

    It is called for a log whose rows are taken to be in time order. A column looks so by its name,
    if its values can be times, or by values that are dates or numbers of seconds, milliseconds and
    so on in this century.
    """
    for name in unused:
        values = _first_rows(log, name)
        text = _time_in(name, values)
        if text is not None:
            raise UserError(
                f"the column {name!r} looks like times (such as {text!r}), and time_column was not "
                f"given. Say time_column={name}, or rows_in_time_order=true if the rows are in "
                "time order already."
            )


def _first_rows(log: pd.DataFrame | Sequence[File], name: str) -> Column:
    if isinstance(log, pd.DataFrame):
        return log.iloc[:_ROWS, [str(column) for column in log].index(name)]
    file = log[0]
    if isinstance(file, ParquetFile):
        batches = file.batches([name], rows=_ROWS)
    else:
        batches = file.batches([name])
    first = next(iter(batches), None)
    return pa.array([], pa.string()) if first is None else first.column(0).slice(0, _ROWS)


def _time_in(name: str, values: Column) -> str | None:
    """Returns an example when a column looks like times."""
    if isinstance(values, pa.Array) and (
        pa.types.is_nested(values.type) or pa.types.is_boolean(values.type)
    ):
        return None
    seen = examine(values, np.arange(len(values)), words=("NULL", "null", "NA", "None", "nan"))
    if not seen or "bad" in seen:
        return None
    words = _words(name)
    example = min((one for kind, one in seen.items() if kind != "no day"), key=lambda e: e.row)
    if _TIME_NAMES & words or any(w.endswith(("timestamp", "datetime")) for w in words):
        return example.text
    if name.lower().endswith(("_at", "_on")) and "counter" not in seen:
        return example.text
    numbers = [unit for unit in UNITS if unit in seen]
    if "date" in seen and not numbers:
        return example.text
    if len(numbers) != 1 or numbers[0] == "counter" or _ID_NAMES & words:
        return None
    return example.text if _is_of_this_century(values, UNITS[numbers[0]][1]) else None


def _is_of_this_century(values: Column, factor: int) -> bool:
    """Whether numbers, more than one of them, lie in the years of logs."""
    series = values.to_pandas() if isinstance(values, pa.Array) else values
    numbers = pd.to_numeric(series, errors="coerce").dropna().astype(np.float64)
    low, high = (year * (10**9 // factor) for year in _YEARS)
    return bool(numbers.nunique() > 1 and numbers.between(low, high).all())


def _words(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}
