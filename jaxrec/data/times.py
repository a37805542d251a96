"""Times of any spelling as UTC nanoseconds, or as the log's own counter.

A column is read in chunks, and its spelling is a property of the whole: `examine` looks at each
chunk, `choose_spelling` decides, and `to_times` converts each chunk accordingly.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute

from jaxrec.typing import UserError

type Spelling = Literal["integers", "whole floats", "seconds", "dates"]

BAD_TIME = np.iinfo(np.int64).min  # what `to_times` makes of a value that is no time

# Largest epoch counter of each unit, the year 5138 in seconds, in milliseconds and so on, and the
# nanoseconds of the unit.
_NANOSECONDS = ((1e11, 10**9), (1e14, 10**6), (1e17, 10**3), (np.inf, 1))
_OLDEST_EPOCH_SECONDS = 1e8  # 1973: smaller numbers count positions, not seconds
_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"


class Examined(NamedTuple):
    """What a chunk of a time column holds.

    Attributes:
      values: how many are not missing.
      not_numbers: how many of these are no numbers.
      integers: whether the numbers are integers.
      whole: whether the numbers have no fractions.
    """

    values: int
    not_numbers: int
    integers: bool
    whole: bool


def examine(values: pd.Series) -> Examined:
    """Looks at a chunk of a column of numbers, texts or dates."""
    numbers, integers = _numbers(values)
    whole = integers or bool((np.floor(numbers) == numbers)[~np.isnan(numbers)].all())
    bad = int(np.count_nonzero(not_numbers(values)))
    return Examined(int(values.notna().sum()), bad, integers, whole)


def not_numbers(values: pd.Series) -> pd.Series:
    """Returns (N,) bool: what is neither missing nor a number."""
    numbers, _ = _numbers(values)
    return pd.Series(np.isnan(numbers) & values.notna().to_numpy(), index=values.index)


def choose_spelling(chunks: Sequence[Examined]) -> Spelling:
    """Returns how to read a column: as dates as soon as one value is no number."""
    chunks = [chunk for chunk in chunks if chunk.values]
    if any(chunk.not_numbers for chunk in chunks):
        return "dates"
    if all(chunk.integers for chunk in chunks):
        return "integers"
    return "whole floats" if all(chunk.whole for chunk in chunks) else "seconds"


def to_times(values: pd.Series, spelling: Spelling) -> pd.Series:
    """Converts a chunk of a time column.

    Integers and whole floats are kept as they are. Numbers with fractions are seconds since 1970.
    Dates, as text or as a date type, become UTC; those without a time zone are taken as UTC.

    Args:
      values: (N,) numbers, dates or texts of either.
      spelling: what `choose_spelling` said of the whole column.

    Returns:
      (N,) Int64: the number for integers and whole floats, nanoseconds since 1970 for the others;
      null where missing; `BAD_TIME` for what is no time between 1678 and 2261 or too large.
    """
    missing = values.isna().to_numpy()
    if spelling == "dates":
        times = _nanoseconds(values)
    else:
        numbers, _ = _numbers(values)
        if numbers.dtype.kind == "i":
            times = numbers if spelling != "seconds" else _rounded(numbers * 1e9)
            if spelling == "whole floats":
                times = _rounded(numbers.astype(np.float64))
        else:
            times = _rounded(numbers * 1e9 if spelling == "seconds" else numbers)
    return pd.Series(pd.arrays.IntegerArray(times, missing), index=values.index)


def parse_moment(moment: str | int, name: str, *, dates: bool, largest: int) -> int:
    """Converts a moment that a user gave to the unit of a log: nanoseconds for dates.

    Args:
      moment: a date such as "2024-01-31", or a number in the unit of the log.
      name: of the option, for errors.
      dates: whether the log's times are dates; otherwise they are its own numbers.
      largest: the largest absolute value of the times, which tells the unit of numbers.

    Raises:
      UserError: when the moment is no date, or is a date and the log only counts.
    """
    text = str(moment)
    if not dates and text.lstrip("-").isdigit():
        return int(text)
    try:
        date = pd.to_datetime(text, utc=True)
    except (ValueError, OverflowError):
        raise UserError(
            f"{name}={text!r} is no date. Write it like 2024-01-31 or 2024-01-31T12:00:00Z."
        ) from None
    if dates:
        return int(date.as_unit("ns").value)
    if largest < _OLDEST_EPOCH_SECONDS:
        raise UserError(
            f"{name}={text!r} is a date, but the times of this log are counters up to "
            f"{largest:.0f}. Give a number in that unit."
        )
    unit = next(unit for limit, unit in _NANOSECONDS if largest < limit)
    return int(date.as_unit("ns").value // unit)


def _numbers(values: pd.Series) -> tuple[np.ndarray, bool]:
    """Returns int64 and True, or float64 with NaN where there is no number, and False."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(values.cat.categories.dtype)
    if pd.api.types.is_datetime64_any_dtype(values.dtype):
        return np.full(len(values), np.nan), False
    if pd.api.types.is_float_dtype(values.dtype):
        return values.to_numpy(np.float64, na_value=np.nan), False
    if not pd.api.types.is_numeric_dtype(values.dtype):
        texts = _arrow_texts(values)
        if (
            texts is not None
            and pa.compute.all(
                pa.compute.match_substring_regex(texts, _INTEGER), min_count=0
            ).as_py()
        ):
            return texts.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False), True
        values = pd.to_numeric(values, errors="coerce")
    if pd.api.types.is_signed_integer_dtype(values.dtype):
        return values.fillna(0).to_numpy(np.int64), True
    return values.to_numpy(np.float64, na_value=np.nan), False


def _arrow_texts(values: pd.Series) -> pa.Array | None:
    if not isinstance(values.dtype, pd.StringDtype):
        return None
    array = pa.array(values, from_pandas=True)
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _rounded(values: np.ndarray) -> np.ndarray:
    fits = np.abs(values) < 2.0**63  # False for NaN
    return np.where(fits, np.round(np.where(fits, values, 0)).astype(np.int64), BAD_TIME)


def _nanoseconds(values: pd.Series) -> np.ndarray:
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(values.cat.categories.dtype)
    utc = pd.to_datetime(values, errors="coerce", utc=True, format="mixed")
    filled = utc.fillna(pd.Timestamp(0, tz="UTC")).dt.tz_localize(None)
    bad = ((filled.dt.year < 1678) | (filled.dt.year > 2261) | utc.isna()).to_numpy()
    kept = filled.mask(bad, pd.Timestamp(0))
    return np.where(bad, BAD_TIME, kept.to_numpy("datetime64[ns]").view(np.int64))
