"""Hashed bits: each of the 32 is fair, and masks made of them are tested with dropout."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.ops.hash import hash_bits


def test_every_bit_is_fair_and_independent_of_the_others() -> None:
    words = jax.random.bits(jax.random.key(0), (2,), jnp.uint32)
    bits = np.asarray(hash_bits((40_000,), words))
    planes = ((bits[:, None] >> np.arange(32)) & 1).astype(np.float64)
    assert np.abs(planes.mean(axis=0) - 0.5).max() < 5 * 0.5 / 200
    correlations = np.asarray(np.corrcoef(planes.T))[np.triu_indices(32, 1)]
    assert np.abs(correlations).max() < 5 / 200


def test_the_shape_says_only_how_indices_are_laid_out() -> None:
    words = jnp.array([3, 5], jnp.uint32)
    flat, cube = hash_bits((60,), words), hash_bits((3, 4, 5), words)
    np.testing.assert_array_equal(flat.reshape(3, 4, 5), cube)
    assert hash_bits((), words) == flat[0]
