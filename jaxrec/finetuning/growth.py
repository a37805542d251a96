"""Starting from the checkpoint of another run: rows and their slots move by original id.

    with open_source("runs/old", dataset) as source:
        grown = grow(source, experiment, born, Growth(new_rows="content"))
    print(grown.report)
    state = grown.state

Row 0 of a table is padding; row i + 1 is the i-th id of the vocabulary that the table's batch
fields index: "users" that of users, all others that of items. Rows beyond the vocabulary, such as
those of a special token, stay behind it in their order.
"""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from scipy import sparse

from jaxrec.data.dataset import Dataset
from jaxrec.data.recipe import choose
from jaxrec.finetuning.rows import by_content, by_neighbours, deviation, mixed
from jaxrec.finetuning.source import Source, slot_names, with_slots
from jaxrec.optim import table_of
from jaxrec.paths import flatten, nest
from jaxrec.training.experiment import Experiment
from jaxrec.training.state import TrainState
from jaxrec.training.tables import TableUse, tables_of
from jaxrec.training.vocabularies import distinct_ids
from jaxrec.typing import UserError

_ROWS = 1 << 20  # rows of a table that are copied together

type NewRows = Literal["content", "neighbours", "mean", "random"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Growth:
    """How a run starts from another one.

    Attributes:
      new_rows: what the rows of new items start with. "content": the mean of the rows of the old
        items nearest by metadata, weighted by cosine; "neighbours": the mean of the rows of old
        items that occur around the new one in the training histories of the dataset; "mean": the
        mean of all old rows; "random": what the model's own initialisation gives. The first two
        take the mean for an item that nothing is known of, and for new users.
      keep_slots: whether the optimiser's state moves as well, for an optimiser of the same name.
        Slots of new rows are those of an optimiser that has done no step.
      nearest: old items that "content" mixes.
      window: events before and after a new item that "neighbours" looks at.
      noise: standard deviation of normal noise on new rows, in units of that of the old rows, so
        that rows which start from the same mixture differ; not for "random".
      seed: of the noise.
    """

    new_rows: NewRows = "neighbours"
    keep_slots: bool = True
    nearest: int = 10
    window: int = 3
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        choose("new_rows", self.new_rows, get_args(NewRows.__value__))
        if min(self.nearest, self.window) < 1 or self.noise < 0 or self.seed < 0:
            raise UserError(
                "growth wants nearest and window from 1, noise and seed from 0; got "
                f"{self.nearest}, {self.window}, {self.noise} and {self.seed}."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moved:
    """What became of the rows of a table: moved from the source, new, dropped, and without a hint.

    The last are new rows that start with the mean because nothing is known of what they stand for.
    """

    moved: int
    new: int
    dropped: int
    unknown: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What was taken from the source.

    Attributes:
      taken: paths of the parameters that are the source's, tables not counted.
      tables: by name of a table, what became of its rows.
      fresh: paths of parameters that start as the model's own initialisation gives them.
      left: paths of the source's parameters that the model does not have.
      slots: leaves of the optimiser's state that are the source's, and how many start fresh.
    """

    taken: tuple[str, ...]
    tables: Mapping[str, Moved]
    fresh: tuple[str, ...]
    left: tuple[str, ...]
    slots: tuple[int, int]

    def __str__(self) -> str:
        lines = [f"  {len(self.taken)} parameters beside the tables are the source's"]
        lines += [
            f"  table {name}: {rows.moved:,} rows moved, {rows.new:,} new"
            + (f" ({rows.unknown:,} of them start with the mean)" if rows.unknown else "")
            + f", {rows.dropped:,} dropped"
            for name, rows in self.tables.items()
        ]
        for what, paths in (("start fresh", self.fresh), ("of the source are not used", self.left)):
            if paths:
                lines.append(f"  {len(paths)} parameters {what}: {_some(paths)}")
        kept, fresh = self.slots
        lines.append(f"  optimiser: {kept} arrays are the source's, {fresh} start fresh")
        return "\n".join(lines)


class Grown(NamedTuple):
    """The state to start with, and what in it is the source's."""

    state: TrainState
    report: Report


def grow(
    source: Source, experiment: Experiment, state: TrainState, growth: Growth | None = None
) -> Grown:
    """Returns a state whose parameters are those that a source is used with, as far as both have.

    A source with a running average is used with it, so parameters and the new average both start
    there. What is given and not learned, such as content of items, is the state's own. The step
    stays 0. Arrays are read one table at a time, and each takes the place of what
    the state had: `state` is used up, as by a donating step, and tables in the host's memory are
    written in place.

    Args:
      source: an opened run.
      experiment: what is trained next; any catalogue, mesh and placement.
      state: its state as `init_state` gave it.
      growth: how; the default of each option when None.

    Raises:
      UserError: when the source is of another family, when its vocabularies do not fit its tables,
        when ids of the dataset are equal as text, or when content is asked for and there is none.
    """
    growth = growth or Growth()
    uses, given = tables_of(experiment.model), experiment.model.given
    every = flatten(state.params)
    flat = {path: leaf for path, leaf in every.items() if path not in given}
    tables = {path: name for path in flat if (name := _table(path)) in uses}
    dense = {path: leaf for path, leaf in flat.items() if path not in tables}
    taken = tuple(path for path in dense if path in source.parameters)
    _check_family(source, flat, tables, uses)
    plans = {
        name: _plan(source, experiment.dataset, name, use, growth)
        for name, use in uses.items()
        if f"{name}/table" in source.parameters and name in tables.values()
    }
    found: dict[str, Any] = source.read({path: dense[path] for path in taken})
    average = flatten(state.average)
    means = source.read({path: average[path] for path in taken if path in average})
    moved = [path for path, name in tables.items() if path in source.parameters and name in plans]
    for path in moved:
        plan, shape = plans[tables[path]], source.parameters[path]
        old = source.read({path: np.empty(shape.shape, shape.dtype)})[path]
        fresh = plan.fresh(old, path, growth)
        found[path] = _placed(flat[path], old, plan, fresh)
        if path in average:
            means[path] = _placed(average[path], old, plan, fresh)
        del old
    slots, counts = _slots(source, experiment, state.optimizer, plans, growth)
    used = {*taken, *moved}
    report = Report(
        taken=taken,
        tables={name: plan.moved for name, plan in plans.items()},
        fresh=tuple(path for path in flat if path not in used),
        left=tuple(path for path in source.parameters if path not in every),
        slots=counts,
    )
    new = dataclasses.replace(
        state,
        params=nest(every | found),
        optimizer=with_slots(state.optimizer, slots),
        average=nest(average | means),
    )
    return Grown(new, report)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Where the rows of a table come from.

    Attributes:
      rows: (rows of the new table,) int64, the old row of each, -1 for new ones.
      old_rows: rows of the old table.
      mixture: (new rows of the vocabulary, old rows), what they start with; None leaves them.
      moved: counts for the report.
    """

    rows: np.ndarray
    old_rows: int
    mixture: sparse.csr_array | None
    moved: Moved

    def fresh(self, old: np.ndarray, path: str, growth: Growth) -> np.ndarray | None:
        """Returns what the new rows start with, (new, width) float32; None leaves them."""
        if self.mixture is None or not self.mixture.shape[0]:
            return None
        values = mixed(old, self.mixture)
        if growth.noise:
            random = np.random.default_rng((growth.seed, zlib.crc32(path.encode())))
            noise = random.standard_normal(values.shape, np.float32)
            values += np.float32(growth.noise * deviation(old)) * noise
        return values


def _plan(source: Source, dataset: Dataset, name: str, use: TableUse, growth: Growth) -> _Plan:
    role = "user" if use.fields == ("users",) else "item"
    old = source.vocabularies[role]
    new: pd.DataFrame = getattr(dataset, f"{role}_vocabulary")
    old_ids = pd.Index(old["id"])
    new_ids = distinct_ids(new, f"the dataset's {role} vocabulary")
    old_rows = source.parameters[f"{name}/table"].shape[0]
    extra = use.num_rows - len(new_ids) - 1, old_rows - len(old_ids) - 1
    if min(extra) < 0:
        which = "the dataset" if extra[0] < 0 else str(source.workdir)
        raise UserError(
            f"table {name!r} has fewer rows than the {role} vocabulary of {which} has ids, so it "
            "is not known which row is whose."
        )
    places = old_ids.get_indexer(new_ids)
    known = np.concatenate([[0], np.where(places < 0, -1, places + 1)]).astype(np.int64)
    behind = np.arange(extra[0])
    behind = np.where(behind < extra[1], behind + len(old_ids) + 1, -1)
    mixture = _mixture(old, dataset, known, old_rows, role, growth)
    found = int((places >= 0).sum())
    unknown = 0
    if mixture is not None and growth.new_rows != "mean":
        unknown = int((np.diff(mixture.indptr) == 0).sum())
    return _Plan(
        rows=np.concatenate([known, behind]),
        old_rows=old_rows,
        mixture=mixture,
        moved=Moved(
            moved=found,
            new=len(new_ids) - found,
            dropped=len(old_ids) - found,
            unknown=unknown,
        ),
    )


def _mixture(
    old: pd.DataFrame, dataset: Dataset, rows: np.ndarray, old_rows: int, role: str, growth: Growth
) -> sparse.csr_array | None:
    new = int((rows < 0).sum())
    if growth.new_rows == "random" or not new:
        return None
    if growth.new_rows == "neighbours" and role == "item":
        return by_neighbours(dataset, rows, old_rows, growth.window)
    if growth.new_rows == "content" and role == "item":
        alike = by_content(old, dataset.item_vocabulary, rows, growth.nearest)
        return sparse.csr_array((alike.data, alike.indices, alike.indptr), (new, old_rows))
    return sparse.csr_array((new, old_rows), dtype=np.float32)


def _slots(
    source: Source, experiment: Experiment, state: Any, plans: Mapping[str, _Plan], growth: Growth
) -> tuple[dict[str, Any], tuple[int, int]]:
    """Returns leaves of the optimiser's state by name, and how many are the source's and are not.

    Names are those of `slot_names`. What a leaf of the source does not fit stays as it is.
    """
    born = slot_names(state)
    same = _kind(source.config.optimizer) == _kind(experiment.config.optimizer)
    if not (growth.keep_slots and same):
        return {}, (0, len(born))
    found, dense = {}, {}
    for name, leaf in born.items():
        shape = source.slots.get(name)
        if shape is None:
            continue
        plan = plans.get(_slot_table(name) or "")
        if plan is not None and leaf.ndim and _are_rows(leaf, shape, plan):
            old = source.read({name: np.empty(shape.shape, shape.dtype)})[name]
            found[name] = _placed(leaf, old, plan, None)
        elif leaf.shape == shape.shape:
            dense[name] = leaf
    found |= source.read(dense)
    return found, (len(found), len(born) - len(found))


def _are_rows(leaf: Any, shape: Any, plan: _Plan) -> bool:
    """Whether a slot has a row for each of its table's: that of a mesh may have more."""
    enough = leaf.shape[0] >= len(plan.rows) and shape.shape[:1] == (plan.old_rows,)
    return enough and leaf.shape[1:] == shape.shape[1:]


def _kind(optimizer: Any) -> Any:
    return type(optimizer), getattr(optimizer, "name", None)


def _placed(born: Any, old: np.ndarray, plan: _Plan, fresh: np.ndarray | None) -> Any:
    """Returns the leaf with the source's rows in it, where and in the dtype that it was born.

    Args:
      born: it is donated, or written to when it is in the host's memory.
      old: (old rows, ...) of the source.
      fresh: what new rows of the vocabulary start with; None leaves what they were born with.
    """
    where = np.flatnonzero(plan.rows >= 0)
    new = np.flatnonzero(plan.rows < 0)
    on_host = isinstance(born, np.ndarray)
    values = born if on_host else np.zeros(born.shape, born.dtype)
    for start in range(0, len(where), _ROWS):
        part = where[start : start + _ROWS]
        values[part] = old[plan.rows[part]].astype(born.dtype)
    known = np.zeros(len(values), bool)
    known[where] = True
    if fresh is not None:
        new = new[: len(fresh)]  # rows behind the vocabulary are as they were born
        values[new] = fresh.astype(born.dtype)
        known[new] = True
    if on_host:
        return born
    moved = jax.make_array_from_callback(values.shape, born.sharding, lambda part: values[part])
    choose = jax.jit(_choose, donate_argnums=0, out_shardings=born.sharding)
    return choose(born, moved, known)


def _choose(born: jax.Array, moved: jax.Array, known: jax.Array) -> jax.Array:
    return jnp.where(known.reshape(-1, *[1] * (born.ndim - 1)), moved, born)


def _check_family(
    source: Source, flat: Mapping[str, Any], tables: Mapping[str, str], uses: Mapping[str, TableUse]
) -> None:
    """Refuses parameters of which nothing, or what has the same name and another shape, is shared.

    Raises:
      UserError: names the first difference.
    """
    for path, leaf in flat.items():
        if path not in source.parameters:
            continue
        here, there = tuple(leaf.shape), tuple(source.parameters[path].shape)
        if path in tables:
            here, there = here[1:], there[1:]
        if here != there:
            raise UserError(
                f"{source.workdir} is a checkpoint of another family: its {path!r} has "
                f"{_shape(there, path in tables)} and the model's has "
                f"{_shape(here, path in tables)}. Give --config the source's sizes, or leave "
                "--config out to take the source's own."
            )
    mine = {path for path in flat if path not in tables}
    others = {path for path in source.parameters if _table(path) not in uses}
    shared = any(path in source.parameters for path in mine or tables)
    if not shared or (others and not mine):
        first = min(set(flat) ^ set(source.parameters), default="")
        whose = "the model" if first in flat else "the source"
        raise UserError(
            f"{source.workdir} is a checkpoint of another family "
            f"({type(source.config.model).__module__}): nothing could be taken from it, or nothing "
            f"but tables. The first difference is {first!r}, which only "
            f"{whose} has. Start from a run of the same model, or train without a source: "
            "scripts/train.py."
        )


def _shape(shape: tuple[int, ...], row: bool) -> str:
    return f"rows of shape {shape}" if row else f"the shape {shape}"


def _table(path: str) -> str | None:
    """Returns the table of a parameter's path."""
    return table_of([jax.tree_util.DictKey(key) for key in path.split("/")])


def _slot_table(name: str) -> str | None:
    """Returns the table of a slot's name, which ends in its parameter's keys."""
    keys = [key.split("'")[0] for key in name.split("['")[1:]]
    return table_of([jax.tree_util.DictKey(key) for key in keys])


def _some(paths: tuple[str, ...]) -> str:
    return ", ".join(paths[:4]) + (", ..." if len(paths) > 4 else "")
