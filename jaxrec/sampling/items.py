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
    """Returns (N,) uint32 cumulative probabilities in units of 2**-32, for `sample_items`.

    Integers keep the resolution where float32 would lose it: at 8 million items one item is worth
    about 500 units.
    """
    cumulative = np.cumsum(probabilities)
    words = np.minimum(cumulative / cumulative[-1] * 2.0**32, 2.0**32 - 1)
    return words.astype(np.uint32)


def sample_items(key: Key, shape: tuple[int, ...], words: Array) -> jax.Array:
    """Returns int32 item ids in [1, N), drawn with replacement.

    Args:
      key: a JAX key; or a `RowKey`, and then the first axis of the shape is the rows of the batch.
      shape: of the result.
      words: (N,) uint32 from `cumulative_words`; entry 0, padding, is 0.
    """
    ids = jnp.searchsorted(jnp.asarray(words), _bits(key, shape), side="right")
    return jnp.clip(ids, 1, len(words) - 1).astype(jnp.int32)


def sample_uniform(key: Key, shape: tuple[int, ...], num_items: Array) -> jax.Array:
    """Returns int32 item ids in [1, num_items], all as likely, drawn with replacement.

    Like `sample_items`, without an array of the size of the catalogue.

    Args:
      key, shape: as for `sample_items`.
      num_items: () int32.
    """
    bits, count = _bits(key, shape), jnp.asarray(num_items).astype(jnp.uint32)
    # The upper half of the 64 bits of bits * count, from products of halves.
    low, high = bits & 0xFFFF, bits >> 16
    count_low, count_high = count & 0xFFFF, count >> 16
    middle = high * count_low + (low * count_low >> 16)
    upper = high * count_high + (middle >> 16)
    upper += (low * count_high + (middle & 0xFFFF)) >> 16
    return upper.astype(jnp.int32) + 1


def _bits(key: Key, shape: tuple[int, ...]) -> jax.Array:
    if isinstance(key, RowKey):
        return row_bits(key, shape)
    return jax.random.bits(key, shape, jnp.uint32)
