"""SASRec and its modern form: a causal transformer over a user's history.

What differs from the textbook:
- positions count from the end of the history, so the newest item always has position 0;
- rows may hold several sequences (`Batch.segments`), none of which sees another;
- dropout masks are hashed, never stored.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from jaxrec.data.dataset import Manifest
from jaxrec.layers import (
    Embedding,
    FeedForward,
    SelfAttention,
    SwiGLU,
    causal_mask,
    dropout,
    split_key,
)
from jaxrec.models.axes import Axes, Axis
from jaxrec.models.fit import fit_count
from jaxrec.ops.keys import Key
from jaxrec.typing import Array, Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """SASRec's sizes and choices.

    Attributes:
      num_items: items in the catalogue; 0 takes the dataset's count.
      max_len: longest history that the learned positions cover.
      dim: width of item vectors and of the transformer.
      num_blocks, num_heads: depth, and attention heads a block.
      head_dim: width of a head; 0 is dim / num_heads.
      hidden: width inside the feed-forward layers.
      block: "post_norm" (arXiv 1706.03762, as in BERT4Rec and BSARec), "pre_norm" (as in SASRec,
        arXiv 1808.09781) or "ligr": pre-norm RMSNorm blocks whose branches are gated by
        sigmoid(W x), with SwiGLU (LiGR, arXiv 2502.03417; eSASRec, arXiv 2508.06450).
      activation: inside the feed-forward layers of the first two.
      positions: "learned", "rotary" (arXiv 2104.09864) or "none".
      tied: score with the input table, or with an output table of its own.
      temperature: 0 scores by dot product; above 0 by cosine divided by it, so that an item's
        popularity cannot hide in the length of its vector.
      dropout: rate on embeddings and branches, in [0, 1).
      attention_dropout: rate on attention weights, in [0, 1).
      init_std: standard deviation of initial item and position vectors.
      compute_dtype: dtype of the matrix products; parameters and softmaxes stay float32.
      remat: keep only what goes in and out of a block for the gradient, and compute the rest again:
        less memory for about a third more time.
    """

    num_items: int = 0
    max_len: int = 50
    dim: int = 64
    num_blocks: int = 2
    num_heads: int = 2
    head_dim: int = 0
    hidden: int = 256
    block: Literal["post_norm", "pre_norm", "ligr"] = "pre_norm"
    activation: Literal["relu", "gelu"] = "gelu"
    positions: Literal["learned", "rotary", "none"] = "learned"
    tied: bool = True
    temperature: float = 0.0
    dropout: float = 0.2
    attention_dropout: float = 0.2
    init_std: float = 0.02
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False

    def fit(self, manifest: Manifest) -> "Config":
        """Returns the config with the dataset's counts; UserError when it was set to others."""
        num_items = fit_count("num_items", self.num_items, manifest.num_items)
        return dataclasses.replace(self, num_items=num_items)

    def build(self, rngs: nnx.Rngs) -> "SASRec":
        """Returns the module."""
        return SASRec(self, rngs=rngs)

    @property
    def widths(self) -> dict[str, tuple[str, ...]]:
        """See `jaxrec.models.axes.Narrowable`."""
        blocks = range(self.num_blocks)
        heads, hidden = (tuple(f"blocks/{i}/{x}" for i in blocks) for x in ("heads", "hidden"))
        return {"dim": ("dim",), "num_heads": heads, "hidden": hidden, "num_blocks": ()}

    @property
    def axes(self) -> Axes:
        """See `jaxrec.models.axes.Narrowable`. Positions of q, k and v go with their head."""
        dim, each = Axis("dim", np.arange(self.dim), "directions"), np.arange(self.hidden)
        scale = dim._replace(kind="scales")
        head_dim = self.head_dim or self.dim // self.num_heads
        of_head = np.repeat(np.arange(self.num_heads), head_dim)
        norm: Axes = {"scale": (scale,)}
        norm |= {} if self.block == "ligr" else {"bias": (dim,)}
        axes: Axes = {"items/table": (None, dim)}
        axes |= {} if self.tied else {"outputs/table": (None, dim)}
        axes |= {"positions": (None, dim)} if self.positions == "learned" else {}
        outer = "input_norm" if self.block == "post_norm" else "output_norm"
        axes |= _below(outer, norm)
        for i in range(self.num_blocks):
            heads = Axis(f"blocks/{i}/heads", of_head)
            qkv = heads._replace(units=np.tile(of_head, 3))
            hidden = Axis(f"blocks/{i}/hidden", each)
            block = _below("attention/project_in", {"kernel": (dim, qkv), "bias": (qkv,)})
            block |= _below("attention/project_out", {"kernel": (heads, dim), "bias": (dim,)})
            block |= _below("attention_norm", norm) | _below("feed_forward_norm", norm)
            if self.block == "ligr":
                gated = hidden._replace(units=np.tile(each, 2))
                block |= {"feed_forward/up/kernel": (dim, gated)}
                block |= {"feed_forward/down/kernel": (hidden, dim)}
                for gate in ("attention_gate", "feed_forward_gate"):
                    block |= _below(gate, {"kernel": (dim, scale), "bias": (scale,)})
            else:
                block |= _below("feed_forward/up", {"kernel": (dim, hidden), "bias": (hidden,)})
                block |= _below("feed_forward/down", {"kernel": (hidden, dim), "bias": (dim,)})
            axes |= _below(f"blocks/{i}", block)
        return axes

    def narrowed(self, **counts: int) -> "Config":
        """Returns the config with other counts; heads keep the width that they have."""
        head_dim = self.head_dim or self.dim // self.num_heads
        changes: dict[str, Any] = {"head_dim": head_dim, **counts}
        return dataclasses.replace(self, **changes)


