"""Sampling items in proportion to a power of their popularity."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.typing import Array


def log_probabilities(counts: np.ndarray, power: float) -> np.ndarray:
    """Returns (num_items + 1,) float32 log sampling probabilities, -inf for padding item 0.

    Args:
      counts: (num_items + 1,) training events of each item.
      power: 0 samples uniformly, 1 by popularity; between them flatter than popularity. Items
        without events count as one event, so that every item can be drawn.
    """
    weights = np.maximum(np.asarray(counts, np.float64), 1.0) ** power
    weights[0] = 0.0
    with np.errstate(divide="ignore"):
        return np.log(weights / weights.sum()).astype(np.float32)


def sample_items(key: jax.Array, shape: tuple[int, ...], cumulative: Array) -> jax.Array:
    """Returns int32 item ids in [1, num_items], drawn with replacement.

    Args:
      key: a JAX key.
      shape: of the result.
      cumulative: (num_items + 1,) float32 ascending; entry i is the probability of an id <= i, and
        entry 0 is 0.
    """
    cumulative = jnp.asarray(cumulative)
    uniform = jax.random.uniform(key, shape, maxval=cumulative[-1])
    ids = jnp.searchsorted(cumulative, uniform, side="right")
    return jnp.clip(ids, 1, len(cumulative) - 1).astype(jnp.int32)
