"""Modules as pure functions: only parameters, string keys, and errors that name what is wrong."""

import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from jaxrec.functional import Functional, functional
from jaxrec.models import sasrec
from jaxrec.typing import Batch


class Stack(nnx.Module):
    """Scales and shifts of its input, `depth` times."""

    def __init__(self, depth: int, *, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(depth)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = layer(x)
        return x

    def doubled(self, x: jax.Array, *, times: int = 2) -> jax.Array:
        return times * self(x)


def stack(depth: int) -> Functional:
    return functional(lambda rngs: Stack(depth, rngs=rngs))


def forward(params: dict, x: np.ndarray) -> np.ndarray:
    for index in range(len(params["layers"])):
        layer = params["layers"][str(index)]
        x = x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
    return x


def test_params_are_nested_dicts_with_string_keys_and_arrays() -> None:
    params = stack(2).init(jax.random.key(0))
    assert set(params) == {"layers"}
    assert set(params["layers"]) == {"0", "1"}
    assert set(params["layers"]["0"]) == {"kernel", "bias"}
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))


def test_apply_is_the_module_on_those_params_inside_and_outside_of_jit() -> None:
    model = stack(3)
    params = model.init(jax.random.key(1))
    x = np.array([[1.0, -2.0], [0.5, 3.0]], np.float32)
    for apply in (model.apply, jax.jit(model.apply)):
        np.testing.assert_allclose(apply(params, x), forward(params, x), rtol=1e-5)


def test_methods_and_keywords_are_passed_on() -> None:
    model = stack(1)
    params = model.init(jax.random.key(1))
    x = jnp.ones((1, 2))
    once = model.apply(params, x)
    np.testing.assert_allclose(model.apply(params, x, method="doubled"), 2 * once, rtol=1e-6)
    tripled = model.apply(params, x, method="doubled", times=3)
    np.testing.assert_allclose(tripled, 3 * once, rtol=1e-6)


def test_gradients_have_the_params_structure() -> None:
    model = stack(2)
    params = model.init(jax.random.key(0))
    gradients = jax.jit(jax.grad(lambda p: model.apply(p, jnp.ones((1, 2))).sum()))(params)
    chex.assert_trees_all_equal_shapes_and_dtypes(gradients, params)
    np.testing.assert_allclose(gradients["layers"]["1"]["bias"], [1.0, 1.0])


def test_init_depends_on_the_key_alone() -> None:
    model = stack(2)
    first, again, other = (model.init(jax.random.key(s)) for s in (0, 0, 1))
    chex.assert_trees_all_equal(first, again)
    assert not np.array_equal(first["layers"]["0"]["kernel"], other["layers"]["0"]["kernel"])


def test_layers_beyond_ten_keep_their_places_through_a_checkpoint(tmp_path: Path) -> None:
    model = stack(13)
    params = model.init(jax.random.key(0))
    x = np.array([[1.0, -1.0]], np.float32)
    expected = forward(params, x)
    np.testing.assert_allclose(model.apply(params, x), expected, rtol=1e-4)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "params", params)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "params", jax.eval_shape(lambda: params))
    chex.assert_trees_all_equal(restored, params)
    np.testing.assert_array_equal(model.apply(restored, x), model.apply(params, x))


@pytest.mark.parametrize("kind", ["dropout", "statistics"])
def test_state_that_is_not_a_parameter_is_refused_by_name(kind: str) -> None:
    class Strange(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.linear = nnx.Linear(2, 2, rngs=rngs)
            self.stranger: nnx.Module
            if kind == "dropout":
                self.stranger = nnx.Dropout(0.5, rngs=rngs)
            else:
                self.stranger = nnx.BatchNorm(2, rngs=rngs)

    with pytest.raises(ValueError, match="Strange holds state that is not a parameter: stranger"):
        functional(lambda rngs: Strange(rngs))


def test_missing_and_unknown_parameters_are_named() -> None:
    model = stack(2)
    params = model.init(jax.random.key(0))
    params["layers"]["1"].pop("bias")
    params["layers"]["2"] = {"kernel": jnp.zeros((2, 2))}
    with pytest.raises(ValueError, match=r"missing \['layers/1/bias'\].*\['layers/2/kernel'\]"):
        model.apply(params, jnp.ones((1, 2)))


def test_a_model_too_big_to_build_can_be_inspected() -> None:
    config = sasrec.Config(num_items=10**9, dim=512, num_blocks=12, num_heads=8, hidden=2048)
    model = functional(lambda rngs: sasrec.SASRec(config, rngs=rngs))
    params = model.shapes
    assert params["items"]["table"].shape == (10**9 + 1, 512)
    assert len(params["blocks"]) == 12
    batch = Batch(history=jax.ShapeDtypeStruct((4, 50), jnp.int32))
    vectors = jax.eval_shape(lambda p, b: model.apply(p, b, method="user_vectors"), params, batch)
    assert vectors.shape == (4, 512)


def test_binding_changes_neither_the_params_nor_later_bindings() -> None:
    model = stack(1)
    params = model.init(jax.random.key(0))
    module = model.bind(params)
    module.layers[0].bias.set_value(jnp.full(2, 100.0))
    np.testing.assert_array_equal(params["layers"]["0"]["bias"], [0.0, 0.0])
    np.testing.assert_array_equal(model.bind(params).layers[0].bias[...], [0.0, 0.0])


def test_the_package_offers_it_by_name_before_and_after_its_file_is_imported() -> None:
    code = (
        "import jax, jaxrec\n"
        "from jaxrec.models import sasrec\n"
        "make = lambda rngs: sasrec.Config(num_items=3).build(rngs)\n"
        "first = jaxrec.functional(make)\n"
        "import jaxrec.training\n"
        "from jaxrec import functional\n"
        "from jaxrec.functional import functional as same\n"
        "for init in (first.init, functional(make).init, same(make).init):\n"
        "    assert jax.eval_shape(init, jax.random.key(0))['items']['table'].shape == (4, 64)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_layers_are_those_that_have_parameters_and_last_what_is_not_spoken_of() -> None:
    class Layered(nnx.Module):
        layers = (("table", "positions"), ("block",), ("norm",))

        def __init__(self, rngs: nnx.Rngs):
            self.table = nnx.Param(jnp.zeros(3))
            self.block = nnx.Linear(2, 2, rngs=rngs)
            self.head = nnx.Linear(2, 1, rngs=rngs)

    assert functional(Layered).layers == (("table",), ("block",), ("head",))
    assert functional(lambda rngs: nnx.Linear(2, 2, rngs=rngs)).layers == ()
