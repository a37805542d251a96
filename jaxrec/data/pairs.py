"""Pair batches: one user, one item and perhaps a label an example."""

import dataclasses

import numpy as np

from jaxrec.data.dataset import Dataset
from jaxrec.data.replay import NOTHING, Examples, Past
from jaxrec.data.shuffle import permute, row_numbers
from jaxrec.data.training_events import Positives, training_events
from jaxrec.typing import Batch, UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairData:
    """Training events one by one, for models that know a user by a row of a table.

    Attributes:
      max_len: newest events of a history that a served model is shown; such models look at none.
    """

    max_len: int = 1

    def batches(
        self, dataset: Dataset, batch_size: int, seed: int, *, past: Past | None = None
    ) -> "PairBatches":
        """Returns the training batches of a dataset, `batch_size` events each.

        Args:
          past: what is old, for `Replay`; None means nothing.
        """
        return PairBatches(dataset, batch_size, seed, past)

    def requests(self, users: np.ndarray, histories: np.ndarray) -> Batch:
        """Returns what a model is shown to serve users (B,) with histories (B, max_len)."""
        return Batch(users=users)


class PairBatches:
    """Every training event once an epoch, in an order of (seed, epoch); addressable by step."""

    def __init__(self, dataset: Dataset, batch_size: int, seed: int, past: Past | None = None):
        self.batch_size, self.seed = batch_size, seed
        self.events = training_events(dataset, labels=True)
        self.positives = None
        if self.events.positive is not None:
            self.positives = Positives(dataset, self.events)
            past = past and past._replace(counts=self.positives.every(past.counts))
        if not self.events.counts.any():
            raise UserError("the dataset has no training events. Prepare it with another split.")
        self.examples = Examples(self.events.counts, *(past or (None, 0.0)))
        if not len(self.examples):
            raise UserError(NOTHING)

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.examples) // self.batch_size)

    def batch(self, step: int, rows: slice | None = None) -> Batch:
        """Returns the batch of a global step, counted from 0, or some of its rows."""
        return self.located(step, rows)[0]

    def located(self, step: int, rows: slice | None = None) -> tuple[Batch, np.ndarray]:
        """Returns the batch, and (B,) int64 which positive event each example is.

        Numbers count as those of `training_events` without labels; 0 for what is no positive.
        """
        epoch, index = divmod(step, self.steps_per_epoch)
        numbers, total = row_numbers(index, self.batch_size, rows), len(self.examples)
        where = numbers < total
        numbers = permute(numbers.clip(max=total - 1), total, self.seed, epoch)
        users, positions = self.examples.locate(numbers, self.seed, epoch, 1)
        events = self.events.starts[users] + positions
        batch = Batch(
            users=np.where(where, users, 0).astype(np.int32),
            positives=self.events.items_at(events, where),
            labels=self.events.labels_at(events, where),
            is_positive=self.events.positive_at(events, where),
            where=where,
        )
        if self.positives is not None:
            where, events = batch.is_positive, self.positives.before(users, events)
        return batch, np.where(where, events, 0)
