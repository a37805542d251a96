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
    # The 32-bit finaliser of MurmurHash3, with the second word in the middle of it.
    bits = (index ^ words[0]) * jnp.uint32(0x85EBCA6B)
    bits = ((bits ^ (bits >> 13)) + words[1]) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)
