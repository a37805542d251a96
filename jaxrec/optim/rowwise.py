"""Adagrad with one accumulator for each row of an embedding table."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrec.optim.touched import table_of
from jaxrec.typing import Params


def scale_by_rowwise_rss(
    initial_accumulator: float = 0.1, eps: float = 1e-7
) -> optax.GradientTransformation:
    """Returns Adagrad (Duchi et al. 2011) whose slot of a table is a column and not a table.

    The accumulator of a row is the sum over steps of the mean of its squared gradients, and a row's
    gradient is divided by the root of accumulator plus eps. For a table of width D the slot takes
    1 / D of the table's memory. This is the rowwise Adagrad of FBGEMM and TorchRec, but that eps is
    inside of the root, as it is in `optax.scale_by_rss`.

    A table is a leaf with two axes that `table_of` finds; its accumulator is (rows, 1), and
    the state mirrors the parameters, so that touched rows have touched accumulators. All other
    leaves have the elementwise Adagrad of `optax.scale_by_rss`.

    Args:
      initial_accumulator: what accumulators start with, at least 0.
      eps: added to accumulators under the root. A row that never had a gradient stays.
    """

    def init(params: Params) -> optax.ScaleByRssState:
        def start(path: Any, leaf: jax.Array) -> jax.Array:
            shape = (leaf.shape[0], 1) if _is_table(path, leaf) else leaf.shape
            return jnp.full(shape, initial_accumulator, leaf.dtype)

        return optax.ScaleByRssState(jax.tree_util.tree_map_with_path(start, params))

    def update(
        gradients: Params, state: optax.ScaleByRssState, params: Params | None = None
    ) -> tuple[Params, optax.ScaleByRssState]:
        def accumulate(path: Any, gradient: jax.Array, slot: jax.Array) -> jax.Array:
            squares = jnp.square(gradient)
            if _is_table(path, gradient):
                squares = jnp.mean(squares, axis=1, keepdims=True)
            return slot + squares

        def scale(gradient: jax.Array, slot: jax.Array) -> jax.Array:
            return gradient * jnp.where(slot > 0, jax.lax.rsqrt(slot + eps), 0)

        slots = jax.tree_util.tree_map_with_path(accumulate, gradients, state.sum_of_squares)
        return jax.tree.map(scale, gradients, slots), optax.ScaleByRssState(slots)

    return optax.GradientTransformation(init, update)


def _is_table(path: Any, leaf: jax.Array) -> bool:
    return leaf.ndim == 2 and table_of(path) is not None
