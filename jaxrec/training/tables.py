"""What a step does with embedding tables: which rows it wants, where they are, how they travel.

For each table a device first names the rows that its part of the batch wants. From these follow
the rows of its own block that somebody wants, which are what the optimiser sees, and how rows get
from their owners to those who want them. All of it is a function of the ids alone, so the way back
of gradients is the derivative of the way there.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrec.functional import Functional
from jaxrec.ops.exchange import most_of_one_owner, route_rows, swap
from jaxrec.ops.touched import unique_rows
from jaxrec.optim import Touched, table_of
from jaxrec.sharding import Layout
from jaxrec.training.lookups import Block, Reads, SomeRows, check_reads, with_tables
from jaxrec.typing import Batch, Params


class TableUse(NamedTuple):
    """A table of a model.

    Attributes:
      fields: the batch fields that index it.
      num_rows: its rows, without those that make blocks equal.
    """

    fields: tuple[str, ...]
    num_rows: int

    @property
    def is_catalogue(self) -> bool:
        """Whether it holds the vectors of items to choose from."""
        return "positives" in self.fields


def tables_of(model: Functional) -> dict[str, TableUse]:
    """Returns the tables of a model by name."""
    shapes = model.shapes
    return {
        name: TableUse(
            (*fields, "candidates") if "negatives" in fields else tuple(fields),
            shapes[name]["table"].shape[0],
        )
        for name, fields in model.tables.items()
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """The rows of one table that this device's part of a batch names.

    Attributes:
      rows: the distinct rows, as in `Touched`; num_rows is that of the whole table.
      most: () int32, the most rows wanted of one owner; 0 when the table is not split by rows.
      dense: whether the optimiser must see every row: the loss reads all of them, or the batch of
        all devices could touch all of them, which must not depend on the number of devices.
    """

    rows: Touched
    most: jax.Array
    dense: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lookup:
    """How one table is read and written in a step.

    Attributes:
      touched: rows of this device's block that the optimiser sees; None for all of them.
      number: the rows that are at hand: those that come, or `touched`.
      place: (M, K) where the rows that each device asks for stand among `touched`; None when no
        rows travel.
      back: (C,) where the wanted rows stand among those that arrive; None for split columns, of
        which each device sends a piece.
    """

    touched: Touched | None
    number: Touched
    place: jax.Array | None = None
    back: jax.Array | None = None


def wanted_rows(
    parts: Batch,
    params: Params,
    tables: Mapping[str, TableUse],
    reads: Mapping[str, Reads],
    layout: Layout,
    capacity: int,
    *,
    whole: bool,
) -> dict[str, Wanted]:
    """Returns what this device wants of each table that is not simply used as it is.

    Args:
      parts: the batch.
      params: the parameters, with this device's blocks of tables.
      tables: those that the model names.
      reads: what the loss reads of tables; those that are not here are not looked at.
      layout: where tables are.
      capacity: distinct rows of a table that a device may want; 0 allows for every id.
      whole: whether the loss needs every item. Then what is not split is used as it is.

    Raises:
      UserError: when the loss looks up rows that the model does not name.
    """
    wanted = {}
    for name, read in reads.items():
        block, split = params[name]["table"].shape[0], layout.placement(name)
        num_rows = block * (lax.axis_size(layout.table_axis) if split == "row" else 1)
        use = tables.get(name)
        fields = tuple(field for field in use.fields if field in read.fields) if use else ()
        ids = [jnp.ravel(getattr(parts, field)) for field in fields]
        size = int(min(capacity or math.inf, sum(map(len, ids))))
        dense = is_dense(parts, use, read, layout, capacity, whole=whole)
        if dense and split == "replicated":
            continue
        check_reads(name, read, use and use.fields)
        # Row 0 is always there: padding must have a place in the slice.
        joined = jnp.concatenate([jnp.zeros(1, jnp.int32), *ids])
        rows = Touched.of(joined, num_rows, size + 1)
        most = jnp.int32(0)
        if split == "row" and layout.table_axis:
            most = most_of_one_owner(rows.rows, block, layout.table_axis)
        wanted[name] = Wanted(rows=rows, most=most, dense=dense)
    return wanted


def is_dense(
    parts: Batch,
    use: TableUse | None,
    reads: Reads,
    layout: Layout,
    capacity: int,
    *,
    whole: bool,
) -> bool:
    """Returns whether the optimiser must see every row of a table; see `wanted_rows`.

    Args:
      parts: the batch, or its shapes.
      use: what the model says of the table; None when it does not name it.
    """
    if whole or use is None:
        return True
    fields = tuple(field for field in use.fields if field in reads.fields)
    return _of_all_devices(parts, fields, layout, capacity) + 1 >= use.num_rows


def overflow(wanted: dict[str, Wanted]) -> jax.Array:
    """Returns () int32: how many rows of tables were wanted beyond the capacity."""
    over = [jnp.maximum(want.rows.count - len(want.rows.rows), 0) for want in wanted.values()]
    return sum(over, start=jnp.int32(0))


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
        touched = None if want.dense else want.rows
        if touched is not None and (others or split != "replicated"):
            everyone = lax.all_gather(jnp.ravel(here), others, tiled=True) if others else here
            # One more than the block has, for rows that nobody asked for.
            size = min(everyone.size, block + 1)
            touched = Touched(*unique_rows(everyone, block, size), block)
        if split == "replicated":
            lookups[name] = Lookup(touched=touched, number=touched or want.rows)
        else:
            place = here if touched is None else touched.renumber(here)
            lookups[name] = Lookup(
                touched=touched, number=want.rows, place=place, back=back.get(name)
            )
    return lookups


def fetch_rows(params: Params, lookups: dict[str, Lookup], layout: Layout) -> Params:
    """Returns the parameters with the rows that this device wants in place of its blocks.

    Args:
      params: this device's touched rows, or blocks.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    fetched = [leaf for _, leaf in leaves]
    places = {name: found.place for name, found in lookups.items() if found.place is not None}
    names = [table_of(path) or "" for path, _ in leaves]
    travelling = [number for number, name in enumerate(names) if name in places]
    sent = [
        fetched[number].at[places[names[number]]].get(mode="fill", fill_value=0)
        for number in travelling
    ]
    for number, rows in zip(travelling, swap(sent, layout.table_axis or ""), strict=True):
        back = lookups[names[number]].back
        if back is None:
            fetched[number] = jnp.moveaxis(rows, 0, 1).reshape(rows.shape[1], -1)
        else:
            fetched[number] = rows.reshape(-1, rows.shape[-1]).at[back].get(mode="clip")
    return jax.tree.unflatten(structure, fetched)


