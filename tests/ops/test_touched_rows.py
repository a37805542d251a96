"""Finding, taking and putting back the rows of a batch, by brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrec.ops.touched import put_rows, renumber, take_rows, unique_rows

NUM_ROWS = 12
# Few shapes, so that Hypothesis does not spend its time compiling.
ids_of_any_kind = st.lists(st.integers(0, NUM_ROWS - 1), min_size=8, max_size=8)
find = jax.jit(unique_rows, static_argnums=(1, 2))
place = jax.jit(renumber)
take = jax.jit(take_rows)
put = jax.jit(put_rows)


@given(ids_of_any_kind, st.sampled_from([1, 3, 8, 11]))
def test_rows_are_the_sorted_distinct_ids_and_count_tells_overflow(
    ids: list[int], capacity: int
) -> None:
    rows, count = find(np.array(ids, np.int32), NUM_ROWS, capacity)
    distinct = sorted(set(ids))
    assert int(count) == len(distinct)
    kept = distinct[:capacity]
    np.testing.assert_array_equal(rows[: len(kept)], kept)
    assert (np.asarray(rows[len(kept) :]) >= NUM_ROWS).all()
    assert (np.diff(np.asarray(rows)) > 0).all()
    assert rows.dtype == count.dtype == jnp.int32


@given(ids_of_any_kind)
def test_renumbered_ids_find_their_rows_in_the_slice(ids: list[int]) -> None:
    array = np.array(ids, np.int32).reshape(2, 4)
    rows, _ = find(array, NUM_ROWS, 8)
    table = np.arange(NUM_ROWS * 2, dtype=np.float32).reshape(NUM_ROWS, 2) + 1
    part = np.asarray(take(table, rows))
    places = np.asarray(place(array, rows))
    assert places.shape == array.shape and places.dtype == np.int32
    np.testing.assert_array_equal(part[places], table[array])
    np.testing.assert_array_equal(part[np.asarray(rows) >= NUM_ROWS], 0)


@given(ids_of_any_kind)
def test_putting_rows_back_changes_those_and_no_other(ids: list[int]) -> None:
    rows, count = find(np.array(ids, np.int32), NUM_ROWS, 8)
    table = np.arange(NUM_ROWS, dtype=np.float32)
    values = -np.arange(1, 9, dtype=np.float32)
    expected = table.copy()
    for row, value in zip(np.asarray(rows)[: int(count)], values, strict=False):
        expected[row] = value
    np.testing.assert_array_equal(put(table, rows, values), expected)
    np.testing.assert_array_equal(put(table, rows, take(table, rows)), table)


@pytest.mark.parametrize("ids", [[0], [NUM_ROWS - 1], [0, NUM_ROWS - 1], list(range(NUM_ROWS))])
def test_the_first_and_the_last_row_are_rows_like_others(ids: list[int]) -> None:
    rows, count = unique_rows(np.array(ids, np.int32), NUM_ROWS, len(ids))
    np.testing.assert_array_equal(rows, ids)
    assert int(count) == len(ids)
    np.testing.assert_array_equal(renumber(np.array(ids), rows), np.arange(len(ids)))
    table = np.zeros((NUM_ROWS, 1), np.float32)
    changed = put_rows(jnp.asarray(table), rows, jnp.ones((len(ids), 1)))
    np.testing.assert_array_equal(np.flatnonzero(changed), ids)
