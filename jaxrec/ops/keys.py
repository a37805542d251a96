"""Random numbers that belong to the rows of a batch, however the batch is split."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxrec.typing import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowKey:
    """A key, and where in the whole batch the rows at hand begin.

    What is drawn for a row depends on the key and on the row's number in the whole batch. So a
    batch that is split over devices or computed in parts draws what the whole would draw.

    Attributes:
      key: a JAX key, the same for all parts of the batch.
      first: () int32, the number of the first row at hand.
    """

    key: jax.Array
    first: Array

    @classmethod
    def of(cls, key: "jax.Array | RowKey") -> "RowKey":
        """Returns a RowKey; a plain key starts at row 0."""
        return key if isinstance(key, RowKey) else cls(key, jnp.int32(0))

    def split(self, num: int) -> list["RowKey"]:
        """Returns a key for each of `num` uses, of the same rows."""
        return [RowKey(key, self.first) for key in jax.random.split(self.key, num)]


type Key = jax.Array | RowKey


def row_bits(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """Returns uint32 random bits of a shape whose first axis is the rows of the batch."""
    rows = RowKey.of(key)
    numbers = rows.first + jnp.arange(shape[0], dtype=jnp.int32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(rows.key, numbers)
    return jax.vmap(lambda k: jax.random.bits(k, shape[1:], jnp.uint32))(keys)
