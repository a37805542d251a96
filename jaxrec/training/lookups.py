"""What a loss looks up in tables: found by tracing it, and held to what the model says.

A step holds some rows of a table and not the table. Here is what stands in the table's place: it
takes ids as they are and finds their rows, so that no id can pass for the position of another.
What a model does not say in its `tables` is not among the rows; tracing the loss finds it before
the first step.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jax.extend import core

from jaxrec.layers.embedding import look_up
from jaxrec.ops.touched import renumber
from jaxrec.optim import table_of
from jaxrec.typing import Array, Batch, Params, UserError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SomeRows:
    """Some rows of a table, found by their ids; a `jaxrec.layers.CodedTable`.

    Attributes:
      name: of the table, for errors.
      ids: (K,) int32 ascending: which rows are here; entries past the table's end fill it up.
      values: (K, D), the rows.
      num_rows: rows of the whole table.
    """

    ids: Array
    values: Array
    num_rows: int = dataclasses.field(metadata={"static": True})
    name: str = dataclasses.field(metadata={"static": True})

    def rows(self, ids: Array) -> jax.Array:
        """Returns vectors of shape ids.shape + (D,); NaN for an id that is not among the rows."""
        wanted = jnp.asarray(ids).astype(jnp.int32)
        here = jnp.asarray(self.ids)
        place = jnp.minimum(renumber(wanted, here), len(here) - 1)
        known = (here[place] == wanted) & (wanted < self.num_rows)
        return look_up(jnp.asarray(self.values), jnp.where(known, place, -1))

    def whole(self) -> jax.Array:
        """Refuses: all rows are not here."""
        _refuse_whole(self.name)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Block:
    """A device's block of a table that is split over devices; a `jaxrec.layers.CodedTable`.

    Attributes:
      values: (rows of the block, D).
      name: of the table, for errors.
      catalogue: whether the loss knows that it gets a block, and may have it.
    """

    values: jax.Array
    name: str = dataclasses.field(metadata={"static": True})
    catalogue: bool = dataclasses.field(metadata={"static": True})

    def rows(self, ids: Array) -> jax.Array:
        """Refuses: ids are those of the whole table."""
        raise UserError(
            f"the loss looks up rows of a device's block of table {self.name!r}, whose other rows "
            "are elsewhere. Ask the model for item_vectors(ids), not replica.catalogue, and name "
            "the batch field in the model's `tables`."
        )

    def whole(self) -> jax.Array:
        """Returns the block to a loss that knows what it is."""
        if not self.catalogue:
            _refuse_whole(self.name)
        return look_up(self.values)


def _refuse_whole(name: str) -> NoReturn:
    raise UserError(
        f"the loss reads all of table {name!r}, of which the step holds some rows. Give the "
        "objective `whole_catalogue = True` and read replica.catalogue where there is one, or look "
        "up the rows that a field of the batch names."
    )


def with_tables(params: Params, stand_in: Callable[[str, Any], Any]) -> Params:
    """Returns the parameters with `stand_in(name, leaf)` for each leaf that belongs to a table."""

    def put(path: Any, leaf: Any) -> Any:
        name = table_of(path)
        return leaf if name is None else stand_in(name, leaf)

    return jax.tree_util.tree_map_with_path(put, params)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reads:
    """What a loss reads of one table.

    Attributes:
      fields: the batch fields whose ids it looks up.
      derived: whether some ids are no values of these fields as they are.
      whole: whether it reads all rows.
    """

    fields: frozenset[str] = frozenset()
    derived: bool = False
    whole: bool = False


def find_reads(
    loss: Callable[[Params, Batch, Any], Any], params: Params, parts: Batch, keys: Any
) -> dict[str, Reads]:
    """Returns what a loss reads of each table, by tracing it; tables that it leaves alone are out.

    Args:
      loss: of parameters, a part of a batch and its key. It gets tables that note what is asked.
      params: arrays or their shapes.
      parts, keys: of all parts, with a leading axis of parts.

    Raises:
      UserError: when a module reads the array of a table otherwise than by `look_up`.
    """
    asked: list[tuple[str, Any]] = []

    def ids_of(part: Batch, key: Any, params: Params) -> list[Any]:
        asked.clear()
        noting = with_tables(params, lambda name, leaf: _Noting(name, leaf.shape, asked))
        loss(noting, part, key)
        return [ids for _, ids in asked if ids is not None]

    part, key = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (parts, keys))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    try:
        closed = jax.make_jaxpr(ids_of)(part, key, shapes)
    except jax.errors.UnexpectedTracerError:
        names = ", ".join(sorted({name for name, _ in asked}))
        raise UserError(
            f"the loss looks up rows of tables ({names}) inside of a loop, jax.jit or "
            "jax.checkpoint, where a step cannot see which. Look them up before it."
        ) from None
    sources = iter(_sources(closed.jaxpr, [*_fields(part), *_others(key), *_others(shapes)]))
    found: dict[str, Reads] = {}
    for name, ids in asked:
        before = found.get(name, Reads())
        if ids is None:
            found[name] = dataclasses.replace(before, whole=True)
        else:
            source = next(sources)
            found[name] = dataclasses.replace(
                before,
                fields=before.fields | source.fields,
                derived=before.derived or not source.exact,
            )
    return found


def check_reads(name: str, reads: Reads, declared: Iterable[str] | None) -> None:
    """Refuses reads of a table of which a step holds the rows that declared fields name.

    Args:
      declared: the batch fields of the model's `tables`; None when it does not name the table.

    Raises:
      UserError: says what is looked up and not declared.
    """
    if reads.whole:
        _refuse_whole(name)
    missing = sorted(reads.fields - set(declared or ()))
    if declared is None or missing:
        fields = ", ".join(f"batch.{field}" for field in missing or sorted(reads.fields))
        named = "not at all" if declared is None else f"for {', '.join(declared) or 'nothing'}"
        raise UserError(
            f"the loss looks up rows of table {name!r} by {fields or 'ids of its own'}, and the "
            f"model's `tables` name it {named}. A step holds only rows that they name: add the "
            "field there."
        )
    if reads.derived:
        raise UserError(
            f"the loss looks up rows of table {name!r} by ids that it computes, and a step holds "
            f"those of {', '.join(f'batch.{field}' for field in declared)} as they are. Compute "
            "the ids in the objective's `draw`, as one of these fields."
        )


class _Noting:
    """Stands in a table's place while a loss is traced, and notes what is asked of it."""

    def __init__(self, name: str, shape: tuple[int, ...], asked: list[tuple[str, Any]]):
        self.name, self.shape, self.asked = name, shape, asked
        self.dtype = jnp.float32

    def rows(self, ids: Array) -> jax.Array:
        self.asked.append((self.name, jnp.asarray(ids)))
        return jnp.zeros((*jnp.shape(ids), *self.shape[1:]))

    def whole(self) -> jax.Array:
        self.asked.append((self.name, None))
        return jnp.zeros(self.shape)

    def _refuse(self, *unused: Any) -> NoReturn:
        raise UserError(
            f"the model reads the array of table {self.name!r} itself, of which a step may hold "
            "some rows. Call the Embedding, or jaxrec.layers.look_up(table, ids)."
        )

    __jax_array__ = __array__ = __getitem__ = __add__ = __mul__ = __matmul__ = __len__ = _refuse


