"""Every operation that the converter claims, in ONNX Runtime against JAX, at the ends of its types.

The cases are looked up in the converter's own table, so an operation without a case fails.
"""

import itertools
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from jax import export, lax
from jax.ad_checkpoint import checkpoint_name
from jax.lax import GatherScatterMode as Mode

from jaxrec.export.onnx_graph import Constants, Graph
from jaxrec.export.onnx_operations import LOWERINGS
from jaxrec.typing import UserError

onnxruntime = pytest.importorskip("onnxruntime")
F32, I32, I8, U8 = np.float32, np.int32, np.int8, np.uint8
I16, U16, U32, BOOL = np.int16, np.uint16, np.uint32, np.bool_
INTS = (I8, U8, I16, U16, I32, U32)
TABLE = np.random.default_rng(0).normal(size=(7, 4)).astype(F32)
type Case = tuple[Callable[..., Any], tuple[tuple[Any, str], ...]]


def each(function: Callable[..., Any], *dtypes: Any, count: int = 1) -> list[Case]:
    """The function of `count` arrays (b, l), once a dtype."""
    return [(function, ((dtype, "b, l"),) * count) for dtype in dtypes]


def of(function: Callable[..., Any], *inputs: tuple[Any, str]) -> Case:
    return function, inputs


def looked_up(mode: Any, fill: Any = None) -> Callable[..., Any]:
    def function(table: jax.Array, ids: jax.Array) -> jax.Array:
        return table.at[ids].get(mode=mode, fill_value=fill, wrap_negative_indices=False)

    return function


def written(x: jax.Array, ids: jax.Array) -> jax.Array:
    rows = jnp.arange(x.shape[0])[:, None]
    return x.at[rows, jnp.clip(ids, 0, 8)].set(-1.0, mode="promise_in_bounds")


def scanned(reverse: bool, unroll: int = 1) -> Callable[..., Any]:
    """A recurrence with weights, two carried values and results of each step."""

    def function(x: jax.Array) -> Any:
        def step(carry: Any, row: jax.Array) -> Any:
            state, count = carry
            state = jnp.tanh(state @ jnp.asarray(TABLE[:4]) + row)
            return (state, count + 1), (state * 2, count)

        begin = (jnp.zeros((x.shape[1], 4), F32), jnp.int32(0))
        return lax.scan(step, begin, x, reverse=reverse, unroll=unroll)

    return function


def halved(x: jax.Array) -> Any:
    """As many steps as the values say; each goes on from the last."""

    def goes_on(state: Any) -> jax.Array:
        return (jnp.max(jnp.abs(state[0])) > 1.5) & (state[1] < 9)

    return lax.while_loop(goes_on, lambda s: (s[0] / 2 + 0.1 * jnp.sum(x), s[1] + 1), (x, 0))


def chosen(count: int) -> Callable[..., Any]:
    branches = [lambda x: x * 2, lambda x: jnp.sin(x), lambda x: jnp.zeros_like(x), lambda x: -x]

    def function(x: jax.Array, which: jax.Array) -> Any:
        return lax.switch(which[0, 0], branches[:count], x)

    return function


def nested(x: jax.Array) -> Any:
    """A loop with a count from its input, in it a branch, in it a loop over an axis of weights."""

    def inner(y: jax.Array) -> jax.Array:
        return lax.scan(lambda c, w: (c * 0.5 + w[None], None), y, jnp.asarray(TABLE))[0]

    def body(i: Any, y: jax.Array) -> jax.Array:
        return lax.cond(i % 2 == 0, inner, lambda z: z - 1.0, y)

    return lax.fori_loop(0, jnp.int32(x.shape[0]) + 2, body, x)


