"""Row-wise Adagrad by hand, beside Optax's, and on touched rows."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrec.optim import OptimizerConfig, Touched, put_touched, scale_by_rowwise_rss, take_touched
from jaxrec.typing import Params


def test_two_steps_by_hand() -> None:
    optimizer = scale_by_rowwise_rss(0.5, 0.25)
    params = {"items": {"table": jnp.zeros((3, 2))}}
    state = optimizer.init(params)
    first, state = optimizer.update(
        {"items": {"table": jnp.array([[3, 1], [0, 0], [1, 1.0]])}}, state
    )
    # Means of squares are (9 + 1) / 2 = 5, 0 and 1.
    np.testing.assert_allclose(state.sum_of_squares["items"]["table"], [[5.5], [0.5], [1.5]])
    expected = np.array([[3, 1], [0, 0], [1, 1]]) / np.sqrt([[5.75], [0.75], [1.75]])
    np.testing.assert_allclose(first["items"]["table"], expected, rtol=1e-6)
    second, state = optimizer.update(
        {"items": {"table": jnp.array([[2, 0], [0, 4], [0, 0.0]])}}, state
    )
    np.testing.assert_allclose(state.sum_of_squares["items"]["table"], [[7.5], [8.5], [1.5]])
    expected = np.array([[2, 0], [0, 4], [0, 0]]) / np.sqrt([[7.75], [8.75], [1.75]])
    np.testing.assert_allclose(second["items"]["table"], expected, rtol=1e-6)


def test_what_is_no_table_has_the_adagrad_of_optax() -> None:
    params: Params = {
        "linear": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)},
        "deep": {"table": jnp.ones((2, 3, 2))},
    }
    ours, reference = scale_by_rowwise_rss(0.1, 1e-7), optax.scale_by_rss(0.1, 1e-7)
    state, wanted = ours.init(params), reference.init(params)
    for step in range(3):
        key = jax.random.key(step)
        gradients = jax.tree.map(lambda p, k=key: jax.random.normal(k, p.shape), params)
        updates, state = ours.update(gradients, state)
        expected, wanted = reference.update(gradients, wanted)
        chex.assert_trees_all_close(updates, expected, rtol=1e-6)
        chex.assert_trees_all_close(state.sum_of_squares, wanted.sum_of_squares, rtol=1e-6)


def test_a_row_without_a_gradient_and_an_accumulator_of_zero_stays() -> None:
    optimizer = scale_by_rowwise_rss(0.0, 0.0)
    params = {"items": {"table": jnp.ones((2, 2))}}
    updates, _ = optimizer.update(
        {"items": {"table": jnp.array([[0, 0], [2, 2.0]])}}, optimizer.init(params)
    )
    np.testing.assert_allclose(updates["items"]["table"], [[0, 0], [1, 1]], rtol=1e-6)


def test_a_tables_slot_takes_one_number_a_row() -> None:
    optimizer = OptimizerConfig(name="rowwise_adagrad").build(10)
    params = {"items": {"table": jax.ShapeDtypeStruct((1000, 64), jnp.float32)}}
    slots = [s for s in jax.tree.leaves(jax.eval_shape(optimizer.init, params)) if s.ndim]
    assert [s.shape for s in slots] == [(1000, 1)]


def test_touched_rows_give_the_dense_steps() -> None:
    optimizer = OptimizerConfig(name="rowwise_adagrad", learning_rate=0.3).build(10)
    params: Params = {
        "items": {"table": jax.random.normal(jax.random.key(0), (10, 3))},
        "linear": {"kernel": jnp.ones((10, 3))},
    }
    dense, dense_state = params, optimizer.init(params)
    sliced, state = params, optimizer.init(params)

    def loss(params: Params, ids: jax.Array) -> jax.Array:
        rows = params["items"]["table"][ids]
        return jnp.sum(jnp.sin(rows) @ jnp.arange(1.0, 4)) + jnp.sum(params["linear"]["kernel"])

    for ids in ([3, 7, 7], [3, 0, 9], [7, 7, 7]):
        batch = jnp.array(ids)
        updates, dense_state = optimizer.update(jax.grad(loss)(dense, batch), dense_state, dense)
        dense = optax.apply_updates(dense, updates)
        touched = {"items": Touched.of(batch, 10, 4)}
        small, slots = take_touched(sliced, touched), take_touched(state, touched)
        assert slots[0].sum_of_squares["items"]["table"].shape == (4, 1)
        gradients = jax.grad(loss)(small, touched["items"].renumber(batch))
        updates, slots = optimizer.update(gradients, slots, small)
        sliced = put_touched(sliced, optax.apply_updates(small, updates), touched)
        state = put_touched(state, slots, touched)
    chex.assert_trees_all_close(sliced, dense, rtol=1e-5)
    chex.assert_trees_all_close(state, dense_state, rtol=1e-5)
    assert not np.allclose(dense["items"]["table"], params["items"]["table"])