jax.tree_util.register_pytree_node(
    _Noting, lambda noting: ((), noting), lambda noting, children: noting
)


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where an array comes from: batch fields, and whether its values are theirs or 0."""

    fields: frozenset[str] = frozenset()
    exact: bool = False

    @classmethod
    def of(cls, sources: Collection["_Source"], *, exact: bool) -> "_Source":
        fields = frozenset().union(*(source.fields for source in sources))
        return cls(fields, exact and all(source.exact for source in sources))


# What gives values of what it takes and no others; of some, only these operands count as values.
_KEEPING = {
    *("reshape", "squeeze", "expand_dims", "broadcast_in_dim", "transpose", "slice", "concatenate"),
    *("rev", "copy", "pad", "stop_gradient", "copy_p"),
}
_VALUES: Mapping[str, slice] = {
    "select_n": slice(1, None),
    "gather": slice(0, 1),
    "dynamic_slice": slice(0, 1),
}
_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")


def _sources(jaxpr: Any, inputs: list[_Source]) -> list[_Source]:
    """Returns the source of each output of a jaxpr, given those of its inputs."""
    known: dict[Any, _Source] = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> _Source:
        if isinstance(atom, core.Literal):  # row 0 is padding's, and always there
            return _Source(exact=jnp.ndim(atom.val) == 0 and bool(atom.val == 0))
        return known.get(atom, _Source())

    for equation in jaxpr.eqns:
        name, operands = equation.primitive.name, [read(atom) for atom in equation.invars]
        inner = next((x for key in _INNER if (x := equation.params.get(key)) is not None), None)
        body = getattr(inner, "jaxpr", inner)
        widens = name == "convert_element_type" and jnp.issubdtype(
            equation.params["new_dtype"], jnp.integer
        )
        if body is not None and len(body.invars) == len(operands) and name not in ("scan", "while"):
            found = _sources(body, operands)
        elif name in _VALUES:
            values = operands[_VALUES[name]]
            found = [_Source.of(values, exact=True)] * len(equation.outvars)
        else:
            exact = name in _KEEPING or widens
            found = [_Source.of(operands, exact=exact and bool(operands))] * len(equation.outvars)
        known |= dict(zip(equation.outvars, found, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _fields(part: Batch) -> list[_Source]:
    leaves = jax.tree_util.tree_leaves_with_path(part)
    return [
        _Source(frozenset({path[0].name}), jnp.issubdtype(leaf.dtype, jnp.integer))
        for path, leaf in leaves
    ]


def _others(tree: Any) -> list[_Source]:
    return [_Source() for _ in jax.tree.leaves(tree)]