CASES: dict[str, list[Case]] = {
    "abs": each(jnp.abs, F32, I8, I16, I32),
    "add": each(jnp.add, F32, *INTS, count=2),
    "and": each(jnp.bitwise_and, BOOL, *INTS, count=2),
    "argmax": [*each(lambda x: jnp.argmax(x, axis=1), F32, *INTS)],
    "argmin": [*each(lambda x: jnp.argmin(x, axis=0), F32, *INTS)],
    "broadcast_in_dim": [
        of(lambda x: jnp.broadcast_to(x[:, :1], x.shape), (F32, "b, l")),
        of(lambda x: jnp.broadcast_to(x, (2, *x.shape)), (BOOL, "b, l")),
    ],
    "ceil": each(jnp.ceil, F32),
    "clamp": [*each(lambda x: lax.clamp(-1.0, x, 2.0), F32), *each(lax.clamp, F32, I32, count=3)],
    "concatenate": each(lambda x, y: jnp.concatenate([x, y], axis=1), F32, BOOL, *INTS, count=2),
    "cond": [
        of(lambda x: lax.cond(jnp.sum(x > 0) > 3, jnp.sin, lambda y: y + 1, x), (F32, "b, l")),
        *(of(chosen(n), (F32, "b, l"), (I32, "b, l")) for n in (2, 3, 4)),
        of(nested, (F32, "b, 4")),
    ],
    "convert_element_type": [
        *(
            of(lambda x, t=t: lax.convert_element_type(x, t), (s, "b, l"))
            for s, t in itertools.permutations((F32, BOOL, *INTS), 2)
        ),
    ],
    "copy": each(lambda x: lax.copy_p.bind(x), F32),
    "cos": each(lambda x: jnp.cos(jnp.clip(x, -99, 99)), F32),
    "cummax": [
        *each(lambda x: lax.cummax(x, axis=1), F32, I32, I8),
        *each(lambda x: lax.cummax(x, axis=1, reverse=True), I32),
    ],
    "cummin": [
        *each(lambda x: lax.cummin(x, axis=1), F32, I32, U8),
        *each(lambda x: lax.cummin(x, axis=1, reverse=True), I32),
    ],
    "cumsum": [
        *each(lambda x: lax.cumsum(jnp.clip(x, -9, 9), axis=1), F32, I32, I8),
        *each(lambda x: lax.cumsum(x, axis=0, reverse=True), I32),
    ],
    "dim_as_value": [of(lambda x: x + x.shape[0] * 1.0 + x.shape[1], (F32, "b, l"))],
    "div": each(lax.div, F32, *INTS, count=2),
    "dot_general": [
        of(lambda x, y: x @ y.T, (I32, "b, 4"), (I32, "6, 4")),
        of(lambda x, y: lax.dot(x, y, preferred_element_type=I32), (I8, "b, 4"), (I8, "4, 6")),
        of(lambda x, y: lax.dot(x, y), (I8, "b, 4"), (I8, "4, 6")),
        of(lambda x, y: jnp.einsum("bld,dn->bln", x, y), (F32, "b, l, 4"), (F32, "4, 6")),
        of(lambda x, y: jnp.einsum("bqhd,bkhd->bhqk", x, y), *((F32, "b, l, 2, 4"),) * 2),
        of(lambda x, y: jnp.einsum("bd,bd->b", x, y), *((F32, "b, 4"),) * 2),
    ],
    "dynamic_slice": [
        of(
            lambda x, i: lax.dynamic_slice(x, (i[0, 0], i[0, 1]), (2, 3)),
            (F32, "5, 6"),
            (I32, "b, l"),
        ),
        of(lambda x, i: lax.dynamic_index_in_dim(x, i[0, 0], axis=1), (I8, "5, 6"), (I32, "b, l")),
    ],
    "dynamic_update_slice": [
        of(
            lambda x, i: lax.dynamic_update_index_in_dim(x, x[:, 0] * 2, i[0, 0], axis=1),
            (F32, "5, 6"),
            (I32, "b, l"),
        ),
        of(
            lambda x, i: lax.dynamic_update_slice(x, x[:2] + 1, (i[0, 0], 0)),
            (F32, "5, 6"),
            (I32, "b, l"),
        ),
    ],
    "eq": each(jnp.equal, F32, BOOL, *INTS, count=2),
    "erf": each(lax.erf, F32),
    "exp": each(jnp.exp, F32),
    "floor": each(jnp.floor, F32),
    "gather": [
        *(
            of(looked_up(mode), (kind, "7, 4"), (I32, "b, l"))
            for mode in (Mode.CLIP, Mode.FILL_OR_DROP)
            for kind in (F32, BOOL, I32, U8)
        ),
        of(looked_up(Mode.FILL_OR_DROP, 3), (F32, "7, 4"), (I32, "b, l")),
        of(
            lambda x, i: x.at[jnp.clip(i, 0, 6)].get(mode="promise_in_bounds"),
            (F32, "7, 4"),
            (I32, "b, l"),
        ),
        of(lambda x, i: x[i], (F32, "7, 4"), (I32, "b, l")),
        of(lambda x, i: jnp.take(x, i, axis=0), (F32, "b, 4"), (I32, "b, l")),
        of(lambda x, i: x.at[i, i].get(mode="clip"), (F32, "7, 4"), (I32, "b, l")),
        of(lambda x, i: x.at[i, i].get(mode="fill"), (F32, "7, 4, 2"), (I32, "b, l")),
        of(lambda x, i: x[:, i[0, 0]], (F32, "b, l"), (I32, "b, l")),
        of(lambda x: x[:, -1], (F32, "b, l")),
        of(lambda x: x[:, 1:], (F32, "b, l")),
    ],
    "ge": each(jnp.greater_equal, F32, BOOL, *INTS, count=2),
    "gt": each(jnp.greater, F32, BOOL, *INTS, count=2),
    "integer_pow": [
        *(
            case
            for n in (0, 1, 2, 3, 7)
            for case in each(lambda x, n=n: lax.integer_pow(x, n), F32, I32, I8, U32)
        ),
        *(case for n in (-1, -3) for case in each(lambda x, n=n: lax.integer_pow(x, n), F32)),
    ],
    "iota": [
        of(
            lambda x, t=t: jnp.arange(x.shape[1], dtype=t)[None] + jnp.zeros_like(x, t),
            (F32, "b, l"),
        )
        for t in (F32, I32, U8)
    ],
    "is_finite": each(jnp.isfinite, F32),
    "le": each(jnp.less_equal, F32, BOOL, *INTS, count=2),
    "log": each(jnp.log, F32),
    "logistic": each(jax.nn.sigmoid, F32),
    "lt": each(jnp.less, F32, BOOL, *INTS, count=2),
    "max": each(lax.max, F32, BOOL, *INTS, count=2),
    "min": each(lax.min, F32, BOOL, *INTS, count=2),
    "mul": each(jnp.multiply, F32, *INTS, count=2),
    "name": each(lambda x: checkpoint_name(x, "x") * 2, F32),
    "ne": each(jnp.not_equal, F32, BOOL, *INTS, count=2),
    "neg": each(lax.neg, F32, *INTS),
    "not": each(jnp.bitwise_not, BOOL, *INTS),
    "or": each(jnp.bitwise_or, BOOL, *INTS, count=2),
    "pow": [*each(lambda x, y: lax.pow(x, jnp.clip(y, -3, 3)), F32, count=2)],
    "reduce_and": each(lambda x: jnp.all(x, axis=1), BOOL),
    "reduce_max": [
        *each(lambda x: jnp.max(x, axis=1), F32, BOOL, *INTS),
        *each(lambda x: jnp.max(x, axis=()), F32),
    ],
    "reduce_min": [
        *each(lambda x: jnp.min(x, axis=0), F32, BOOL, *INTS),
        *each(lambda x: jnp.min(x), F32),
    ],
    "reduce_or": each(lambda x: jnp.any(x, axis=(0, 1)), BOOL),
    "reduce_sum": [
        *each(lambda x: lax.reduce_sum_p.bind(x, axes=(1,), out_sharding=None), F32, *INTS),
        *each(lambda x: lax.reduce_sum_p.bind(x, axes=(), out_sharding=None), F32),
    ],
    "rem": each(lax.rem, F32, *INTS, count=2),
    "reshape": each(lambda x: x.reshape(-1), F32, BOOL),
    "rev": each(lambda x: lax.rev(x, (1,)), F32, BOOL, I8),
    "round": [
        *each(jnp.round, F32),
        *each(lambda x: lax.round(x, lax.RoundingMethod.AWAY_FROM_ZERO), F32),
    ],
    "rsqrt": each(lax.rsqrt, F32),
    "scan": [
        *(of(scanned(reverse), (F32, "l, b, 4")) for reverse in (False, True)),
        of(scanned(False), (F32, "3, b, 4")),
        of(scanned(False, 2), (F32, "3, b, 4")),
        of(lambda x: lax.map(jnp.sin, x), (F32, "b, l")),
        of(lambda x: lax.fori_loop(0, 5, lambda i, y: y * 0.5 + i, x), (F32, "b, l")),
        of(lambda x: lax.scan(lambda c, _: (c + 1, c.sum()), x, None, length=4), (F32, "b, l")),
        of(
            lambda x: (
                lax.scan(lambda c, t: (c + t, c), jnp.zeros(4, F32), jnp.asarray(TABLE))[0][None]
                + x
            ),
            (F32, "b, 4"),
        ),
    ],
    "scatter": [of(written, (F32, "b, 9"), (I32, "b, l"))],
    "select_n": [
        *each(lambda x, y: jnp.where(x > y, x, y), F32, *INTS, count=2),
        *each(lambda x, y: jnp.where(x, y, ~y), BOOL, count=2),
        of(
            lambda i, x: lax.select_n(jnp.clip(i, 0, 2), x, x * 2, x * 3),
            (I32, "b, l"),
            (F32, "b, l"),
        ),
    ],
    "shift_left": each(lax.shift_left, *INTS, count=2),
    "shift_right_arithmetic": each(lax.shift_right_arithmetic, I8, I16, I32, count=2),
    "shift_right_logical": each(lax.shift_right_logical, U8, U16, U32, count=2),
    "sign": each(jnp.sign, F32, *INTS),
    "sin": each(lambda x: jnp.sin(jnp.clip(x, -99, 99)), F32),
    "slice": [
        of(lambda x: lax.slice(x, (1, 0), (5, x.shape[1]), (2, 1)), (F32, "6, l")),
        of(lambda x: lax.slice(x, (2, 0), (2, x.shape[1])), (BOOL, "6, l")),
    ],
    "split": [of(lambda x: jnp.split(x, 3, axis=0), (F32, "6, l"))],
    "sqrt": each(jnp.sqrt, F32),
    "square": each(lax.square, F32, *INTS),
    "squeeze": [
        of(lambda x: jnp.squeeze(x, 1), (F32, "b, 1, l")),
        of(lambda x: lax.squeeze_p.bind(x, dimensions=()), (F32, "b, 1, l")),
    ],
    "stop_gradient": each(lambda x: lax.stop_gradient(x) + 1, F32),
    "sub": each(jnp.subtract, F32, *INTS, count=2),
    "tanh": each(jnp.tanh, F32),
    "top_k": [of(lambda x: lax.top_k(x, 5), (t, "b, 12")) for t in (F32, *INTS)],
    "transpose": each(lambda x: x.T, F32, BOOL, I16),
    "while": [of(halved, (F32, "b, l")), of(nested, (F32, "b, 4"))],
    "xor": each(jnp.bitwise_xor, BOOL, *INTS, count=2),
}
# Only what NaN does is not claimed of these.
WITHOUT_NAN = {"max", "min", "sign", "clamp", "reduce_max", "reduce_min", "cummax", "cummin"}
WITHOUT_NAN |= {"argmax", "argmin", "top_k", "while"}


