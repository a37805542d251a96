"""The chunked cross entropy has the value and both gradients of the plain softmax.

On one device and with the table split among several.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxrec.ops.cross_entropy import catalogue_cross_entropy, catalogue_divergence


def problem(rows: int, items: int, dim: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((rows, dim)).astype(np.float32)
    table = random.standard_normal((items, dim)).astype(np.float32)
    targets = random.integers(1, items, rows).astype(np.int32)
    weights = random.uniform(0, 2, rows).astype(np.float32)
    weights[::3] = 0
    return vectors, table, targets, weights


def by_hand(
    vectors: np.ndarray,
    table: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    smoothing: float,
) -> tuple[float, np.ndarray, np.ndarray]:
    """Value and gradients in float64: d loss / d logits = weight * (softmax - wanted)."""
    v, t, w = (np.asarray(x, np.float64) for x in (vectors, table, weights))
    logits = v @ t[1:].T
    logits -= logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    wanted = np.full(log_p.shape, smoothing / log_p.shape[1])
    wanted[np.arange(len(targets)), targets - 1] += 1 - smoothing
    slope = w[:, None] * (np.exp(log_p) - wanted)
    table_gradient = np.concatenate([np.zeros((1, v.shape[1])), slope.T @ v])
    return -(w[:, None] * wanted * log_p).sum(), slope @ t[1:], table_gradient


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("rows", "items", "chunk"),
    [(1, 2, None), (7, 5, 1), (7, 5, 3), (7, 5, 7), (7, 5, 100), (65, 129, 16), (300, 33, None)],
)
def test_value_and_gradients_are_those_of_the_plain_softmax(
    rows: int, items: int, chunk: int | None, smoothing: float
) -> None:
    vectors, table, targets, weights = problem(rows, items, 6)
    weights[0] = 0.5

    def loss(vectors: jax.Array, table: jax.Array) -> jax.Array:
        return catalogue_cross_entropy(
            vectors, table, targets, weights, label_smoothing=smoothing, chunk=chunk
        )

    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(vectors, table)
    expected = by_hand(vectors, table, targets, weights, smoothing)
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    np.testing.assert_allclose(jax.jit(loss)(vectors, table), expected[0], rtol=1e-5)
    np.testing.assert_allclose(gradients[0], expected[1], rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(gradients[1], expected[2], rtol=1e-4, atol=2e-5)


def test_two_items_by_hand() -> None:
    # Logits of items 1 and 2 are 2 and 0, and padding's 100 does not count.
    table = jnp.array([[100.0], [2.0], [0.0]])
    loss = catalogue_cross_entropy(jnp.ones((1, 1)), table, jnp.array([2]), jnp.array([3.0]))
    np.testing.assert_allclose(loss, 3 * np.log(np.exp(2) + 1), rtol=1e-6)


@pytest.mark.parametrize("target", [0, -1, 5, 10**6])
def test_rows_of_weight_zero_may_have_any_target(target: int) -> None:
    vectors, table, targets, weights = problem(6, 5, 3)
    weights[2] = 0
    loss = jax.value_and_grad(catalogue_cross_entropy, argnums=(0, 1))
    expected = loss(vectors, table, targets, weights)
    targets[2] = target
    value, gradients = loss(vectors, table, targets, weights)
    np.testing.assert_array_equal(value, expected[0])
    np.testing.assert_array_equal(gradients[0], expected[1][0])
    np.testing.assert_array_equal(gradients[1], expected[1][1])
    assert not gradients[0][2].any()


def test_nothing_but_weight_zero_gives_zero() -> None:
    vectors, table, targets, _ = problem(6, 5, 3)
    loss = jax.value_and_grad(catalogue_cross_entropy, argnums=1)
    value, gradient = loss(vectors, table, targets, np.zeros(6, np.float32))
    assert value == 0 and not gradient.any()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_scores_of_ten_thousand_stay_finite(smoothing: float) -> None:
    vectors, table, targets, weights = problem(8, 9, 4)

    def loss(vectors: jax.Array) -> jax.Array:
        return catalogue_cross_entropy(vectors, table, targets, weights, label_smoothing=smoothing)

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(vectors) * 1e4)
    expected = by_hand(vectors * 1e4, table, targets, weights, smoothing)
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    assert np.isfinite(gradient).all()


def test_bfloat16_is_close_and_keeps_its_dtype() -> None:
    vectors, table, targets, weights = problem(40, 50, 8)
    narrow = [jnp.asarray(x, jnp.bfloat16) for x in (vectors, table)]
    loss = jax.value_and_grad(catalogue_cross_entropy, argnums=(0, 1))
    value, gradients = loss(*narrow, targets, weights)
    v, t = (np.asarray(x, np.float64) for x in narrow)
    expected = by_hand(v, t, targets, weights, 0.0)
    assert value.dtype == jnp.float32
    assert all(g.dtype == jnp.bfloat16 for g in gradients)
    np.testing.assert_allclose(value, expected[0], rtol=1e-4)
    for gradient, wanted in zip(gradients, expected[1:], strict=True):
        error = np.abs(np.asarray(gradient, np.float64) - wanted).max()
        assert error < 0.02 * np.abs(wanted).max()


def test_the_gradient_scales_with_what_comes_back() -> None:
    vectors, table, targets, weights = problem(6, 5, 3)
    once = jax.grad(catalogue_cross_entropy)(vectors, table, targets, weights)
    thrice = jax.grad(lambda v: 3 * catalogue_cross_entropy(v, table, targets, weights))(vectors)
    np.testing.assert_allclose(thrice, 3 * once, rtol=1e-6)


def test_a_table_of_bfloat16_serves_vectors_of_float32() -> None:
    vectors, table, targets, weights = problem(40, 50, 8)
    narrow = jnp.asarray(table, jnp.bfloat16)
    loss = jax.value_and_grad(catalogue_cross_entropy, argnums=(0, 1))
    value, gradients = loss(vectors, narrow, targets, weights)
    expected = by_hand(vectors, np.asarray(narrow, np.float64), targets, weights, 0.0)
    assert gradients[0].dtype == jnp.float32 and gradients[1].dtype == jnp.bfloat16
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    np.testing.assert_allclose(gradients[0], expected[1], rtol=1e-4, atol=2e-5)
    error = np.abs(np.asarray(gradients[1], np.float64) - expected[2]).max()
    assert error < 0.01 * np.abs(expected[2]).max()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_rows_past_the_count_take_no_part(smoothing: float) -> None:
    vectors, table, targets, weights = problem(9, 11, 4)
    full = np.concatenate([table, np.full((3, 4), 9, np.float32)])
    values, gradients = jax.value_and_grad(catalogue_cross_entropy, argnums=(0, 1))(
        vectors, full, targets, weights, label_smoothing=smoothing, num_rows=11, chunk=4
    )
    expected = by_hand(vectors, table, targets, weights, smoothing)
    np.testing.assert_allclose(values, expected[0], rtol=1e-5)
    np.testing.assert_allclose(gradients[0], expected[1], rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(gradients[1][:11], expected[2], rtol=1e-4, atol=2e-5)
    assert not gradients[1][11:].any()


def split_problem(blocks: int, rows: int, items: int, dim: int) -> tuple[np.ndarray, ...]:
    """Arrays with a leading axis of devices, the table filled up to equal blocks."""
    vectors, table, targets, weights = problem(blocks * rows, items, dim)
    table = np.concatenate([table, np.full((-items % blocks, dim), 5, np.float32)])
    weights[-rows:] = 0  # the last device has nothing that counts
    tokens = (x.reshape(blocks, rows, *x.shape[1:]) for x in (vectors, targets, weights))
    vectors, targets, weights = tokens
    return vectors, table.reshape(blocks, -1, dim), targets, weights


def on_devices(how: str, blocks: int, loss: Any) -> Any:
    """Runs a function of one device's arrays on each device; what goes in and out has its axis."""
    gradient = jax.value_and_grad(loss, argnums=(0, 1))
    if how == "pmap":
        return jax.pmap(gradient, axis_name="model", devices=jax.devices()[:blocks])
    spec = PartitionSpec("model")
    axis: Any = "model"
    mesh = Mesh(np.array(jax.devices()[:blocks]), ("model",))
    if how == "two axes":
        mesh = Mesh(np.array(jax.devices()[:blocks]).reshape(2, -1), ("data", "model"))
        axis = ("data", "model")
        spec = PartitionSpec(axis)

    def each(*arrays: jax.Array) -> Any:
        return jax.tree.map(lambda x: x[None], gradient(*(x[0] for x in arrays)))

    mapped = jax.shard_map(each, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    return jax.jit(mapped)


@pytest.mark.parametrize(
    ("how", "blocks", "smoothing"),
    [
        ("shard_map", 2, 0.0),
        ("shard_map", 4, 0.1),
        ("shard_map", 8, 0.0),
        ("pmap", 2, 0.1),
        ("pmap", 8, 0.0),
        ("two axes", 8, 0.1),
    ],
)
def test_a_split_table_gives_the_loss_and_gradients_of_a_whole_one(
    how: str, blocks: int, smoothing: float
) -> None:
    # 13 items in 8 blocks of 2: the last block has padding alone.
    arrays = split_problem(blocks, 6, 13, 5)
    axis = ("data", "model") if how == "two axes" else "model"
    split = functools.partial(
        catalogue_cross_entropy, label_smoothing=smoothing, num_rows=13, chunk=7, axis=axis
    )
    values, (vector_gradients, table_gradient) = on_devices(how, blocks, split)(*arrays)
    vectors, table, targets, weights = (x.reshape(-1, *x.shape[2:]) for x in arrays)
    whole = functools.partial(catalogue_cross_entropy, label_smoothing=smoothing)
    own = [whole(v, table[:13], t, w) for v, t, w in zip(arrays[0], *arrays[2:], strict=True)]
    np.testing.assert_allclose(values, own, rtol=1e-5, atol=1e-5)
    expected = jax.grad(whole, argnums=(0, 1))(vectors, table[:13], targets, weights)
    np.testing.assert_allclose(
        vector_gradients.reshape(vectors.shape), expected[0], rtol=1e-5, atol=1e-5
    )
    gradient = np.asarray(table_gradient).reshape(table.shape)
    np.testing.assert_allclose(gradient[:13], expected[1], rtol=1e-5, atol=1e-5)
    assert not gradient[13:].any()


@pytest.mark.parametrize("how", ["shard_map", "pmap"])
def test_a_split_table_without_tokens_that_count_gives_zero(how: str) -> None:
    vectors, table, targets, weights = split_problem(4, 6, 13, 5)
    loss = functools.partial(catalogue_cross_entropy, num_rows=13, axis="model")
    value, gradients = on_devices(how, 4, loss)(vectors, table, targets - 9, 0 * weights)
    assert not value.any() and not gradients[0].any() and not gradients[1].any()


def test_a_split_table_of_bfloat16_is_close_and_keeps_its_dtype() -> None:
    vectors, table, targets, weights = split_problem(8, 8, 45, 8)
    narrow = [jnp.asarray(x, jnp.bfloat16) for x in (vectors, table)]
    loss = functools.partial(catalogue_cross_entropy, num_rows=45, axis="model")
    value, gradients = on_devices("shard_map", 8, loss)(*narrow, targets, weights)
    wide = [np.asarray(x, np.float64).reshape(-1, 8) for x in narrow]
    expected = by_hand(wide[0], wide[1][:45], targets.ravel(), weights.ravel(), 0.0)
    np.testing.assert_allclose(value.sum(), expected[0], rtol=1e-4)
    for gradient, wanted in zip(gradients, expected[1:], strict=True):
        assert gradient.dtype == jnp.bfloat16
        found = np.asarray(gradient, np.float64).reshape(-1, 8)[: len(wanted)]
        assert np.abs(found - wanted).max() < 0.03 * np.abs(wanted).max()


def test_the_gradient_of_the_sum_over_devices_is_that_of_the_whole_loss() -> None:
    arrays = split_problem(4, 6, 13, 5)
    mesh, spec = Mesh(np.array(jax.devices()[:4]), ("model",)), PartitionSpec("model")

    def each(*arrays: jax.Array) -> jax.Array:
        own = catalogue_cross_entropy(*(x[0] for x in arrays), num_rows=13, axis="model")
        return jax.lax.psum(own, "model")

    loss = jax.shard_map(each, mesh=mesh, in_specs=spec, out_specs=PartitionSpec(), check_vma=False)
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(*arrays)
    vectors, table, targets, weights = (x.reshape(-1, *x.shape[2:]) for x in arrays)
    expected = jax.grad(catalogue_cross_entropy, argnums=(0, 1))(
        vectors, table[:13], targets, weights
    )
    np.testing.assert_allclose(gradients[0].reshape(-1, 5), expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradients[1].reshape(-1, 5)[:13], expected[1], rtol=1e-5, atol=1e-5)


def teacher_of(items: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns vectors and a table of another width."""
    random = np.random.default_rng(5)
    table = random.standard_normal((items, 7)).astype(np.float32)
    return random.standard_normal((rows, 7)).astype(np.float32), table


def divergence_by_hand(
    vectors: np.ndarray, table: np.ndarray, *taught: np.ndarray, weights: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Value and gradients in float64: d loss / d logits = weight * (softmax - the teacher's)."""

    def logs(vectors: np.ndarray, table: np.ndarray) -> np.ndarray:
        logits = np.asarray(vectors, np.float64) @ np.asarray(table, np.float64)[1:].T
        logits -= logits.max(axis=1, keepdims=True)
        return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))

    mine, theirs, w = logs(vectors, table), logs(*taught), np.asarray(weights, np.float64)[:, None]
    slope = w * (np.exp(mine) - np.exp(theirs))
    gradient = np.concatenate([np.zeros((1, vectors.shape[1])), slope.T @ vectors])
    return (w * np.exp(theirs) * (theirs - mine)).sum(), slope @ table[1:], gradient


