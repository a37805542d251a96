"""Layers that models are built from; blind to losses, optimisers and training."""

from jaxrec.layers.attention import SelfAttention, causal_mask, rotary
from jaxrec.layers.content import ContentEmbedding
from jaxrec.layers.dropout import dropout, split_key
from jaxrec.layers.embedding import CodedTable, Embedding, Table
from jaxrec.layers.feedforward import FeedForward, SwiGLU

__all__ = [
    "CodedTable",
    "ContentEmbedding",
    "Embedding",
    "FeedForward",
    "SelfAttention",
    "SwiGLU",
    "Table",
    "causal_mask",
    "dropout",
    "rotary",
    "split_key",
]