def primitives(jaxpr: Any) -> Iterator[str]:
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                if hasattr(inner, "eqns"):
                    yield from primitives(inner)


def drawn(dtype: Any, shape: list[int], random: np.random.Generator, nan: bool) -> np.ndarray:
    """Values of which a third lie at the ends of their type."""
    kind, usual = np.dtype(dtype), np.zeros(shape)
    if kind == BOOL:
        return random.random(shape) < 0.5
    if kind == F32:
        ends = [0.0, -0.0, np.inf, -np.inf, 1e30, -1e30, 1e-30, 0.5, -0.5, 1.5, 2.5, -2.5]
        ends += [2147483648.0, -2147483904.0, 255.5, 300.0, 0.49999997] + [np.nan] * nan
        usual = random.normal(0, 2, shape)
    else:
        ends = [np.iinfo(kind).min, np.iinfo(kind).max, 0, 1, min(8 * kind.itemsize, 31)]
        usual = random.integers(-9 if kind.kind == "i" else 0, 10, shape).astype(float)
    extreme = random.random(shape) < 0.33
    return np.where(extreme, random.choice(np.array(ends, kind), shape), usual.astype(kind))


def together(cases: list[Case]) -> Case:
    """All cases as one function, as each compilation takes a while."""

    def function(*arrays: Any) -> list[Any]:
        left = iter(arrays)
        return [one(*(next(left) for _ in inputs)) for one, inputs in cases]

    return function, tuple(x for _, inputs in cases for x in inputs)


