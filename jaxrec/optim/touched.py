"""Updates that cost what a batch touches and not what a table holds.

Take the rows of a batch out of each table and of every optimiser slot that mirrors it, renumber the
batch to positions in that slice, run any loss, gradient and Optax update on the slice as if it were
the table, and put rows and slots back:

    touched = {"items": Touched.of(ids, num_rows, capacity)}
    small = take_touched(params, touched), take_touched(optimizer_state, touched)
    ...                                              # ordinary code, ids renumbered
    params = put_touched(params, new_params, touched)

Exact for SGD without momentum and for Adagrad. Lazy for optimisers whose state moves without a
gradient: Adam's moments and momentum of a row decay only on steps that touch the row.
"""

import dataclasses
from typing import Any

import jax

from jaxrec.ops.touched import put_rows, renumber, take_rows, unique_rows
from jaxrec.typing import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Touched:
    """The rows of one table that a batch touches.

    Attributes:
      rows: (capacity,) int32 ascending; entries past the table's end fill it up.
      count: () int32, distinct rows of the batch; above capacity on overflow.
      num_rows: rows of the table.
    """

    rows: jax.Array
    count: jax.Array
    num_rows: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, ids: Array, num_rows: int, capacity: int) -> "Touched":
        """Returns the touched rows of a batch's ids (any shape, int)."""
        return cls(*unique_rows(ids, num_rows, capacity), num_rows)

    def renumber(self, ids: Array) -> jax.Array:
        """Returns positions in the slice for ids of the table."""
        return renumber(ids, self.rows)


def take_touched(tree: Any, touched: dict[str, Touched]) -> Any:
    """Returns the tree with the touched rows in place of whole tables.

    Args:
      tree: parameters, or an optimiser state with copies of their structure inside.
      touched: by top-level parameter name, such as {"items": ...}.
    """

    def take(path: Any, leaf: Any) -> Any:
        found = _find(path, leaf, touched)
        return leaf if found is None else take_rows(leaf, found.rows)

    return jax.tree_util.tree_map_with_path(take, tree)


def put_touched(tree: Any, updated: Any, touched: dict[str, Touched]) -> Any:
    """Returns `tree` with rows and other leaves from `updated`, which `take_touched` shaped."""

    def put(path: Any, old: Any, new: Any) -> Any:
        found = _find(path, old, touched)
        return new if found is None else put_rows(old, found.rows, new)

    return jax.tree_util.tree_map_with_path(put, tree, updated)


def table_of(path: Any) -> str | None:
    """Returns the table that a leaf of parameters, or of an optimiser's slots, belongs to.

    A table is params[name]["table"]; a slot of it ends in the same two keys. So do further columns
    of its rows, params[name]["table_..."], such as those of an adapter.
    """
    keys = [str(getattr(entry, "key", "")) for entry in path]
    mine = len(keys) > 1 and (keys[-1] == "table" or keys[-1].startswith("table_"))
    return keys[-2] if mine else None


def _find(path: Any, leaf: Any, touched: dict[str, Touched]) -> Touched | None:
    found = touched.get(table_of(path) or "")
    if found is None or not leaf.ndim or leaf.shape[0] != found.num_rows:
        return None
    return found
