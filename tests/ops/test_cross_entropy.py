"""The chunked cross entropy has the value and both gradients of the plain softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.ops.cross_entropy import catalogue_cross_entropy


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
