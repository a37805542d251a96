"""Operations in ONNX Runtime against JAX, with sizes that are free."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export, lax

from jaxrec.export.onnx_graph import Constants, Graph
from jaxrec.export.onnx_operations import LOWERINGS
from jaxrec.typing import UserError

onnxruntime = pytest.importorskip("onnxruntime")
FLOAT, INT, INT8 = jnp.float32, jnp.int32, jnp.int8


def build(path: Path, function: Callable[..., Any], *inputs: tuple[Any, str]) -> onnx.ModelProto:
    """The model of a function of arrays, each a dtype and a shape such as "b, 3"."""
    scope = export.SymbolicScope()
    shapes = [
        jax.ShapeDtypeStruct(export.symbolic_shape(shape, scope=scope), dtype)
        for dtype, shape in inputs
    ]
    traced = jax.make_jaxpr(function)(*shapes)
    with (path / "constants").open("wb") as file:
        graph = Graph("test", Constants(file, "constants"), LOWERINGS)
        values = [graph.input(f"in{i}", x.shape, x.dtype) for i, x in enumerate(shapes)]
        found = graph.run(traced, values)
    return graph.model({f"out{i}": value for i, value in enumerate(found)})


def check(path: Path, function: Callable[..., Any], *inputs: tuple[Any, str]) -> None:
    """Runs a function in both for several sizes of the free dimensions."""
    model = build(path, function, *inputs)
    onnx.checker.check_model(model, full_check=True)
    (path / "model").write_bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(path / "model")
    for rows, columns in ((1, 2), (3, 5)):
        random = np.random.default_rng(rows)
        given = []
        for dtype, shape in inputs:
            free = {"b": rows, "l": columns}
            sizes = [free[n] if n in free else int(n) for n in shape.split(", ")]
            values = random.normal(0, 2, sizes) if dtype == FLOAT else random.integers(-9, 9, sizes)
            given.append(np.asarray(values, dtype))
        expected = function(*map(jnp.asarray, given))
        expected = expected if isinstance(expected, tuple | list) else (expected,)
        found = session.run(None, {f"in{i}": x for i, x in enumerate(given)})
        for got, want in zip(found, expected, strict=True):
            assert got.dtype == want.dtype and got.shape == want.shape
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


TABLE = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
ROWS = (INT, "b, l")


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jnp.exp(-x * x) + jnp.tanh(x) - jnp.abs(x) / 3,
        lambda x: jnp.sin(x) * jnp.cos(x) + jnp.sqrt(jnp.square(x)),
        lambda x: lax.rsqrt(x * x + 1) + jax.nn.sigmoid(x) + jax.nn.gelu(x) + jax.nn.relu(x),
        lambda x: x**3 + jnp.round(x) + jnp.floor(x) + jnp.sign(x) + lax.erf(x),
        lambda x: jnp.where((x > 0) & (x <= 1) | ~(x >= -1) & (x != 0), x, -x),
        lambda x: jnp.where(x < 0, jnp.minimum(x, -1.0), jnp.maximum(x, jnp.log(3.0))),
        lambda x: jax.nn.softmax(x, axis=-1),
        lambda x: jnp.sum(x, axis=0) + jnp.max(x, axis=0) + jnp.min(x, axis=0),
        lambda x: (x + TABLE[0, 0]).astype(INT).astype(FLOAT),
        lambda x: jnp.concatenate([x, jnp.ones_like(x[:, :1]), x], axis=1),
        lambda x: jnp.split(jnp.concatenate([x.T, x.T, x.T], axis=0).reshape(3, -1), 3, axis=0),
        lambda x: x[:, -1],
        lambda x: x[:, 1:],
        lambda x: x[:, :-1],
        lambda x: x.reshape(-1, 1, x.shape[1]).swapaxes(0, 2),
        lambda x: x + jnp.arange(x.shape[1], dtype=FLOAT)[None] * x.shape[0],
        lambda x: jax.checkpoint(jnp.sin)(x),
        lambda x: lax.stop_gradient(x)[None] + jnp.zeros((2, 1, 1), FLOAT),
    ],
)
def test_arithmetic_and_shapes(function: Callable[..., Any], tmp_path: Path) -> None:
    with jax.numpy_rank_promotion("allow"):
        check(tmp_path, function, (FLOAT, "b, l"))


@pytest.mark.parametrize("reverse", [True, False])
def test_running_minima(reverse: bool, tmp_path: Path) -> None:
    check(tmp_path, lambda x: lax.cummin(x, axis=1, reverse=reverse), ROWS)


def test_rows_are_looked_up_with_indices_kept_inside(tmp_path: Path) -> None:
    check(tmp_path, lambda ids: jnp.take(jnp.asarray(TABLE), ids, axis=0, mode="clip"), ROWS)
    pairs = jnp.asarray(TABLE.reshape(7, 2, 2))

    def product(ids: jax.Array) -> jax.Array:
        ids = jnp.clip(ids, 0, 1)
        return pairs.at[jnp.abs(ids) + 3, ids].get(mode="clip", wrap_negative_indices=False)

    check(tmp_path, product, ROWS)


@pytest.mark.parametrize(
    ("equation", "left", "right"),
    [
        ("bd,nd->bn", "b, 4", "6, 4"),
        ("bld,dn->bln", "b, l, 4", "4, 6"),
        ("bd,bcd->bc", "b, 4", "b, l, 4"),
        ("bqhd,bkhd->bhqk", "b, l, 2, 4", "b, l, 2, 4"),
        ("bhqk,bkhd->bqhd", "b, 2, l, l", "b, l, 2, 4"),
        ("bld,d->bl", "b, l, 4", "4"),
    ],
)
def test_products(equation: str, left: str, right: str, tmp_path: Path) -> None:
    check(tmp_path, functools.partial(jnp.einsum, equation), (FLOAT, left), (FLOAT, right))


def test_codes_of_four_bits_keep_their_sign(tmp_path: Path) -> None:
    def unpacked(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return (x << jnp.int8(4)) >> jnp.int8(4), x >> jnp.int8(4)

    model = build(tmp_path, unpacked, (INT8, "b"))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    every = np.arange(-128, 128).astype(np.int8)
    low, high = session.run(None, {"in0": every})
    np.testing.assert_array_equal(low, (every.astype(int) + 8) % 16 - 8)
    np.testing.assert_array_equal(high, every.astype(int) // 16)


@pytest.fixture(scope="module")
def top_five(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("top")
    model = build(path, lambda x: lax.top_k(x, 5), (FLOAT, "b, 12"))
    return onnxruntime.InferenceSession(model.SerializeToString())


@settings(max_examples=50)
@given(rows=st.lists(st.lists(st.integers(0, 3), min_size=12, max_size=12), min_size=1))
def test_the_best_of_equal_scores_has_the_lower_index(rows: list[list[int]], top_five: Any) -> None:
    scores = np.array(rows, np.float32)
    scores[scores == 0] = -np.inf
    values, places = top_five.run(None, {"in0": scores})
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(places, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(scores, expected, axis=1))


def test_elements_are_written_over(tmp_path: Path) -> None:
    def without(scores: jax.Array, ids: jax.Array) -> jax.Array:
        rows = jnp.arange(scores.shape[0])[:, None]
        inside = jnp.clip(ids, 0, 8)
        return scores.at[rows, inside].set(-1.0, mode="promise_in_bounds")

    check(tmp_path, without, (FLOAT, "b, 9"), ROWS)


def test_what_depends_on_constants_alone_is_a_constant(tmp_path: Path) -> None:
    def function(x: jax.Array) -> jax.Array:
        # Operations that ONNX has no node for.
        bits = lax.bitcast_convert_type(jnp.asarray(TABLE), jnp.uint32) & jnp.uint32(0xFFFF0000)
        return x @ lax.bitcast_convert_type(bits, FLOAT).T

    model = build(tmp_path, function, (FLOAT, "b, 4"))
    assert [node.op_type for node in model.graph.node] == ["MatMul", "Identity"]


def test_an_operation_that_is_not_known_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not know sort, an operation of JAX; leave --format"):
        build(tmp_path, lambda x: jnp.sort(x, axis=-1), (FLOAT, "b, l"))
    with pytest.raises(UserError, match="does not know this use of scatter"):
        build(tmp_path, lambda x: x.at[:, 0].set(1.0), (FLOAT, "b, 4"))
    with pytest.raises(UserError, match=r"a size of .*floordiv.* cannot be had in ONNX"):
        build(tmp_path, lambda x: x[: x.shape[0] // 2], (FLOAT, "b"))
