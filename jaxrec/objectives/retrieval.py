"""Objectives for retrievers: softmax (full, sampled, in-batch), BCE, gBCE, BPR, squared error."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import losses
from jaxrec.data.dataset import Dataset
from jaxrec.objectives.base import (
    ALONE,
    Negatives,
    Replica,
    Retriever,
    Statistics,
    features_of,
    negative_scores,
    weighted_sum,
    weights_of,
)
from jaxrec.ops.cross_entropy import catalogue_cross_entropy
from jaxrec.ops.keys import Key
from jaxrec.sampling import item_probabilities
from jaxrec.typing import Batch, UserError

type Sums = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FullSoftmax:
    """Cross entropy over the whole catalogue, without ever holding its logits.

    Attributes:
      label_smoothing: share of the target's mass that is spread over all items, in [0, 1).
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1); got {self.label_smoothing}.")

    @property
    def whole_catalogue(self) -> bool:
        return True

    def statistics(self, dataset: Dataset) -> Statistics:
        return {}

    def draw(self, batch: Batch, statistics: Any, key: Key) -> Batch:
        return batch

    def loss(
        self, model: Retriever, batch: Batch, key: Key | None, replica: Replica = ALONE
    ) -> Sums:
        users = model.user_vectors(batch, key=key)
        weights = weights_of(batch)
        total = catalogue_cross_entropy(
            users.reshape(-1, users.shape[-1]),
            (replica.catalogue or model).item_vectors(),
            batch.positives.reshape(-1),
            weights.reshape(-1),
            label_smoothing=self.label_smoothing,
            axis=replica.catalogue_axis,
            num_rows=replica.num_rows,
        )
        return total, jnp.sum(weights)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampledSoftmax(Negatives):
    """Cross entropy among sampled negatives, corrected for how likely each was to be drawn.

    Attributes:
      logq: subtract log sampling probabilities from scores; without it popular negatives are
        pushed down too far.
    """

    logq: bool = True

    def loss(
        self, model: Retriever, batch: Batch, key: Key | None, replica: Replica = ALONE
    ) -> Sums:
        users = model.user_vectors(batch, key=key)
        positives, negatives, where = negative_scores(model, users, batch)
        # A draw of n stands for the catalogue: what is expected n times counts n times.
        correction = features_of(batch)["log_q_negatives"] + np.log(self.num_negatives)
        values = losses.sampled_softmax(
            positives,
            negatives,
            log_q_negatives=correction if self.logq else 0.0,
            where_negatives=where,
        )
        return weighted_sum(values, batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InBatchSoftmax:
    """Cross entropy among the positives of the batch, corrected for their popularity.

    Attributes:
      logq: subtract the log of each item's share of training events from its scores.
    """

    logq: bool = True

    @property
    def whole_catalogue(self) -> bool:
        return False

    def statistics(self, dataset: Dataset) -> Statistics:
        probabilities = item_probabilities(dataset.item_counts, 1.0)
        with np.errstate(divide="ignore"):
            return {"log_q": np.log(probabilities).astype(np.float32)}

    def draw(self, batch: Batch, statistics: Any, key: Key) -> Batch:
        # Padding has log q = -inf, and inf - inf is no number.
        log_q = jnp.maximum(statistics["log_q"][batch.positives], -1e4)
        return batch.replace(features=features_of(batch) | {"log_q": log_q})

    def loss(
        self, model: Retriever, batch: Batch, key: Key | None, replica: Replica = ALONE
    ) -> Sums:
        users = model.user_vectors(batch, key=key)
        drawn, rows = features_of(batch), batch.positives.size
        items = model.item_vectors(batch.positives.reshape(-1))
        values = losses.in_batch_softmax(
            users.reshape(-1, users.shape[-1]),
            replica.gather(items),
            replica.gather(batch.positives.reshape(-1)),
            first=replica.first(rows),
            log_q=replica.gather(drawn["log_q"].reshape(-1)) if self.logq else 0.0,
            where=replica.gather(weights_of(batch).reshape(-1) > 0),
        )
        return weighted_sum(values.reshape(batch.positives.shape), batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BCE(Negatives):
    """Binary cross entropy against sampled negatives; with `calibration` above 0 it is gBCE.

    Attributes:
      calibration: gBCE's t in [0, 1] (arXiv 2308.07192); 0 is plain BCE.
    """

    num_negatives: int = 1
    shared: bool = False
    calibration: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.calibration <= 1:
            raise ValueError(f"calibration must be in [0, 1]; got {self.calibration}.")

    def statistics(self, dataset: Dataset) -> Statistics:
        beta = losses.gbce_beta(self.num_negatives, dataset.num_items, self.calibration)
        return super().statistics(dataset) | {"beta": np.asarray(beta, np.float32)}

    def draw(self, batch: Batch, statistics: Any, key: Key) -> Batch:
        batch = super().draw(batch, statistics, key)
        return batch.replace(features=features_of(batch) | {"beta": statistics["beta"]})

    def loss(
        self, model: Retriever, batch: Batch, key: Key | None, replica: Replica = ALONE
    ) -> Sums:
        users = model.user_vectors(batch, key=key)
        positives, negatives, where = negative_scores(model, users, batch)
        values = losses.gbce(
            positives, negatives, beta=features_of(batch)["beta"], where_negatives=where
        )
        return weighted_sum(values, batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BPR(Negatives):
    """Bayesian personalised ranking (arXiv 1205.2618).

    Attributes:
      l2: weight of the squared norms of the vectors of each pair.
    """

    num_negatives: int = 1
    shared: bool = False
    l2: float = 0.0

    def loss(
        self, model: Retriever, batch: Batch, key: Key | None, replica: Replica = ALONE
    ) -> Sums:
        users = model.user_vectors(batch, key=key)
        positives, negatives, where = negative_scores(model, users, batch)
        values = losses.bpr(positives, negatives, where_negatives=where)
        if self.l2:
            norms = _norms(users) + _norms(model.item_vectors(batch.positives))
            chosen = _norms(model.item_vectors(batch.negatives))
            norms += jnp.mean(chosen) if self.shared else jnp.mean(chosen, axis=-1)
            values += self.l2 * norms
        return weighted_sum(values, batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SquaredError:
    """Squared error of scores against the log's labels, such as ratings.

    Attributes:
      l2: weight of the squared norms of the vectors of each pair.
    """

    l2: float = 0.0

    @property
    def whole_catalogue(self) -> bool:
        return False

    def statistics(self, dataset: Dataset) -> Statistics:
        if dataset.labels is None:
            raise UserError(
                "SquaredError wants labels and the dataset has none. Prepare it with "
                "--label_column=NAME, or choose an objective for implicit feedback."
            )
        return {}

    def draw(self, batch: Batch, statistics: Any, key: Key) -> Batch:
        return batch

    def loss(
        self, model: Retriever, batch: Batch, key: Key | None, replica: Replica = ALONE
    ) -> Sums:
        users = model.user_vectors(batch, key=key)
        items = model.item_vectors(batch.positives)
        values = losses.squared_error(jnp.sum(users * items, axis=-1), batch.labels)
        if self.l2:
            values += self.l2 * (_norms(users) + _norms(items))
        return weighted_sum(values, batch, labelled=True)


def _norms(vectors: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(vectors.astype(jnp.float32)), axis=-1)
