"""Hashed dropout: the right rate, independent masks, and the same mask on the way back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.layers import dropout
from jaxrec.ops.keys import RowKey


def kept(key: jax.Array, shape: tuple[int, ...], rate: float = 0.5) -> np.ndarray:
    return np.asarray(dropout(jnp.ones(shape), rate, key)) > 0


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(100_000,), (37, 41, 64), (4, 2, 100, 100)])
def test_the_rate_is_within_binomial_bounds(rate: float, shape: tuple[int, ...]) -> None:
    n = int(np.prod(shape))
    for seed in range(3):
        dropped = n - kept(jax.random.key(seed), shape, rate).sum()
        assert abs(dropped - rate * n) < 5 * np.sqrt(n * rate * (1 - rate))


def test_the_rate_spreads_over_keys_as_a_binomial() -> None:
    n, rate, keys = 1000, 0.2, jax.random.split(jax.random.key(0), 500)
    dropped = n - np.asarray(jax.vmap(lambda k: dropout(jnp.ones(n), rate, k) > 0)(keys)).sum(1)
    # The variance of 500 binomial counts has a relative standard error of sqrt(2 / 499) = 0.063.
    assert abs(dropped.var() / (n * rate * (1 - rate)) - 1) < 5 * 0.063


def test_rows_and_columns_are_dropped_alike() -> None:
    mask = kept(jax.random.key(3), (1000, 1000), 0.3)
    bound = 5 * np.sqrt(0.3 * 0.7 / 1000)
    assert np.abs(mask.mean(axis=0) - 0.7).max() < bound
    assert np.abs(mask.mean(axis=1) - 0.7).max() < bound


LAGS = sorted({2**n for n in range(18)} | {3 * 2**n for n in range(16)} | {5, 7, 50, 100, 200})


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_elements_of_one_mask_are_independent(rate: float) -> None:
    """At all powers of two, their triples (such as 12,288) and lengths and widths of rows."""
    count, keys = 2**18, jax.random.split(jax.random.key(11), 12)
    masks = np.asarray(jax.vmap(lambda key: dropout(jnp.ones(count), rate, key) > 0)(keys))
    centred = masks.astype(np.float32) - masks.mean(axis=1, keepdims=True)
    for lag in LAGS:
        together = np.mean(centred[:, lag:] * centred[:, :-lag], axis=1) / (rate * (1 - rate))
        scaled = together * np.sqrt(count - lag)  # standard normal, if they are independent
        assert np.abs(scaled).max() < 5, lag
        assert np.std(scaled) < 2, lag


@pytest.mark.parametrize("flip", [1, 2, 4, 16, 256, 2**12, 2**17])
def test_elements_whose_indices_differ_in_one_bit_are_independent(flip: int) -> None:
    mask = kept(jax.random.key(12), (2**18,))
    pairs = np.arange(2**18)[(np.arange(2**18) & flip) == 0]
    assert abs(correlation(mask[pairs], mask[pairs ^ flip])) < 5 / np.sqrt(len(pairs))


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_sites_steps_and_seeds_are_independent(rate: float) -> None:
    shape, keys = (300, 300), []
    for seed in range(3):
        for step in range(3):
            key = jax.random.fold_in(jax.random.key(seed), step)
            keys += list(jax.random.split(key, 3))
    masks = np.stack([kept(key, shape, rate).ravel() for key in keys]).astype(np.float64)
    correlations = np.asarray(np.corrcoef(masks))[np.triu_indices(len(keys), 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(300 * 300)


def test_what_is_kept_is_scaled_so_that_the_mean_stays() -> None:
    out = np.asarray(dropout(jnp.full((50, 50), 3.0), 0.25, jax.random.key(0)))
    np.testing.assert_allclose(np.unique(out), [0.0, 3.0 / 0.75], rtol=1e-6)


def test_the_backward_mask_is_the_forward_mask() -> None:
    x = jax.random.normal(jax.random.key(5), (40, 50)) + 10
    out, back = jax.vjp(lambda x: dropout(x, 0.4, jax.random.key(6)), x)
    cotangent = jax.random.normal(jax.random.key(7), x.shape)
    (gradient,) = back(cotangent)
    expected = np.where(np.asarray(out) > 0, np.asarray(cotangent) / 0.6, 0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_without_a_key_or_a_rate_it_is_the_identity() -> None:
    x = jax.random.normal(jax.random.key(0), (5, 6))
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_jit_and_eager_agree_in_values_and_gradients(dtype: jnp.dtype) -> None:
    x = jax.random.normal(jax.random.key(0), (30, 31)).astype(dtype)

    def loss(x: jax.Array, key: jax.Array) -> jax.Array:
        return jnp.sum(dropout(x, 0.3, key).astype(jnp.float32) ** 2)

    key = jax.random.key(1)
    assert dropout(x, 0.3, key).dtype == dtype
    np.testing.assert_array_equal(
        dropout(x, 0.3, key), jax.jit(dropout, static_argnums=1)(x, 0.3, key)
    )
    eager, compiled = jax.grad(loss)(x, key), jax.jit(jax.grad(loss))(x, key)
    assert eager.dtype == dtype
    np.testing.assert_array_equal(np.asarray(eager, np.float32), np.asarray(compiled, np.float32))


def test_bfloat16_has_the_mask_of_float32() -> None:
    x = jnp.ones((64, 64))
    wide = dropout(x, 0.3, jax.random.key(2)) > 0
    narrow = dropout(x.astype(jnp.bfloat16), 0.3, jax.random.key(2)) > 0
    np.testing.assert_array_equal(wide, narrow)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_a_rate_outside_of_its_range_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="rate must be in"):
        dropout(jnp.ones(3), rate, jax.random.key(0))


def test_a_rate_of_almost_one_drops_almost_all() -> None:
    out = dropout(jnp.ones(1000), 1 - 1e-12, jax.random.key(0))
    assert int(jnp.sum(out > 0)) == 0


def test_rows_in_parts_drop_what_the_whole_drops() -> None:
    x, key = jnp.ones((6, 5, 4)), jax.random.key(8)
    whole = dropout(x, 0.4, key)
    parts = [dropout(x[i : i + 2], 0.4, RowKey(key, jnp.int32(i))) for i in (0, 2, 4)]
    np.testing.assert_array_equal(whole, jnp.concatenate(parts))
    assert len({np.asarray(row).tobytes() for row in whole}) == 6
