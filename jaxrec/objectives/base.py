"""What training minimises: an objective binds a retriever's vectors to a loss and to negatives."""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.data.dataset import Dataset
from jaxrec.ops.keys import Key, RowKey, Stream, stream
from jaxrec.sampling import cumulative_words, item_probabilities, sample_items, sample_uniform
from jaxrec.typing import Array, Batch

type Statistics = dict[str, np.ndarray]


class Retriever(Protocol):
    """A model that scores by the dot product of a user's and an item's vector."""

    @property
    def tables(self) -> dict[str, tuple[str, ...]]:
        """Table name to the batch fields that index it. Table t is the parameter t/table.

        What `batch.negatives` index, `batch.candidates` index too, without being named.
        """
        ...

    def user_vectors(self, batch: Batch, *, key: Key | None = None) -> jax.Array:
        """(B, D), or (B, L, D) when `batch.positives` is (B, L)."""
        ...

    def item_vectors(self, ids: Array | None = None) -> jax.Array:
        """ids.shape + (D,), or (num_items + 1, D) without ids."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replica:
    """What a loss may want to know of the devices that share a batch; the default is one device.

    Attributes:
      axes: the named axes over which the batch is split.
      catalogue: the model whose `item_vectors()` gives this device's part of the catalogue; None
        when the model at hand holds all of it.
      catalogue_axis: the axis over which the catalogue is split.
      num_rows: rows of the whole catalogue; the parts together may have more, to be equal.
    """

    axes: tuple[str, ...] = ()
    catalogue: Any = None
    catalogue_axis: str | None = None
    num_rows: int | None = None

    def gather(self, x: jax.Array) -> jax.Array:
        """Returns the rows of all devices, in the order of the batch."""
        return jax.lax.all_gather(x, self.axes, tiled=True) if self.axes else x

    def first(self, rows: int) -> jax.Array:
        """Returns () int32: where this device's rows begin among those of all, given its number."""
        return jax.lax.axis_index(self.axes) * rows if self.axes else jnp.int32(0)


ALONE = Replica()


class Objective(Protocol):
    """The contract of the training step; implementations are frozen dataclasses in configs."""

    @property
    def whole_catalogue(self) -> bool:
        """True when the loss needs every item, so that the step is the dense one."""
        ...

    def statistics(self, dataset: Dataset) -> Statistics:
        """Returns arrays about the dataset that `draw` wants on the device."""
        ...

    def draw(self, batch: Batch, statistics: Any, key: Key) -> Batch:
        """Returns the batch with whatever is random or looked up in statistics filled in."""
        ...

    def loss(
        self, model: Any, batch: Batch, key: Key | None, replica: Replica = ALONE
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the sum of the examples' losses and the sum of their weights, both float32.

        With several devices, the sums are those of the rows at hand.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Negatives:
    """Negative items drawn in proportion to popularity ** power.

    Attributes:
      num_negatives: negatives for each positive, or for the whole batch when shared.
      power: 0 is uniform, 1 is by popularity.
      shared: one draw serves the whole batch, so scores become one matrix product.
    """

    num_negatives: int = 256
    power: float = 0.0
    shared: bool = True

    def __post_init__(self) -> None:
        if self.num_negatives < 1:
            raise ValueError(f"num_negatives must be at least 1; got {self.num_negatives}.")

    @property
    def whole_catalogue(self) -> bool:
        return False

    def statistics(self, dataset: Dataset) -> Statistics:
        if not self.power:
            return {"num_items": np.asarray(dataset.num_items, np.int32)}
        probabilities = item_probabilities(dataset.item_counts, self.power)
        with np.errstate(divide="ignore"):
            log_q = np.log(probabilities).astype(np.float32)
        return {"words": cumulative_words(probabilities), "log_q": log_q}

    def draw(self, batch: Batch, statistics: Any, key: Key) -> Batch:
        shape: tuple[int, ...] = (*batch.positives.shape, self.num_negatives)
        key = stream(RowKey.of(key), Stream.NEGATIVES)
        if self.shared:  # by all rows, so that it is drawn from the key alone
            key, shape = key.key, shape[-1:]
        if not self.power:
            negatives = sample_uniform(key, shape, statistics["num_items"])
            log_q = -jnp.log(statistics["num_items"].astype(jnp.float32))
            drawn = {"log_q_negatives": jnp.broadcast_to(log_q, negatives.shape)}
        else:
            negatives = sample_items(key, shape, statistics["words"])
            drawn = {"log_q_negatives": statistics["log_q"][negatives]}
        return batch.replace(negatives=negatives, features=features_of(batch) | drawn)


def features_of(batch: Batch) -> dict[str, Any]:
    """Returns the further arrays of a batch by name; an empty dict when there are none."""
    return batch.features or {}


def weights_of(batch: Batch, *, labelled: bool = False) -> jax.Array:
    """Returns positives.shape float32: the example weights, 0 for what takes no part.

    That is where `where` is False and, unless the loss is one of labels (`labelled`), where the
    event is no positive.
    """
    weights = jnp.ones(batch.positives.shape, jnp.float32)
    if batch.weights is not None:
        weights = weights * batch.weights
    if batch.is_positive is not None and not labelled:
        weights = jnp.where(batch.is_positive, weights, 0)
    return weights if batch.where is None else jnp.where(batch.where, weights, 0)


def weighted_sum(
    losses: jax.Array, batch: Batch, *, labelled: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Returns the weighted sum of per-example losses and the sum of weights, as `weights_of`."""
    weights = weights_of(batch, labelled=labelled)
    return jnp.sum(jnp.where(weights > 0, losses, 0) * weights), jnp.sum(weights)


def negative_scores(
    model: Retriever, users: jax.Array, batch: Batch
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns scores of positives (...), of negatives (..., N), and which negatives count."""
    positives = jnp.sum(users * model.item_vectors(batch.positives), axis=-1, dtype=jnp.float32)
    vectors = model.item_vectors(batch.negatives)
    pattern = "...d,nd->...n" if batch.negatives.ndim == 1 else "...d,...nd->...n"
    negatives = jnp.einsum(pattern, users, vectors, preferred_element_type=jnp.float32)
    ids = jnp.broadcast_to(batch.negatives, negatives.shape)
    return positives, negatives, ids != batch.positives[..., None]