def converted(path: Path, case: Case) -> Any:
    """Returns the session of a case."""
    function, inputs = case
    scope = export.SymbolicScope()
    shapes = [
        jax.ShapeDtypeStruct(export.symbolic_shape(shape, scope=scope), dtype)
        for dtype, shape in inputs
    ]
    traced = jax.make_jaxpr(function)(*shapes)
    with (path / "constants").open("wb") as file:
        graph = Graph("test", Constants(file, "constants"), LOWERINGS)
        values = [graph.input(f"in{i}", x.shape, x.dtype) for i, x in enumerate(shapes)]
        found = graph.results(traced, values)
    model = graph.model({f"out{i}": value for i, value in enumerate(found)})
    onnx.checker.check_model(model, full_check=True)
    (path / "model").write_bytes(model.SerializeToString())
    return onnxruntime.InferenceSession(path / "model")


def has(name: str, case: Case) -> bool:
    """Whether a case, with sizes that are free, is one of an operation."""
    scope = export.SymbolicScope()
    shapes = [
        jax.ShapeDtypeStruct(export.symbolic_shape(shape, scope=scope), dtype)
        for dtype, shape in case[1]
    ]
    return name in set(primitives(jax.make_jaxpr(case[0])(*shapes)))


@pytest.mark.parametrize("name", sorted(LOWERINGS))
def test_an_operation_means_what_it_means_in_jax(name: str, tmp_path: Path) -> None:
    assert name in CASES, f"the converter claims {name}; add a case of it here"
    missing = [number for number, case in enumerate(CASES[name]) if not has(name, case)]
    assert not missing, f"cases {missing} of {name} have no such operation"
    random = np.random.default_rng(zlib.crc32(name.encode()))
    function, inputs = together(CASES[name])
    session = converted(tmp_path, (function, inputs))
    for rows, columns in ((3, 5), (1, 2)):
        free = {"b": rows, "l": columns}
        given = [
            drawn(
                dtype,
                [free.get(n) or int(n) for n in shape.split(", ")],
                random,
                name not in WITHOUT_NAN,
            )
            for dtype, shape in inputs
        ]
        found = session.run(None, {f"in{i}": x for i, x in enumerate(given)})
        with jax.debug_nans(False):
            wanted = jax.tree.leaves(jax.jit(function)(*given))
        for number, (got, want) in enumerate(zip(found, wanted, strict=True)):
            told = f"result {number} of {name}"
            assert (got.dtype, got.shape) == (want.dtype, want.shape), told
            if want.dtype == F32:
                np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6, err_msg=told)
            else:
                np.testing.assert_array_equal(got, want, err_msg=told)


def test_cases_are_of_operations_that_are_claimed() -> None:
    assert CASES.keys() == LOWERINGS.keys()


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (
            lambda x: lax.custom_linear_solve(lambda v: 2 * v, x, lambda _, b: b / 2),
            "custom_linear_solve",
        ),
        (lambda x: jnp.sort(x, axis=1), "sort"),
        (lambda x: lax.reduce_precision(x, 5, 10), "reduce_precision"),
        (
            lambda x: (
                lax.associative_scan(jnp.add, x, axis=1)
                + lax.reduce(x, np.float32(1), lax.mul, (0,))[None]
            ),
            None,
        ),
        (lambda x: x.astype(jnp.bfloat16) * 2, "mul of bfloat16"),
    ],
)
def test_what_is_not_known_is_refused_by_name(
    function: Callable[..., Any], name: str | None, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"does not know {name or ''}.*leave --format=onnx out"):
        converted(tmp_path, (function, ((F32, "4, 8"),)))
