"""Rows of tables that are split over devices: what is asked of whom, and the way there and back.

These functions run once a device, under `jax.shard_map` or `jax.pmap`, with the name of the axis
that splits the tables. A table is split into blocks of equal size: by rows, device i owning rows
i * block_rows onward, or by columns.

One exchange serves several tables: what they send is laid side by side. Its volume a device and
way is M * capacity rows for M devices, of which 1 / M stays at home. With a capacity of all wanted
rows an `all_to_all` moves what a reduce-scatter of the same rows would, and with less it moves
less, so that there is no size at which another collective is the cheaper one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

type Axes = tuple[str, ...]


class Route(NamedTuple):
    """Where the rows that a device wants come from.

    Attributes:
      asked: (M, K) int32: for each owner, rows of its block; `block_rows` where there is none.
      back: (C,) int32: where each wanted row stands among the (M * K) that arrive.
    """

    asked: jax.Array
    back: jax.Array


def route_rows(wanted: jax.Array, block_rows: int, capacity: int, axis: str) -> Route:
    """Returns the route of a device's wanted rows of a table that is split by rows.

    Args:
      wanted: (C,) int32 ascending, without repeats, filled up past the end of the table.
      block_rows: rows of a device's block.
      capacity: K, rows that can be asked of one owner; see `most_of_one_owner`.
      axis: the axis that splits the table.
    """
    owners = lax.axis_size(axis)
    starts = _starts(wanted, block_rows, owners)
    column = starts[:-1, None] + jnp.arange(capacity, dtype=jnp.int32)[None]
    ids = wanted.at[column].get(mode="clip")
    inside = column < starts[1:, None]
    offset = jnp.arange(owners, dtype=jnp.int32)[:, None] * block_rows
    owner = jnp.minimum(wanted // block_rows, owners - 1)
    back = owner * capacity + jnp.arange(len(wanted), dtype=jnp.int32) - starts[owner]
    return Route(jnp.where(inside, ids - offset, block_rows), back)


def most_of_one_owner(wanted: jax.Array, block_rows: int, axis: str) -> jax.Array:
    """Returns () int32: the most rows that this device wants of one owner."""
    return jnp.max(jnp.diff(_starts(wanted, block_rows, lax.axis_size(axis))))


def _starts(wanted: jax.Array, block_rows: int, owners: int) -> jax.Array:
    edges = jnp.arange(owners + 1, dtype=jnp.int32) * block_rows
    return jnp.searchsorted(wanted, edges).astype(jnp.int32)


def swap(blocks: list[jax.Array], axis: str) -> list[jax.Array]:
    """Sends block [i] of each (M, K, ...) array to device i and returns what came, in one go.

    Arrays whose further axes and dtypes agree travel in one collective.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for number, block in enumerate(blocks):
        groups.setdefault((block.shape[2:], block.dtype), []).append(number)
    arrived = list(blocks)
    for numbers in groups.values():
        joined = jnp.concatenate([blocks[n] for n in numbers], axis=1)
        joined = lax.all_to_all(joined, axis, 0, 0, tiled=True)
        cuts = [0]
        for number in numbers:
            cuts.append(cuts[-1] + blocks[number].shape[1])
            arrived[number] = joined[:, cuts[-2] : cuts[-1]]
    return arrived
