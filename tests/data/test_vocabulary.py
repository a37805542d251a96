"""Ids: one spelling each, sorted, independent of rows."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.data.vocabulary import id_texts, vocabulary_order
from jaxrec.ids import id_text


def encode_ids(values: pd.Series) -> pd.Categorical:
    """Numbers ids as a preparation does: distinct texts in the order of the vocabulary."""
    texts = id_texts(values)
    ids = pd.Index(texts.dropna().unique())
    return pd.Categorical(texts, categories=ids[vocabulary_order(ids)])


@pytest.mark.parametrize(
    "values",
    [
        [10, 9, 10],
        ["10", "9", "10"],
        [10.0, 9.0, 10.0],
        [10, "9", 10.0],
        pd.Series([10, 9, 10], dtype="Int64"),
        pd.Series(["10", "9", "10"], dtype="category"),
        np.array([10, 9, 10], np.uint8),
    ],
)
def test_numbers_and_their_texts_are_one_id_and_sort_as_numbers(values: object) -> None:
    encoded = encode_ids(pd.Series(values))
    assert encoded.categories.tolist() == ["9", "10"]
    assert encoded.codes.tolist() == [1, 0, 1]


def test_numbers_come_before_texts_and_leading_zeros_make_a_text() -> None:
    encoded = encode_ids(pd.Series(["b", "007", "-3", "7", "a", "12", "1.5"]))
    assert encoded.categories.tolist() == ["-3", "7", "12", "007", "1.5", "a", "b"]


def test_null_and_empty_ids_are_missing() -> None:
    assert encode_ids(pd.Series([None, "x", "", np.nan])).codes.tolist() == [-1, 0, -1, -1]
    assert encode_ids(pd.Series([np.nan, 3.0])).codes.tolist() == [-1, 0]
    assert encode_ids(pd.Series([None, None], dtype=object)).codes.tolist() == [-1, -1]


def test_numbers_beyond_int64_stay_texts() -> None:
    assert encode_ids(pd.Series(["9" * 25, "1"])).categories.tolist() == ["1", "9" * 25]


IDS = st.lists(
    st.one_of(st.integers(-5, 200), st.text("ab01-. é", min_size=1, max_size=4)), min_size=1
).map(lambda values: [value for value in values if id_text(value)] or [1])


@settings(max_examples=100, deadline=None)
@given(IDS, st.randoms(use_true_random=False))
def test_ids_come_back_and_the_order_of_rows_does_not_matter(values: list, random) -> None:
    encoded = encode_ids(pd.Series(values, dtype=object))
    assert encoded.categories[encoded.codes].tolist() == [id_text(v) for v in values]
    shuffled = random.sample(values, len(values))
    again = encode_ids(pd.Series(shuffled, dtype=object))
    assert again.categories.tolist() == encoded.categories.tolist()


def test_a_column_keeps_its_index() -> None:
    index = [5, 0, 5]
    assert id_texts(pd.Series(["b", "a", None], index=index)).index.tolist() == index
    assert id_texts(pd.Series(["b", "a"], index=[1, 0])).to_dict() == {1: "b", 0: "a"}
