"""Times of any spelling as UTC nanoseconds, or as the log's own counter.

A column is read in chunks, and how to read it is a property of the whole: `examine` looks at each
chunk, `choose_reading` decides for all chunks and files, and `time_columns` converts each chunk.
Whatever is a date or counts from 1970 becomes nanoseconds; small whole numbers stay as they are.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jaxrec.data.dates import BAD_TIME, are_days, read_dates
from jaxrec.data.spelling import Column
from jaxrec.data.time_values import NUMBER, Distinct, distinct, scaled
from jaxrec.typing import UserError

# From which absolute number on a column counts in a unit, and the nanoseconds of that unit. In
# seconds, 1e8 is the year 1973 and 1e11 the year 5138.
_UNITS = {"counter": (0.0, 1), "s": (1e8, 10**9), "ms": (1e11, 10**6), "us": (1e14, 10**3)}
UNITS = _UNITS | {"ns": (1e17, 1)}
TIME_UNITS = ("auto", "s", "ms", "us", "ns", "counter")
MEANING = {
    "s": "seconds since 1970",
    "ms": "milliseconds since 1970",
    "us": "microseconds since 1970",
    "ns": "nanoseconds since 1970",
    "counter": "whole numbers of the log's own",
    "dates": "dates (as text or of a date type)",
    "row": "the order of the rows",
}


class Reading(NamedTuple):
    """How a column of times is read.

    Attributes:
      source: a unit of numbers, "dates" or "counter".
      day_first: of dates such as 28/01/2024; None where there are none.
      note: what to say of it in the report, or "".
    """

    source: str
    day_first: bool | None = None
    note: str = ""

    @property
    def unit(self) -> str:
        """The unit of what comes out: "counter" or "ns"."""
        return "counter" if self.source == "counter" else "ns"


class Example(NamedTuple):
    """The first value of a kind.

    Attributes:
      row: where it is.
      text: what it is.
    """

    row: int
    text: str


type Seen = dict[str, Example]


def examine(values: Column, rows: np.ndarray, words: Collection[str] = ()) -> Seen:
    """Returns what kinds of values a chunk of a column holds.

    Args:
      values: (N,) numbers, texts or dates.
      rows: (N,) int64, where each is in the source.
      words: texts that stand for a missing time.

    Returns:
      The kinds that occur: "counter", "s", "ms", "us", "ns" of numbers by their magnitude,
      "fraction" and "no day" of some of them; "date" and of these "day first", "month first" and
      "either"; "bad" for what is none.
    """
    column = distinct(values, words)
    if column.moments is not None:
        return _found({"date": ~column.missing}, column, rows)
    kinds: dict[str, np.ndarray] = {}
    number, size = column.is_number, np.abs(column.whole.astype(np.float64))
    lows = np.array([low for low, _ in UNITS.values()])
    places = np.searchsorted(lows, size, side="right") - 1
    for place, unit in enumerate(UNITS):
        kinds[unit] = number & (places == place)
    kinds["fraction"] = number & (places == 0) & (column.fraction != 0)
    kinds["no day"] = number & ~((column.fraction == 0) & are_days(column.whole))
    texts = ~number & ~column.missing
    if texts.any():
        where = np.flatnonzero(texts)
        times, days, months = read_dates(column.texts.take(pa.array(where)))
        # A date outside of the years that nanoseconds reach is "bad" too.
        marks = {"date": times != BAD_TIME, "bad": times == BAD_TIME}
        marks |= {"day first": days & ~months, "month first": months & ~days}
        marks["either"] = days & months
        marks["date"] |= days | months
        marks["bad"] &= ~(days | months)
        for kind, mark in marks.items():
            kinds[kind] = np.zeros(len(texts), bool)
            kinds[kind][where] = mark
    return _found(kinds, column, rows)


def choose_reading(
    chunks: Sequence[Seen],
    *,
    name: str,
    place: Callable[[int], str],
    time_unit: str = "auto",
    day_first: bool | None = None,
    before: bool | None = None,
) -> Reading:
    """Decides how to read a column.

    Args:
      chunks: what `examine` said of each.
      name: of the column, for errors.
      place: from a row to words such as "row 3 of a.csv".
      time_unit: one of `TIME_UNITS`.
      day_first: what the user said of dates such as 05/02/2024.
      before: how they were read in the dataset that this log is added to.

    Raises:
      UserError: for a value that is no time, numbers of two magnitudes, numbers among dates, dates
        that fit two readings or contradict each other.
    """
    seen = _merged(chunks)

    def at(kind: str) -> str:
        return f"{seen[kind].text!r} in {place(seen[kind].row)}"

    if "bad" in seen:
        text = seen["bad"].text
        raise UserError(
            f"the time column {name!r} holds {at('bad')} (header not counted), which is neither a "
            f"number nor a date between 1678 and 2261.{_advice(text)} Correct that row, or remove "
            "it."
        )
    units = [unit for unit in UNITS if unit in seen]
    if time_unit != "auto":
        if "date" in seen:
            raise UserError(
                f"the time column {name!r} holds the date {at('date')}, and time_unit={time_unit} "
                "is for numbers. Leave time_unit out."
            )
        if time_unit == "counter" and "fraction" in seen:
            raise UserError(
                f"the time column {name!r} holds {at('fraction')}, and a counter has no fractions. "
                "Say the unit, such as time_unit=s."
            )
        return Reading(time_unit)
    all_days = bool(units) and "no day" not in seen
    if "date" in seen:
        if units and not all_days:
            raise UserError(
                f"the time column {name!r} holds the date {at('date')} and the number "
                f"{at('no day')} (header not counted). Write all times alike."
            )
        return Reading("dates", _day_first(seen, name, at, day_first, before))
    if all_days:
        note = f"times such as {at(units[0])} are taken for calendar days, not for numbers"
        return Reading("dates", None, f"{note} (time_unit=counter takes them as numbers)")
    if len(units) > 1:
        one, other = (f"{at(unit)} ({MEANING[unit]})" for unit in units[:2])
        raise UserError(
            f"the time column {name!r} holds numbers of two magnitudes: {one} and {other} (header "
            "not counted). Correct the ones that are wrong, or say what all of them are: "
            f"time_unit={units[1]}, or another of {', '.join(TIME_UNITS[1:])}."
        )
    if "fraction" in seen:
        note = f"times such as {at('fraction')} have fractions and are taken for {MEANING['s']}"
        return Reading("s", None, note)
    return Reading(units[0] if units else "counter")


def time_columns(
    values: Column, reading: Reading, words: Collection[str] = ()
) -> tuple[pa.Array, pa.Array]:
    """Converts a chunk of a time column.

    Args:
      values: (N,) numbers, dates or texts of either.
      reading: what `choose_reading` said of the whole column.
      words: texts that stand for a missing time.

    Returns:
      (N,) int64: nanoseconds since 1970, or the number itself for "counter"; null where missing;
      `BAD_TIME` for what is no time. And (N,) text: a missing word after `WORD`, null otherwise.
    """
    column = distinct(values, words)
    if column.moments is not None:
        times = column.moments
    elif reading.source == "dates":
        days = pa.array(column.whole).cast(pa.string())  # of 20240131.0, too
        texts = pc.if_else(pa.array(column.is_number), days, column.texts)
        times = read_dates(texts, day_first=reading.day_first)[0]
    else:
        times = scaled(column.whole, column.fraction, UNITS[reading.source][1])
        times[~column.is_number] = BAD_TIME
    found = pa.array(times, mask=column.missing)
    return column.spread(found), column.spread(column.words)


def parse_moment(
    moment: str | int | float,
    name: str,
    *,
    unit: str,
    time_unit: str = "auto",
    day_first: bool | None = None,
    largest: int = 0,
) -> int:
    """Converts a moment that a user gave to the unit of a log, by the rules of its times.

    Args:
      moment: a date such as "2024-01-31", a year such as "2024", or a number.
      name: of the option, for errors.
      unit: of the log, "ns" or "counter".
      time_unit: what the user said of the log's numbers.
      day_first: what the user said of dates such as 05/02/2024.
      largest: the largest absolute value of the times.

    Raises:
      UserError: when the moment is no date, or one that can be read in two ways; when it is a date
        and the log only counts, or counts and the log has dates.
    """
    text = str(moment).strip()
    number = re.fullmatch(NUMBER, text)
    seen = examine(pa.array([text]), np.zeros(1, np.int64))
    kind = next((kind for kind in UNITS if kind in seen), "date")
    counts = time_unit in ("auto", "counter") and kind == "counter" and "fraction" not in seen
    if unit == "counter":
        if number and (time_unit == "counter" or counts or largest >= UNITS["s"][0]):
            return int(float(text)) if not text.lstrip("+-").isdigit() else int(text)
        if "bad" not in seen:
            raise UserError(
                f"{name}={text!r} is a date or a time since 1970, but the times of this log are "
                f"counters up to {largest:.0f}. Give a number in that unit."
            )
    if unit == "ns" and re.fullmatch(r"\d{4}", text) and time_unit == "auto":
        text, number = f"{text}-01-01", None
    reading = Reading("dates", day_first)
    if number and "no day" in seen:
        if counts:
            raise UserError(
                f"{name}={text!r} is a small number, but the times of this log are dates. Write it "
                "like 2024-01-31 or 2024-01-31T12:00:00Z."
            )
        reading = Reading(kind if time_unit == "auto" else time_unit)
    if "either" in seen and day_first is None:
        raise UserError(
            f"{name}={text!r} can be read with the day or with the month first. Write it like "
            "2024-01-31, or say day_first=true or false."
        )
    (found,) = time_columns(pa.array([text]), reading)[0].to_pylist()
    if found == BAD_TIME or found is None:
        raise UserError(
            f"{name}={text!r} is no date. Write it like 2024-01-31 or 2024-01-31T12:00:00Z."
        )
    return int(found)


def _found(kinds: Mapping[str, np.ndarray], column: Distinct, rows: np.ndarray) -> Seen:
    """Finds the first value of each kind among distinct values."""
    if not len(column.missing):
        return {}
    first = None
    if column.codes is not None:
        codes = column.codes.fill_null(len(column.missing)).to_numpy(zero_copy_only=False)
        first = np.full(len(column.missing) + 1, np.iinfo(np.int64).max)
        np.minimum.at(first, codes, rows)
        first = first[:-1]
    seen = {}
    for kind, mark in kinds.items():
        where = np.flatnonzero(mark)
        if len(where):
            places = rows[where] if first is None else first[where]
            at = where[int(np.argmin(places))]
            text = str(column.texts[int(at)].as_py())
            seen[kind] = Example(int(places.min()), text)
    return seen


def _merged(chunks: Sequence[Seen]) -> Seen:
    whole: Seen = {}
    for chunk in chunks:
        for kind, example in chunk.items():
            whole[kind] = min(whole.get(kind, example), example, key=lambda one: one.row)
    return whole


def _day_first(
    seen: Seen,
    name: str,
    at: Callable[[str], str],
    told: bool | None,
    before: bool | None,
) -> bool | None:
    if not {"day first", "month first", "either"} & seen.keys():
        return told
    wrong = {True: "month first", False: "day first"}
    if told is not None:
        if wrong[told] in seen:
            raise UserError(
                f"the time column {name!r} holds {at(wrong[told])} (header not counted), which "
                f"day_first={str(told).lower()} does not allow. Correct that row, or the option."
            )
        return told
    if "day first" in seen and "month first" in seen:
        raise UserError(
            f"the time column {name!r} holds {at('day first')}, which has the day first, and "
            f"{at('month first')}, which has the month first (header not counted). Write all dates "
            "alike, best as 2024-01-31."
        )
    if "day first" in seen or "month first" in seen:
        return "day first" in seen
    if before is not None:
        return before
    raise UserError(
        f"the time column {name!r} holds {at('either')} (header not counted), and all of its dates "
        "can be read with the day or with the month first. Say which: day_first=true or "
        "day_first=false."
    )


def _advice(text: str) -> str:
    if re.fullmatch(r"\d{1,2}[-/.]\d{1,2}[-/.]\d{2}(\D.*)?", text):
        return " Years need four digits."
    if re.fullmatch(r"\d{1,2}:\d{2}.*", text):
        return " A time of day needs its date."
    return ""
