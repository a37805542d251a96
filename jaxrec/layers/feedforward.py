"""Position-wise feed-forward layers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxrec.layers.dropout import dropout
from jaxrec.ops.keys import Key


class FeedForward(nnx.Module):
    """Two linear maps with an activation between them: (..., dim) to (..., dim)."""

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        activation: Callable[[jax.Array], jax.Array],
        dropout_rate: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.activation, self.dropout_rate = activation, dropout_rate
        self.up = nnx.Linear(dim, hidden, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(hidden, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, *, key: Key | None = None) -> jax.Array:
        return self.down(dropout(self.activation(self.up(x)), self.dropout_rate, key))


class SwiGLU(nnx.Module):
    """A gated feed-forward layer, down(silu(gate(x)) * up(x)) without biases (arXiv 2002.05202)."""

    def __init__(
        self, dim: int, hidden: int, *, dropout_rate: float, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.dropout_rate = dropout_rate
        self.up = nnx.Linear(dim, 2 * hidden, use_bias=False, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(hidden, dim, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, *, key: Key | None = None) -> jax.Array:
        gate, up = jnp.split(self.up(x), 2, axis=-1)
        return self.down(dropout(jax.nn.silu(gate) * up, self.dropout_rate, key))
