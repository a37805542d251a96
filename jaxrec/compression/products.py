"""Product quantisation: a row is its length, and for each of its parts the nearest of 256 vectors.

Jégou, Douze and Schmid, Product Quantization for Nearest Neighbor Search (2011,
doi:10.1109/TPAMI.2010.57). Differs from the paper: lengths are kept apart and directions are
quantised, as in gain-shape quantisation, so that long and short rows share the codebooks.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.layers.embedding import in_range, or_nan
from jaxrec.typing import Array

NUM_CODES = 256  # what a byte can name
SAMPLE = 256 * NUM_CODES  # rows that codebooks are made from, at most
_ITERATIONS = 25
_CHUNK = 8192  # rows whose distances to all codes are held at a time


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ProductTable:
    """A product-quantised table; see `jaxrec.layers.CodedTable`.

    Attributes:
      codes: (V, parts) uint8.
      norms: (V, 1) bfloat16, the lengths of the rows.
      codebooks: (parts, 256, dim / parts) bfloat16.
    """

    codes: jax.Array
    norms: jax.Array
    codebooks: jax.Array

    def rows(self, ids: Array) -> jax.Array:
        """Returns vectors of shape ids.shape + (dim,)."""
        codes, norms = (jnp.take(x, ids, axis=0, mode="clip") for x in (self.codes, self.norms))
        found = decode(codes, norms, self.codebooks)
        return or_nan(found, in_range(ids, self.codes.shape[0]))

    def whole(self) -> jax.Array:
        """Returns all rows, (V, dim)."""
        return decode(self.codes, self.norms, self.codebooks)


def decode(codes: jax.Array, norms: jax.Array, codebooks: jax.Array) -> jax.Array:
    """Returns (..., dim) float32 rows of codes (..., parts) and norms (..., 1)."""
    parts = jnp.arange(codebooks.shape[0])
    found = codebooks[jnp.broadcast_to(parts, codes.shape), codes.astype(jnp.int32)]
    directions = found.reshape(*codes.shape[:-1], -1).astype(jnp.float32)
    return directions * norms.astype(jnp.float32)


def encode(rows: jax.Array, codebooks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (N, parts) uint8 codes and (N, 1) bfloat16 norms of (N, dim) rows.

    The norm is the one that brings the decoded row nearest to the row.
    """
    parts, _, width = codebooks.shape
    directions, _ = _split(rows)
    pieces = directions.reshape(len(rows), parts, width).swapaxes(0, 1)
    books = codebooks.astype(jnp.float32)
    codes = jax.lax.map(lambda pair: _nearest(*pair), (pieces, books)).T.astype(jnp.uint8)
    decoded = decode(codes, jnp.ones((len(rows), 1), jnp.bfloat16), codebooks)
    squares = jnp.sum(decoded * decoded, axis=-1, keepdims=True)
    fitted = jnp.sum(rows * decoded, axis=-1, keepdims=True) / jnp.where(squares > 0, squares, 1)
    return codes, fitted.astype(jnp.bfloat16)


@functools.partial(jax.jit, static_argnames="parts")
def fit_codebooks(rows: jax.Array, parts: int, key: jax.Array) -> jax.Array:
    """Returns (parts, 256, dim / parts) bfloat16 codebooks of (N, dim) rows, by k-means.

    Rows of zeros have no direction and take no part.
    """
    directions, where = _split(rows)
    pieces = directions.reshape(len(rows), parts, -1).swapaxes(0, 1)
    # Starts among rows that have a direction, again and again where there are fewer than codes.
    order = jnp.argsort(jax.random.uniform(key, (len(rows),)) + jnp.where(where, 0, 2))
    starts = order[jnp.arange(NUM_CODES) % jnp.maximum(jnp.sum(where), 1)]

    def fit(piece: jax.Array) -> jax.Array:
        def improve(_: int, book: jax.Array) -> jax.Array:
            nearest = jnp.where(where, _nearest(piece, book), NUM_CODES)
            sums = jax.ops.segment_sum(piece, nearest, NUM_CODES + 1)[:-1]
            counts = jnp.bincount(nearest, length=NUM_CODES + 1)[:-1, None]
            return jnp.where(counts > 0, sums / jnp.maximum(counts, 1), book)

        return jax.lax.fori_loop(0, _ITERATIONS, improve, piece[starts])

    return jax.lax.map(fit, pieces).astype(jnp.bfloat16)


def sample_rows(num_rows: int, seed: int) -> np.ndarray:
    """Returns ascending rows that codebooks are made from; row 0 is padding and not among them."""
    if num_rows - 1 <= SAMPLE:
        return np.arange(1, num_rows)
    chosen = np.random.default_rng(seed).choice(num_rows - 1, SAMPLE, replace=False)
    return np.sort(chosen) + 1


def _split(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns directions, zero where there is none, and (N,) whether there is one."""
    norms = jnp.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / jnp.where(norms > 0, norms, 1), norms[:, 0] > 0


def _nearest(pieces: jax.Array, book: jax.Array) -> jax.Array:
    """Returns (N,) int32: which vector of the codebook (256, d) is nearest to each piece (N, d)."""
    halves = 0.5 * jnp.sum(book * book, axis=-1)

    def of(piece: jax.Array) -> jax.Array:
        return jnp.argmax(book @ piece - halves).astype(jnp.int32)

    return jax.lax.map(of, pieces, batch_size=min(_CHUNK, len(pieces)))
