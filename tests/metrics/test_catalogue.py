"""Catalogue metrics against values written out as arithmetic."""

from math import log2

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec import metrics

# Item 1 is shown twice, item 3 once; 0 is an empty place. Items 2 and 4 are never shown.
SHOWN = np.array([[1, 3], [1, 0]], np.int32)
COUNTS = np.array([0, 8, 4, 4, 0])

both = pytest.mark.parametrize("array", [np.asarray, jnp.asarray])


@both
def test_hand_worked_values(array):
    shown, counts = array(SHOWN), array(COUNTS)
    assert metrics.exposure(shown, 4).tolist() == [2, 0, 1, 0]
    assert float(metrics.coverage(shown, 4)) == 2 / 4
    np.testing.assert_allclose(metrics.average_popularity(shown, counts), (8 + 8 + 4) / 3)
    np.testing.assert_allclose(
        metrics.novelty(shown, counts), -(2 * log2(8 / 16) + log2(4 / 16)) / 3, rtol=1e-6
    )
    # Sorted exposures 0, 0, 1, 2 have the weights -3, -1, 1, 3 of n = 4.
    np.testing.assert_allclose(metrics.gini(shown, 4), (1 * 1 + 3 * 2) / (4 * 3), rtol=1e-6)


@both
def test_an_item_without_training_events_counts_as_having_one(array):
    value = metrics.novelty(array(np.array([[4]])), array(COUNTS))
    np.testing.assert_allclose(value, -log2(1 / 16), rtol=1e-6)


@both
def test_empty_recommendations_give_zero_and_not_nan(array):
    nothing, counts = array(np.zeros((3, 2), np.int32)), array(COUNTS)
    assert float(metrics.coverage(nothing, 4)) == 0
    assert float(metrics.gini(nothing, 4)) == 0
    assert float(metrics.average_popularity(nothing, counts)) == 0
    assert float(metrics.novelty(nothing, counts)) == 0


def test_gini_extremes():
    assert metrics.gini(np.array([[1, 2, 3, 4]]), 4) == 0
    np.testing.assert_allclose(metrics.gini(np.full((5, 1), 2), 4), 1 - 1 / 4)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_gini_is_half_the_relative_mean_difference_and_ignores_the_order_of_users(seed):
    random = np.random.default_rng(seed)
    shown = random.integers(0, 8, (5, 3))
    shown[0, 0] = 1
    exposure = np.bincount(shown.ravel(), minlength=8)[1:]
    pairs = np.abs(exposure[:, None] - exposure[None]).sum()
    np.testing.assert_allclose(metrics.gini(shown, 7), pairs / (2 * 7 * exposure.sum()))
    assert metrics.gini(random.permutation(shown), 7) == metrics.gini(shown, 7)


def test_can_be_traced_under_strict_promotion():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        traced = jax.jit(
            lambda s, c: (metrics.gini(s, 4), metrics.novelty(s, c), metrics.coverage(s, 4))
        )(jnp.asarray(SHOWN), jnp.asarray(COUNTS, jnp.int32))
    plain = metrics.gini(SHOWN, 4), metrics.novelty(SHOWN, COUNTS), metrics.coverage(SHOWN, 4)
    np.testing.assert_allclose(traced, plain, rtol=1e-6)
