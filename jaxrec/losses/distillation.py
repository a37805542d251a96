"""Losses that compare a student with its teacher."""

import jax
import jax.numpy as jnp

from jaxrec.typing import Array

_NEVER = -1e30


def soft_labels(
    students: Array, teachers: Array, *, temperature: float = 1.0, where: Array | None = None
) -> jax.Array:
    """Divergence of a student's distribution over candidates from its teacher's, times T squared.

    KL(softmax(teachers / T) || softmax(students / T)) * T ** 2 (arXiv 1503.02531; the factor keeps
    the size of gradients when T changes). At least 0, and 0 where the two distributions are equal.
    Only the students' scores are differentiated.

    Args:
      students, teachers: (..., K) float scores of the same candidates.
      temperature: T, above 0. A higher one tells more of how the teacher ranks unlikely candidates.
      where: (..., K) bool; False leaves a candidate out. The value of none is 0.

    Returns:
      (...,) float32.
    """
    teachers = jax.lax.stop_gradient(jnp.asarray(teachers, jnp.float32))

    def logs(scores: Array) -> jax.Array:
        scaled = jnp.asarray(scores, jnp.float32) / temperature
        # A teacher's score may be -inf, and 0 * inf is no number.
        scaled = jnp.maximum(scaled if where is None else jnp.where(where, scaled, _NEVER), _NEVER)
        return jax.nn.log_softmax(scaled, axis=-1)

    taught = logs(teachers)
    divergence = jnp.exp(taught) * (taught - logs(students))
    return temperature**2 * jnp.sum(divergence, axis=-1)


def relational_distance(
    students: Array, teachers: Array, *, where: Array | None = None
) -> jax.Array:
    """Difference of the distances among a student's vectors from those among its teacher's.

    The distance-wise loss of relational distillation (arXiv 1904.05068): distances of all pairs,
    divided by their mean, under a Huber loss of threshold 1. Widths may differ. It does not change
    when either side's vectors are rotated, moved or multiplied by a number. Only the students'
    vectors are differentiated.

    Args:
      students: (N, D) float vectors.
      teachers: (N, E) float vectors of the same things.
      where: (N,) bool; False leaves a vector out, and its value is 0.

    Returns:
      (N,) float32: the mean over the pairs that each vector is in; 0 when it is the only one.
    """
    count = jnp.asarray(students).shape[0]
    counts = jnp.ones(count, bool) if where is None else jnp.asarray(where)
    pairs = (counts[:, None] & counts[None, :]) & ~jnp.eye(count, dtype=bool)

    def distances(vectors: Array) -> jax.Array:
        vectors = jnp.asarray(vectors, jnp.float32)

        # Differences, as products cancel where vectors are near; some rows at a time, as all are
        # N x N x D numbers.
        @jax.checkpoint
        def from_one(vector: jax.Array) -> jax.Array:
            return jnp.sum(jnp.square(vector[None] - vectors), axis=-1)

        squares = jax.lax.map(from_one, vectors, batch_size=min(32, count))
        # The root has no derivative at 0.
        apart = pairs & (squares > 0)
        found = jnp.where(apart, jnp.sqrt(jnp.where(apart, squares, 1)), 0)
        mean = jnp.sum(found) / jnp.maximum(jnp.sum(pairs, dtype=jnp.float32), 1)
        return found / jnp.where(mean > 0, mean, 1)

    gap = jnp.abs(distances(students) - jax.lax.stop_gradient(distances(teachers)))
    huber = jnp.where(gap < 1, 0.5 * jnp.square(gap), gap - 0.5)
    others = jnp.maximum(jnp.sum(pairs, axis=1, dtype=jnp.float32), 1)
    return jnp.sum(jnp.where(pairs, huber, 0), axis=1) / others
