"""What the metrics share: array namespaces, floats, and a mean that survives an empty mask."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrec.typing import Array


def namespace(*arrays: Any) -> Any:
    """Returns numpy when no argument lives in JAX, otherwise jax.numpy."""
    plain = (np.ndarray, np.generic, float, int, list, tuple, type(None))
    return np if all(isinstance(array, plain) for array in arrays) else jnp


def floats(array: Any) -> Any:
    """Returns float64 for NumPy, JAX's default float for JAX, also under strict promotion."""
    xp = namespace(array)
    return xp.asarray(array).astype(xp.result_type(float))


def mean(values: Array, *, where: Array | None = None) -> Any:
    """Mean over the last axis; 0, not NaN, when `where` leaves nothing.

    Args:
      values: (..., U) floats.
      where: (..., U) bool; False entries take no part.

    Returns:
      (...,) floats.
    """
    xp = namespace(values, where)
    values = floats(values)
    counted = xp.ones(values.shape, bool) if where is None else xp.asarray(where).astype(bool)
    total = xp.sum(xp.where(counted, values, 0.0), axis=-1)
    return total / xp.maximum(floats(xp.sum(counted, axis=-1)), 1.0)
