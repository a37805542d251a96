"""SASRec against a forward pass in NumPy; tests/testing checks how its calls agree."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.functional import Functional, functional
from jaxrec.models.sasrec import Config, SASRec, positions_from_end
from jaxrec.typing import Batch, Params, UserError

CONFIG = Config(num_items=20, max_len=6, dim=8, num_blocks=2, num_heads=2, hidden=12)
BLOCKS: tuple[Any, ...] = ("post_norm", "pre_norm", "ligr")
HISTORY = np.array([[0, 0, 3, 7, 1, 9], [5, 4, 4, 20, 2, 1], [0, 0, 0, 0, 0, 6]], np.int32)


def build(config: Config) -> tuple[Functional, Params]:
    """The model with parameters none of which is left at an initial one or zero."""
    model = functional(lambda rngs: SASRec(config, rngs=rngs))
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: p + random.normal(0, 0.3, p.shape).astype(np.float32),
        model.init(jax.random.key(0)),
    )
    return model, params


def users(model: Functional, params: Params, batch: Batch, **options: Any) -> np.ndarray:
    vectors = model.apply(params, batch, method="user_vectors", **options)
    return np.asarray(vectors, np.float32)


def linear(x: np.ndarray, p: Params) -> np.ndarray:
    return x @ p["kernel"] + p.get("bias", 0)


def norm(x: np.ndarray, p: Params, kind: str) -> np.ndarray:
    if kind == "ligr":
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"]
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def attend(x: np.ndarray, p: Params, heads: int, rotary: bool) -> np.ndarray:
    """Causal attention of one sequence without padding, (L, dim)."""
    length, dim = x.shape
    q, k, v = (y.reshape(length, heads, -1) for y in np.split(linear(x, p["project_in"]), 3, -1))
    if rotary:
        half = dim // heads // 2
        angles = np.arange(length)[::-1, None] * 10_000.0 ** (-np.arange(half) / half)
        turn = np.exp(1j * angles)[:, None]
        q, k = (
            np.concatenate([z.real, z.imag], axis=-1)
            for z in ((y[..., :half] + 1j * y[..., half:]) * turn for y in (q, k))
        )
    logits = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(dim // heads)
    logits = np.where(np.tri(length, dtype=bool), logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return linear(np.einsum("hqk,khd->qhd", weights, v).reshape(length, dim), p["project_out"])


def feed(x: np.ndarray, p: Params, config: Config) -> np.ndarray:
    inner = linear(x, p["up"])
    if config.block == "ligr":
        gate, up = np.split(inner, 2, axis=-1)
        inner = gate * sigmoid(gate) * up
    elif config.activation == "relu":
        inner = np.maximum(inner, 0)
    else:
        inner = 0.5 * inner * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
    return linear(inner, p["down"])


def forward(config: Config, params: Params, items: np.ndarray) -> np.ndarray:
    """Returns (len(items), dim) in float64 for the items of one user, padding removed."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    kind, rotary = config.block, config.positions == "rotary"
    x = p["items"]["table"][items]
    if config.positions == "learned":
        x = x + p["positions"][np.arange(len(items))[::-1]]
    if kind == "post_norm":
        x = norm(x, p["input_norm"], kind)
    for index in range(config.num_blocks):
        b = p["blocks"][str(index)]
        if kind == "post_norm":
            x = x + attend(x, b["attention"], config.num_heads, rotary)
            x = norm(x, b["attention_norm"], kind)
            x = norm(x + feed(x, b["feed_forward"], config), b["feed_forward_norm"], kind)
            continue
        gated = kind == "ligr"
        gate = sigmoid(linear(x, b["attention_gate"])) if gated else 1
        inner = norm(x, b["attention_norm"], kind)
        x = x + gate * attend(inner, b["attention"], config.num_heads, rotary)
        gate = sigmoid(linear(x, b["feed_forward_gate"])) if gated else 1
        x = x + gate * feed(norm(x, b["feed_forward_norm"], kind), b["feed_forward"], config)
    return x if kind == "post_norm" else norm(x, p["output_norm"], kind)


