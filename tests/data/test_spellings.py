"""Ids of whole columns are what `id_text` says of each value alone, whatever lies beside it."""

import decimal
import math
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.data.spelling import REFUSED, RESPELLED, WORD, id_columns
from jaxrec.ids import id_text
from jaxrec.typing import UserError

TEXTS = st.one_of(
    st.text(max_size=5),
    st.text("019.- \x1f\u00a0e", max_size=6),
    st.sampled_from(["12", "12.0", " 12 ", "007", "NA", "", "1.50", "-0.0", "\u2003x\u2003"]),
)
INTEGERS = st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 30)
FLOATS = st.floats() | st.integers(-5, 40).map(float) | st.sampled_from([2.5, 2.0**53, -0.0])
DECIMALS = st.decimals(-1000, 1000, places=2)
MIXED = st.one_of(
    TEXTS,
    INTEGERS,
    FLOATS,
    st.none(),
    st.booleans(),
    st.binary(max_size=3),
    DECIMALS,
    st.sampled_from([pd.NA, pd.NaT, [1], {"a": 1}, np.float32(2.2), np.int8(3), np.uint64(2**63)]),
)


def alone(value: Any) -> tuple[str | None, bool]:
    """What `id_text` says of a value, and whether it refuses it."""
    if value is None or value is pd.NA or value is pd.NaT:
        return None, False
    try:
        return id_text(value), False
    except UserError:
        return None, True


def check(column: pd.Series | pa.Array, values: list[Any]) -> None:
    expected = [alone(value) for value in values]
    for words in ((), ("NA", "12")):
        ids, raw = (array.to_pylist() for array in id_columns(column, words))
        assert ids == [None if text in words else text for text, _ in expected]
        assert [mark == REFUSED for mark in raw] == [bad for _, bad in expected]
        marked = [mark[1:] for mark in raw if mark and mark.startswith(WORD)]
        assert marked == [text for text, _ in expected if text in words]


@settings(max_examples=150, deadline=None)
@given(st.lists(MIXED, max_size=12), st.integers(0, 12))
def test_a_mixed_column_is_spelled_value_by_value_in_any_chunking(
    values: list[Any], cut: int
) -> None:
    for part in (values[:cut], values[cut:], values):
        check(pd.Series(part, dtype=object), part)


TYPES: list[tuple[Any, list[pa.DataType]]] = [
    (TEXTS, [pa.string(), pa.large_string(), pa.string_view()]),
    (TEXTS, [pa.dictionary(pa.int32(), pa.string())]),
    (TEXTS.map(str.encode), [pa.binary(), pa.large_binary()]),
    (st.binary(max_size=3), [pa.binary()]),
    (INTEGERS, [pa.int64(), pa.dictionary(pa.int8(), pa.int64())]),
    (st.integers(0, 2**64 - 1), [pa.uint64()]),
    (st.integers(-128, 127), [pa.int8(), pa.int16()]),
    (FLOATS, [pa.float64(), pa.dictionary(pa.int32(), pa.float64())]),
    (DECIMALS, [pa.decimal128(9, 2), pa.decimal256(40, 2)]),
    (st.booleans(), [pa.bool_()]),
    (st.lists(st.integers(0, 3), max_size=2), [pa.list_(pa.int64())]),
]


@pytest.mark.parametrize(("values", "types"), TYPES)
def test_every_type_of_arrow_and_pandas_is_spelled_value_by_value(
    values: Any, types: list[pa.DataType]
) -> None:
    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.none() | values, max_size=12))
    def holds(column: list[Any]) -> None:
        for kind in types:
            array = pa.array(column, kind)
            check(array, array.to_pylist())
            if not pa.types.is_string_view(kind):
                check(pa.chunked_array([array[:3], array[3:]]), array.to_pylist())
            check(pd.Series(array, dtype=pd.ArrowDtype(kind)), array.to_pylist())

    holds()


@pytest.mark.parametrize("dtype", ["float32", "float64", "str", "category", "Int64", "uint64"])
def test_dtypes_of_pandas_say_what_their_values_say(dtype: str) -> None:
    series = pd.Series([12, 3, 12, 0]).astype(dtype)  # type: ignore[call-overload]
    assert id_columns(series)[0].to_pylist() == ["12", "3", "12", "0"]


def test_a_float_is_spelled_alike_beside_any_other() -> None:
    """What one stray fraction, infinity or huge number in a chunk did to all others."""
    for stray in (2.5, math.inf, 1e300, math.nan):
        assert id_columns(pd.Series([1.0, stray, 3.0]))[0].to_pylist()[::2] == ["1", "3"]
    assert id_columns(pa.array([1.0, 2.2], pa.float32()))[0].to_pylist() == ["1", "2.2"]


def test_other_spellings_are_noted() -> None:
    raw = id_columns(pd.Series(["12", "12.0", " 12", "x"]))[1].to_pylist()
    assert raw == [None, RESPELLED + "12.0", RESPELLED + " 12", None]
    assert id_columns(pa.array([decimal.Decimal("1.50")]))[0].to_pylist() == ["1.5"]
