"""Taking touched rows out of trees of parameters and slots, and putting them back."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrec.optim import Touched, put_touched, take_touched

PARAMS = {
    "items": {"table": jnp.arange(20.0).reshape(10, 2)},
    "users": {"table": jnp.arange(12.0).reshape(6, 2)},
    "linear": {"kernel": jnp.ones((10, 2))},
}
TOUCHED = {"items": Touched.of(jnp.array([7, 2, 7, 0]), 10, 4)}


def test_only_named_tables_become_slices() -> None:
    small = take_touched(PARAMS, TOUCHED)
    np.testing.assert_array_equal(small["items"]["table"], [[0, 1], [4, 5], [14, 15], [0, 0]])
    assert small["users"] is not PARAMS and small["users"]["table"].shape == (6, 2)
    # A matrix with as many rows as the table is no table.
    assert small["linear"]["kernel"].shape == (10, 2)


def test_slots_with_the_tables_rows_are_sliced_and_counters_are_not() -> None:
    state = optax.chain(optax.scale_by_adam(), optax.trace(0.9)).init(PARAMS)
    small = take_touched(state, TOUCHED)
    chex.assert_trees_all_equal_structs(small, state)
    assert small[0].mu["items"]["table"].shape == (4, 2)
    assert small[0].nu["items"]["table"].shape == (4, 2)
    assert small[1].trace["items"]["table"].shape == (4, 2)
    assert small[0].mu["linear"]["kernel"].shape == (10, 2)
    assert small[0].count.shape == ()


def test_putting_back_writes_touched_rows_and_whatever_is_no_table() -> None:
    small = jax.tree.map(lambda x: x + 100, take_touched(PARAMS, TOUCHED))
    after = put_touched(PARAMS, small, TOUCHED)
    expected = np.arange(20.0).reshape(10, 2)
    expected[[0, 2, 7]] += 100
    np.testing.assert_array_equal(after["items"]["table"], expected)
    np.testing.assert_array_equal(after["users"]["table"], PARAMS["users"]["table"] + 100)
    np.testing.assert_array_equal(after["linear"]["kernel"], 101)


def test_without_touched_tables_trees_pass_through() -> None:
    assert take_touched(PARAMS, {})["items"]["table"] is PARAMS["items"]["table"]
    small = jax.tree.map(lambda x: -x, PARAMS)
    assert put_touched(PARAMS, small, {})["items"]["table"] is small["items"]["table"]


def test_count_and_renumber_are_those_of_the_batch() -> None:
    touched = TOUCHED["items"]
    assert int(touched.count) == 3
    np.testing.assert_array_equal(touched.renumber(jnp.array([[0, 7], [2, 2]])), [[0, 2], [1, 1]])
