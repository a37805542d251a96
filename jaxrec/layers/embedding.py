"""Embedding tables: parameters of their own kind, so that optimisers and meshes can find them."""

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec.typing import Array, UserError


class Table(nnx.Param[jax.Array]):
    """A parameter whose rows are looked up by index. Row 0 belongs to padding and is 0."""


@runtime_checkable
class CodedTable(Protocol):
    """A table that is stored as codes; it may stand where a table's array does. A pytree."""

    def rows(self, ids: Array) -> jax.Array:
        """Returns vectors of shape ids.shape + (dim,); decodes these rows alone.

        NaN for an id that has no row.
        """
        ...

    def whole(self) -> jax.Array:
        """Returns all rows, (num_rows + 1, dim)."""
        ...


def look_up(table: jax.Array | CodedTable, ids: Array | None = None) -> jax.Array:
    """Returns vectors of shape ids.shape + (dim,), or the whole table; see `Embedding`.

    The vector of an id that the table has no row for is NaN, so that it cannot pass for another's.
    """
    if isinstance(table, CodedTable):
        return table.whole() if ids is None else table.rows(ids)
    if table.dtype == jnp.bfloat16:
        # Before the lookup, for the gradient's sake. Compiled, it widens the rows asked for.
        table = table.astype(jnp.float32)
    if ids is None:
        return table
    return or_nan(jnp.take(table, ids, axis=0, mode="clip"), in_range(ids, table.shape[0]))


def in_range(ids: Array, num_rows: int) -> jax.Array:
    """Returns ids.shape bool: which of the ids a table of so many rows has a row for."""
    ids = jnp.asarray(ids)
    return (ids >= 0) & (ids < num_rows)


def or_nan(vectors: jax.Array, known: jax.Array) -> jax.Array:
    """Returns the (..., dim) vectors, NaN where the (...) bool says that there is no such row."""
    return jnp.where(known[..., None], vectors, jnp.nan)


def on_rows(
    table: jax.Array | CodedTable, function: Callable[[jax.Array], jax.Array]
) -> jax.Array | CodedTable:
    """Returns the table with a function of each of its rows, (..., dim) to (..., dim)."""
    return _OnRows(table, function) if isinstance(table, CodedTable) else function(table)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _OnRows:
    """A coded table under a function of its rows; a `CodedTable`."""

    table: CodedTable
    function: Callable[[jax.Array], jax.Array] = dataclasses.field(metadata={"static": True})

    def rows(self, ids: Array) -> jax.Array:
        return self.function(self.table.rows(ids))

    def whole(self) -> jax.Array:
        return self.function(self.table.whole())


class Embedding(nnx.Module):
    """A table of (num_rows + 1, dim); row i is the vector of index i, row 0, of padding, is 0.

    Args:
      num_rows: number of things that have a vector, padding not counted.
      dim: width of a vector.
      std: standard deviation of the initial values.
    """

    def __init__(self, num_rows: int, dim: int, *, std: float, rngs: nnx.Rngs):
        if num_rows < 1:
            raise UserError(
                f"a table needs at least one row; got num_rows={num_rows}. Set the count in the "
                "model's config, or let training fill it in from the dataset."
            )
        drawn = std * jax.random.normal(rngs.params(), (num_rows + 1, dim))
        # Not by an index: a table may have more rows than an int32 counts.
        padding = jnp.zeros((1, dim), drawn.dtype)
        self.table = Table(jax.lax.dynamic_update_slice(drawn, padding, (0, 0)))

    def __call__(self, ids: Array | None = None) -> jax.Array:
        """Returns vectors of shape ids.shape + (dim,), or the whole table without ids.

        Those of a bfloat16 table are widened to float32, so that the gradients of an id that comes
        many times add up in float32.
        """
        return look_up(self.table.get_value(), ids)
