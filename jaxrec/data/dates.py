"""Dates as text: which spellings there are, and what moment each one is.

A date is read from what is written alone. A time of day without a date, "now" or the name of a
month are no dates: nothing comes from the clock. 28/01/2024 and 01/28/2024 are told apart by the
whole column and not by the value; see `jaxrec.data.times`.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

BAD_TIME = np.iinfo(np.int64).min  # what is no time

_ZONE = r"(?P<z>Z|z|UTC|GMT|(?:UTC|GMT)?[+-]\d{2}(?::?\d{2})?)?"
_CLOCK = (
    r"(?:(?:T|,?\s+)(?P<h>\d{1,2})(?::(?P<mi>\d{2})(?::(?P<s>\d{2})(?:[.,](?P<f>\d{1,9}))?)?)?"
    rf"\s*(?P<ap>[AaPp][Mm])?\s*{_ZONE})?$"
)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = rf"(?P<mon>(?i:{'|'.join(_MONTHS)}))[A-Za-z]*"
_WEEKDAY = r"(?:(?i:mon|tue|wed|thu|fri|sat|sun)[A-Za-z]*,?\s+)?"
_SPELLINGS = (
    rf"^(?P<y>\d{{4}})(?P<sep>[-/.])(?P<m>\d{{1,2}})(?:[-/.](?P<d>\d{{1,2}}))?{_CLOCK}",
    r"^(?P<y>(?:19|20)\d{2})(?P<m>\d{2})(?P<d>\d{2})"
    rf"(?:T?(?P<h>\d{{2}})(?:(?P<mi>\d{{2}})(?P<s>\d{{2}})?)?{_ZONE})?$",
    rf"^(?P<y>(?:19|20)\d{{2}})(?P<m>\d{{2}})(?P<d>\d{{2}}){_CLOCK}",
    rf"^(?P<one>\d{{1,2}})(?P<sep>[-/.])(?P<two>\d{{1,2}})[-/.](?P<y>\d{{4}}){_CLOCK}",
    rf"^{_WEEKDAY}(?P<d>\d{{1,2}})(?:st|nd|rd|th)?[-/. ]+{_MONTH}[-/., ]+(?P<y>\d{{4}}){_CLOCK}",
    rf"^{_WEEKDAY}{_MONTH}[-/. ]+(?P<d>\d{{1,2}})(?:st|nd|rd|th)?[-/., ]+(?P<y>\d{{4}}){_CLOCK}",
    rf"^{_WEEKDAY}{_MONTH}\s+(?P<d>\d{{1,2}})\s+(?P<h>\d{{1,2}}):(?P<mi>\d{{2}}):(?P<s>\d{{2}})\s+"
    r"(?:(?P<z>[+-]\d{4}|UTC|GMT)\s+)?(?P<y>\d{4})$",
)
_PLAIN = r"^\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?(?:Z|[+-]\d{2}:?\d{2})?)?$"
_ONE_DAY = 86_400


def read_dates(
    texts: pa.Array, *, day_first: bool | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads dates.

    Args:
      texts: (N,) without spaces around them.
      day_first: whether 05/02/2024 is 5 February; None takes the only reading there is, or the
        day first where there are two.

    Returns:
      (N,) int64 nanoseconds since 1970, UTC unless the text says a zone, and `BAD_TIME` for what is
      no date between 1678 and 2261; (N,) bool, whether the day must come first; and (N,) bool,
      whether the month must. Both are true for a date that can be read either way as another day.
    """
    times = np.full(len(texts), BAD_TIME)
    days, months = np.zeros(len(texts), bool), np.zeros(len(texts), bool)
    plain = _matches(texts, _PLAIN)
    if plain.any():
        times[plain] = nanoseconds(pd.Series(texts.filter(pa.array(plain)).to_pandas()))
    left = np.flatnonzero(~plain)
    for spelling in _SPELLINGS:
        if not len(left):
            break
        found = pc.extract_regex(texts.take(pa.array(left)), spelling)
        matched = np.asarray(found.is_valid())
        if not matched.any():
            continue
        where, left = left[matched], left[~matched]
        struct = found.filter(pa.array(matched))
        groups = {field.name: struct.field(field.name) for field in struct.type}
        if "one" in groups:
            one, two = _number(groups["one"]), _number(groups["two"])
            days[where] = (one <= 31) & (two <= 12) & (one != two)
            months[where] = (one <= 12) & (two <= 31) & (one != two)
            first = days[where] if day_first is None else np.full(len(one), day_first)
            fields = {"d": np.where(first, one, two), "m": np.where(first, two, one)}
            times[where] = _moments(groups, fields)
        else:
            times[where] = _moments(groups, {})
    return times, days, months


