"""Softmax losses over the catalogue, over sampled negatives and over the batch."""

import jax
import jax.numpy as jnp

from jaxrec.typing import Array

_NEVER = -1e30


def softmax_cross_entropy(
    logits: Array, targets: Array, *, label_smoothing: float = 0.0
) -> jax.Array:
    """Returns -log softmax(logits)[targets], of shape targets.shape; padding item 0 takes no part.

    For training over a large catalogue use `jaxrec.ops.cross_entropy`, which has the same value
    without the logits.

    Args:
      logits: targets.shape + (num_items + 1,) float.
      targets: int in [1, num_items].
      label_smoothing: share of the target's mass that is spread over all items, in [0, 1).
    """
    logits = jnp.asarray(logits, jnp.float32).at[..., 0].set(_NEVER)
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    picked = jnp.take_along_axis(log_probabilities, jnp.asarray(targets)[..., None], axis=-1)
    loss = -picked[..., 0]
    if label_smoothing:
        spread = -jnp.mean(log_probabilities[..., 1:], axis=-1)
        loss = (1 - label_smoothing) * loss + label_smoothing * spread
    return loss


def sampled_softmax(
    positives: Array,
    negatives: Array,
    *,
    log_q_positives: Array | float = 0.0,
    log_q_negatives: Array | float = 0.0,
    where_negatives: Array | None = None,
) -> jax.Array:
    """Softmax cross entropy of one positive among sampled negatives, with the logQ correction.

    Subtracting log q, the log of an item's sampling probability, makes the loss an estimate of the
    full softmax (Bengio and Senecal 2008; Yi et al. 2019).

    Args:
      positives: (...,) float scores.
      negatives: (..., N) float scores.
      log_q_positives, log_q_negatives: log sampling probabilities, broadcastable to the scores.
      where_negatives: (..., N) bool; False leaves a negative out, such as one that is the positive.

    Returns:
      (...,) float32.
    """
    positive = _corrected(positives, log_q_positives)
    negative = _corrected(negatives, log_q_negatives)
    if where_negatives is not None:
        negative = jnp.where(where_negatives, negative, _NEVER)
    largest = jax.lax.stop_gradient(jnp.maximum(positive, jnp.max(negative, axis=-1)))
    total = jnp.exp(positive - largest) + jnp.sum(jnp.exp(negative - largest[..., None]), axis=-1)
    return jnp.log(total) + largest - positive


def in_batch_softmax(
    users: Array,
    items: Array,
    ids: Array,
    *,
    first: Array | int = 0,
    log_q: Array | float = 0.0,
    where: Array | None = None,
) -> jax.Array:
    """Softmax cross entropy of each user's item among the items of the batch (arXiv 1706.07881).

    Args:
      users: (B, D) float vectors.
      items: (N, D) float vectors, N >= B; items[first + b] is the positive of users[b]. There are
        more of them than users when other devices hold the rest of the batch.
      ids: (N,) int item ids; the same item elsewhere in the batch is no negative.
      first: () int, where the items of these users begin.
      log_q: (N,) log probability of meeting each item in a batch, subtracted from its scores.
      where: (N,) bool; items of False rows are no negatives.

    Returns:
      (B,) float32.
    """
    scores = jnp.dot(users, jnp.asarray(items).T, preferred_element_type=jnp.float32)
    logits = _corrected(scores, log_q)
    ids = jnp.asarray(ids)
    own = jnp.asarray(first).astype(jnp.int32) + jnp.arange(scores.shape[0], dtype=jnp.int32)
    itself = own[:, None] == jnp.arange(len(ids), dtype=jnp.int32)[None, :]
    allowed = itself | (ids[own][:, None] != ids[None, :])
    if where is not None:
        allowed &= itself | jnp.asarray(where)[None, :]
    logits = jax.nn.log_softmax(jnp.where(allowed, logits, _NEVER), axis=-1)
    return -jnp.take_along_axis(logits, own[:, None], axis=1)[:, 0]


def _corrected(scores: Array, log_q: Array | float) -> jax.Array:
    scores = jnp.asarray(scores, jnp.float32)
    return scores - jnp.broadcast_to(jnp.asarray(log_q, jnp.float32), scores.shape)
