"""Ranking metrics against values written out as arithmetic, and their properties."""

from math import log2

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec import metrics

METRICS = [
    metrics.ndcg,
    metrics.recall,
    metrics.hit_rate,
    metrics.mrr,
    metrics.average_precision,
    metrics.precision,
]
# Ranks 2 and 4 hit, of three relevant items.
HITS = np.array([False, True, False, True, False])


@pytest.mark.parametrize(
    ("metric", "k", "expected"),
    [
        (metrics.ndcg, 5, (1 / log2(3) + 1 / log2(5)) / (1 / log2(2) + 1 / log2(3) + 1 / log2(4))),
        (metrics.ndcg, 2, (1 / log2(3)) / (1 / log2(2) + 1 / log2(3))),
        (metrics.ndcg, 1, 0.0),
        (metrics.recall, 5, 2 / 3),
        (metrics.recall, 3, 1 / 3),
        (metrics.hit_rate, 5, 1.0),
        (metrics.hit_rate, 1, 0.0),
        (metrics.mrr, 5, 1 / 2),
        (metrics.mrr, 1, 0.0),
        (metrics.average_precision, 5, (1 / 2 + 2 / 4) / 3),
        (metrics.average_precision, 2, (1 / 2) / 2),
        (metrics.precision, 5, 2 / 5),
        (metrics.precision, 2, 1 / 2),
        (metrics.precision, 10, 2 / 10),
        (metrics.recall, 10, 2 / 3),
    ],
)
@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_hand_worked_values(metric, k, expected, array):
    np.testing.assert_allclose(metric(array(HITS), array(3), k), expected, rtol=1e-6)


def test_ndcg_of_a_list_shorter_than_k_is_still_divided_by_the_best_list():
    value = metrics.ndcg(np.array([True]), np.array(2), 10)
    np.testing.assert_allclose(value, 1 / (1 + 1 / log2(3)))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_nothing_relevant_gives_zero_and_not_nan(metric, array):
    value = metric(array(np.zeros((2, 3), bool)), array(np.array([0, 1])), 3)
    assert value.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("metric", METRICS)
def test_a_perfect_list_has_the_largest_value(metric):
    value = metric(np.array([True, True, False, False]), np.array(2), 4)
    assert value == (2 / 4 if metric is metrics.precision else 1.0)


@pytest.mark.parametrize("metric", METRICS)
def test_masked_users_get_zero_and_leave_the_mean_alone(metric):
    hits, relevant = np.array([[True, False], [True, True]]), np.array([2, 2])
    value = metric(hits, relevant, 2, where=np.array([True, False]))
    alone = metric(hits[:1], relevant[:1], 2)
    assert value.tolist() == [alone[0], 0.0]
    assert metrics.mean(value, where=np.array([True, False])) == alone[0]


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_the_mean_of_nothing_is_zero_even_over_nan(array):
    values, where = array(np.array([np.nan, 1.0])), array(np.array([False, False]))
    assert float(metrics.mean(values, where=where)) == 0.0
    assert float(metrics.mean(array(np.array([1.0, 2.0])))) == 1.5


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), k=st.integers(1, 12))
def test_values_are_in_range_and_follow_users(seed, k):
    random = np.random.default_rng(seed)
    hits = random.random((6, 10)) < 0.3
    relevant = hits.sum(axis=1) + random.integers(0, 3, 6)
    order = random.permutation(6)
    for metric in METRICS:
        value = metric(hits, relevant, k)
        assert np.all((value >= 0) & (value <= 1 + 1e-12)), metric
        np.testing.assert_array_equal(metric(hits[order], relevant[order], k), value[order])


@pytest.mark.parametrize("metric", METRICS)
def test_traced_jax_arrays_agree_with_numpy_under_strict_promotion(metric):
    random = np.random.default_rng(0)
    hits = random.random((2, 4, 10)) < 0.3
    relevant = (hits.sum(axis=-1) + 1).astype(np.int32)
    where = random.random((2, 4)) < 0.7
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        traced = jax.jit(lambda h, r, w: metric(h, r, 10, where=w))(
            jnp.asarray(hits), jnp.asarray(relevant), jnp.asarray(where)
        )
    assert isinstance(traced, jax.Array)
    plain = metric(hits, relevant, 10, where=where)
    assert isinstance(plain, np.ndarray)
    assert plain.dtype == np.float64
    np.testing.assert_allclose(traced, plain, rtol=1e-6)
