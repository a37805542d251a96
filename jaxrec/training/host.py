"""Tables that stay in the memory of the host, for those that no device can hold.

A step takes the rows that its batch touches, with their optimiser slots, to the device, trains on
them as if they were the tables, and brings them back. While the device computes a step, the host
brings back the rows of the step before and fetches those of the next; rows that both touch go from
the one to the other on the device. The numbers are those of touched rows of tables on the device,
where a batch that could touch every row of a table takes the dense step instead.
"""

import dataclasses
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrec.functional import Functional
from jaxrec.objectives import Objective
from jaxrec.optim import Touched, table_of
from jaxrec.sharding import Layout
from jaxrec.training.lookups import SomeRows, check_reads, with_tables
from jaxrec.training.state import StepMetrics, TrainState
from jaxrec.training.step import Drawn, make_draw, make_update, reads_of
from jaxrec.training.tables import overflow, tables_of, wanted_rows
from jaxrec.typing import Batch, Params, UserError

_END = np.iinfo(np.int32).max


def to_host(tree: Any, tables: Collection[str]) -> Any:
    """Returns a tree whose tables of these names, with their slots, are writable NumPy arrays.

    The other leaves come to the first device.
    """
    device = jax.devices()[0]

    def move(path: Any, leaf: jax.Array) -> Any:
        return np.array(leaf) if table_of(path) in tables else jax.device_put(leaf, device)

    return jax.tree_util.tree_map_with_path(move, tree)