def _below(path: str, axes: Axes) -> Axes:
    return {f"{path}/{name}": value for name, value in axes.items()}


class SASRec(nnx.Module):
    """Self-attentive sequential recommendation (arXiv 1808.09781); a `Retriever`.

    Differs from the paper: see the top of this file; block, activation and positions are options,
    item vectors are not scaled by sqrt(dim), and the loss is the objective's business.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        dtype = jnp.dtype(config.compute_dtype)
        self.items = Embedding(config.num_items, config.dim, std=config.init_std, rngs=rngs)
        if not config.tied:
            self.outputs = Embedding(config.num_items, config.dim, std=config.init_std, rngs=rngs)
        if config.positions == "learned":
            initial = jax.random.normal(rngs.params(), (config.max_len, config.dim))
            self.positions = nnx.Param(config.init_std * initial)
        if config.block == "post_norm":
            self.input_norm = nnx.LayerNorm(config.dim, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([Block(config, dtype, rngs) for _ in range(config.num_blocks)])
        if config.block != "post_norm":
            norm = nnx.RMSNorm if config.block == "ligr" else nnx.LayerNorm
            self.output_norm = norm(config.dim, dtype=dtype, rngs=rngs)

    @property
    def tables(self) -> dict[str, tuple[str, ...]]:
        """Which batch fields index which table."""
        if self.config.tied:
            return {"items": ("history", "positives", "negatives")}
        return {"items": ("history",), "outputs": ("positives", "negatives")}

    @property
    def layers(self) -> tuple[tuple[str, ...], ...]:
        """Beginnings of the parameters' paths, from the input to the output."""
        inputs = ("items", "positions", "input_norm")
        blocks = [(f"blocks/{i}",) for i in range(self.config.num_blocks)]
        outputs = (() if self.config.tied else ("outputs",)) + ("output_norm",)
        return (inputs, *blocks, outputs)

    def user_vectors(self, batch: Batch, *, key: Key | None = None) -> jax.Array:
        """Returns vectors whose dot products with item vectors are scores.

        (B, L, dim), one for each position, when `batch.positives` is (B, L); otherwise (B, dim),
        from the last position. Training with dropout wants a key.
        """
        config, history = self.config, jnp.asarray(batch.history)
        every = batch.positives is not None and batch.positives.ndim == history.ndim
        segments = (history > 0).astype(jnp.int32) if batch.segments is None else batch.segments
        positions = positions_from_end(segments)
        keys = split_key(key, config.num_blocks + 1)
        x = self.items(history)
        if config.positions == "learned":
            x = x + self.positions[...][jnp.minimum(positions, config.max_len - 1)]
        if config.block == "post_norm":
            x = self.input_norm(x)
        x = dropout(x, config.dropout, keys[0]).astype(config.compute_dtype)
        mask = causal_mask(segments)
        for block, block_key in zip(self.blocks, keys[1:], strict=True):
            run = functools.partial(block, mask=mask, positions=positions, key=block_key)
            x = (jax.checkpoint(run) if config.remat else run)(x)
        x = x if every else x[:, -1]
        x = x if config.block == "post_norm" else self.output_norm(x)
        return unit(x) / config.temperature if config.temperature else x

    def item_vectors(self, ids: Array | None = None) -> jax.Array:
        """Returns ids.shape + (dim,), or (num_items + 1, dim) for the whole catalogue."""
        vectors = (self.items if self.config.tied else self.outputs)(ids)
        vectors = unit(vectors) if self.config.temperature else vectors
        return vectors.astype(self.config.compute_dtype)


