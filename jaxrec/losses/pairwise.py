"""Losses of a positive against sampled negatives, and of a score against a rating."""

import jax
import jax.numpy as jnp

from jaxrec.typing import Array


def bce(positives: Array, negatives: Array, *, where_negatives: Array | None = None) -> jax.Array:
    """Binary cross entropy: -log s(positive) - sum log(1 - s(negative)) (SASRec, arXiv 1808.09781).

    Args:
      positives: (...,) float scores.
      negatives: (..., N) float scores.
      where_negatives: (..., N) bool; False leaves a negative out.

    Returns:
      (...,) float32.
    """
    return gbce(positives, negatives, beta=1.0, where_negatives=where_negatives)


def gbce(
    positives: Array, negatives: Array, *, beta: float, where_negatives: Array | None = None
) -> jax.Array:
    """Generalised BCE: the positive's probability is s(positive) ** beta (arXiv 2308.07192).

    Args:
      positives: (...,) float scores.
      negatives: (..., N) float scores.
      beta: in (0, 1]; see `gbce_beta`. 1 is BCE.
      where_negatives: (..., N) bool; False leaves a negative out.

    Returns:
      (...,) float32.
    """
    losses = jax.nn.softplus(jnp.asarray(negatives, jnp.float32))
    if where_negatives is not None:
        losses = jnp.where(where_negatives, losses, 0)
    positive = jax.nn.softplus(-jnp.asarray(positives, jnp.float32))
    return beta * positive + jnp.sum(losses, axis=-1)


def gbce_beta(num_negatives: int, num_items: int, calibration: float) -> float:
    """Returns the beta of gBCE that undoes overconfidence from sampling negatives.

    Args:
      num_negatives: negatives a positive.
      num_items: items in the catalogue.
      calibration: the paper's t in [0, 1]; 0 is BCE, 1 calibrates fully.
    """
    if not 0 <= calibration <= 1:
        raise ValueError(f"calibration must be in [0, 1]; got {calibration}.")
    alpha = min(1.0, num_negatives / max(1, num_items - 1))
    return alpha * (calibration * (1 - 1 / alpha) + 1 / alpha)


def bpr(positives: Array, negatives: Array, *, where_negatives: Array | None = None) -> jax.Array:
    """Bayesian personalised ranking: mean of -log s(positive - negative) (arXiv 1205.2618).

    Args:
      positives: (...,) float scores.
      negatives: (..., N) float scores.
      where_negatives: (..., N) bool; False leaves a negative out.

    Returns:
      (...,) float32, the mean over the negatives that count; 0 without any.
    """
    margin = jnp.asarray(positives, jnp.float32)[..., None] - jnp.asarray(negatives, jnp.float32)
    losses = jax.nn.softplus(-margin)
    if where_negatives is None:
        return jnp.mean(losses, axis=-1)
    count = jnp.sum(where_negatives, axis=-1, dtype=jnp.float32)
    return jnp.sum(jnp.where(where_negatives, losses, 0), axis=-1) / jnp.maximum(count, 1)


def squared_error(predictions: Array, labels: Array) -> jax.Array:
    """Returns (predictions - labels) ** 2 in float32."""
    return jnp.square(jnp.asarray(predictions, jnp.float32) - jnp.asarray(labels, jnp.float32))