@pytest.mark.parametrize("positions", ["learned", "rotary", "none"])
@pytest.mark.parametrize("block", BLOCKS)
def test_every_position_is_that_of_a_forward_pass_in_numpy(block: Any, positions: Any) -> None:
    activation: Any = "relu" if positions == "none" else "gelu"
    config = dataclasses.replace(CONFIG, block=block, positions=positions, activation=activation)
    model, params = build(config)
    out = users(model, params, Batch(history=HISTORY, positives=HISTORY))
    assert out.shape == (3, 6, 8)
    for row, history in zip(out, HISTORY, strict=True):
        items = history[history > 0]
        expected = forward(config, params, items)
        np.testing.assert_allclose(row[-len(items) :], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("block", BLOCKS)
def test_bfloat16_is_close_to_float32(block: Any) -> None:
    config = dataclasses.replace(CONFIG, block=block)
    model, params = build(config)
    narrow = functional(
        lambda rngs: SASRec(dataclasses.replace(config, compute_dtype="bfloat16"), rngs=rngs)
    )
    wide = users(model, params, Batch(history=HISTORY))
    # Flax normalises bfloat16 in float32 by mixing the two.
    with jax.numpy_dtype_promotion("standard"):
        vectors = narrow.apply(params, Batch(history=HISTORY), method="user_vectors")
    assert vectors.dtype == jnp.bfloat16
    assert narrow.apply(params, method="item_vectors").dtype == jnp.bfloat16
    assert np.abs(np.asarray(vectors, np.float32) - wide).max() < 0.05 * np.abs(wide).max()
    born = jax.tree.leaves(narrow.init(jax.random.key(0)))
    assert all(leaf.dtype == jnp.float32 for leaf in born)


@pytest.mark.parametrize("rates", [(0.5, 0.0), (0.0, 0.5)])
@pytest.mark.parametrize("block", BLOCKS)
def test_dropout_runs_when_a_key_is_passed_and_only_then(
    block: Any, rates: tuple[float, float]
) -> None:
    config = dataclasses.replace(CONFIG, block=block, dropout=rates[0], attention_dropout=rates[1])
    model, params = build(config)
    batch = Batch(history=HISTORY)
    still = users(model, params, batch)
    np.testing.assert_array_equal(still, users(model, params, batch))
    first, again, other = (users(model, params, batch, key=jax.random.key(s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    for changed in (still, other):
        assert (np.abs(first - changed)[:2].max(axis=1) > 1e-3).all()
    plain = dataclasses.replace(config, dropout=0.0, attention_dropout=0.0)
    without = functional(lambda rngs: SASRec(plain, rngs=rngs))
    np.testing.assert_array_equal(users(without, params, batch, key=jax.random.key(0)), still)


def test_a_tied_model_scores_with_its_input_table() -> None:
    model, params = build(CONFIG)
    ids = jnp.array([[1, 20], [0, 3]])
    table = np.asarray(params["items"]["table"])
    np.testing.assert_array_equal(model.apply(params, ids, method="item_vectors"), table[ids])
    np.testing.assert_array_equal(model.apply(params, method="item_vectors"), table)
    assert model.bind(params).tables == {"items": ("history", "positives", "negatives")}
    assert "outputs" not in params


def test_an_untied_model_scores_with_a_table_of_its_own() -> None:
    model, params = build(dataclasses.replace(CONFIG, tied=False))
    out = np.asarray(model.apply(params, method="item_vectors"))
    np.testing.assert_array_equal(out, params["outputs"]["table"])
    assert not np.array_equal(out, params["items"]["table"])
    tables = model.bind(params).tables
    assert tables == {"items": ("history",), "outputs": ("positives", "negatives")}


def test_positions_count_from_the_end_of_each_sequence() -> None:
    segments = jnp.array([[0, 0, 1, 1, 1], [1, 1, 2, 3, 3], [1, 2, 2, 0, 0], [0, 0, 0, 0, 0]])
    expected = [[1, 0, 2, 1, 0], [1, 0, 0, 1, 0], [0, 1, 0, 1, 0], [4, 3, 2, 1, 0]]
    np.testing.assert_array_equal(positions_from_end(segments), expected)
    assert positions_from_end(segments).dtype == jnp.int32


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="multiple of num_heads"):
        build(dataclasses.replace(CONFIG, dim=9))
    with pytest.raises(UserError, match="at least one row"):
        build(dataclasses.replace(CONFIG, num_items=0))


def test_remat_gives_the_same_gradient_in_less_memory() -> None:
    config = dataclasses.replace(CONFIG, dim=16, hidden=64, num_blocks=4, max_len=50, dropout=0.3)
    batch = Batch(history=np.random.default_rng(0).integers(1, 21, (16, 50)).astype(np.int32))
    found, sizes = [], []
    for remat in (False, True):
        model, params = build(dataclasses.replace(config, remat=remat))

        def loss(params: Params, model: Functional = model) -> jax.Array:
            vectors = model.apply(params, batch, method="user_vectors", key=jax.random.key(1))
            return jnp.sum(jnp.sin(vectors))

        program = jax.jit(jax.grad(loss)).lower(params).compile()
        memory = program.memory_analysis()
        assert memory is not None
        found.append(program(params))
        sizes.append(memory.temp_size_in_bytes)
    chex.assert_trees_all_close(*found, rtol=1e-6)
    assert sizes[1] < 0.5 * sizes[0]
