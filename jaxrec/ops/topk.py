"""Exact top-k retrieval by dot product, in chunks of the catalogue.

Scores are computed with items as rows, (items, users): on a CPU such a product takes a fraction of
the time of its transpose. Then the best are looked for in few of them (`_best`).
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxrec.typing import UserError

DEFAULT_CHUNK = 65_536
_SCORES = 2**21  # that exist at a time by default, where the users are few


@functools.partial(jax.jit, static_argnames=("k", "chunk"))
def top_k_dot(
    users: jax.Array,
    items: jax.Array,
    k: int,
    *,
    exclude: jax.Array | None = None,
    masks: jax.Array | None = None,
    mask: jax.Array | None = None,
    chunk: int | None = None,
    first: jax.Array | int = 0,
) -> tuple[jax.Array, jax.Array]:
    """Finds the k items with the largest dot product with each user, exactly.

    Equal scores are ordered by item index, as a stable sort would. Row 0 of `items` is padding and
    is never returned. At most chunk x B scores exist at a time. Scores must not be NaN.

    Args:
      users: (B, D) vectors of any float dtype.
      items: (N, D) vectors; row i is item `first` + i.
      k: how many items to return; may exceed the number of candidates.
      exclude: (B, S) int32 item indices to leave out for each user; 0 and repeats do nothing.
      masks: (G, N) bool, lists of items that may be returned; column i belongs to row i of `items`.
        Many users share few lists, so that no (B, N) mask is needed.
      mask: (B,) int32, the row of `masks` that holds for each user; comes with `masks`.
      chunk: how many items are scored at a time; by default 65,536, or more for few users.
      first: the item of the first row, for a part of the catalogue.

    Returns:
      Scores (B, k) float32, descending, and item indices (B, k) int32. Where fewer than k
      candidates exist the score is -inf and the index 0.

    Raises:
      UserError: when k or chunk is below 1, or the shapes do not belong together.
    """
    batch, num_items = users.shape[0], items.shape[0]
    if chunk is None:
        chunk = DEFAULT_CHUNK
        if isinstance(batch, int):  # a program's batch may be free
            chunk = max(chunk, _SCORES // max(batch, 1))
    _check(users, items, k, exclude, chunk)
    _check_masks(users, items, masks, mask)
    if exclude is None:
        exclude = jnp.zeros((batch, 0), jnp.int32)
    # Padding is excluded like any other item, which spares a pass over the scores.
    exclude = jnp.concatenate([exclude, jnp.zeros((batch, 1), exclude.dtype)], axis=1) - first
    every = jnp.arange(batch)[:, None]

    def score(start: jax.Array | int, size: int) -> jax.Array:
        block = lax.dynamic_slice_in_dim(items, start, size)
        scores = jnp.einsum(
            "nd,bd->nb",
            block,
            users,
            precision=lax.Precision.HIGHEST,  # TF32 or bfloat16 passes would not be exact
            preferred_element_type=jnp.float32,
        )
        if users.shape[1] == 1:
            # A product that is not added to anything may be -0, which top-k puts after 0.
            scores = jnp.where(scores == 0, 0.0, scores)
        if masks is not None and mask is not None:
            allowed = lax.dynamic_slice_in_dim(masks, start, size, axis=1)
            scores = jnp.where(jnp.take(allowed.T, mask, axis=1, mode="clip"), scores, -jnp.inf)
        inside = (exclude >= start) & (exclude < start + size)
        # A negative index would wrap around to the end; `size` is out of bounds and dropped.
        row = jnp.where(inside, exclude - start, size)
        return scores.at[row, every].set(-jnp.inf, mode="drop")

    def best_of(start: jax.Array | int, size: int) -> tuple[jax.Array, jax.Array]:
        values, rows = _best(score(start, size), k)
        return values, rows + start

    found = []
    whole, rest = divmod(num_items, chunk)
    if whole == 1:
        found.append(best_of(0, chunk))
    elif whole:
        none = (jnp.full((batch, k), -jnp.inf, jnp.float32), jnp.zeros((batch, k), jnp.int32))
        starts = jnp.arange(whole, dtype=jnp.int32) * chunk
        best, _ = lax.scan(
            lambda best, start: (_merge([best, best_of(start, chunk)], k), None), none, starts
        )
        found.append(best)
    # The rest is a chunk of its own size: padding the catalogue would copy all of it.
    if rest:
        found.append(best_of(whole * chunk, rest))
    values, ids = _merge(found, k)
    short = ((0, 0), (0, k - values.shape[1]))
    values = jnp.pad(values, short, constant_values=-jnp.inf)
    return values, jnp.where(values == -jnp.inf, 0, jnp.pad(ids, short) + first)


def _merge(found: list[tuple[jax.Array, jax.Array]], k: int) -> tuple[jax.Array, jax.Array]:
    """Returns the k best of lists; those of lower items come first, so that ties go to them."""
    if len(found) == 1:
        return found[0]
    values, ids = (jnp.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    values, order = lax.top_k(values, min(k, values.shape[1]))
    return values, jnp.take_along_axis(ids, order, axis=1)


def _best(scores: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Returns the largest of each column of (N, B) scores, and their rows, (B, min(k, N)) each.

    Of N rows top-k sees about 2 sqrt(N k): the maxima of blocks of rows, and the rows of the k
    blocks whose maxima are largest. Any other row has k before it, one in each of these blocks,
    that are larger, or as large and in an earlier block.
    """
    count, batch = scores.shape
    k = min(k, count)
    size = 2 ** round(math.log2(count / k) / 2)
    if size == 1:
        return lax.top_k(scores.T, k)
    blocks = count // size
    maxima = jnp.max(scores[: blocks * size].reshape(blocks, size, batch), axis=1)
    _, chosen = lax.top_k(maxima.T, min(k, blocks))
    # In order of rows, so that ties go to the lower one.
    rows = jnp.sort(chosen, axis=1)[:, :, None] * size + jnp.arange(size)[None, None]
    rest = jnp.broadcast_to(jnp.arange(blocks * size, count), (batch, count - blocks * size))
    rows = jnp.concatenate([rows.reshape(batch, -1), rest], axis=1)
    among = scores.at[rows, jnp.arange(batch)[:, None]].get(mode="promise_in_bounds")
    values, places = lax.top_k(among, k)
    return values, jnp.take_along_axis(rows, places, axis=1)


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
