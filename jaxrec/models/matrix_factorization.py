"""Matrix factorisation with biases: a user's and an item's vector, and how generous each is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrec.data.dataset import Manifest
from jaxrec.layers import Embedding
from jaxrec.models.axes import Axes, Axis
from jaxrec.models.fit import fit_count
from jaxrec.ops.keys import Key
from jaxrec.typing import Array, Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of a matrix factorisation.

    Attributes:
      num_users, num_items: rows of the two tables; 0 takes the dataset's counts.
      dim: width of the vectors, biases not counted.
      init_std: standard deviation of initial values.
      global_mean: score before anything is learned; None takes the dataset's mean label.
    """

    num_users: int = 0
    num_items: int = 0
    dim: int = 64
    init_std: float = 0.02
    global_mean: float | None = None

    def fit(self, manifest: Manifest) -> "Config":
        """Returns the config with the dataset's counts; UserError when it was set to others."""
        mean = self.global_mean
        return dataclasses.replace(
            self,
            num_users=fit_count("num_users", self.num_users, manifest.num_users),
            num_items=fit_count("num_items", self.num_items, manifest.num_items),
            global_mean=float(manifest.label_mean) if mean is None else mean,
        )

    def build(self, rngs: nnx.Rngs) -> "MatrixFactorization":
        """Returns the module."""
        return MatrixFactorization(self, rngs=rngs)

    @property
    def widths(self) -> dict[str, tuple[str, ...]]:
        """See `jaxrec.models.axes.Narrowable`."""
        return {"dim": ("dim",)}

    @property
    def axes(self) -> Axes:
        """See `jaxrec.models.axes.Narrowable`. The bias, in the last column, always stays."""
        dim = Axis("dim", np.append(np.arange(self.dim), -1), "directions")
        return {"users/table": (None, dim), "items/table": (None, dim)}

    def narrowed(self, **counts: int) -> "Config":
        """Returns the config with another width."""
        return dataclasses.replace(self, **counts)


class MatrixFactorization(nnx.Module):
    """score(u, i) = p_u . q_i + b_u + b_i + mean (Koren et al. 2009); a `Retriever`.

    Differs from the paper: a bias is the last column of its table, so one lookup brings both, and
    scores are plain dot products of vectors with constant columns, as retrieval wants them.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        self.users = Embedding(config.num_users, config.dim + 1, std=config.init_std, rngs=rngs)
        self.items = Embedding(config.num_items, config.dim + 1, std=config.init_std, rngs=rngs)

    @property
    def tables(self) -> dict[str, tuple[str, ...]]:
        """Which batch fields index which table."""
        return {"users": ("users",), "items": ("positives", "negatives")}

    def user_vectors(self, batch: Batch, *, key: Key | None = None) -> jax.Array:
        """Returns (B, dim + 3): p_u, b_u, 1, mean. There is no dropout, so the key is not used."""
        rows = self.users(batch.users)
        one = jnp.ones_like(rows[..., :1])
        return jnp.concatenate([rows, one, one * (self.config.global_mean or 0.0)], axis=-1)

    def item_vectors(self, ids: Array | None = None) -> jax.Array:
        """Returns ids.shape + (dim + 3,): q_i, 1, b_i, 1; the whole catalogue without ids."""
        rows = self.items(ids)
        one = jnp.ones_like(rows[..., :1])
        return jnp.concatenate([rows[..., :-1], one, rows[..., -1:], one], axis=-1)
