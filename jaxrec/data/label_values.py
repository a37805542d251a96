"""Labels of a log as numbers."""

from collections.abc import Collection
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from jaxrec.data.spelling import WORD, Column, as_array, is_text
from jaxrec.data.time_values import NUMBER

_TRUTH = {"true": "1", "True": "1", "TRUE": "1", "false": "0", "False": "0", "FALSE": "0"}


def label_columns(values: Column, words: Collection[str]) -> tuple[pa.Array, pa.Array]:
    """Reads a chunk of labels.

    Args:
      values: (N,) numbers, truth values or texts of either.
      words: texts that stand for a missing label.

    Returns:
      (N,) float64, null where missing and infinite for what is no number; and (N,) text: a missing
      word after `WORD`, null otherwise.
    """
    array = as_array(values)
    if array is not None and is_text(array.type):
        encoded = array.dictionary_encode()
        numbers, raw = _read(encoded.dictionary, words)
        return numbers.take(encoded.indices), raw.take(encoded.indices)
    return _read(list(values) if array is None else array, words)


def _read(array: pa.Array | list[Any], words: Collection[str]) -> tuple[pa.Array, pa.Array]:
    if isinstance(array, list) or not (
        pa.types.is_integer(array.type) or pa.types.is_floating(array.type)
    ):
        found = array if isinstance(array, list) else array.to_pylist()
        array = pa.array([_label_text(value) for value in found], pa.string())
        good = pc.match_substring_regex(array, NUMBER)
        numbers = pc.if_else(good, array, None).cast(pa.float64())
        numbers = pc.if_else(pc.or_(good, array.is_null()), numbers, float("inf"))
    else:
        numbers = array.cast(pa.float64(), safe=False)
        array = array.cast(pa.string())
    nothing = array.is_null()
    spelled = {word: word for word in words if not is_number(word)}
    marked = pc.is_in(array, pa.array(sorted(spelled), pa.string()))
    for word in words - spelled.keys():
        marked = pc.or_(marked, pc.equal(numbers, float(word)).fill_null(False))
    raw = pc.if_else(marked, pc.binary_join_element_wise(WORD, array, ""), None)
    return pc.if_else(pc.or_(nothing, marked), None, numbers), raw


def _label_text(value: Any) -> str | None:
    if value is None or value != value or value is pd.NA:
        return None
    text = str(value).strip()
    return _TRUTH.get(text, text) or None


def is_number(word: str) -> bool:
    """Whether a missing word is a number, which columns of numbers may hold."""
    try:
        float(word)
    except ValueError:
        return False
    return word.lower() not in ("nan", "inf", "infinity")
