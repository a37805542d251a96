"""Embedding tables: parameters of their own kind, so that optimisers and meshes can find them."""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec.typing import Array, UserError


class Table(nnx.Param[jax.Array]):
    """A parameter whose rows are looked up by index. Row 0 belongs to padding."""


@runtime_checkable
class CodedTable(Protocol):
    """A table that is stored as codes; it may stand where a table's array does. A pytree."""

    def rows(self, ids: Array) -> jax.Array:
        """Returns vectors of shape ids.shape + (dim,); decodes these rows alone."""
        ...

    def whole(self) -> jax.Array:
        """Returns all rows, (num_rows + 1, dim)."""
        ...


def look_up(table: jax.Array | CodedTable, ids: Array | None = None) -> jax.Array:
    """Returns vectors of shape ids.shape + (dim,), or the whole table; see `Embedding`."""
    if isinstance(table, CodedTable):
        return table.whole() if ids is None else table.rows(ids)
    if table.dtype == jnp.bfloat16:
        # Before the lookup, for the gradient's sake. Compiled, it widens the rows asked for.
        table = table.astype(jnp.float32)
    return table if ids is None else jnp.take(table, ids, axis=0, mode="clip")


class Embedding(nnx.Module):
    """A table of (num_rows + 1, dim); row i is the vector of index i, row 0 of padding.

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
        self.table = Table(std * jax.random.normal(rngs.params(), (num_rows + 1, dim)))

    def __call__(self, ids: Array | None = None) -> jax.Array:
        """Returns vectors of shape ids.shape + (dim,), or the whole table without ids.

        Those of a bfloat16 table are widened to float32, so that the gradients of an id that comes
        many times add up in float32.
        """
        return look_up(self.table.get_value(), ids)
