"""Parameters of bfloat16: slots and arithmetic in float32, stochastic rounding at the end.

bfloat16 has 8 bits of precision, so an update below 1/512 of its parameter is rounded away, and
training stalls. Rounded up or down at random, with the right chances, it is there on average
(Gupta et al. 2015, arXiv 1502.02551).

    optimizer = with_float32_slots(config.build(steps))
    updates, state = optimizer.update(gradients, state, params)
    params = apply_updates(params, updates, key)
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrec.ops.hash import hash_bits
from jaxrec.ops.keys import nth
from jaxrec.typing import Array, Params


def stochastic_round(x: jax.Array, words: Array) -> jax.Array:
    """Returns x in bfloat16, each element one of its two neighbours, x itself on average.

    What bfloat16 holds exactly stays, as do infinities and what is not a number. Beyond the largest
    finite value it is that value, never infinity.

    Args:
      x: any shape, float32.
      words: (2,) uint32 that decide the rounding, drawn anew for each use.
    """
    # The upper half of a float32 is the neighbour towards zero. Adding less than one unit of it to
    # the lower half carries into the upper one with just the right probability.
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + (hash_bits(x.shape, words) >> 16)
    upper = (bits >> 16).astype(jnp.uint16)
    infinite = (upper & jnp.uint16(0x7F80)) == jnp.uint16(0x7F80)
    upper = jnp.where(infinite, (upper & jnp.uint16(0x8000)) | jnp.uint16(0x7F7F), upper)
    rounded = jax.lax.bitcast_convert_type(upper, jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


def apply_updates(params: Params, updates: Params, key: jax.Array) -> Params:
    """Returns params + updates; leaves of bfloat16 are added in float32, rounded stochastically.

    Args:
      params: a tree of floats.
      updates: the same tree, such as an Optax transform gives; better float32 than bfloat16.
      key: decides the rounding; another one for each step. A device that holds a part of a table
        wants another one than those with other parts.
    """
    leaves, structure = jax.tree.flatten(params)
    keys = jax.tree.unflatten(structure, [nth(key, number) for number in range(len(leaves))])

    def add(param: jax.Array, update: jax.Array, key: jax.Array) -> jax.Array:
        if param.dtype != jnp.bfloat16:
            return param + update.astype(param.dtype)
        total = param.astype(jnp.float32) + update.astype(jnp.float32)
        return stochastic_round(total, jax.random.bits(key, (2,), jnp.uint32))

    return jax.tree.map(add, params, updates, keys)


def with_float32_slots(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Returns the transform with float32 slots, arithmetic and updates for leaves of bfloat16.

    Called in a jitted function, `init` and `update` make no float32 copy of the parameters but
    where the transform reads their values.
    """
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Params) -> Any:
        return inner.init(_widened(params))

    def update(
        gradients: Params, state: Any, params: Params | None = None, **extra: Any
    ) -> tuple[Params, Any]:
        return inner.update(_widened(gradients), state, _widened(params), **extra)

    return optax.GradientTransformationExtraArgs(init, update)


def _widened(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, tree)