@pytest.mark.parametrize(
    ("rows", "items", "chunk"), [(1, 3, None), (7, 5, 3), (65, 129, 16), (300, 33, None)]
)
def test_divergence_and_its_gradients_are_those_of_plain_softmaxes(
    rows: int, items: int, chunk: int | None
) -> None:
    vectors, table, _, weights = problem(rows, items, 6)
    weights[0] = 0.5
    taught = teacher_of(items, rows)

    def loss(vectors: jax.Array, table: jax.Array) -> jax.Array:
        return catalogue_divergence(vectors, table, *taught, weights, chunk=chunk)

    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(vectors, table)
    expected = divergence_by_hand(vectors, table, *taught, weights=weights)
    # A difference of numbers near 1.
    np.testing.assert_allclose(value, expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jit(loss)(vectors, table), value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradients[0], expected[1], rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(gradients[1], expected[2], rtol=1e-4, atol=2e-5)


def test_divergence_from_oneself_is_zero_and_the_teacher_has_no_gradient() -> None:
    vectors, table, _, weights = problem(6, 5, 3)
    loss = jax.value_and_grad(catalogue_divergence, argnums=(0, 1, 2, 3))
    value, gradients = loss(vectors, table, vectors, table, weights)
    np.testing.assert_allclose(value, 0, atol=1e-5)
    for gradient in gradients:
        np.testing.assert_allclose(gradient, 0, atol=1e-5)
    value, gradients = loss(vectors, table, *teacher_of(5, 6), weights)
    assert value > 0.1 and not gradients[2].any() and not gradients[3].any()


@pytest.mark.parametrize("scale", [1e4, 0.0])
def test_divergence_stays_finite_when_scores_are_extreme(scale: float) -> None:
    vectors, table, _, weights = problem(8, 9, 4)
    taught = teacher_of(9, 8)
    value, gradient = jax.value_and_grad(catalogue_divergence)(
        jnp.asarray(vectors) * scale, table, taught[0] * 1e4, taught[1], weights
    )
    expected = divergence_by_hand(
        vectors * np.float32(scale), table, taught[0] * np.float32(1e4), taught[1], weights=weights
    )
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("how", "blocks"), [("shard_map", 2), ("shard_map", 8), ("pmap", 4), ("two axes", 8)]
)
def test_a_split_table_gives_the_divergence_of_a_whole_one(how: str, blocks: int) -> None:
    # 13 items in 8 blocks of 2: the last block has padding alone.
    vectors, table, _, weights = split_problem(blocks, 6, 13, 5)
    axis = ("data", "model") if how == "two axes" else "model"
    theirs, their_table = teacher_of(13, blocks * 6)
    each = theirs.reshape(blocks, 6, -1)

    def split(
        vectors: jax.Array, table: jax.Array, taught: jax.Array, weights: jax.Array
    ) -> jax.Array:
        return catalogue_divergence(
            vectors, table, taught, their_table, weights, num_rows=13, chunk=7, axis=axis
        )

    values, gradients = on_devices(how, blocks, split)(vectors, table, each, weights)
    flat, whole = vectors.reshape(-1, 5), table.reshape(-1, 5)[:13]
    own = [
        divergence_by_hand(v, whole, t, their_table, weights=w)[0]
        for v, t, w in zip(vectors, each, weights, strict=True)
    ]
    np.testing.assert_allclose(values, own, rtol=1e-5, atol=1e-5)
    expected = divergence_by_hand(flat, whole, theirs, their_table, weights=weights.ravel())
    np.testing.assert_allclose(gradients[0].reshape(-1, 5), expected[1], rtol=1e-4, atol=2e-5)
    found = np.asarray(gradients[1]).reshape(-1, 5)
    np.testing.assert_allclose(found[:13], expected[2], rtol=1e-4, atol=2e-5)
    assert not found[13:].any()
