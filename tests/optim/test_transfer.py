"""Transforms for going on from a trained model, by hand; off, they change nothing."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.optim import (
    OptimizerConfig,
    Touched,
    add_l2_to_start,
    put_touched,
    scale_by_layer,
    take_touched,
    unfreeze_layers,
    with_float32_slots,
    with_start,
)
from jaxrec.typing import Params, UserError

LAYERS = (("items", "positions"), ("blocks/1",), ("blocks/10",), ("norm",))


def params_of(value: float) -> Params:
    return {
        "items": {"table": jnp.full((4, 2), value)},
        "blocks": {n: {"kernel": jnp.full((2, 2), value)} for n in ("1", "10")},
        "norm": jnp.full(2, value),
        "other": jnp.full(2, value),
    }


def test_the_pull_is_the_weighted_way_back_to_the_start() -> None:
    optimizer = add_l2_to_start(0.5)
    state = optimizer.init(params_of(1.0))
    updates, state = optimizer.update(params_of(10.0), state, params_of(3.0))
    chex.assert_trees_all_equal(updates, params_of(11.0))  # 10 + 0.5 * (3 - 1)
    chex.assert_trees_all_equal(state.start, params_of(1.0))


def test_with_no_other_gradient_parameters_go_back_to_the_start() -> None:
    optimizer = OptimizerConfig(name="sgd", learning_rate=0.5, l2_to_start=1.0).build(10)
    state = with_start(optimizer.init(params_of(0.0)), params_of(2.0))
    params = params_of(4.0)
    for wanted in (3.0, 2.5, 2.25):
        updates, state = optimizer.update(params_of(0.0), state, params)
        params = jax.tree.map(jnp.add, params, updates)
        chex.assert_trees_all_equal(params, params_of(wanted))


def test_the_pull_comes_after_clipping() -> None:
    config = OptimizerConfig(name="sgd", learning_rate=1.0, clip_norm=1.0, l2_to_start=3.0)
    optimizer, params = config.build(10), {"w": jnp.array([2.0])}
    state = optimizer.init({"w": jnp.array([0.0])})
    updates, _ = optimizer.update({"w": jnp.array([50.0])}, state, params)
    np.testing.assert_allclose(updates["w"], [-7.0])  # 1 + 3 * 2


def test_touched_rows_bring_their_start_along_and_others_rest() -> None:
    optimizer = OptimizerConfig(name="sgd", learning_rate=1.0, l2_to_start=0.5).build(10)
    start = {"items": {"table": jnp.arange(8.0).reshape(4, 2)}}
    state = optimizer.init(start)
    params = jax.tree.map(lambda x: x + 4, start)
    touched = {"items": Touched.of(jnp.array([2, 0]), 4, 3)}
    small, slots = take_touched(params, touched), take_touched(state, touched)
    updates, slots = optimizer.update(jax.tree.map(jnp.zeros_like, small), slots, small)
    small = jax.tree.map(jnp.add, small, updates)
    found = put_touched(params, small, touched)["items"]["table"]
    np.testing.assert_array_equal(found - start["items"]["table"], [[2, 2], [4, 4], [2, 2], [4, 4]])
    chex.assert_trees_all_equal(put_touched(state[0], slots[0], touched).start, start)


def test_a_new_start_is_a_copy_of_the_dtype_and_kind_that_was_there() -> None:
    optimizer = with_float32_slots(OptimizerConfig(l2_to_start=0.1).build(10))
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    state = with_start(optimizer.init(params), {"w": jnp.full(3, 2, jnp.bfloat16)})
    starts = [x for x in jax.tree.leaves(state) if x.shape == (3,) and (x == 2).all()]
    assert [x.dtype for x in starts] == [jnp.float32]
    on_host = jax.tree.map(np.asarray, add_l2_to_start(0.1).init({"w": jnp.zeros(3)}))
    mine = np.ones(3, np.float32)
    begun = with_start(on_host, {"w": mine})
    mine[:] = 5
    np.testing.assert_array_equal(begun.start["w"], np.ones(3))
    assert isinstance(begun.start["w"], np.ndarray)


def test_a_state_without_a_start_stays() -> None:
    state = OptimizerConfig(clip_norm=1.0, weight_decay=0.1).build(10).init(params_of(1.0))
    chex.assert_trees_all_equal(with_start(state, params_of(2.0)), state)


def test_each_layer_moves_by_a_factor_less_than_the_one_above() -> None:
    optimizer = scale_by_layer(LAYERS, 0.5)
    updates, _ = optimizer.update(params_of(8.0), optimizer.init(params_of(0.0)))
    wanted: Any = params_of(8.0)  # the top layer, and what no layer names
    wanted["items"]["table"] /= 8
    wanted["blocks"]["1"]["kernel"] /= 4
    wanted["blocks"]["10"]["kernel"] /= 2
    chex.assert_trees_all_equal(updates, wanted)


def test_layers_begin_to_move_one_by_one_from_the_top() -> None:
    optimizer = unfreeze_layers(LAYERS, 2)
    state, moving = optimizer.init(params_of(0.0)), []
    for _ in range(8):
        updates, state = optimizer.update(params_of(1.0), state)
        flat = [updates["other"], updates["norm"], updates["blocks"]["10"]["kernel"]]
        flat += [updates["blocks"]["1"]["kernel"], updates["items"]["table"]]
        assert all((x == x.ravel()[0]).all() for x in flat)
        moving.append([int(x.ravel()[0]) for x in flat])
    assert moving == [
        *([[1, 1, 0, 0, 0]] * 2),
        *([[1, 1, 1, 0, 0]] * 2),
        *([[1, 1, 1, 1, 0]] * 2),
        *([[1, 1, 1, 1, 1]] * 2),
    ]


@pytest.mark.parametrize("name", ["adam", "adagrad", "rowwise_adagrad", "sgd", "lion"])
def test_frozen_layers_do_not_move_whatever_the_optimizer(name: Any) -> None:
    config = OptimizerConfig(name=name, weight_decay=0.1, decay_tables=True, unfreeze_every=2)
    optimizer, params = config.build(10, LAYERS), params_of(1.0)
    state = optimizer.init(params)
    for _ in range(2):
        with jax.numpy_dtype_promotion("standard"):  # Optax's Adam mixes float and int
            updates, state = optimizer.update(params_of(0.5), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    frozen = params_of(1.0)
    assert (params["norm"] != frozen["norm"]).all()
    for part in ("items", "blocks"):
        chex.assert_trees_all_equal(params[part], frozen[part])


def test_layer_decay_scales_the_learning_rate_and_weight_decay_with_it() -> None:
    config = OptimizerConfig(name="sgd", learning_rate=1.0, weight_decay=0.5, layer_decay=0.5)
    optimizer = config.build(10, LAYERS)
    updates, _ = optimizer.update(params_of(2.0), optimizer.init(params_of(1.0)), params_of(4.0))
    # -(2 + 0.5 * 4) * 0.5 ** 2; vectors and tables do not decay
    np.testing.assert_allclose(updates["blocks"]["1"]["kernel"], np.full((2, 2), -1.0))
    np.testing.assert_allclose(updates["items"]["table"], np.full((4, 2), -0.25))
    np.testing.assert_allclose(updates["norm"], [-2.0, -2.0])


def test_off_they_leave_no_trace() -> None:
    plain = OptimizerConfig(clip_norm=1.0, weight_decay=0.1)
    states: list[Any] = [plain.build(10, layers).init(params_of(1.0)) for layers in ((), LAYERS)]
    chex.assert_trees_all_equal_structs(*states)
    assert len(states[0]) == 4  # clipping, Adam, decay, learning rate


@pytest.mark.parametrize("options", [{"layer_decay": 0.9}, {"unfreeze_every": 3}])
def test_a_model_that_says_no_layers_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="this model does not say them"):
        OptimizerConfig(**options).build(10)


@pytest.mark.parametrize(
    "options", [{"layer_decay": 0.0}, {"unfreeze_every": -1}, {"l2_to_start": -0.1}]
)
def test_values_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must not be negative, and layer_decay must be above 0"):
        OptimizerConfig(**options)
