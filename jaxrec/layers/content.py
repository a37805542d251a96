"""Embeddings of things of which something is known: a row of a table plus a map of content."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec.layers.embedding import Embedding, Table, look_up
from jaxrec.typing import Array


class ContentEmbedding(nnx.Module):
    """Vectors table[i] + content[i] @ projection, or content[i] @ projection alone.

    Content is no parameter to train, but it lies beside the table as further columns of its rows
    ("table_content", or "table" where it is alone), so that it goes wherever rows go. `given`
    names it.

    Args:
      embedding: the table; its width is that of the vectors.
      content: (num_rows + 1, F) float; row 0, of padding, is 0.
      id_vectors: whether vectors have a part of their own beside what follows from content.
      std: standard deviation of a vector that a content vector of length 1 starts with.
    """

    def __init__(
        self,
        embedding: Embedding,
        content: Array,
        *,
        id_vectors: bool,
        std: float,
        rngs: nnx.Rngs,
    ):
        shape = (content.shape[1], embedding.table.shape[1])
        self.projection = nnx.Param(std * jax.random.normal(rngs.params(), shape))
        known = Table(jnp.asarray(content, jnp.float32))
        self.id_vectors = id_vectors
        if id_vectors:
            self.table, self.table_content = embedding.table, known
        else:
            self.table = known

    @property
    def given(self) -> str:
        """The name of what is content and not trained."""
        return "table_content" if self.id_vectors else "table"

    def __call__(self, ids: Array | None = None) -> jax.Array:
        """Returns float32 vectors of shape ids.shape + (dim,), or all of them without ids."""
        found = look_up(self.table.get_value(), ids)
        if not self.id_vectors:
            return found @ self.projection[...]
        return found + look_up(self.table_content.get_value(), ids) @ self.projection[...]
