"""Bootstrap intervals: against theory, reproducible, shared draws, bounded memory."""

import numpy as np
import pytest

from jaxrec.metrics import bootstrap, bootstrap_interval


@pytest.mark.parametrize("distinct", [2, 2000])
def test_width_is_that_of_the_normal_approximation(distinct):
    random = np.random.default_rng(0)
    values = random.integers(0, distinct, 2000) / (distinct - 1)
    low, high = bootstrap_interval(values, 1, samples=2000)
    error = values.std() / np.sqrt(len(values))
    np.testing.assert_allclose(
        [low, high], values.mean() + np.array([-1.96, 1.96]) * error, atol=0.15 * error
    )


def test_equals_drawing_users_one_by_one_in_distribution():
    values = np.array([0.0, 0.0, 1.0, 5.0])
    random = np.random.default_rng(0)
    means = values[random.integers(0, 4, (40_000, 4))].mean(axis=1)
    expected = np.quantile(means, [0.1, 0.9])
    np.testing.assert_allclose(bootstrap_interval(values, 1, 40_000, level=0.8), expected)


def test_the_seed_decides():
    values = np.random.default_rng(0).random(300)
    first = bootstrap_interval(values, 3)
    np.testing.assert_array_equal(first, bootstrap_interval(values, 3))
    assert np.any(first != bootstrap_interval(values, 4))


def test_metrics_together_share_their_draws():
    values = np.random.default_rng(0).random(300)
    low, high = bootstrap_interval(np.stack([values, 2 * values], axis=1), 0)
    np.testing.assert_allclose([low[1], high[1]], [2 * low[0], 2 * high[0]])


def test_equal_users_leave_no_doubt():
    np.testing.assert_allclose(bootstrap_interval(np.full(7, 0.25), 0), [0.25, 0.25])


def test_no_users_give_zero():
    assert bootstrap_interval(np.zeros((0, 2)), 0).tolist() == [[0, 0], [0, 0]]


def test_small_chunks_cover_all_samples(monkeypatch):
    values = np.random.default_rng(0).random(50)
    whole = bootstrap_interval(values, 0, samples=999)
    monkeypatch.setattr(bootstrap, "_CELLS", 120)
    np.testing.assert_allclose(bootstrap_interval(values, 0, samples=999), whole)
