"""Sampling items in proportion to a power of their popularity."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.ops.keys import Key, RowKey, row_bits
from jaxrec.typing import Array


def item_probabilities(counts: np.ndarray, power: float) -> np.ndarray:
    """Returns (num_items + 1,) float64 sampling probabilities; padding item 0 has none.

    Args:
      counts: (num_items + 1,) training events of each item.
      power: 0 samples uniformly, 1 by popularity; between them flatter than popularity. Items
        without events count as one event, so that every item can be drawn.
    """
    weights = np.maximum(np.asarray(counts, np.float64), 1.0) ** power
    weights[0] = 0.0
    return weights / weights.sum()


def cumulative_words(probabilities: np.ndarray) -> np.ndarray:
    """Returns (2, N) uint32 cumulative probabilities for `sample_items`: upper and lower words.

    Together they are in units of 2**-64, so that what an item is worth is as exact as float64 at a
    billion items, where 2**-32 is a quarter of an item.
    """
    cumulative = np.cumsum(probabilities)
    units = cumulative / cumulative[-1] * 2.0**32
    upper = np.minimum(np.floor(units), 2.0**32 - 1)
    lower = np.minimum((units - upper) * 2.0**32, 2.0**32 - 1)
    return np.stack([upper.astype(np.uint32), lower.astype(np.uint32)])


def sample_items(key: Key, shape: tuple[int, ...], words: Array) -> jax.Array:
    """Returns int32 item ids in [1, N), drawn with replacement.

    Args:
      key: a JAX key; or a `RowKey`, and then the first axis of the shape is the rows of the batch.
      shape: of the result.
      words: (2, N) uint32 from `cumulative_words`; entry 0, padding, is 0.
    """
    upper, lower = jnp.asarray(words)
    high, low = _bits(key, shape)
    count = upper.shape[0]

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        begin, end = bounds
        middle = begin + (end - begin) // 2
        above, below = upper[middle], lower[middle]
        # The id is the first whose cumulative probability is above what was drawn.
        later = (above < high) | ((above == high) & (below <= low))
        return jnp.where(later, middle + 1, begin), jnp.where(later, end, middle)

    # The last is above all that can be drawn, so it is never looked at.
    bounds = jnp.zeros(shape, jnp.int32), jnp.full(shape, count - 1, jnp.int32)
    found, _ = jax.lax.fori_loop(0, (count - 1).bit_length(), halve, bounds)
    return jnp.maximum(found, 1)


def sample_uniform(key: Key, shape: tuple[int, ...], num_items: Array) -> jax.Array:
    """Returns int32 item ids in [1, num_items], all as likely, drawn with replacement.

    Like `sample_items`, without an array of the size of the catalogue.

    Args:
      key, shape: as for `sample_items`.
      num_items: () int32.
    """
    high, low = _bits(key, shape)
    count = jnp.asarray(num_items).astype(jnp.uint32)
    # The upper 32 of the 96 bits of (high * 2**32 + low) * count.
    middle = _upper_word(low, count)
    carried = (high * count + middle) < middle
    return (_upper_word(high, count) + carried.astype(jnp.uint32)).astype(jnp.int32) + 1


def _upper_word(bits: jax.Array, count: jax.Array) -> jax.Array:
    """Returns the upper 32 of the 64 bits of bits * count, from products of halves."""
    low, high = bits & 0xFFFF, bits >> 16
    count_low, count_high = count & 0xFFFF, count >> 16
    middle = high * count_low + (low * count_low >> 16)
    upper = high * count_high + (middle >> 16)
    return upper + ((low * count_high + (middle & 0xFFFF)) >> 16)


def _bits(key: Key, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Returns two words of random bits for each element."""
    if isinstance(key, RowKey):
        bits = row_bits(key, (*shape, 2))
    else:
        bits = jax.random.bits(key, (*shape, 2), jnp.uint32)
    return bits[..., 0], bits[..., 1]
