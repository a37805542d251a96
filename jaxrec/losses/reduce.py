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
      weights: float, broadcastable to values; None weighs all as 1.
    """
    values = jnp.asarray(values, jnp.float32)
    share = jnp.ones_like(values) if weights is None else jnp.broadcast_to(weights, values.shape)
    if where is not None:
        share = jnp.where(where, share, 0)
        values = jnp.where(where, values, 0)
    total = jnp.sum(share)
    return jnp.sum(values * share) / jnp.where(total > 0, total, 1)
