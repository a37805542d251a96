"""Shuffles without stored permutations: bijections that look drawn at random."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrec.data.shuffle import permute, row_numbers


def test_every_index_is_hit_once_for_every_short_range() -> None:
    for n in range(1, 301):
        shuffled = permute(np.arange(n), n, 3, n)
        assert shuffled.dtype == np.int64
        np.testing.assert_array_equal(np.sort(shuffled), np.arange(n))


@pytest.mark.parametrize("n", [2**16, 2**16 + 1, 99_991, 10**6 + 3])
def test_every_index_is_hit_once_for_long_ranges(n: int) -> None:
    seen = np.zeros(n, bool)
    seen[permute(np.arange(n), n, 0)] = True
    assert seen.all()


@given(st.integers(1, 2**50), st.integers(0, 2**63), st.data())
def test_huge_ranges_keep_indices_inside_and_apart(n: int, key: int, data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=50, unique=True))
    shuffled = permute(np.array(indices), n, key)
    assert shuffled.min() >= 0 and shuffled.max() < n
    assert len(set(shuffled.tolist())) == len(indices)
    # An index goes where it goes whatever others are asked for.
    assert permute(np.array(indices[-1:]), n, key)[0] == shuffled[-1]


def test_shapes_are_kept() -> None:
    assert permute(np.array(3), 7, 0).shape == ()
    assert permute(np.arange(6).reshape(2, 3), 7, 0).shape == (2, 3)
    assert permute(np.arange(0), 7, 0).shape == (0,)


def test_keys_and_parts_of_keys_give_other_shuffles() -> None:
    keys = [(0,), (0, 0), (1,), (0, 0, 1), (0, 1), (1, 0), (2**32,), (2**32, 0), (2**63, 1)]
    shuffles = {tuple(permute(np.arange(100), 100, *key).tolist()) for key in keys}
    assert len(shuffles) == len(keys)


def test_the_shuffle_of_a_key_is_pinned() -> None:
    # A run that was stopped goes on in this order: another order would repeat and lose examples.
    assert permute(np.arange(10), 10, 1, 2).tolist() == [0, 8, 1, 9, 7, 4, 5, 3, 6, 2]


@pytest.mark.parametrize("n", [2, 3, 5, 8, 13, 37])
def test_every_index_goes_everywhere_equally_often(n: int) -> None:
    draws = 2000
    found = np.stack([permute(np.arange(n), n, 7, key) for key in range(draws)])
    counts = np.stack([np.bincount(column, minlength=n) for column in found.T])
    squares = np.sum((counts - draws / n) ** 2) / (draws / n)
    # Chi-square with (n - 1)^2 degrees of freedom: mean that, variance twice that.
    freedom = (n - 1) ** 2
    assert abs(squares - freedom) < 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("n", [4, 6, 9])
def test_every_pair_of_indices_goes_everywhere_equally_often(n: int) -> None:
    draws = 4000
    found = np.stack([permute(np.arange(2), n, 11, key) for key in range(draws)])
    counts = np.bincount(found[:, 0] * n + found[:, 1], minlength=n * n)
    expected = draws / (n * (n - 1))
    pairs = counts.reshape(n, n)[~np.eye(n, dtype=bool)]
    squares, freedom = np.sum((pairs - expected) ** 2) / expected, len(pairs) - 1
    assert squares - freedom < 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("n", [1000, 65_536, 100_003])
def test_where_an_index_goes_tells_nothing_of_it_or_of_its_neighbours(n: int) -> None:
    shuffled = permute(np.arange(n), n, 5)
    bound = 5 / math.sqrt(n)
    assert abs(np.corrcoef(np.arange(n), shuffled)[0, 1]) < bound
    for lag in (1, 2, 7, math.isqrt(n), math.isqrt(n) + 1):
        assert abs(np.corrcoef(shuffled[lag:], shuffled[:-lag])[0, 1]) < bound
    # As many fixed points and descents as a drawn permutation has: about 1 and about half.
    assert np.sum(shuffled == np.arange(n)) < 9
    descents = np.sum(shuffled[1:] < shuffled[:-1])
    assert abs(descents - n / 2) < 5 * math.sqrt(n / 12)
    # The first hundredth of an epoch is spread over the whole log.
    first = np.bincount(shuffled[: n // 100] * 10 // n, minlength=10)
    assert np.sum((first - n / 1000) ** 2) / (n / 1000) < 9 + 5 * math.sqrt(18)


def test_rows_of_a_batch_are_numbered_through_the_epoch() -> None:
    np.testing.assert_array_equal(row_numbers(2, 4, None), [8, 9, 10, 11])
    np.testing.assert_array_equal(row_numbers(2, 4, slice(1, 3)), [9, 10])
    assert len(row_numbers(2, 4, slice(3, 3))) == 0
