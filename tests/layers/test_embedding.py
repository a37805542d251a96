"""Tables look rows up, and mark themselves as tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrec.functional import functional
from jaxrec.layers import Embedding, Table
from jaxrec.typing import UserError


def test_row_i_is_the_vector_of_index_i() -> None:
    model = functional(lambda rngs: Embedding(4, 3, std=1.0, rngs=rngs))
    table = np.arange(15, dtype=np.float32).reshape(5, 3)
    ids = jnp.array([[4, 0], [2, 2]])
    np.testing.assert_array_equal(model.apply({"table": table}, ids), table[np.asarray(ids)])
    np.testing.assert_array_equal(model.apply({"table": table}), table)


def test_repeated_ids_add_up_in_the_gradient() -> None:
    model = functional(lambda rngs: Embedding(3, 2, std=1.0, rngs=rngs))
    params = model.init(jax.random.key(0))
    ids = jnp.array([1, 3, 3, 3])
    gradient = jax.grad(lambda p: model.apply(p, ids).sum())(params)["table"]
    np.testing.assert_array_equal(gradient, [[0, 0], [1, 1], [0, 0], [3, 3]])


def test_initial_values_have_the_stated_deviation() -> None:
    model = functional(lambda rngs: Embedding(999, 64, std=0.02, rngs=rngs))
    table = model.init(jax.random.key(0))["table"]
    assert table.shape == (1000, 64)
    assert abs(float(table.std()) / 0.02 - 1) < 5 / np.sqrt(2 * table.size)
    assert abs(float(table.mean())) < 5 * 0.02 / np.sqrt(table.size)


def test_filters_find_the_table() -> None:
    module = Embedding(3, 2, std=1.0, rngs=nnx.Rngs(0))
    assert len(nnx.to_flat_state(nnx.state(module, Table))) == 1


def test_a_table_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="num_rows=0"):
        Embedding(0, 2, std=1.0, rngs=nnx.Rngs(0))


def test_a_bfloat16_table_gives_float32_vectors_and_adds_gradients_in_float32() -> None:
    model = functional(lambda rngs: Embedding(3, 2, std=1.0, rngs=rngs))
    table = jnp.asarray(model.init(jax.random.key(0))["table"], jnp.bfloat16)
    ids = jnp.array([1] + [3] * 1000)
    out = model.apply({"table": table}, ids)
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out[0], np.asarray(table, np.float32)[1])
    gradient = jax.grad(lambda p: model.apply(p, ids).sum())({"table": table})["table"]
    assert gradient.dtype == jnp.bfloat16
    # Ones added one by one in bfloat16 stop at 256.
    np.testing.assert_array_equal(gradient[1:, 0].astype(jnp.float32), [1, 0, 1000])


def test_looking_up_in_a_bfloat16_table_widens_no_more_than_the_rows() -> None:
    jax.config.update("jax_disable_most_optimizations", False)
    model = functional(lambda rngs: Embedding(99_999, 16, std=1.0, rngs=rngs))
    table = jax.ShapeDtypeStruct((100_000, 16), jnp.bfloat16)
    lookup = jax.jit(lambda t, ids: jnp.sum(jnp.sin(model.apply({"table": t}, ids))))
    memory = lookup.lower(table, jax.ShapeDtypeStruct((50,), jnp.int32)).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 100_000
