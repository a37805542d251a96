"""What a step does with embedding tables: which rows it wants, where they are, how they travel.

For each table a device first names the rows that its part of the batch wants. From these follow
the rows of its own block that somebody wants, which are what the optimiser sees, and how rows get
from their owners to those who want them. All of it is a function of the ids alone, so the way back
of gradients is the derivative of the way there.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrec.ops.exchange import most_of_one_owner, route_rows, swap
from jaxrec.ops.touched import unique_rows
from jaxrec.optim import Touched
from jaxrec.sharding import Layout, table_of
from jaxrec.typing import Batch, Params

type Fields = dict[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """The rows of one table that this device's part of a batch names.

    Attributes:
      rows: the distinct rows, as in `Touched`; num_rows is that of the whole table.
      fields: the batch fields that index the table.
      most: () int32, the most rows wanted of one owner; 0 when the table is not split by rows.
      dense: whether the optimiser must see every row: the loss reads all of them, or the batch of
        all devices could touch all of them, which must not depend on the number of devices.
    """

    rows: Touched
    fields: tuple[str, ...]
    most: jax.Array
    dense: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lookup:
    """How one table is read and written in a step.

    Attributes:
      touched: rows of this device's block that the optimiser sees; None for all of them.
      number: renumbers the batch's ids; None when they index the block as they are.
      place: (M, K) where the rows that each device asks for stand among `touched`; None when no
        rows travel.
      back: (C,) where the wanted rows stand among those that arrive; None for split columns, of
        which each device sends a piece.
    """

    touched: Touched | None
    number: Touched | None
    place: jax.Array | None = None
    back: jax.Array | None = None


def wanted_rows(
    parts: Batch,
    params: Params,
    tables: Fields,
    layout: Layout,
    capacity: int,
    *,
    whole: bool,
    rows_of: Mapping[str, int],
) -> dict[str, Wanted]:
    """Returns what this device wants of each table that is not simply used as it is.

    Args:
      parts: the batch.
      params: the parameters, with this device's blocks of tables.
      tables: the batch fields that index each table.
      capacity: distinct rows of a table that a device may want; 0 allows for every id.
      whole: whether the loss needs every item. Then positives are targets and no lookups, and what
        is not split is used as it is.
      rows_of: rows of each table, without those that make blocks equal.
    """
    wanted = {}
    for name, fields in tables.items():
        block, split = params[name]["table"].shape[0], layout.placement(name)
        num_rows = block * (lax.axis_size(layout.table_axis) if split == "row" else 1)
        if whole:
            fields = tuple(field for field in fields if field != "positives")
        ids = [jnp.ravel(getattr(parts, f)) for f in fields if getattr(parts, f) is not None]
        size = int(min(capacity or math.inf, sum(map(len, ids))))
        dense = whole or _of_all_devices(parts, fields, layout, capacity) + 1 >= rows_of[name]
        if ids and not (dense and split == "replicated"):
            # Row 0 is always there: padding must have a place in the slice.
            joined = jnp.concatenate([jnp.zeros(1, jnp.int32), *ids])
            rows = Touched.of(joined, num_rows, size + 1)
            most = jnp.int32(0)
            if split == "row" and layout.table_axis:
                most = most_of_one_owner(rows.rows, block, layout.table_axis)
            wanted[name] = Wanted(rows=rows, fields=fields, most=most, dense=dense)
    return wanted


def _of_all_devices(parts: Batch, fields: tuple[str, ...], layout: Layout, capacity: int) -> int:
    """Returns how many ids of a table the batch of all devices has, or the capacity if less."""
    devices, count = math.prod(map(lax.axis_size, layout.axes)), 0
    for field in fields:
        ids = getattr(parts, field)
        if ids is not None:
            # Negatives that a batch shares are the same on all devices.
            shared = field == "negatives" and ids.ndim <= parts.positives.ndim
            count += ids.size * (1 if shared else devices)
    # Not the capacity times the devices: what is dense would then depend on their number.
    return min(capacity or count, count)


def fair_share(capacity: int, layout: Layout) -> int:
    """Returns how many of so many rows an exchange of even shares asks of one owner at most."""
    if layout.table_axis is None:
        return capacity
    even = capacity / lax.axis_size(layout.table_axis)
    # Six standard deviations, or chance would go beyond a small share in most steps.
    share = math.ceil(max(layout.slack * even, even + 6 * math.sqrt(even) + 8))
    return min(capacity, -(-share // 8) * 8)


def find_rows(
    wanted: dict[str, Wanted], params: Params, layout: Layout, *, shares: bool
) -> dict[str, Lookup]:
    """Returns how each table is read, after the devices have told each other what they want.

    Args:
      shares: ask each owner for a fair share of rows at most; otherwise for all that may be wanted.
    """
    axis = layout.table_axis or ""
    asked, back = {}, {}
    for name, want in wanted.items():
        rows, block = want.rows.rows, params[name]["table"].shape[0]
        if layout.placement(name) == "row":
            capacity = fair_share(len(rows), layout) if shares else len(rows)
            asked[name], back[name] = route_rows(rows, block, capacity, axis)
    arrived = dict(zip(asked, swap(list(asked.values()), axis), strict=True))
    lookups = {}
    for name, want in wanted.items():
        block, split = params[name]["table"].shape[0], layout.placement(name)
        others = tuple(a for a in layout.axes if split == "replicated" or a != axis)
        here = want.rows.rows
        if split == "row":
            here = arrived[name]
        elif split == "column":
            here = lax.all_gather(here, axis)
        touched, place = None, here
        if not want.dense:
            everyone = lax.all_gather(jnp.ravel(here), others, tiled=True) if others else here
            touched = want.rows
            if split != "replicated" or others:
                # One more than the block has, for rows that nobody asked for.
                size = min(everyone.size, block + 1)
                touched = Touched(*unique_rows(everyone, block, size), block)
            place = touched.renumber(here)
        if split == "replicated":
            lookups[name] = Lookup(touched=touched, number=touched)
        else:
            lookups[name] = Lookup(
                touched=touched, number=want.rows, place=place, back=back.get(name)
            )
    return lookups


def fetch_rows(params: Params, lookups: dict[str, Lookup], layout: Layout) -> Params:
    """Returns the parameters with the rows that this device wants in place of its blocks.

    Args:
      params: this device's touched rows, or blocks.
    """
    travelling = {name: found for name, found in lookups.items() if found.place is not None}
    sent = [
        params[name]["table"].at[found.place].get(mode="fill", fill_value=0)
        for name, found in travelling.items()
    ]
    arrived = swap(sent, layout.table_axis or "")
    fetched = dict(params)
    for (name, found), rows in zip(travelling.items(), arrived, strict=True):
        if found.back is None:
            rows = jnp.moveaxis(rows, 0, 1).reshape(rows.shape[1], -1)
        else:
            rows = rows.reshape(-1, rows.shape[-1]).at[found.back].get(mode="clip")
        fetched[name] = params[name] | {"table": rows}
    return fetched


def renumber_ids(batch: Batch, wanted: dict[str, Wanted], lookups: dict[str, Lookup]) -> Batch:
    """Returns the batch with positions among the rows at hand in place of ids."""
    for name, want in wanted.items():
        number = lookups[name].number
        assert number is not None
        ids = {field: getattr(batch, field) for field in want.fields}
        batch = batch.replace(
            **{field: number.renumber(x) for field, x in ids.items() if x is not None}
        )
    return batch


def touched_rows(lookups: dict[str, Lookup]) -> dict[str, Touched]:
    """Returns the rows that the optimiser sees, of the tables of which it does not see all."""
    return {name: found.touched for name, found in lookups.items() if found.touched is not None}


def sum_gradients(gradients: Any, layout: Layout) -> Any:
    """Returns gradients summed over the devices that share the same parameters."""
    if not layout.axes:
        return gradients

    def total(path: Any, gradient: jax.Array) -> jax.Array:
        name = table_of(path)
        split = name is not None and layout.placement(name) != "replicated"
        axes = tuple(a for a in layout.axes if not (split and a == layout.table_axis))
        return lax.psum(gradient, axes) if axes else gradient

    return jax.tree_util.tree_map_with_path(total, gradients)
