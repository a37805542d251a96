"""Times of any spelling as UTC nanoseconds, or as the log's own counter."""

import numpy as np
import pandas as pd

from jaxrec.typing import UserError

# Largest epoch counter of each unit, the year 5138 in seconds, in milliseconds and so on, and the
# nanoseconds of the unit.
_NANOSECONDS = ((1e11, 10**9), (1e14, 10**6), (1e17, 10**3), (np.inf, 1))
_OLDEST_EPOCH_SECONDS = 1e8  # 1973: smaller numbers count positions, not seconds


def to_times(values: pd.Series, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Converts a time column.

    Whole numbers are kept as they are. Numbers with fractions are read as seconds since 1970.
    Dates, as text or as a date type, become UTC; those without a time zone are taken as UTC.

    Args:
      values: (N,) numbers, dates or texts of either.
      name: the column's name, for errors.

    Returns:
      (N,) int64 for whole numbers or datetime64[ns] in UTC for the rest, 0 where missing; and (N,)
      bool, True where missing.

    Raises:
      UserError: for a value that is neither, with its row number, counted from 1 without a header.
    """
    missing = values.isna().to_numpy()
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(values.cat.categories.dtype)
    if pd.api.types.is_datetime64_any_dtype(values.dtype):
        return _nanoseconds(values, name), missing
    if pd.api.types.is_integer_dtype(values.dtype):
        return values.fillna(0).to_numpy(np.int64), missing
    if pd.api.types.is_float_dtype(values.dtype):
        return _from_floats(values, values, missing, name), missing
    numbers = pd.to_numeric(values, errors="coerce")
    bad_numbers = numbers.isna().to_numpy() & ~missing
    if not bad_numbers.any():
        exact = pd.api.types.is_integer_dtype(numbers.dtype)
        times = (
            numbers.to_numpy(np.int64) if exact else _from_floats(numbers, values, missing, name)
        )
        return times, missing
    dates = pd.to_datetime(values, errors="coerce", utc=True, format="mixed")
    bad_dates = dates.isna().to_numpy() & ~missing
    if bad_dates.any():
        _refuse(values, bad_dates if bad_dates.sum() < bad_numbers.sum() else bad_numbers, name)
    return _nanoseconds(dates, name), missing


def parse_moment(moment: str | int, times: np.ndarray, name: str) -> int:
    """Converts a moment that a user gave to the unit of `times`: nanoseconds for dates.

    Args:
      moment: a date such as "2024-01-31", or a number in the unit of `times`.
      times: (N,) int64 or datetime64[ns], as `to_times` gives.
      name: of the option, for errors.

    Raises:
      UserError: when the moment is no date, or is a date and `times` only counts.
    """
    text = str(moment)
    dates = times.dtype.kind == "M"
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
    largest = float(np.abs(times).max(initial=0))
    if largest < _OLDEST_EPOCH_SECONDS:
        raise UserError(
            f"{name}={text!r} is a date, but the times of this log are counters up to "
            f"{largest:.0f}. Give a number in that unit."
        )
    unit = next(unit for limit, unit in _NANOSECONDS if largest < limit)
    return int(date.as_unit("ns").value // unit)


def _from_floats(
    numbers: pd.Series, source: pd.Series, missing: np.ndarray, name: str
) -> np.ndarray:
    values = numbers.fillna(0).to_numpy(np.float64)
    _refuse(source, (np.abs(values) >= 2.0**63) & ~missing, name)
    if (values == np.floor(values)).all():
        return values.astype(np.int64)
    nanoseconds = np.round(values * 1e9)
    _refuse(source, (np.abs(nanoseconds) >= 2.0**63) & ~missing, name)
    return nanoseconds.astype(np.int64).view("datetime64[ns]")


def _nanoseconds(dates: pd.Series, name: str) -> np.ndarray:
    utc = pd.to_datetime(dates, utc=True)
    filled = utc.fillna(pd.Timestamp(0, tz="UTC")).dt.tz_localize(None)
    outside = ((filled.dt.year < 1678) | (filled.dt.year > 2261)).to_numpy()
    _refuse(dates, outside, name)
    return filled.to_numpy("datetime64[ns]")


def _refuse(values: pd.Series, bad: np.ndarray, name: str) -> None:
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise UserError(
            f"the time column {name!r} holds {str(values.iloc[row])!r} in row {row + 1} (header "
            "not counted), which is neither a number nor a date between 1678 and 2261. Correct "
            "that row, or remove it."
        )
