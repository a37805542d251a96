"""Stochastic rounding is right on average, and bfloat16 tables learn with it."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrec.functional import functional
from jaxrec.models import matrix_factorization, sasrec
from jaxrec.ops.cross_entropy import catalogue_cross_entropy
from jaxrec.optim import OptimizerConfig, apply_updates, stochastic_round, with_float32_slots
from jaxrec.typing import Batch, Params


def rounded(x: Any, seed: int = 0) -> np.ndarray:
    words = jax.random.bits(jax.random.key(seed), (2,), jnp.uint32)
    out = stochastic_round(jnp.asarray(x, jnp.float32), words)
    assert out.dtype == jnp.bfloat16
    return np.asarray(out, np.float32)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=8, max_size=8), st.integers(0, 99))
def test_the_result_is_one_of_the_two_neighbours(x: list[float], seed: int) -> None:
    values = np.array(x, np.float32)
    inner = values.view(np.uint32) & np.uint32(0xFFFF0000)
    outer = (inner + np.uint32(0x10000)).view(np.float32)
    outer = np.where(np.isfinite(outer), outer, inner.view(np.float32))
    found = rounded(values, seed)
    assert ((found == inner.view(np.float32)) | (found == outer)).all()
    assert (np.isfinite(found) == np.isfinite(values)).all()


def test_what_bfloat16_holds_stays() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    every = np.asarray(jax.lax.bitcast_convert_type(jnp.asarray(bits), jnp.bfloat16), np.float32)
    for seed in range(3):
        found = rounded(every, seed)
        np.testing.assert_array_equal(np.isnan(found), np.isnan(every))
        known = ~np.isnan(every)
        np.testing.assert_array_equal(found[known], every[known])


def test_extremes() -> None:
    info = np.finfo(np.float32)
    largest = float(jnp.finfo(jnp.bfloat16).max)
    for seed in range(20):
        found = rounded([np.inf, -np.inf, np.nan, info.max, info.min, -0.0], seed)
        np.testing.assert_array_equal(found, [np.inf, -np.inf, np.nan, largest, -largest, 0.0])
        assert np.signbit(found[-1])
    # The smallest payload of a NaN lies in the half that rounding drops.
    quiet = np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(rounded(quiet)).all()


@pytest.mark.parametrize("x", [1.0 + 2**-9, -1.0 - 3 * 2**-10, 1.9999, 3e-39 * 2**20, 1e30, 0.3])
def test_the_mean_over_elements_and_over_keys_is_the_value(x: float) -> None:
    count = 40_000
    value = float(np.float32(x))
    over_elements = rounded(np.full(count, x, np.float32)).astype(np.float64)
    keys = jax.random.split(jax.random.key(7), count)
    words = jax.vmap(lambda k: jax.random.bits(k, (2,), jnp.uint32))(keys)
    one = jax.vmap(lambda w: stochastic_round(jnp.full((1,), x, jnp.float32), w))(words)
    for found in (over_elements, np.asarray(one, np.float64).ravel()):
        # Two values a unit apart: the deviation of their mean is at most unit / 2 / sqrt(count).
        unit = np.ptp(found)
        assert unit > 0
        assert abs(found.mean() - value) < 5 * unit / 2 / np.sqrt(count)


def test_only_bfloat16_is_rounded_at_random() -> None:
    params: Params = {
        "items": {"table": jnp.ones((64, 8), jnp.bfloat16)},
        "linear": {"kernel": jnp.ones((2, 2))},
    }
    updates = jax.tree.map(lambda p: jnp.full(p.shape, 1e-3), params)
    new = apply_updates(params, updates, jax.random.key(0))
    np.testing.assert_array_equal(new["linear"]["kernel"], np.float32(1) + np.float32(1e-3))
    table = np.asarray(new["items"]["table"], np.float32)
    assert set(np.unique(table)) == {1.0, 1.0 + 2**-7}
    other = apply_updates(params, updates, jax.random.key(1))
    assert (np.asarray(other["items"]["table"], np.float32) != table).any()


def test_slots_and_updates_are_float32_and_those_of_a_float32_optimiser() -> None:
    wide: Params = {"items": {"table": jnp.ones((4, 3))}, "bias": jnp.ones(3)}
    narrow = {"items": {"table": wide["items"]["table"].astype(jnp.bfloat16)}, "bias": wide["bias"]}
    config = OptimizerConfig(name="adam", weight_decay=0.1, decay_tables=True)
    reference, optimizer = config.build(10), with_float32_slots(config.build(10))
    state, expected_state = optimizer.init(narrow), reference.init(wide)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, expected_state)
    gradients = jax.tree.map(lambda p: jnp.full(p.shape, 0.25, p.dtype), narrow)
    wide_gradients = jax.tree.map(lambda g: g.astype(jnp.float32), gradients)
    # Optax raises a Python number to the power of an integer count.
    with jax.numpy_dtype_promotion("standard"):
        updates, state = optimizer.update(gradients, state, narrow)
        expected, expected_state = reference.update(wide_gradients, expected_state, wide)
    chex.assert_trees_all_equal(updates, expected)
    chex.assert_trees_all_equal(state, expected_state)


def test_making_slots_copies_no_table() -> None:
    jax.config.update("jax_disable_most_optimizations", False)
    params = {"items": {"table": jax.ShapeDtypeStruct((100_000, 16), jnp.bfloat16)}}
    init = jax.jit(with_float32_slots(OptimizerConfig(name="rowwise_adagrad").build(10)).init)
    memory = init.lower(params).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 100_000 * 16


def test_small_updates_are_learnt_where_plain_rounding_stalls() -> None:
    target = jax.random.uniform(jax.random.key(0), (50, 4), minval=0.5, maxval=2.0)
    optimizer = with_float32_slots(optax.sgd(1e-3))

    def train(stochastic: bool) -> float:
        params: Params = {"items": {"table": jnp.ones((50, 4), jnp.bfloat16)}}

        def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
            params, state = carry

            def loss(params: Params) -> jax.Array:
                error = params["items"]["table"].astype(jnp.float32) - target
                return jnp.sum(jnp.square(error)) / 2

            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            if stochastic:
                return (apply_updates(params, updates, key), state), None
            total = jax.tree.map(
                lambda p, u: (p.astype(jnp.float32) + u).astype(p.dtype), params, updates
            )
            return (total, state), None

        keys = jax.random.split(jax.random.key(1), 4000)
        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), keys)
        error = np.asarray(params["items"]["table"], np.float32) - np.asarray(target)
        return float(np.sqrt(np.mean(error**2)))

    start = float(np.sqrt(np.mean((1 - np.asarray(target)) ** 2)))
    assert train(stochastic=False) > 0.9 * start
    assert train(stochastic=True) < 0.05 * start


MODELS: dict[str, Any] = {
    "sasrec": sasrec.Config(num_items=20, max_len=5, dim=8, hidden=8, num_blocks=1),
    "sasrec_cosine": sasrec.Config(
        num_items=20, max_len=5, dim=8, hidden=8, num_blocks=1, tied=False, temperature=0.1
    ),
    "factors": matrix_factorization.Config(num_users=5, num_items=20, dim=4),
}


@pytest.mark.parametrize("name", list(MODELS))
def test_models_with_bfloat16_tables_train(name: str) -> None:
    model = functional(MODELS[name].build)
    params = model.init(jax.random.key(0))
    for group in params.values():
        if isinstance(group, dict) and "table" in group:
            group["table"] = group["table"].astype(jnp.bfloat16)
    history = jnp.array([[0, 1, 2, 3, 4], [0, 0, 0, 5, 6]])
    batch = Batch(users=jnp.array([1, 2]), history=history, positives=jnp.array([7, 8]))

    def loss(params: Params) -> jax.Array:
        bound = model.bind(params)
        users, items = bound.user_vectors(batch), bound.item_vectors()
        return catalogue_cross_entropy(users, items, batch.positives, jnp.ones(2))

    optimizer = with_float32_slots(
        OptimizerConfig(name="rowwise_adagrad", learning_rate=0.2).build(40)
    )
    state, losses = optimizer.init(params), []

    @jax.jit
    def step(params: Params, state: Any, key: jax.Array) -> tuple[Params, Any, jax.Array]:
        value, gradients = jax.value_and_grad(loss)(params)
        chex.assert_trees_all_equal_shapes_and_dtypes(gradients, params)
        updates, state = optimizer.update(gradients, state, params)
        return apply_updates(params, updates, key), state, value

    dtypes = jax.tree.map(lambda p: p.dtype, params)
    for key in jax.random.split(jax.random.key(1), 8):
        params, state, value = step(params, state, key)
        losses.append(float(value))
    assert jax.tree.map(lambda p: p.dtype, params) == dtypes
    assert losses[-1] < losses[0] - 1
