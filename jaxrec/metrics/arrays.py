"""What the metrics share: the namespace of an array and a mean that survives an empty mask."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrec.typing import Array


def namespace(*arrays: Any) -> Any:
    """Returns numpy when no argument lives in JAX, otherwise jax.numpy."""
    plain = np.ndarray | np.generic | float | int | list | tuple | None
    return np if all(isinstance(array, plain) for array in arrays) else jnp


def mean(values: Array, *, where: Array | None = None) -> Any:
    """Mean over the last axis; 0, not NaN, when `where` leaves nothing.

    Args:
      values: (..., U) floats.
      where: (..., U) bool; False entries take no part.

    Returns:
      (...,) floats.
    """
    xp = namespace(values, where)
    values = xp.asarray(values)
    weights = xp.ones_like(values) if where is None else xp.asarray(where).astype(values.dtype)
    total = xp.sum(xp.where(weights > 0, values, 0), axis=-1)
    return total / xp.maximum(xp.sum(weights, axis=-1), 1)