def rows_at_hand(params: Params, at_hand: Mapping[str, Touched], split: Collection[str]) -> Params:
    """Returns the parameters as a model is bound to them: tables find their rows by id.

    Args:
      params: with the rows at hand in place of tables.
      at_hand: by table, which rows those are.
      split: names of tables that are split over devices; what is not at hand of them cannot be had.
    """

    def stand_in(name: str, leaf: Any) -> Any:
        rows = at_hand.get(name)
        if rows is None:
            return Block(leaf, name, catalogue=False) if name in split else leaf
        return SomeRows(rows.rows, leaf, num_rows=rows.num_rows, name=name)

    return with_tables(params, stand_in)


def blocks_at_hand(params: Params, split: Collection[str]) -> Params:
    """Returns the parameters as the model of a split catalogue is bound to them."""
    return with_tables(
        params, lambda name, leaf: Block(leaf, name, catalogue=True) if name in split else leaf
    )


def touched_rows(lookups: dict[str, Lookup]) -> dict[str, Touched]:
    """Returns the rows that the optimiser sees, of the tables of which it does not see all."""
    return {name: found.touched for name, found in lookups.items() if found.touched is not None}


def sum_gradients(gradients: Any, layout: Layout) -> Any:
    """Returns gradients summed over the devices that share the same parameters."""
    if not layout.axes:
        return gradients

    def total(path: Any, gradient: jax.Array) -> jax.Array:
        split = layout.placement(table_of(path)) != "replicated"
        axes = tuple(a for a in layout.axes if not (split and a == layout.table_axis))
        return lax.psum(gradient, axes) if axes else gradient

    return jax.tree_util.tree_map_with_path(total, gradients)
