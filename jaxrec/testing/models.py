"""The properties of a model that steps, evaluation, export and serving rely on."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.functional import Functional, functional_of
from jaxrec.ops.keys import RowKey, root
from jaxrec.optim import table_of
from jaxrec.paths import flatten, nest
from jaxrec.testing.dataset import NUM_ITEMS, tiny_dataset
from jaxrec.testing.formats import check_formats
from jaxrec.testing.report import Checked
from jaxrec.training.lookups import check_reads, find_reads
from jaxrec.typing import Array, Batch, Params

# Each shape of batch is a program of its own, which runs a few times.
_QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
_HISTORIES = ([3, 7, 1, 9, 12], [5, 4, 4, 20, 2], [6, 18], [8])


def check_model(config: Any, *, causal: bool = True, formats: bool = True) -> Checked:
    """Checks a model on tiny batches; takes seconds.

    Args:
      config: the model's config, such as `sasrec.Config(dim=8)`; small sizes are quick. Counts that
        are 0 are those of `tiny_dataset`.
      causal: whether a position may see only what comes before it.
      formats: whether to export it, and to compare what StableHLO and ONNX answer; without the
        packages of the extra `onnx` the report says that this was skipped.

    Returns:
      What was checked; a model that knows no histories has fewer properties.

    Raises:
      AssertionError: names the property that does not hold, and how far it is off.
      UserError: for lookups that the model's `tables` do not name.
    """
    dataset = tiny_dataset()
    fitted = config.fit(dataset.manifest)
    kind = type(config)
    name = f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"
    case = _Case(functional_of(fitted), Checked(name), fitted)
    case.check_tables()
    case.check_items()
    fields = {field for names in case.model.tables.values() for field in names}
    knows_users = "users" in fields and "history" not in fields
    if knows_users:
        case.check_batch(Batch(users=np.array([3, 1, 6, 1], np.int32)))
    else:
        case.check_batch(Batch(history=_padded(_HISTORIES)))
        case.check_histories(causal=causal)
    if formats:
        check_formats(fitted, case.params, case.report, dataset, knows_users=knows_users)
    return case.report


class _Case:
    """A model with parameters none of which is left at an initial 0 or 1."""

    def __init__(self, model: Functional, report: Checked, config: Any):
        self.model, self.report = model, report
        self.initial = model.init(root(0))
        random = np.random.default_rng(0)

        def moved(path: Any, leaf: Any) -> Any:
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                return leaf
            noise = random.normal(0, 0.3, leaf.shape).astype(np.float32)
            if table_of(path) is not None:
                noise[0] = 0
            return (leaf + noise).astype(leaf.dtype)

        self.params: Params = jax.tree_util.tree_map_with_path(moved, self.initial)
        half = "bfloat16" in str(getattr(_innermost(config), "compute_dtype", ""))
        self.tolerance = 5e-2 if half else 1e-3

        def user_vectors(params: Params, batch: Batch, key: Any) -> jax.Array:
            return self.model.bind(params).user_vectors(batch, key=key)

        def item_vectors(params: Params, ids: Array | None) -> jax.Array:
            return self.model.bind(params).item_vectors(ids)

        self._user_vectors = jax.jit(user_vectors, compiler_options=dict(_QUICKLY))
        self._item_vectors = jax.jit(item_vectors, compiler_options=dict(_QUICKLY))

    def users(self, batch: Batch, key: Any = None) -> np.ndarray:
        return np.asarray(self._user_vectors(self.params, batch, key), np.float32)

    def items(self, ids: Array | None = None) -> np.ndarray:
        return np.asarray(self._item_vectors(self.params, ids), np.float32)

    def same(self, name: str, found: Any, wanted: Any) -> None:
        self.report.require_equal(name, found, wanted, self.tolerance)

    def check_tables(self) -> None:
        """Row 0 is 0, and `tables` names what is looked up."""
        for path, leaf in flatten(self.initial).items():
            if path.endswith("/table") and jnp.issubdtype(leaf.dtype, jnp.floating):
                self.report.require("row 0 of tables, of padding, is 0", np.asarray(leaf[0]) == 0)
        history = _padded(_HISTORIES)
        ids = np.ones(len(history), np.int32)
        batch = Batch(users=ids, history=history, positives=ids, negatives=ids)

        def look(params: Params, part: Batch, key: Any) -> Any:
            bound = self.model.bind(params)
            items = bound.item_vectors(part.positives), bound.item_vectors(part.negatives)
            return bound.user_vectors(part.replace(positives=None)), items

        if not self.model.tables:
            self.report.skipped.append("tables: the model names none, so no step can train it")
            return
        parts = jax.tree.map(lambda x: x[None], batch)
        keys = RowKey(root(0)[None], np.zeros(1, np.int32))
        reads = find_reads(look, self.model.shapes, parts, keys)
        for name, read in reads.items():
            check_reads(name, read, self.model.tables.get(name))
        self.report.require("`tables` names all that is looked up", True)

    def check_items(self) -> None:
        """Vectors of items by id are those of the catalogue."""
        every = self.items()
        self.report.require(
            "the catalogue has a vector for each item and for padding",
            every.shape[0] == NUM_ITEMS + 1,
            f"It has {every.shape[0]} for {NUM_ITEMS} items.",
        )
        self.report.require_finite("vectors are finite", [every])
        ids = np.array([[1, NUM_ITEMS], [7, 3]], np.int32)
        self.same("items by id are those of the catalogue", self.items(ids), every[ids])

    def check_batch(self, batch: Batch) -> None:
        """What holds for any kind of batch."""
        report, whole = self.report, self.users(batch)
        width = self.items(np.array([1], np.int32)).shape[-1]
        report.require(
            "a user has a vector as wide as an item's",
            whole.shape == (len(whole), width),
            f"It is {whole.shape}, and items have {width}.",
        )
        report.require_finite("vectors are finite", [whole])
        traced = jax.make_jaxpr(lambda p: self.model.bind(p).user_vectors(batch))(self.params)
        drawing = [e for e in _primitives(traced.jaxpr) if e in ("random_bits", "threefry2x32")]
        report.require("nothing is drawn without a key", not drawing)
        first, again = (self.users(batch, root(5)) for _ in range(2))
        report.require("the same key draws the same", np.array_equal(first, again))
        eager = self.model.bind(self.params).user_vectors(batch)
        self.same("jit gives what eager gives", whole, eager)
        for number in range(len(whole)):
            alone = jax.tree.map(lambda x, n=number: x[n : n + 1], batch)
            name = "rows of a batch do not see each other"
            self.same(name, self.users(alone)[0], whole[number])
        self._check_gradients(batch)

    def _check_gradients(self, batch: Batch) -> None:
        flat = flatten(self.params)
        floats = {k: v for k, v in flat.items() if jnp.issubdtype(v.dtype, jnp.floating)}

        def loss(moving: dict[str, Any]) -> jax.Array:
            bound = self.model.bind(nest(flat | moving))
            users = bound.user_vectors(batch, key=root(1))
            return jnp.sum(jnp.sin(users.astype(jnp.float32))) + jnp.sum(
                jnp.sin(bound.item_vectors(np.array([0, 1, 5], np.int32)).astype(jnp.float32))
            )

        gradients = jax.jit(jax.grad(loss), compiler_options=dict(_QUICKLY))(floats)
        self.report.require_finite("gradients are finite", gradients.values())

    def check_histories(self, *, causal: bool) -> None:
        """Layouts of histories agree, and what must not be seen is not."""
        report, history = self.report, _padded(_HISTORIES)
        wide, last = np.pad(history, [(0, 0), (4, 0)]), self.users(Batch(history=history))
        self.same("padding moves no vector", self.users(Batch(history=wide)), last)
        empty = Batch(history=np.zeros((2, 5), np.int32))
        report.require_finite("an empty history has finite vectors", [self.users(empty)])
        self._check_gradients(empty)
        one = Batch(history=history, positives=history[:, 0])
        self.same("a target a row gives the newest position's vector", self.users(one), last)
        every = self.users(Batch(history=history, positives=history))
        report.require(
            "a target a position gives a vector a position",
            every.shape == (*history.shape, last.shape[-1]),
            f"It gives {every.shape}.",
        )
        if causal:
            self._check_causal(history, every, last)
        else:
            report.skipped.append("no look into the future: said to be not causal")
        self._check_packed()

    def _check_causal(self, history: np.ndarray, every: np.ndarray, last: np.ndarray) -> None:
        name = "the newest position has the vector of the whole history"
        self.same(name, every[:, -1], last)
        for place in range(1, history.shape[1]):
            changed = history.copy()
            changed[0, place:] = (changed[0, place:] + 5) % NUM_ITEMS + 1
            found = self.users(Batch(history=changed, positives=changed))
            self.same("no look into the future", found[0, :place], every[0, :place])

    def _check_packed(self) -> None:
        length = sum(map(len, _HISTORIES)) + 2
        row, segments = np.zeros((1, length), np.int32), np.zeros((1, length), np.int32)
        places, begin = [], 0
        for number, items in enumerate(_HISTORIES):
            end = begin + len(items)
            row[0, begin:end], segments[0, begin:end] = items, number + 1
            places.append(slice(begin, end))
            begin = end

        def vectors(row: np.ndarray) -> np.ndarray:
            return self.users(Batch(history=row, positives=row, segments=segments))[0]

        packed = vectors(row)
        for mine in places:
            changed = np.where(segments > 0, row % NUM_ITEMS + 1, 0)
            changed[0, mine] = row[0, mine]
            name = "segments of a row do not see each other"
            self.same(name, vectors(changed)[mine], packed[mine])
        for mine, items in zip(places, _HISTORIES, strict=True):
            alone = np.array([items], np.int32)
            found = self.users(Batch(history=alone, positives=alone))[0]
            self.same("a packed history has the vectors of one alone", packed[mine], found)


def _innermost(config: Any) -> Any:
    while dataclasses.is_dataclass(getattr(config, "model", None)):
        config = config.model
    return config


def _padded(histories: Any) -> np.ndarray:
    width = max(map(len, histories))
    return np.array([[0] * (width - len(items)) + items for items in histories], np.int32)


def _primitives(jaxpr: Any) -> list[str]:
    found = []
    for equation in jaxpr.eqns:
        found.append(equation.primitive.name)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found += _primitives(inner)
    return found
