"""Random bits as a hash of an element's index: nothing is drawn, nothing is stored."""

import jax
import jax.numpy as jnp

from jaxrec.typing import Array


def hash_bits(shape: tuple[int, ...], words: Array, *, first: Array | int = 0) -> jax.Array:
    """Returns (*shape) uint32, each a hash of the element's index and of two words.

    It fuses into the element-wise work around it, where drawn bits are written to memory and read
    back.

    Args:
      shape: with fewer than 2**32 elements; beyond, bits come again.
      words: (2,) uint32, such as `jax.random.bits(key, (2,), jnp.uint32)`.
      first: () uint32, the index of the first element, for a part of a larger array.
    """
    index = jnp.broadcast_to(jnp.asarray(first, jnp.uint32), shape)
    stride = 1
    for axis in reversed(range(len(shape))):
        step = jnp.uint32(stride % 2**32)
        index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * step
        stride *= shape[axis]
    # The three rounds of Wellons' "triple32", with the words before the first and in the second.
    # With two rounds, bits of indices 4,096 or 12,288 apart agree more often than not.
    bits = index ^ words[0]
    bits = (bits ^ (bits >> 17)) * jnp.uint32(0xED5AD4BB)
    bits = ((bits ^ (bits >> 11)) + words[1]) * jnp.uint32(0xAC4C1B51)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x31848BAB)
    return bits ^ (bits >> 14)
