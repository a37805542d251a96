"""Dropout whose mask is a hash of the element's index: nothing is drawn, nothing is stored."""

import functools
import math

import jax
import jax.numpy as jnp

from jaxrec.ops.hash import hash_bits
from jaxrec.ops.keys import Key, RowKey
from jaxrec.typing import Array


def dropout(x: jax.Array, rate: float, key: Key | None) -> jax.Array:
    """Zeroes elements with probability `rate` and scales the others by 1 / (1 - rate).

    The mask of an element is an integer hash of its index and of two words drawn from the key. It
    fuses into the surrounding element-wise work and is computed again in the backward pass, where a
    drawn mask is written to memory and read back.

    Args:
      x: any shape; the first axis is the rows of the batch. Masks repeat after 2**32 elements.
      rate: probability of a zero, in [0, 1).
      key: a key of this site and step, with a `RowKey` for rows that are part of a larger batch;
        None means evaluation and returns x.
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"dropout rate must be in [0, 1); got {rate}.")
    if key is None or rate == 0.0:
        return x
    rows = RowKey.of(key)
    first = jnp.asarray(rows.first).astype(jnp.uint32) * jnp.uint32(math.prod(x.shape[1:]))
    words = jnp.append(jax.random.bits(rows.key, (2,), jnp.uint32), first)
    return _dropout(x, words, rate)


def split_key(key: Key | None, num: int) -> list[RowKey | None]:
    """Returns a key for each of `num` sites of dropout; None for each without a key."""
    return [None] * num if key is None else [*RowKey.of(key).split(num)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dropout(x: jax.Array, words: jax.Array, rate: float) -> jax.Array:
    return jnp.where(_kept(x.shape, words, rate), x * (1.0 / (1.0 - rate)), 0).astype(x.dtype)


def _forward(x: jax.Array, words: jax.Array, rate: float) -> tuple[jax.Array, jax.Array]:
    return _dropout(x, words, rate), words


def _backward(rate: float, words: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, None]:
    return _dropout(cotangent, words, rate), None


_dropout.defvjp(_forward, _backward)


def _kept(shape: tuple[int, ...], words: Array, rate: float) -> jax.Array:
    bits = hash_bits(shape, words, first=words[2])
    return bits >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))
