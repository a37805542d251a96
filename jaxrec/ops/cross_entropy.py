"""Softmax cross entropy over a whole catalogue without the matrix of logits."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.typing import Array

type Axis = str | tuple[str, ...]


def catalogue_cross_entropy(
    vectors: Array,
    table: Array,
    targets: Array,
    weights: Array,
    *,
    label_smoothing: float = 0.0,
    chunk: int | None = None,
    num_rows: int | None = None,
    axis: Axis | None = None,
) -> jax.Array:
    """Returns sum_t weights[t] * -log softmax(vectors[t] @ table.T)[targets[t]], row 0 left out.

    The logits exist for `chunk` tokens at a time. When a gradient is asked for, it is computed in
    the same pass, chunk by chunk while the logits are in cache, so that nothing of size T x N is
    stored or computed twice. Tokens of weight 0, such as padding, are sorted to the end and cost
    nothing.

    With `axis` the table is split among the devices of a mesh axis, inside `jax.shard_map` (with
    `check_vma=False`) or `jax.pmap`. Each device has its own tokens, as many as the others, and one
    block of rows: device i of the axis has block i, and all blocks are of one size. A device sees
    the tokens of all devices and exchanges three numbers a token, so that the logits are split as
    the table is. It returns the sum over its own tokens; `jax.lax.psum` of it is the whole loss.
    The gradient of what a device returns is, for its vectors and its block, that of the whole loss,
    as long as the same factor comes back on every device of the axis.

    Args:
      vectors: (T, D) float.
      table: (N, D) float, the vectors of all items, used in the dtype of `vectors`; row 0 is
        padding and takes no part. With `axis` a block of it.
      targets: (T,) int in [1, num_rows), rows of the whole table.
      weights: (T,) float; not differentiated. Tokens of weight 0 may have any target.
      label_smoothing: share of the target's mass that is spread over all items, in [0, 1).
      chunk: tokens with logits at a time. By default as many as keep the logits within 256 MiB on
        an accelerator, and within 128 MiB and 256 tokens on a CPU.
      num_rows: rows of the whole table that count, row 0 among them; those after, which fill up
        blocks, take no part. By default all.
      axis: the axis, or axes, that the table is split over.
    """
    wanted = jnp.asarray(targets, jnp.int32)
    split = _Split(label_smoothing, num_rows or _all_rows(table, axis), axis)
    return _in_chunks(vectors, table, wanted, weights, None, split, chunk)


def catalogue_divergence(
    vectors: Array,
    table: Array,
    teacher_vectors: Array,
    teacher_table: Array,
    weights: Array,
    *,
    chunk: int | None = None,
    num_rows: int | None = None,
    axis: Axis | None = None,
) -> jax.Array:
    """Returns the divergence of softmaxes over a whole catalogue from those of a teacher.

    sum_t weights[t] * KL(softmax(teacher_vectors[t] @ teacher_table.T) ||
    softmax(vectors[t] @ table.T)), row 0 left out: soft labels over all items (arXiv 1503.02531).
    It works as `catalogue_cross_entropy`, with one matrix product more, and on half as many tokens
    at a time, as the teacher has logits too. Only `vectors` and `table` are differentiated.

    Args:
      vectors, table, weights, chunk, num_rows, axis: as there.
      teacher_vectors: (T, E) float.
      teacher_table: (num_rows or more, E) float, of the same items; whole, with `axis` as well.
    """
    taught = jax.lax.stop_gradient(jnp.asarray(teacher_vectors))
    block = jax.lax.stop_gradient(jnp.asarray(teacher_table)).astype(taught.dtype)
    if axis:
        rows = jnp.asarray(table).shape[0]
        missing = max(0, rows * jax.lax.axis_size(axis) - len(block))
        block = jnp.pad(block, [(0, missing), (0, 0)])
        first = jax.lax.axis_index(axis) * rows
        block = jax.lax.dynamic_slice_in_dim(block, first, rows)
    split = _Split(0.0, num_rows or _all_rows(table, axis), axis)
    return _in_chunks(vectors, table, taught, weights, block, split, chunk)


def _all_rows(table: Array, axis: Axis | None) -> int:
    return int(table.shape[0] * (jax.lax.axis_size(axis) if axis else 1))


def _in_chunks(
    vectors: Array,
    table: Array,
    wanted: jax.Array,
    weights: Array,
    teacher: jax.Array | None,
    split: "_Split",
    chunk: int | None,
) -> jax.Array:
    """Brings tokens into the form that `_loss` takes."""
    rows, axis = jnp.asarray(table).astype(vectors.dtype), split.axis
    every = (jnp.asarray(vectors), wanted, jnp.asarray(weights, jnp.float32))
    counted = every[2]
    if axis:
        first = jax.lax.axis_index(axis) * len(counted)
        # The transpose of this gathering adds up what the blocks give to the vectors' gradients.
        every = jax.lax.all_gather(every, axis, tiled=True)
        counted = jax.lax.dynamic_update_slice(jnp.zeros_like(every[2]), counted, (first,))
    order = jnp.argsort(every[2] == 0, stable=True)
    fitting = _fit(rows.shape[0] * (1 if teacher is None else 2))
    size = min(chunk or fitting, len(order))

    def chunks(x: jax.Array) -> jax.Array:
        padded = jnp.pad(x[order], [(0, -len(x) % size), *[(0, 0)] * (x.ndim - 1)])
        return padded.reshape(-1, size, *x.shape[1:])

    tokens = _Tokens(chunks(every[1]), chunks(every[2]), chunks(counted))
    return _loss(chunks(every[0]), rows, tokens, teacher, split)


def _fit(num_rows: int) -> int:
    """Returns how many tokens to take at a time against a table of so many rows."""
    # Up to 256 MiB of logits on an accelerator. On a CPU 256 tokens are enough to be fast.
    cpu = jax.default_backend() == "cpu"
    tokens = 2 ** max(3, ((2**25 if cpu else 2**26) // num_rows).bit_length() - 1)
    return min(tokens, 256) if cpu else tokens


class _Split(NamedTuple):
    """What is fixed when the function is compiled."""

    smoothing: float
    num_rows: int  # of the whole table
    axis: Axis | None


class _Tokens(NamedTuple):
    """What belongs to each token beside its vector; (chunks, C)."""

    targets: jax.Array  # ids; (chunks, C, E) vectors of a teacher where there is one
    weights: jax.Array
    counted: jax.Array  # the weights, but 0 for tokens of other devices


class _Chunk(NamedTuple):
    """The logits of some tokens against this device's rows: what loss and gradient share."""

    columns: jax.Array  # (C, N) int32, rows of the whole table
    exponentials: jax.Array  # (C, N), of the logits less their peak over all devices
    total: jax.Array  # (C, 1), sum of the exponentials over all devices
    losses: jax.Array  # (C,), unweighted
    taught: jax.Array | None  # (C, N), a teacher's probabilities


