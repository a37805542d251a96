"""Means over the entries that count."""

import jax
import jax.numpy as jnp

from jaxrec.typing import Array


def masked_mean(
    values: Array, *, where: Array | None = None, weights: Array | None = None
) -> jax.Array:
    """Returns the weighted mean of `values` where `where`, as a float32 scalar; 0 over nothing.

    Args:
      values: any shape.
      where: bool, broadcastable to values; None counts all.
      weights: float from 0, broadcastable to values; None weighs all as 1.
    """
    values = jnp.asarray(values, jnp.float32)
    share = jnp.asarray(1.0 if weights is None else weights, jnp.float32)
    share = jnp.broadcast_to(share, values.shape)
    if where is not None:
        share = jnp.where(jnp.broadcast_to(where, values.shape), share, 0)
    total = jnp.sum(share)
    return jnp.sum(jnp.where(share > 0, values, 0) * share) / jnp.where(total > 0, total, 1)