class Block(nnx.Module):
    """One transformer block; (B, L, dim) to the same shape."""

    def __init__(self, config: Config, dtype: DTypeLike, rngs: nnx.Rngs):
        dim = config.dim
        self.config = config
        norm = nnx.RMSNorm if config.block == "ligr" else nnx.LayerNorm
        self.attention_norm = norm(dim, dtype=dtype, rngs=rngs)
        self.feed_forward_norm = norm(dim, dtype=dtype, rngs=rngs)
        self.attention = SelfAttention(
            dim,
            config.num_heads,
            head_dim=config.head_dim,
            dropout_rate=config.attention_dropout,
            dtype=dtype,
            rngs=rngs,
        )
        self.feed_forward: FeedForward | SwiGLU
        if config.block == "ligr":
            self.attention_gate = nnx.Linear(dim, dim, dtype=dtype, rngs=rngs)
            self.feed_forward_gate = nnx.Linear(dim, dim, dtype=dtype, rngs=rngs)
            self.feed_forward = SwiGLU(dim, config.hidden, dropout_rate=0.0, dtype=dtype, rngs=rngs)
        else:
            self.feed_forward = FeedForward(
                dim,
                config.hidden,
                activation=nnx.relu if config.activation == "relu" else nnx.gelu,
                dropout_rate=0.0,
                dtype=dtype,
                rngs=rngs,
            )

    def __call__(
        self, x: jax.Array, mask: jax.Array, positions: jax.Array, *, key: Key | None
    ) -> jax.Array:
        config = self.config
        keys = split_key(key, 3)
        rotary = positions if config.positions == "rotary" else None
        if config.block == "post_norm":
            branch = self.attention(x, mask, positions=rotary, key=keys[0])
            x = self.attention_norm(x + dropout(branch, config.dropout, keys[1]))
            branch = self.feed_forward(x)
            return self.feed_forward_norm(x + dropout(branch, config.dropout, keys[2]))
        branch = self.attention(self.attention_norm(x), mask, positions=rotary, key=keys[0])
        if config.block == "ligr":
            branch = branch * nnx.sigmoid(self.attention_gate(x))
        x = x + dropout(branch, config.dropout, keys[1])
        branch = self.feed_forward(self.feed_forward_norm(x))
        if config.block == "ligr":
            branch = branch * nnx.sigmoid(self.feed_forward_gate(x))
        return x + dropout(branch, config.dropout, keys[2])


def unit(vectors: jax.Array) -> jax.Array:
    """Returns vectors of length 1 over the last axis; zero stays zero."""
    squares = jnp.sum(jnp.square(vectors.astype(jnp.float32)), axis=-1, keepdims=True)
    return (vectors * jax.lax.rsqrt(squares + 1e-6)).astype(vectors.dtype)


def positions_from_end(segments: Array) -> jax.Array:
    """Returns (B, L) int32: how many positions of the same segment come later; 0 for the newest."""
    length = segments.shape[-1]
    ends = jnp.concatenate(
        [segments[:, 1:] != segments[:, :-1], jnp.ones_like(segments[:, :1], bool)], axis=1
    )
    order = jnp.arange(length, dtype=jnp.int32)[None]
    end = jnp.where(ends, order, length)
    # The nearest segment end at or after each position.
    end = jax.lax.cummin(end, axis=1, reverse=True)
    return end - order