def host_tables(params: Params) -> tuple[str, ...]:
    """Returns the names of the tables that are on the host."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    names = [table_of(path) for path, leaf in leaves if isinstance(leaf, np.ndarray)]
    return tuple(name for name in names if name is not None)


@dataclasses.dataclass(frozen=True)
class Slices:
    """Rows of host tables for some batch.

    Attributes:
      rows: by table, (capacity,) int32 ascending without repeats, filled up with numbers beyond all
        tables.
      counts: by table, how many of them are rows.
    """

    rows: dict[str, np.ndarray]
    counts: dict[str, int]

    @classmethod
    def of(cls, batch: Batch, tables: dict[str, tuple[str, ...]], capacity: int = 0) -> "Slices":
        """Returns the rows that a batch on the host touches, row 0 always among them.

        Args:
          tables: by name of a host table, the fields of the batch that index it.
          capacity: rows of a table at most, row 0 not counted; 0 allows for every id.

        Raises:
          UserError: when a batch touches more rows than the capacity.
        """
        rows, counts = {}, {}
        for name, fields in tables.items():
            values = [np.ravel(x) for f in fields if (x := getattr(batch, f)) is not None]
            if not values:
                continue
            distinct = np.unique(np.concatenate([[0], *values])).astype(np.int32)
            size = min(capacity or _END - 1, sum(map(len, values))) + 1
            if len(distinct) > size:
                raise UserError(
                    f"a batch touches {len(distinct) - 1} rows of table {name!r}, which is "
                    f"{len(distinct) - size} more than config.training.capacity={capacity} "
                    "allows. Raise it, or set it to 0."
                )
            rows[name] = np.concatenate(
                [distinct, _END - size + np.arange(len(distinct), size, dtype=np.int32)]
            )
            counts[name] = len(distinct)
        return cls(rows, counts)

    def take(self, tree: Any) -> Any:
        """Returns the tree with these rows in place of host tables; zeros where there is none.

        Of a host table that the batch does not index, one row stands for all.
        """

        def take(path: Any, leaf: Any) -> Any:
            return self.take_rows(table_of(path), leaf) if isinstance(leaf, np.ndarray) else leaf

        return jax.tree_util.tree_map_with_path(take, tree)

    def take_rows(self, name: str | None, leaf: np.ndarray) -> np.ndarray:
        """Returns these rows of one host table, zeros where there is none."""
        if name not in self.rows:
            return leaf[:1]
        taken = np.zeros((len(self.rows[name]), *leaf.shape[1:]), leaf.dtype)
        count = self.counts[name]
        # NumPy copies once more unless told what to do with rows that do not exist.
        np.take(leaf, self.rows[name][:count], axis=0, out=taken[:count], mode="clip")
        return taken

    def touched(self, params: Params) -> dict[str, Touched]:
        """Returns the rows as a step takes them.

        Args:
          params: with the whole tables.
        """
        found = {}
        for name, rows in self.rows.items():
            # They go to the device with the step.
            ids: Any = rows
            count: Any = np.int32(self.counts[name])
            found[name] = Touched(ids, count, params[name]["table"].shape[0])
        return found

    def bound(self, params: Params) -> Params:
        """Returns parameters for a model to be bound to: host tables find their rows by id."""
        nothing = np.zeros(1, np.int32)

        def stand_in(name: str, leaf: Any) -> Any:
            if not isinstance(leaf, np.ndarray):
                return leaf
            rows = self.rows.get(name, nothing)
            return SomeRows(rows, self.take_rows(name, leaf), num_rows=len(leaf), name=name)

        return with_tables(params, stand_in)

    def put(self, tree: Any, updated: Any) -> None:
        """Writes updated rows into the host tables of the tree; waits for the device."""

        def put(path: Any, leaf: Any, new: Any) -> None:
            name = table_of(path)
            if name in self.rows and isinstance(leaf, np.ndarray):
                count = self.counts[name]
                leaf[self.rows[name][:count]] = np.asarray(new)[:count]

        jax.tree_util.tree_map_with_path(put, tree, updated)


class HostStep:
    """A step like that of `make_step`, for states whose large tables are on the host.

    The tables of the state that it returns lag one step behind; `settle` brings them up to date.
    """

    def __init__(
        self,
        model: Functional,
        objective: Objective,
        optimizer: optax.GradientTransformation,
        *,
        tables: Collection[str],
        seed: int,
        accumulate: int = 1,
        capacity: int = 0,
        trained: Collection[str] | None = None,
    ):
        self.capacity = capacity
        uses, layout = tables_of(model), Layout()
        self.uses = {name: use for name, use in uses.items() if name in tables}
        self._model, self._objective, self._on_host = model, objective, frozenset(tables)
        # Another device than that of the steps, so that drawing does not queue behind them.
        self._here = jax.local_devices(backend="cpu")[-1]
        self._draw = jax.jit(make_draw(objective, seed=seed, accumulate=accumulate, layout=layout))
        update = make_update(
            model,
            objective,
            optimizer,
            accumulate=accumulate,
            average=0.0,
            trained=trained,
            layout=layout,
        )

        def step(
            state: TrainState, drawn: Drawn, slices: dict[str, Touched]
        ) -> tuple[TrainState, StepMetrics]:
            reads = reads_of(model, objective, state.params, drawn, layout)
            reads = {name: read for name, read in reads.items() if name not in self._on_host}
            whole = bool(objective.whole_catalogue)
            wanted = wanted_rows(
                drawn.parts, state.params, uses, reads, layout, capacity, whole=whole
            )
            new_state, loss, weight = update(state, drawn, wanted, slices=slices)
            metrics = StepMetrics(
                loss=loss, examples=weight, overflow=overflow(wanted), slow=jnp.bool_(False)
            )
            return new_state, metrics

        self._step = jax.jit(step, donate_argnums=0)
        self._carry = jax.jit(_carry_over)
        self._known_fields: dict[Any, dict[str, tuple[str, ...]]] = {}
        self._number: int | None = None
        self._statistics: tuple[Any, Any] = (None, None)
        self._pending: tuple[Slices, TrainState] | None = None

    def __call__(
        self, state: TrainState, batch: Batch, statistics: Any
    ) -> tuple[TrainState, StepMetrics]:
        if self._number is None:
            self._number = int(state.step)
        drawn = self._drawn(batch, statistics)
        slices = Slices.of(drawn.parts, self._fields(state.params, drawn), self.capacity)
        small = self._fetch(state, slices)
        small, metrics = self._step(small, drawn, slices.touched(state.params))
        self._write_back(state)
        self._pending, self._number = (slices, small), self._number + 1
        return _joined(state, small), metrics

    def settle(self, state: TrainState) -> TrainState:
        """Returns the state with all tables up to date; before it is saved or measured."""
        self._write_back(state)
        self._number = None
        return state

    def _fields(self, params: Params, drawn: Drawn) -> dict[str, tuple[str, ...]]:
        """Returns the batch fields that the loss looks up in each host table.

        Raises:
          UserError: when it looks up others than the model names.
        """
        shapes = tuple((x.shape, x.dtype) for x in jax.tree.leaves(drawn.parts))
        key = jax.tree.structure(drawn.parts), shapes
        if key not in self._known_fields:
            reads = reads_of(self._model, self._objective, params, drawn, Layout())
            found = {}
            for name in self._on_host & reads.keys():
                use = self.uses.get(name)
                check_reads(name, reads[name], use and use.fields)
                found[name] = tuple(sorted(reads[name].fields))
            self._known_fields[key] = found
        return self._known_fields[key]

    def _drawn(self, batch: Batch, statistics: Any) -> Drawn:
        if self._statistics[0] is not statistics:
            self._statistics = (statistics, jax.device_put(statistics, self._here))
        with jax.default_device(self._here):
            batch = jax.device_put(jax.device_get(batch), self._here)
            drawn = self._draw(jnp.int32(self._number or 0), batch, self._statistics[1])
        keys, rounding = jax.device_put((drawn.keys, drawn.rounding), jax.devices()[0])
        return Drawn(parts=jax.device_get(drawn.parts), keys=keys, rounding=rounding)

    def _fetch(self, state: TrainState, slices: Slices) -> TrainState:
        small = slices.take(state)
        if self._pending is None:
            return jax.device_put(small)
        before, updated = self._pending
        matches = {}
        for name, rows in slices.rows.items():
            there = before.rows.get(name)
            if there is None:
                continue
            place = np.searchsorted(there, rows).clip(max=len(there) - 1)
            found = (there[place] == rows) & (place < before.counts[name])
            matches[name] = np.where(found, place, -1).astype(np.int32)
        return self._carry(small, updated, matches)

    def _write_back(self, state: TrainState) -> None:
        if self._pending is not None:
            slices, updated = self._pending
            slices.put(state, updated)
            self._pending = None


def _carry_over(
    small: TrainState, updated: TrainState, matches: dict[str, jax.Array]
) -> TrainState:
    """Returns fetched rows, with those that the step before has updated as it left them."""

    def carry(path: Any, leaf: jax.Array, new: jax.Array) -> jax.Array:
        match = matches.get(table_of(path) or "")
        if match is None:
            return leaf
        newer = new.at[match].get(mode="fill", fill_value=0)
        return jnp.where((match >= 0).reshape(-1, *[1] * (leaf.ndim - 1)), newer, leaf)

    return jax.tree_util.tree_map_with_path(carry, small, updated)


def _joined(state: TrainState, small: TrainState) -> TrainState:
    """Returns the state with the device's leaves of `small` and the host's of `state`."""
    return jax.tree.map(lambda old, new: old if isinstance(old, np.ndarray) else new, state, small)
