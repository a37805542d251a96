"""The values of a chunk of times, each once: texts, numbers as exact parts, or moments."""

import re
from collections.abc import Collection
from decimal import Decimal
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jaxrec.data.dates import BAD_TIME
from jaxrec.data.spelling import WORD, Column, as_array, is_bytes, is_missing, is_text

NUMBER = r"^[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?$"
_INTEGER = r"^[+-]?\d{1,18}$"
_TICKS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}


class Distinct(NamedTuple):
    """The distinct values of a chunk, U of them, and where they are.

    Attributes:
      codes: (N,) indices of values, or None for each value in its place.
      missing: (U,) bool.
      words: (U,) text: marked missing words, null otherwise.
      texts: (U,) of values that are texts or numbers.
      is_number, whole, fraction: (U,) the numbers, as int64 and what is left, in [0, 1).
      moments: (U,) int64 nanoseconds of a date type; the other fields are empty then.
    """

    codes: pa.Array | None
    missing: np.ndarray
    words: pa.Array
    texts: pa.Array
    is_number: np.ndarray
    whole: np.ndarray
    fraction: np.ndarray
    moments: np.ndarray | None = None

    def spread(self, values: pa.Array) -> pa.Array:
        """Returns (N,) of (U,)."""
        return values if self.codes is None else values.take(self.codes)


def distinct(values: Column, words: Collection[str]) -> Distinct:
    """Returns the distinct values of a chunk of numbers, texts or dates.

    Args:
      values: (N,) of any type.
      words: texts that stand for a missing time.
    """
    array = as_array(values)
    if array is None:
        array = pa.array([_text(value) for value in values], pa.string())
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    kind = array.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _of_dates(array)
    if pa.types.is_integer(kind) or (pa.types.is_floating(kind)):
        return _of_numbers(array, words)
    if is_bytes(kind):
        texts = [None if v is None else v.decode(errors="replace") for v in array.to_pylist()]
        array = pa.array(texts, pa.string())
    elif not is_text(kind):
        array = pa.array([_text(value) for value in array.to_pylist()], pa.string())
    encoded = array.cast(pa.large_string()).dictionary_encode()
    texts = pc.utf8_trim_whitespace(encoded.dictionary).cast(pa.string())
    is_word = pc.is_in(texts, pa.array(sorted(words), pa.string()))
    marked = pc.if_else(is_word, pc.binary_join_element_wise(WORD, texts, ""), None)
    nothing = pc.or_(pc.or_(is_word, pc.equal(texts, "")), texts.is_null()).fill_null(True)
    missing = np.asarray(nothing.to_numpy(zero_copy_only=False), bool)
    number = _mask(pc.match_substring_regex(texts, NUMBER)) & ~missing
    whole, fraction = np.zeros(len(texts), np.int64), np.zeros(len(texts))
    exact = number & _mask(pc.match_substring_regex(texts, _INTEGER))
    plain = pc.utf8_ltrim(texts, "+")
    whole[exact] = plain.filter(pa.array(exact)).cast(pa.int64()).to_numpy()
    rest = np.flatnonzero(number & ~exact)
    for place, text in zip(rest, plain.take(pa.array(rest)).to_pylist(), strict=True):
        whole[place], fraction[place] = _parts(text)
    return Distinct(encoded.indices, missing, marked, texts, number, whole, fraction)


def _of_numbers(array: pa.Array, words: Collection[str]) -> Distinct:
    missing = np.asarray(array.is_null(nan_is_null=True))
    if pa.types.is_integer(array.type) and array.type != pa.uint64():
        whole = array.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
        fraction, number = np.zeros(len(whole)), ~missing
    else:
        floats = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        floats = np.where(missing, 0.0, floats)
        number = ~missing & (np.abs(floats) < 2.0**63)
        floor = np.floor(np.where(number, floats, 0.0))
        whole, fraction = floor.astype(np.int64), np.where(number, floats - floor, 0.0)
        if array.type == pa.uint64():
            exact = pc.if_else(pa.array(number), array, 0).cast(pa.int64())
            whole = exact.to_numpy(zero_copy_only=False)
    marks = pa.nulls(len(whole), pa.string())
    numeric = {float(word): word for word in words if re.fullmatch(NUMBER, word)}
    for value, word in numeric.items():
        here = number & (whole + fraction == value)
        marks = pc.if_else(pa.array(here), WORD + word, marks)
        number, missing = number & ~here, missing | here
    return Distinct(None, missing, marks, array.cast(pa.string()), number, whole, fraction)


def _of_dates(array: pa.Array) -> Distinct:
    if not pa.types.is_timestamp(array.type):
        array = array.cast(pa.timestamp("ms"))
    missing = np.asarray(array.is_null())
    ticks = array.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    times = scaled(ticks, np.zeros(len(ticks)), _TICKS[array.type.unit])
    empty, none = pa.nulls(len(ticks), pa.string()), np.zeros(0, np.int64)
    return Distinct(None, missing, empty, array, none, none, none, times)


def scaled(whole: np.ndarray, fraction: np.ndarray, factor: int) -> np.ndarray:
    """Returns whole numbers and fractions in units of 1 / factor; `BAD_TIME` beyond int64."""
    fits = np.abs(whole.astype(np.float64)) < 2.0**63 / factor
    scaled = np.where(fits, whole, 0) * np.int64(factor)
    scaled += np.rint(fraction * factor).astype(np.int64) if factor > 1 else 0
    return np.where(fits, scaled, BAD_TIME)


def _parts(text: str) -> tuple[int, float]:
    """Returns a number of decimal digits as a whole number and a fraction."""
    number = Decimal(text)
    if abs(number) >= 2**63:
        return np.iinfo(np.int64).max, 0.0
    whole = int(number // 1) - (number < 0 and number % 1 != 0)
    return whole, float(number - whole)


def _text(value: object) -> str | None:
    """Returns the text of one value of a column that mixes types, as a file would hold it."""
    if is_missing(value):
        return None
    if isinstance(value, bytes | bytearray):
        return value.decode(errors="replace")
    return str(value)


def _mask(values: pa.Array) -> np.ndarray:
    return np.asarray(values.fill_null(False).to_numpy(zero_copy_only=False), bool)
