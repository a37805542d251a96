"""Pairwise losses, ratings and masked means against arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.losses import bce, bpr, gbce, gbce_beta, masked_mean, squared_error

POSITIVES = jnp.array([1.0, -2.0])
NEGATIVES = jnp.array([[0.5, -1.0], [3.0, 0.0]])


def log_sigmoid(x: float) -> float:
    return float(-np.log1p(np.exp(-x)))


def test_bce_by_hand() -> None:
    expected = [
        -log_sigmoid(1) - log_sigmoid(-0.5) - log_sigmoid(1),
        -log_sigmoid(-2) - log_sigmoid(-3) - log_sigmoid(0),
    ]
    np.testing.assert_allclose(bce(POSITIVES, NEGATIVES), expected, rtol=1e-6)


def test_bce_leaves_negatives_out() -> None:
    where = jnp.array([[True, False], [False, False]])
    expected = [-log_sigmoid(1) - log_sigmoid(-0.5), -log_sigmoid(-2)]
    loss = bce(POSITIVES, NEGATIVES, where_negatives=where)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_gbce_raises_the_positives_probability_to_beta() -> None:
    expected = [
        -0.3 * log_sigmoid(1) - log_sigmoid(-0.5) - log_sigmoid(1),
        -0.3 * log_sigmoid(-2) - log_sigmoid(-3) - log_sigmoid(0),
    ]
    np.testing.assert_allclose(gbce(POSITIVES, NEGATIVES, beta=0.3), expected, rtol=1e-6)
    np.testing.assert_array_equal(gbce(POSITIVES, NEGATIVES, beta=1.0), bce(POSITIVES, NEGATIVES))


def test_beta_goes_from_bce_to_the_sampling_rate() -> None:
    # 10 of 101 - 1 other items: alpha = 0.1.
    assert gbce_beta(10, 101, 0.0) == pytest.approx(1.0)
    assert gbce_beta(10, 101, 1.0) == pytest.approx(0.1)
    assert gbce_beta(10, 101, 0.75) == pytest.approx(0.1 * (0.75 * (1 - 10) + 10))
    assert gbce_beta(500, 101, 0.5) == pytest.approx(1.0)
    assert gbce_beta(1, 1, 0.5) == pytest.approx(1.0)


def test_a_calibration_outside_of_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="calibration must be in"):
        gbce_beta(1, 10, 1.5)


def test_bpr_is_the_mean_over_negatives() -> None:
    expected = [
        -(log_sigmoid(0.5) + log_sigmoid(2)) / 2,
        -(log_sigmoid(-5) + log_sigmoid(-2)) / 2,
    ]
    np.testing.assert_allclose(bpr(POSITIVES, NEGATIVES), expected, rtol=1e-6)
    where = jnp.array([[False, True], [False, False]])
    loss = bpr(POSITIVES, NEGATIVES, where_negatives=where)
    np.testing.assert_allclose(loss, [-log_sigmoid(2), 0], rtol=1e-6)


def test_bpr_does_not_see_a_common_shift() -> None:
    np.testing.assert_allclose(
        bpr(POSITIVES + 7, NEGATIVES + 7), bpr(POSITIVES, NEGATIVES), rtol=1e-5
    )


def test_squared_error_by_hand() -> None:
    predictions, labels = jnp.array([3.5, 1.0], jnp.bfloat16), jnp.array([4.0, 5.0])
    loss = squared_error(predictions, labels)
    assert loss.dtype == jnp.float32
    np.testing.assert_array_equal(loss, [0.25, 16.0])


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_scores_of_ten_thousand_stay_finite(scale: float) -> None:
    for loss in (bce, bpr):
        value, slope = jax.jvp(
            lambda x, loss=loss: loss(POSITIVES * x, NEGATIVES * x),
            (jnp.float32(scale),),
            (jnp.float32(1),),
        )
        assert np.isfinite(value).all() and np.isfinite(slope).all()


def test_masked_mean_by_hand() -> None:
    values = jnp.array([[1.0, 2.0], [3.0, 10.0]])
    assert float(masked_mean(values)) == 4.0
    where = jnp.array([[True, True], [True, False]])
    assert float(masked_mean(values, where=where)) == 2.0
    weights = jnp.array([[1.0, 0.0], [3.0, 5.0]])
    assert float(masked_mean(values, where=where, weights=weights)) == (1 + 9) / 4
    assert float(masked_mean(values, where=jnp.array([True, False]))) == 2.0
    assert float(masked_mean(values, weights=jnp.array([1.0, 3.0]))) == (1 + 6 + 3 + 30) / 8


def test_a_mean_over_nothing_is_zero_and_so_is_its_gradient() -> None:
    values = jnp.array([jnp.inf, jnp.nan])
    none = jnp.zeros(2, bool)
    assert float(masked_mean(values, where=none)) == 0.0
    assert float(masked_mean(values, weights=jnp.zeros(2))) == 0.0
    gradient = jax.grad(lambda v: masked_mean(v, where=none))(jnp.ones(2))
    np.testing.assert_array_equal(gradient, [0.0, 0.0])
