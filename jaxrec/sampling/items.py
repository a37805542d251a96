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
    if isinstance(key, RowKey):
        drawn = row_bits(key, shape)
    else:
        drawn = jax.random.bits(key, shape, jnp.uint32)
    ids = jnp.searchsorted(jnp.asarray(words), drawn, side="right")
    return jnp.clip(ids, 1, len(words) - 1).astype(jnp.int32)
