"""Softmax cross entropy over a whole catalogue without the matrix of logits."""

import functools

import jax
import jax.numpy as jnp

from jaxrec.typing import Array


def catalogue_cross_entropy(
    vectors: jax.Array,
    table: jax.Array,
    targets: Array,
    weights: Array,
    *,
    label_smoothing: float = 0.0,
    chunk: int | None = None,
) -> jax.Array:
    """Returns sum_t weights[t] * -log softmax(vectors[t] @ table.T)[targets[t]], row 0 left out.

    The logits exist for `chunk` rows at a time. When a gradient is asked for, it is computed in the
    same pass, chunk by chunk while the logits are in cache, so that nothing of size T x N is stored
    or computed twice.

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
    pad = -num_rows % chunk
    shape = (-1, chunk)
    return _loss(
        jnp.pad(vectors, ((0, pad), (0, 0))).reshape(*shape, vectors.shape[1]),
        table,
        jnp.pad(jnp.asarray(targets), (0, pad)).reshape(shape),
        jnp.pad(jnp.asarray(weights, jnp.float32), (0, pad)).reshape(shape),
        label_smoothing,
    )


def _chunk_loss(vectors, table, targets, weights, smoothing):  # type: ignore[no-untyped-def]
    logits = jnp.dot(vectors, table.T, preferred_element_type=jnp.float32)
    columns = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    logits = jnp.where(columns == 0, -1e30, logits)
    peak = jnp.max(logits, axis=1, keepdims=True)
    exponentials = jnp.exp(logits - peak)
    total = jnp.sum(exponentials, axis=1, keepdims=True)
    # Clipped, as a row of weight 0 may have any target and 0 times nan is no 0.
    picked = jnp.take_along_axis(logits, targets[:, None], axis=1, mode="clip")
    log_total = jnp.log(total) + peak
    nll = log_total - picked
    return logits, exponentials, total, columns, nll, log_total


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _loss(vectors, table, targets, weights, smoothing):
    def body(total, chunk):
        v, t, w = chunk
        logits, _, _, _, nll, log_total = _chunk_loss(v, table, t, w, smoothing)
        if smoothing:
            mean = jnp.mean(logits[:, 1:], axis=1, keepdims=True)
            nll = (1 - smoothing) * nll + smoothing * (log_total - mean)
        return total + jnp.sum(w * nll[:, 0]), None

    return jax.lax.scan(body, jnp.float32(0), (vectors, targets, weights))[0]


def _forward(vectors, table, targets, weights, smoothing):
    def body(carry, chunk):
        total, table_gradient = carry
        v, t, w = chunk
        logits, exponentials, normaliser, columns, nll, log_total = _chunk_loss(
            v, table, t, w, smoothing
        )
        spread = smoothing / (table.shape[0] - 1)
        if smoothing:
            mean = jnp.mean(logits[:, 1:], axis=1, keepdims=True)
            nll = (1 - smoothing) * nll + smoothing * (log_total - mean)
        gradient = exponentials * (w[:, None] / normaliser)
        gradient -= jnp.where(columns == t[:, None], (1 - smoothing) * w[:, None], 0)
        if smoothing:
            gradient -= jnp.where(columns > 0, spread * w[:, None], 0)
        gradient = gradient.astype(v.dtype)
        vector_gradient = jnp.dot(gradient, table, preferred_element_type=jnp.float32)
        table_gradient += jnp.dot(gradient.T, v, preferred_element_type=jnp.float32)
        return (total + jnp.sum(w * nll[:, 0]), table_gradient), vector_gradient.astype(v.dtype)

    start = (jnp.float32(0), jnp.zeros(table.shape, jnp.float32))
    (total, table_gradient), vector_gradient = jax.lax.scan(
        body, start, (vectors, targets, weights)
    )
    return total, (vector_gradient, table_gradient.astype(table.dtype))


def _backward(smoothing, gradients, cotangent):
    vector_gradient, table_gradient = gradients
    scale = cotangent.astype(jnp.float32)
    return (
        (vector_gradient.astype(jnp.float32) * scale).astype(vector_gradient.dtype),
        (table_gradient.astype(jnp.float32) * scale).astype(table_gradient.dtype),
        None,
        None,
    )


_loss.defvjp(_forward, _backward)
