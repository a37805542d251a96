"""Exact top-k retrieval by dot product, in chunks of the catalogue."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxrec.typing import UserError

DEFAULT_CHUNK = 16_384


@functools.partial(jax.jit, static_argnames=("k", "chunk"))
def top_k_dot(
    users: jax.Array,
    items: jax.Array,
    k: int,
    *,
    exclude: jax.Array | None = None,
    masks: jax.Array | None = None,
    mask: jax.Array | None = None,
    chunk: int = DEFAULT_CHUNK,
    first: jax.Array | int = 0,
) -> tuple[jax.Array, jax.Array]:
    """Finds the k items with the largest dot product with each user, exactly.

    Equal scores are ordered by item index, as a stable sort would. Row 0 of `items` is padding and
    is never returned. At most B x chunk scores exist at a time. Scores must not be NaN.

    Args:
      users: (B, D) vectors of any float dtype.
      items: (N, D) vectors; row i is item `first` + i.
      k: how many items to return; may exceed the number of candidates.
      exclude: (B, S) int32 item indices to leave out for each user; 0 and repeats do nothing.
      masks: (G, N) bool, lists of items that may be returned; column i belongs to row i of `items`.
        Many users share few lists, so that no (B, N) mask is needed.
      mask: (B,) int32, the row of `masks` that holds for each user; comes with `masks`.
      chunk: how many items are scored at a time.
      first: the item of the first row, for a part of the catalogue.

    Returns:
      Scores (B, k) float32, descending, and item indices (B, k) int32. Where fewer than k
      candidates exist the score is -inf and the index 0.

    Raises:
      UserError: when k or chunk is below 1, or the shapes do not belong together.
    """
    _check(users, items, k, exclude, chunk)
    _check_masks(users, items, masks, mask)
    batch, num_items = users.shape[0], items.shape[0]
    if exclude is None:
        exclude = jnp.zeros((batch, 0), jnp.int32)
    # Padding is excluded like any other item, which spares a pass over the scores.
    exclude = jnp.concatenate([exclude, jnp.zeros((batch, 1), exclude.dtype)], axis=1) - first

    def score(start: jax.Array | int, size: int) -> jax.Array:
        block = lax.dynamic_slice_in_dim(items, start, size)
        scores = jnp.einsum(
            "bd,nd->bn",
            users,
            block,
            precision=lax.Precision.HIGHEST,  # TF32 or bfloat16 passes would not be exact
            preferred_element_type=jnp.float32,
        )
        if users.shape[1] == 1:
            # A product that is not added to anything may be -0, which top-k puts after 0.
            scores = jnp.where(scores == 0, 0.0, scores)
        if masks is not None and mask is not None:
            allowed = lax.dynamic_slice_in_dim(masks, start, size, axis=1)
            scores = jnp.where(jnp.take(allowed, mask, axis=0, mode="clip"), scores, -jnp.inf)
        inside = (exclude >= start) & (exclude < start + size)
        # A negative index would wrap around to the end; `size` is out of bounds and dropped.
        column = jnp.where(inside, exclude - start, size)
        return scores.at[jnp.arange(batch)[:, None], column].set(-jnp.inf, mode="drop")

    def merge(
        best: tuple[jax.Array, jax.Array], start: jax.Array | int, size: int
    ) -> tuple[jax.Array, jax.Array]:
        values, columns = lax.top_k(score(start, size), min(k, size))
        # Earlier chunks come first, so that ties still go to the lower index.
        values = jnp.concatenate([best[0], values], axis=1)
        ids = jnp.concatenate([best[1], columns.astype(jnp.int32) + start], axis=1)
        values, order = lax.top_k(values, k)
        return values, jnp.take_along_axis(ids, order, axis=1)

    if num_items <= chunk:  # nothing to merge with
        values, columns = lax.top_k(score(0, num_items), min(k, num_items))
        missing = ((0, 0), (0, k - values.shape[1]))
        best = (
            jnp.pad(values, missing, constant_values=-jnp.inf),
            jnp.pad(columns.astype(jnp.int32), missing),
        )
    else:
        best = (jnp.full((batch, k), -jnp.inf, jnp.float32), jnp.zeros((batch, k), jnp.int32))
        whole = num_items // chunk
        starts = jnp.arange(whole, dtype=jnp.int32) * chunk
        best, _ = lax.scan(lambda carry, start: (merge(carry, start, chunk), None), best, starts)
        # The rest is a chunk of its own size: padding the catalogue would copy all of it.
        if num_items % chunk:
            best = merge(best, whole * chunk, num_items % chunk)
    values, ids = best
    return values, jnp.where(values == -jnp.inf, 0, ids + first)


def _check(
    users: jax.Array, items: jax.Array, k: int, exclude: jax.Array | None, chunk: int
) -> None:
    if users.ndim != 2 or items.ndim != 2 or users.shape[1] != items.shape[1]:
        raise UserError(
            f"top_k_dot wants users (B, D) and items (N, D); got {users.shape} and {items.shape}."
        )
    if k < 1 or chunk < 1:
        raise UserError(f"top_k_dot wants k and chunk of at least 1; got k={k}, chunk={chunk}.")
    if exclude is not None and (exclude.ndim != 2 or exclude.shape[0] != users.shape[0]):
        raise UserError(
            f"top_k_dot wants exclude ({users.shape[0]}, S), one row for each user; "
            f"got {exclude.shape}."
        )


def _check_masks(
    users: jax.Array, items: jax.Array, masks: jax.Array | None, mask: jax.Array | None
) -> None:
    if masks is None and mask is None:
        return
    if masks is None or mask is None:
        raise UserError("top_k_dot wants masks and mask together, or neither.")
    if (
        masks.ndim != 2
        or masks.dtype != bool
        or masks.shape[1] != items.shape[0]
        or mask.shape != users.shape[:1]
    ):
        raise UserError(
            f"top_k_dot wants masks (G, {items.shape[0]}) bool and mask ({users.shape[0]},) int; "
            f"got {masks.shape} {masks.dtype} and {mask.shape}."
        )