def nanoseconds(values: pd.Series) -> np.ndarray:
    """Returns (N,) int64 of moments of a date type or of texts in ISO 8601; else `BAD_TIME`."""
    utc = pd.to_datetime(values, errors="coerce", utc=True, format="ISO8601")
    filled = utc.fillna(pd.Timestamp(0, tz="UTC")).dt.tz_localize(None)
    bad = ((filled.dt.year < 1678) | (filled.dt.year > 2261) | utc.isna()).to_numpy()
    kept = filled.mask(bad, pd.Timestamp(0))
    return np.where(bad, BAD_TIME, kept.to_numpy("datetime64[ns]").view(np.int64))


def are_days(numbers: np.ndarray) -> np.ndarray:
    """Returns (N,) bool: which integers are a calendar day, 20240131, or with a time behind it.

    Args:
      numbers: (N,) int64. Years are 1900 to 2099; 8, 10, 12 or 14 digits, down to the second.
    """
    found = np.zeros(len(numbers), bool)
    for digits in (8, 10, 12, 14):
        fits = (numbers >= 10 ** (digits - 1)) & (numbers < 10**digits)
        if not fits.any():
            continue
        rest, parts = numbers[fits], []
        for _ in range((digits - 8) // 2):
            parts.append(rest % 100)
            rest = rest // 100
        day, month, year = rest % 100, rest // 100 % 100, rest // 10_000
        right = (year >= 1900) & (year <= 2099) & _is_day(year, month, day)
        for part, end in zip(reversed(parts), (24, 60, 60), strict=False):
            right &= part < end
        found[fits] = right
    return found


def _matches(texts: pa.Array, pattern: str) -> np.ndarray:
    found = pc.match_substring_regex(texts, pattern).fill_null(False)
    return np.asarray(found.to_numpy(zero_copy_only=False), bool)


def _number(texts: pa.Array) -> np.ndarray:
    """Returns int64 of digits, 0 of nothing."""
    filled = pc.if_else(pc.equal(texts, ""), "0", texts).fill_null("0")
    return filled.cast(pa.int64()).to_numpy(zero_copy_only=False)


def _is_day(year: np.ndarray, month: np.ndarray, day: np.ndarray) -> np.ndarray:
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    lengths = np.array([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])
    inside = (month >= 1) & (month <= 12)
    length = lengths[np.where(inside, month, 0)] + (leap & (month == 2))
    return inside & (day >= 1) & (day <= length)


def _moments(groups: Mapping[str, pa.Array], fields: Mapping[str, np.ndarray]) -> np.ndarray:
    """Puts the parts of dates together; what is no moment becomes `BAD_TIME`."""
    year = _number(groups["y"])
    zero = np.zeros(len(year), np.int64)

    def part(name: str) -> np.ndarray:
        if name in fields:
            return fields[name]
        return _number(groups[name]) if name in groups else zero

    day, month = part("d"), part("m")
    if "mon" in groups:
        names = pc.utf8_lower(groups["mon"])
        month = pc.index_in(names, pa.array(_MONTHS)).to_numpy(zero_copy_only=False) + 1
    elif "d" in groups:
        day = np.where(np.asarray(pc.equal(groups["d"], "")), 1, day)  # "2024-01"
    hour, minute, second = part("h"), part("mi"), part("s")
    good = _is_day(year, month, day) & (year >= 1678) & (year <= 2261)
    if "ap" in groups:
        half = np.asarray(pc.utf8_lower(groups["ap"]).to_pylist(), object)
        halves = half != ""
        good &= ~halves | ((hour >= 1) & (hour <= 12))
        hour = np.where(halves, hour % 12 + 12 * (half == "pm"), hour)
    good &= (hour < 24) & (minute < 60) & (second < 60)
    shift = _offsets(groups["z"]) if "z" in groups else zero
    fraction = zero
    if "f" in groups:
        fraction = _number(pc.utf8_rpad(groups["f"], 9, "0"))
    since = (np.where(good, year, 1970) - 1970) * 12 + np.where(good, month, 1) - 1
    first = since.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
    seconds = (first + day - 1) * _ONE_DAY + hour * 3600 + minute * 60 + second - shift
    return np.where(good, np.where(good, seconds, 0) * 10**9 + fraction, BAD_TIME)


def _offsets(zones: pa.Array) -> np.ndarray:
    """Returns seconds east of Greenwich."""
    parts = pc.extract_regex(zones, r"(?P<sign>[+-])(?P<h>\d{2}):?(?P<m>\d{2})?$")
    found = np.zeros(len(zones), np.int64)
    some = np.asarray(parts.is_valid())
    if some.any():
        struct = parts.filter(pa.array(some))
        size = _number(struct.field("h")) * 3600 + _number(struct.field("m")) * 60
        found[some] = np.where(np.asarray(pc.equal(struct.field("sign"), "-")), -size, size)
    return found
