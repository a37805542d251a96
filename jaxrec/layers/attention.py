"""Causal self-attention over rows that may hold several sequences, and rotary positions."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxrec.layers.dropout import dropout
from jaxrec.ops.keys import Key
from jaxrec.typing import Array, UserError


def causal_mask(segments: Array) -> jax.Array:
    """Returns (B, 1, L, L) bool: query sees key when it is not later and in the same sequence.

    Args:
      segments: (B, L) int; the sequence of each position, 0 at padding. A position always sees
        itself, so that no row of the softmax is empty.
    """
    length = segments.shape[-1]
    order = jnp.arange(length)
    same = segments[:, :, None] == segments[:, None, :]
    earlier = order[None, :, None] >= order[None, None, :]
    seen = same & (segments[:, None, :] > 0) & earlier
    return (seen | jnp.eye(length, dtype=bool)[None])[:, None]


def rotary(x: jax.Array, positions: Array, base: float = 10_000.0) -> jax.Array:
    """Rotates pairs of features by angles that grow with the position (RoFormer, arXiv 2104.09864).

    Args:
      x: (B, L, H, D) with D even.
      positions: (B, L) int.
    """
    if x.shape[-1] % 2:
        raise UserError(
            f"rotary positions want an even number of features a head; got {x.shape[-1]}. Choose "
            "dim and num_heads so that dim / num_heads is even."
        )
    half = x.shape[-1] // 2
    frequencies = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = jnp.asarray(positions, jnp.float32)[..., None, None] * frequencies[None, None, None]
    sin, cos = jnp.sin(angles).astype(x.dtype), jnp.cos(angles).astype(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    *,
    dropout_rate: float = 0.0,
    key: Key | None = None,
) -> jax.Array:
    """Returns softmax(q k^T / sqrt(D)) v where the mask is true, with the weights in float32.

    Args:
      q, k, v: (B, L, H, D) float.
      mask: (B or 1, 1, L, L) bool, with something to see for each query.
      dropout_rate: rate on the attention weights; wants a key.
      key: None for evaluation.
    """
    q = q * q.shape[-1] ** -0.5
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(jnp.where(mask, logits, -1e30), axis=-1)
    weights = dropout(weights, dropout_rate, key).astype(v.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def attend_fused(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    *,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """Returns what `attend` does, from one kernel that keeps no weights; see `has_fused_kernel`."""
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=implementation)


def has_fused_kernel(q: jax.Array, device: jax.Device) -> bool:
    """Returns whether cuDNN has flash attention for such queries, with a mask, on the device.

    It wants an NVIDIA GPU from Ampere on, half precision, an even number of positions, and a
    multiple of 8 features a head, at most 128. Elsewhere `attend` is the faster one: on a CPU
    `jax.nn.dot_product_attention` takes as long for 50 positions and half as long again for 200.
    """
    if device.platform != "gpu" or "cuda" not in device.client.platform_version:
        return False
    modern = int(device.compute_capability.split(".")[0]) >= 8
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    length, features = q.shape[1], q.shape[3]
    return modern and half and length % 2 == 0 and features % 8 == 0 and features <= 128


def default_device() -> jax.Device:
    """Returns a device of the kind that is computed on: the default one, where one is set."""
    chosen = jax.config.jax_default_device
    return chosen if isinstance(chosen, jax.Device) else jax.devices(chosen)[0]


class SelfAttention(nnx.Module):
    """Multi-head self-attention (arXiv 1706.03762) with one projection for queries, keys, values.

    Args:
      dim: width of input and output.
      num_heads: number of heads.
      head_dim: width of a head; 0 is dim / num_heads.
      dropout_rate: rate on the attention weights.
      dtype: dtype of the matrix products; the softmax is in float32.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        head_dim: int = 0,
        dropout_rate: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        if not head_dim and dim % num_heads:
            raise UserError(
                f"dim={dim} must be a multiple of num_heads={num_heads}, or head_dim be set."
            )
        self.num_heads, self.head_dim = num_heads, head_dim or dim // num_heads
        self.dropout_rate = dropout_rate
        inner = self.num_heads * self.head_dim
        self.project_in = nnx.Linear(dim, 3 * inner, dtype=dtype, rngs=rngs)
        self.project_out = nnx.Linear(inner, dim, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        *,
        positions: Array | None = None,
        key: Key | None = None,
    ) -> jax.Array:
        """Returns (B, L, dim) from x (B, L, dim) and mask (B or 1, 1, L, L).

        `positions` (B, L) turns on rotary positions.
        """
        batch, length, _ = x.shape
        qkv = self.project_in(x).reshape(batch, length, 3, self.num_heads, self.head_dim)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        if positions is not None:
            q, k = rotary(q, positions), rotary(k, positions)
        dropping = key is not None and self.dropout_rate > 0
        if not dropping and has_fused_kernel(q, default_device()):
            mixed = attend_fused(q, k, v, mask)
        else:
            mixed = attend(q, k, v, mask, dropout_rate=self.dropout_rate, key=key)
        return self.project_out(mixed.reshape(batch, length, -1))
