"""Integers in place of floats: codes of 8 or 4 bits, with a scale for each row or group."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxrec.layers.embedding import in_range, or_nan
from jaxrec.typing import Array

SMALLEST = 2.0**-100  # what is below has no scale that a device divides by without flushing to 0


def largest_code(bits: int) -> int:
    """Returns the largest code, 127 or 7; the smallest is its negative, so 0 stays exactly 0."""
    return 2 ** (bits - 1) - 1


def quantize_rows(rows: Array, bits: int, group: int = 0) -> tuple[jax.Array, jax.Array]:
    """Returns codes and scales: row = code * scale, each value off by half a scale at most.

    A scale is the largest magnitude of its group over the largest code, rounded up to bfloat16, so
    that nothing is clipped. A group whose values are all below 2**-100 becomes zero.

    Args:
      rows: (..., D) float.
      bits: 8 or 4.
      group: neighbours in a row that share a scale, a divisor of D; 0 is the whole row.

    Returns:
      (..., D) int8 codes and (..., D / group) bfloat16 scales.
    """
    rows = jnp.asarray(rows, jnp.float32)
    most = largest_code(bits)
    grouped = _grouped(rows, group)
    largest = jnp.max(jnp.abs(grouped), axis=-1)
    scale = jnp.where(largest < SMALLEST, 0, _rounded_up(largest / most))
    divisor = jnp.where(scale > 0, scale, 1)[..., None]
    codes = jnp.where(scale[..., None] > 0, jnp.round(grouped / divisor), 0)
    codes = jnp.clip(codes, -most, most).astype(jnp.int8)
    return codes.reshape(rows.shape), scale.astype(jnp.bfloat16)


def dequantize_rows(codes: jax.Array, scale: jax.Array) -> jax.Array:
    """Returns (..., D) float32 rows of what `quantize_rows` returned."""
    group = codes.shape[-1] // scale.shape[-1]
    values = _grouped(codes, group).astype(jnp.float32) * scale.astype(jnp.float32)[..., None]
    return values.reshape(codes.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def quantized(rows: jax.Array, bits: int, group: int = 0) -> jax.Array:
    """Returns what is left of rows once they are quantised; the gradient passes as if nothing was.

    The straight-through estimator (arXiv 1308.3432).
    """
    return dequantize_rows(*quantize_rows(rows, bits, group))


def _forward(rows: jax.Array, bits: int, group: int) -> tuple[jax.Array, jax.Array]:
    return quantized(rows, bits, group), jnp.zeros((), rows.dtype)


def _backward(bits: int, group: int, like: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    return (gradient.astype(like.dtype),)


quantized.defvjp(_forward, _backward)


def pack(codes: jax.Array) -> jax.Array:
    """Returns (..., ceil(D / 2)) int8 of (..., D) codes of 4 bits: first half low, second high."""
    half = -(-codes.shape[-1] // 2)
    low, high = codes[..., :half], codes[..., half:]
    missing = [(0, 0)] * (codes.ndim - 1) + [(0, half - high.shape[-1])]
    return (low & jnp.int8(0xF)) | (jnp.pad(high, missing) << jnp.int8(4))


def unpack(packed: jax.Array, dim: int) -> jax.Array:
    """Returns the (..., dim) int8 codes of what `pack` returned."""
    four = jnp.int8(4)
    # Shifted up and down again, so that the sign comes along.
    return jnp.concatenate([(packed << four) >> four, packed >> four], axis=-1)[..., :dim]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class IntegerTable:
    """A table of integers; see `jaxrec.layers.CodedTable`.

    Attributes:
      codes: (V, dim) int8, or (V, ceil(dim / 2)) of two codes a byte.
      scale: (V, groups) bfloat16.
      bits: 8 or 4.
      dim: width of a row.
    """

    codes: jax.Array
    scale: jax.Array
    bits: int = dataclasses.field(metadata={"static": True})
    dim: int = dataclasses.field(metadata={"static": True})

    def rows(self, ids: Array) -> jax.Array:
        """Returns vectors of shape ids.shape + (dim,)."""
        codes, scale = (jnp.take(x, ids, axis=0, mode="clip") for x in (self.codes, self.scale))
        found = dequantize_rows(codes if self.bits == 8 else unpack(codes, self.dim), scale)
        return or_nan(found, in_range(ids, self.codes.shape[0]))

    def whole(self) -> jax.Array:
        """Returns all rows, (V, dim)."""
        codes = self.codes if self.bits == 8 else unpack(self.codes, self.dim)
        return dequantize_rows(codes, self.scale)


def _grouped(rows: jax.Array, group: int) -> jax.Array:
    width = rows.shape[-1]
    return rows.reshape(*rows.shape[:-1], -1, group or width)


def _rounded_up(values: jax.Array) -> jax.Array:
    """Returns positive float32 rounded up to what bfloat16 can hold."""
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    bits = (bits + jnp.uint32(0xFFFF)) & jnp.uint32(0xFFFF0000)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
