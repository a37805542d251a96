"""Softmax cross entropy over a whole catalogue without the matrix of logits."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.typing import Array


def catalogue_cross_entropy(
    vectors: Array,
    table: Array,
    targets: Array,
    weights: Array,
    *,
    label_smoothing: float = 0.0,
    chunk: int | None = None,
    axis: str | None = None,
    num_rows: int | None = None,
) -> jax.Array:
    """Returns sum_t weights[t] * -log softmax(vectors[t] @ table.T)[targets[t]], row 0 left out.

    The logits exist for `chunk` rows at a time. When a gradient is asked for, it is computed in the
    same pass, chunk by chunk while the logits are in cache, so that nothing of size T x N is stored
    or computed twice. Rows of weight 0, such as padding, are sorted to the end and cost nothing.

    Args:
      vectors: (T, D) float.
      table: (N, D) float, the vectors of all items; row 0 is padding and takes no part.
      targets: (T,) int in [1, N).
      weights: (T,) float; not differentiated. Rows of weight 0 may have any target.
      label_smoothing: share of the target's mass that is spread over all items, in [0, 1).
      chunk: rows of logits at a time. By default up to 256 rows and 2**22 logits on a CPU, where a
        chunk should stay in cache, and 2**26 logits on an accelerator.
    """
    num_rows, num_items = vectors.shape[0], table.shape[0]
    if chunk is None:
        cpu = jax.default_backend() == "cpu"
        chunk = 2 ** max(3, ((2**22 if cpu else 2**26) // num_items).bit_length() - 1)
        chunk = min(chunk, 256) if cpu else chunk
    chunk = min(chunk, num_rows)
    weights = jnp.asarray(weights, jnp.float32)
    order = jnp.argsort(weights == 0, stable=True)
    pad = -num_rows % chunk
    shape = (-1, chunk)
    return _loss(
        jnp.pad(jnp.asarray(vectors)[order], ((0, pad), (0, 0))).reshape(*shape, vectors.shape[1]),
        jnp.asarray(table),
        jnp.pad(jnp.asarray(targets)[order], (0, pad)).reshape(shape),
        jnp.pad(weights[order], (0, pad)).reshape(shape),
        label_smoothing,
    )


class _Chunk(NamedTuple):
    """The logits of some rows and what loss and gradient share of them."""

    columns: jax.Array  # (C, N) int32
    exponentials: jax.Array  # (C, N), of the logits less their peak
    total: jax.Array  # (C, 1), sum of the exponentials
    losses: jax.Array  # (C,), unweighted


def _chunk(vectors: jax.Array, table: jax.Array, targets: jax.Array, smoothing: float) -> _Chunk:
    logits = jnp.dot(vectors, table.T, preferred_element_type=jnp.float32)
    columns = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    logits = jnp.where(columns == 0, -1e30, logits)
    peak = jnp.max(logits, axis=1, keepdims=True)
    exponentials = jnp.exp(logits - peak)
    total = jnp.sum(exponentials, axis=1, keepdims=True)
    # Clipped, as a row of weight 0 may have any target and 0 times nan is no 0.
    picked = jnp.take_along_axis(logits, targets[:, None], axis=1, mode="clip")
    log_total = jnp.log(total) + peak
    losses = log_total - picked
    if smoothing:
        mean = jnp.mean(logits[:, 1:], axis=1, keepdims=True)
        losses = (1 - smoothing) * losses + smoothing * (log_total - mean)
    return _Chunk(columns, exponentials, total, losses[:, 0])


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _loss(
    vectors: jax.Array, table: jax.Array, targets: jax.Array, weights: jax.Array, smoothing: float
) -> jax.Array:
    def body(index: jax.Array, total: jax.Array) -> jax.Array:
        losses = _chunk(vectors[index], table, targets[index], smoothing).losses
        return total + jnp.sum(weights[index] * losses)

    return jax.lax.fori_loop(0, _used(weights), body, jnp.float32(0))


def _used(weights: jax.Array) -> jax.Array:
    """Returns how many chunks have a row that counts; they come first."""
    return jnp.sum(jnp.any(weights != 0, axis=1), dtype=jnp.int32)


def _forward(
    vectors: jax.Array, table: jax.Array, targets: jax.Array, weights: jax.Array, smoothing: float
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    def body(
        index: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        total, vector_gradients, table_gradient = carry
        v, t, w = vectors[index], targets[index], weights[index]
        chunk = _chunk(v, table, t, smoothing)
        gradient = chunk.exponentials * (w[:, None] / chunk.total)
        gradient -= jnp.where(chunk.columns == t[:, None], (1 - smoothing) * w[:, None], 0)
        if smoothing:
            spread = smoothing / (table.shape[0] - 1)
            gradient -= jnp.where(chunk.columns > 0, spread * w[:, None], 0)
        gradient = gradient.astype(v.dtype)
        vector_gradient = jnp.dot(gradient, table, preferred_element_type=jnp.float32)
        vector_gradients = vector_gradients.at[index].set(vector_gradient.astype(v.dtype))
        table_gradient += jnp.dot(gradient.T, v, preferred_element_type=jnp.float32)
        return total + jnp.sum(w * chunk.losses), vector_gradients, table_gradient

    start = (jnp.float32(0), jnp.zeros_like(vectors), jnp.zeros(table.shape, jnp.float32))
    total, vector_gradients, table_gradient = jax.lax.fori_loop(0, _used(weights), body, start)
    return total, (vector_gradients, table_gradient.astype(table.dtype))


def _backward(
    smoothing: float, gradients: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, None, None]:
    vector_gradient, table_gradient = gradients
    scale = cotangent.astype(jnp.float32)
    return (
        (vector_gradient.astype(jnp.float32) * scale).astype(vector_gradient.dtype),
        (table_gradient.astype(jnp.float32) * scale).astype(table_gradient.dtype),
        None,
        None,
    )


_loss.defvjp(_forward, _backward)
