"""Errors of predicted ratings. NumPy arrays give NumPy values, JAX arrays give JAX values."""

from typing import Any

from jaxrec.metrics.arrays import floats, mean, namespace
from jaxrec.typing import Array


def rmse(predictions: Array, labels: Array, *, where: Array | None = None) -> Any:
    """Root mean squared error over the last axis, in the unit of the labels.

    Args:
      predictions, labels: (..., U) floats.
      where: (..., U) bool; False entries take no part. When none is left the error is 0.

    Returns:
      (...,) floats from 0.
    """
    xp = namespace(predictions, labels, where)
    return xp.sqrt(mean(xp.square(_difference(xp, predictions, labels)), where=where))


def mae(predictions: Array, labels: Array, *, where: Array | None = None) -> Any:
    """Mean absolute error over the last axis; arguments as for `rmse`."""
    xp = namespace(predictions, labels, where)
    return mean(xp.abs(_difference(xp, predictions, labels)), where=where)


def _difference(xp: Any, predictions: Array, labels: Array) -> Any:
    return floats(xp.asarray(predictions)) - floats(xp.asarray(labels))
