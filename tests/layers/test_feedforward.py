"""Feed-forward layers are the formulas of their papers."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.functional import functional
from jaxrec.layers import FeedForward, SwiGLU
from jaxrec.typing import Params


def wide(params: Params) -> Params:
    return jax.tree.map(lambda p: np.asarray(p, np.float64), params)


def test_two_linear_maps_with_an_activation_between() -> None:
    model = functional(
        lambda rngs: FeedForward(
            3, 5, activation=jax.nn.relu, dropout_rate=0.5, dtype=jnp.float32, rngs=rngs
        )
    )
    params = model.init(jax.random.key(0))
    params["up"]["bias"] = jnp.linspace(-1, 1, 5)
    params["down"]["bias"] = jnp.array([1.0, 2.0, 3.0])
    x, p = np.random.default_rng(0).standard_normal((4, 2, 3)).astype(np.float32), wide(params)
    inner = np.maximum(x @ p["up"]["kernel"] + p["up"]["bias"], 0)
    expected = inner @ p["down"]["kernel"] + p["down"]["bias"]
    np.testing.assert_allclose(model.apply(params, x), expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(model.apply(params, x, key=jax.random.key(0)), expected)


def test_swiglu_gates_with_the_first_half() -> None:
    model = functional(lambda rngs: SwiGLU(3, 5, dropout_rate=0.0, dtype=jnp.float32, rngs=rngs))
    params = model.init(jax.random.key(0))
    assert set(params["up"]) == set(params["down"]) == {"kernel"}
    x, p = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32), wide(params)
    gate, up = np.split(x @ p["up"]["kernel"], 2, axis=-1)
    expected = (gate / (1 + np.exp(-gate)) * up) @ p["down"]["kernel"]
    np.testing.assert_allclose(model.apply(params, x), expected, rtol=1e-4, atol=1e-5)
