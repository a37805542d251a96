"""Columns of ids: `jaxrec.ids.id_text` over a whole column, and the words that stand for nothing.

A column is a series of pandas or an array of Arrow, of any type. Distinct values are spelled once,
and those that need no change are told by one look at all of them; what comes out is what `id_text`
says of each value alone.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from jaxrec.ids import id_text
from jaxrec.typing import UserError

type Column = pd.Series | pa.Array

# What `_raw` columns begin with, where a value was not taken as it is.
WORD, RESPELLED, REFUSED = "w", "s", "x"
# All that Python's `str.strip` takes away; \s of the regular expressions here is ASCII alone.
_SPACE = (
    r"[\s\x0b\x1c-\x1f\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}"
    r"\x{3000}]"
)
_NOT_PLAIN = rf"^{_SPACE}|{_SPACE}$|\.0+{_SPACE}*$|\x00|^$"
_EXACT = 2.0**53


def id_columns(values: Column, words: Collection[str] = ()) -> tuple[pa.Array, pa.Array]:
    """Spells a column of ids.

    Args:
      values: (N,) of any type.
      words: texts that stand for a missing id.

    Returns:
      (N,) the ids as text, null where missing or refused; and (N,) what was not taken as it is: a
      missing word after `WORD`, another spelling of an id after `RESPELLED`, `REFUSED` for what is
      no id, null for all others.
    """
    array = as_array(values)
    if array is None:
        return _one_by_one(list(values), words)
    if not pa.types.is_dictionary(array.type):
        if pa.types.is_integer(array.type):
            return _marked(array, array.cast(pa.string()), words)
        if not _has_uniques(array.type):
            return _one_by_one(array.to_pylist(), words)
        array = array.dictionary_encode()
    ids, raw = _unique_ids(array.dictionary, words)
    return ids.take(array.indices), raw.take(array.indices)


def as_array(values: Column) -> pa.Array | None:
    """Returns a column as one array of Arrow, NaN as null; None when it mixes types."""
    if isinstance(values, pa.ChunkedArray):
        return values.combine_chunks()
    if isinstance(values, pa.Array):
        return values
    if values.dtype == object and pd.api.types.infer_dtype(values) not in ("string", "empty"):
        return None
    try:
        array = pa.array(values, from_pandas=True)
    except (pa.ArrowException, UnicodeEncodeError, TypeError, ValueError):
        return None
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def is_text(kind: pa.DataType) -> bool:
    """Whether a type of Arrow holds texts."""
    return (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a type of Arrow holds bytes."""
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def is_missing(value: object) -> bool:
    """Whether a single value says nothing: None, NaN, NaT, NA."""
    if value is None or value is pd.NA or value is pd.NaT:
        return True
    return isinstance(value, float | np.floating) and bool(np.isnan(value))


def _has_uniques(kind: pa.DataType) -> bool:
    return (
        is_text(kind)
        or is_bytes(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_null(kind)
    )


def _unique_ids(uniques: pa.Array, words: Collection[str]) -> tuple[pa.Array, pa.Array]:
    kind = uniques.type
    if pa.types.is_integer(kind):
        return _marked(uniques, uniques.cast(pa.string()), words)
    if pa.types.is_null(kind):
        nothing = pa.nulls(len(uniques), pa.string())
        return nothing, nothing
    if pa.types.is_floating(kind):
        numbers = uniques.cast(pa.float64()).to_numpy(zero_copy_only=False)
        if ((numbers == np.floor(numbers)) & (np.abs(numbers) < _EXACT)).all():
            return _marked(uniques, pa.array(numbers.astype(np.int64)).cast(pa.string()), words)
        return _one_by_one(list(uniques.to_numpy(zero_copy_only=False)), words)
    if is_bytes(kind):
        try:
            uniques = uniques.cast(pa.binary()).cast(pa.string())
        except pa.ArrowInvalid:
            return _one_by_one(uniques.to_pylist(), words)
    if not is_text(uniques.type):
        return _one_by_one(uniques.to_pylist(), words)
    texts = uniques.cast(pa.large_string())
    odd = pc.match_substring_regex(texts, _NOT_PLAIN).fill_null(False)
    if not pc.any(odd, min_count=0).as_py():
        return _marked(texts, uniques.cast(pa.string()), words)
    changed, raw = _one_by_one(texts.filter(odd).to_pylist(), words)
    ids, marks = _marked(texts, uniques.cast(pa.string()), words)
    return pc.replace_with_mask(ids, odd, changed), pc.replace_with_mask(marks, odd, raw)


def _marked(values: pa.Array, ids: pa.Array, words: Collection[str]) -> tuple[pa.Array, pa.Array]:
    """Takes the words out of ids that are spelled already."""
    nothing = pa.nulls(len(ids), pa.string())
    if not words:
        return ids, nothing
    marked = pc.is_in(ids, pa.array(sorted(words), pa.string()))
    if not pc.any(marked, min_count=0).as_py():
        return ids, nothing
    raw = pc.binary_join_element_wise(WORD, ids, "")
    return pc.if_else(marked, None, ids), pc.if_else(marked, raw, None)


def _one_by_one(values: Sequence[Any], words: Collection[str]) -> tuple[pa.Array, pa.Array]:
    known: dict[tuple[type, Any], tuple[str | None, str | None]] = {}
    found = []
    for value in values:
        try:
            key = (type(value), value)
            if key not in known:
                known[key] = _spell(value, words)
            found.append(known[key])
        except TypeError:  # what has no hash is no id either
            found.append((None, REFUSED))
    ids, raw = zip(*found, strict=True) if found else ((), ())
    return pa.array(ids, pa.string()), pa.array(raw, pa.string())


def _spell(value: Any, words: Collection[str]) -> tuple[str | None, str | None]:
    if is_missing(value):
        return None, None
    try:
        text = id_text(value)
    except UserError:
        return None, REFUSED
    if text is not None and text in words:
        return None, WORD + text
    if isinstance(value, bytes | bytearray):
        value = value.decode()
    # A number is spelled by its type, and not otherwise.
    other = text is not None and isinstance(value, str) and value != text
    return text, RESPELLED + value if other else None


def refused(values: Iterable[Any]) -> UserError | None:
    """Returns what `id_text` says of the first value that is no id."""
    for value in values:
        if is_missing(value):
            continue
        try:
            id_text(value)
        except UserError as error:
            return error
    return None
