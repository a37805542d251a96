"""Where every random number comes from: named streams, and keys of the rows of a batch.

Every key of the package is made here, by nothing but `root`, `stream` and `nth`. A key is either
the parent of others or drawn from once, never both, so no two uses share random numbers:

    root(seed)
      INITIAL            nth(n): the n-th parameter, as Flax counts them
        ADAPTERS         nth(n): the n-th adapter
      STEP, nth(step)
        DRAW             what the objective draws for a batch
          NEGATIVES      the same for all rows, or nth(row)
          AUGMENTATION   nth(row)
          CANDIDATES     nth(row)
        LOSS             nth(n), nth(m): the sites of dropout, level by level
          PARAMETERS     what is random about parameters: nth(n)
        ROUNDING         WHOLE, or BLOCK and nth(device); nth(leaf)
      PRUNING, nth(batch)
      CODEBOOKS
"""

import dataclasses
import enum
import zlib

import jax
import jax.numpy as jnp

from jaxrec.typing import Array


class Stream(enum.Enum):
    """A use of randomness; see the picture above."""

    INITIAL = "initial"
    ADAPTERS = "adapters"
    STEP = "step"
    DRAW = "draw"
    NEGATIVES = "negatives"
    AUGMENTATION = "augmentation"
    CANDIDATES = "candidates"
    LOSS = "loss"
    PARAMETERS = "parameters"
    ROUNDING = "rounding"
    WHOLE = "whole"
    BLOCK = "block"
    PRUNING = "pruning"
    CODEBOOKS = "codebooks"

    @property
    def number(self) -> int:
        """What stands for the name: far above any number that `nth` is given."""
        return zlib.crc32(self.value.encode()) | 1 << 31


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
        return [nth(self, number) for number in range(num)]


type Key = jax.Array | RowKey


def root(seed: int) -> jax.Array:
    """Returns the key that all others of a run come from."""
    return jax.random.key(seed)


def stream[K: (jax.Array, RowKey)](key: K, use: Stream) -> K:
    """Returns the key of a use; of a `RowKey`, for the same rows."""
    return nth(key, use.number)


def nth[K: (jax.Array, RowKey)](key: K, number: Array | int) -> K:
    """Returns the key of the n-th of several uses of one name; n from 0 to 2**31 - 1."""
    if isinstance(key, RowKey):
        return dataclasses.replace(key, key=jax.random.fold_in(key.key, number))
    return jax.random.fold_in(key, number)


def row_bits(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """Returns uint32 random bits of a shape whose first axis is the rows of the batch."""
    rows = RowKey.of(key)
    numbers = rows.first + jnp.arange(shape[0], dtype=jnp.int32)
    keys = jax.vmap(nth, (None, 0))(rows.key, numbers)
    return jax.vmap(lambda k: jax.random.bits(k, shape[1:], jnp.uint32))(keys)
