"""The rows that a batch touches: find them, take them out of a table, put them back.

With sharded tables only `take_rows` and `put_rows` change.
"""

import jax
import jax.numpy as jnp

from jaxrec.typing import Array


def unique_rows(ids: Array, num_rows: int, capacity: int) -> tuple[jax.Array, jax.Array]:
    """Returns the distinct ids of a batch, ascending, in an array of fixed size.

    Args:
      ids: any shape, int, in [0, num_rows).
      num_rows: rows of the table.
      capacity: size of the result. Ids beyond it are lost: compare `count` with it.

    Returns:
      rows: (capacity,) int32, filled up with distinct indices past the end of the table, so that
        it stays sorted and without repeats and `put_rows` ignores them.
      count: () int32, how many distinct ids there are; greater than `capacity` on overflow.
    """
    ordered = jnp.sort(jnp.ravel(jnp.asarray(ids)).astype(jnp.int32))
    fresh = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])
    place = jnp.cumsum(fresh) - 1
    rows = num_rows + jnp.arange(capacity, dtype=jnp.int32)
    rows = rows.at[jnp.where(fresh, place, capacity)].set(ordered, mode="drop")
    return rows, place[-1].astype(jnp.int32) + 1


def renumber(ids: Array, rows: jax.Array) -> jax.Array:
    """Returns where each id stands in the sorted `rows`, in the shape of ids."""
    place = jnp.searchsorted(rows, jnp.asarray(ids).astype(rows.dtype), method="scan_unrolled")
    return place.astype(jnp.int32)


def take_rows(table: jax.Array, rows: jax.Array) -> jax.Array:
    """Returns table[rows]; zeros for rows past the end."""
    return table.at[rows].get(
        mode="fill", fill_value=0, indices_are_sorted=True, unique_indices=True
    )


def put_rows(table: jax.Array, rows: jax.Array, values: jax.Array) -> jax.Array:
    """Returns the table with `values` at `rows`; rows past the end are dropped."""
    return table.at[rows].set(values, mode="drop", indices_are_sorted=True, unique_indices=True)