class _Softmax(NamedTuple):
    """A softmax over the rows of all devices."""

    logits: jax.Array  # (C, N), -1e30 where a row does not count
    exponentials: jax.Array  # (C, N), of the logits less their peak over all devices
    peak: jax.Array  # (C, 1)


def _counts(columns: jax.Array, split: _Split) -> jax.Array:
    return (columns > 0) & (columns < split.num_rows)


def _softmax(vectors: jax.Array, table: jax.Array, counts: jax.Array, split: _Split) -> _Softmax:
    logits = jnp.dot(vectors, table.T, preferred_element_type=jnp.float32)
    logits = jnp.where(counts, logits, -1e30)
    peak = jnp.max(logits, axis=1, keepdims=True)
    if split.axis:
        peak = jax.lax.pmax(peak, split.axis)
    return _Softmax(logits, jnp.exp(logits - peak), peak)


def _chunk(
    vectors: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    teacher: jax.Array | None,
    split: _Split,
) -> _Chunk:
    columns = jax.lax.broadcasted_iota(jnp.int32, (len(vectors), len(table)), 1)
    first = jnp.int32(0)
    if split.axis:
        first = jax.lax.axis_index(split.axis) * table.shape[0]
    columns = columns + first
    counts = _counts(columns, split)
    logits, exponentials, peak = _softmax(vectors, table, counts, split)
    sums = [jnp.sum(exponentials, axis=1, keepdims=True)]
    if teacher is None:
        place = targets - first
        # Clipped, as a token of weight 0 may have any target and 0 times nan is no 0.
        picked = jnp.take_along_axis(logits, place[:, None], axis=1, mode="clip")
        if split.axis:
            here = (place >= 0) & (place < table.shape[0])
            picked = jnp.where(here[:, None], picked, 0)
        sums.append(picked)
    else:
        taught = _softmax(targets, teacher, counts, split)
        gap = jnp.where(counts, taught.logits - logits, 0)
        sums.append(jnp.sum(taught.exponentials, axis=1, keepdims=True))
        sums.append(jnp.sum(taught.exponentials * gap, axis=1, keepdims=True))
    if split.smoothing:
        sums.append(jnp.sum(jnp.where(counts, logits, 0), axis=1, keepdims=True))
    if split.axis:
        sums = jax.lax.psum(sums, split.axis)
    total = sums[0]
    log_total = jnp.log(total) + peak
    if teacher is not None:
        mass, gap = sums[1], sums[2]
        losses = gap / mass - (jnp.log(mass) + taught.peak) + log_total
        return _Chunk(columns, exponentials, total, losses[:, 0], taught.exponentials / mass)
    losses = log_total - sums[1]
    if split.smoothing:
        mean = sums[2] / (split.num_rows - 1)
        losses = (1 - split.smoothing) * losses + split.smoothing * (log_total - mean)
    return _Chunk(columns, exponentials, total, losses[:, 0], None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _loss(
    vectors: jax.Array,
    table: jax.Array,
    tokens: _Tokens,
    teacher: jax.Array | None,
    split: _Split,
) -> jax.Array:
    def body(index: jax.Array, total: jax.Array) -> jax.Array:
        losses = _chunk(vectors[index], table, tokens.targets[index], teacher, split).losses
        return total + jnp.sum(tokens.counted[index] * losses)

    return jax.lax.fori_loop(0, _used(tokens.weights), body, jnp.float32(0))


def _used(weights: jax.Array) -> jax.Array:
    """Returns how many chunks have a token that counts, on any device; they come first."""
    return jnp.sum(jnp.any(weights != 0, axis=1), dtype=jnp.int32)


def _forward(
    vectors: jax.Array,
    table: jax.Array,
    tokens: _Tokens,
    teacher: jax.Array | None,
    split: _Split,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    def body(
        index: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        total, vector_gradients, table_gradient = carry
        v, t, w = vectors[index], tokens.targets[index], tokens.weights[index][:, None]
        chunk = _chunk(v, table, t, teacher, split)
        gradient = chunk.exponentials * (w / chunk.total)
        if chunk.taught is not None:
            gradient -= chunk.taught * w
        else:
            gradient -= jnp.where(chunk.columns == t[:, None], (1 - split.smoothing) * w, 0)
        if split.smoothing:
            share = split.smoothing / (split.num_rows - 1)
            gradient -= jnp.where(_counts(chunk.columns, split), share * w, 0)
        gradient = gradient.astype(v.dtype)
        vector_gradient = jnp.dot(gradient, table, preferred_element_type=jnp.float32)
        vector_gradients = vector_gradients.at[index].set(vector_gradient.astype(v.dtype))
        table_gradient += jnp.dot(gradient.T, v, preferred_element_type=jnp.float32)
        total += jnp.sum(tokens.counted[index] * chunk.losses)
        return total, vector_gradients, table_gradient

    start = (jnp.float32(0), jnp.zeros_like(vectors), jnp.zeros(table.shape, jnp.float32))
    total, *gradients = jax.lax.fori_loop(0, _used(tokens.weights), body, start)
    return total, (gradients[0], gradients[1].astype(table.dtype))


def _backward(
    split: _Split, gradients: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, None, None]:
    def scaled(gradient: jax.Array) -> jax.Array:
        return (gradient.astype(jnp.float32) * cotangent).astype(gradient.dtype)

    return scaled(gradients[0]), scaled(gradients[1]), None, None


_loss.defvjp(_forward, _backward)
