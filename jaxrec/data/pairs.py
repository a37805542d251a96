"""Pair batches: one user, one item and perhaps a label an example."""

import dataclasses
import functools

import numpy as np

from jaxrec.data.dataset import TRAIN, Dataset
from jaxrec.typing import Batch, UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairData:
    """Training events one by one, for models that know a user by a row of a table.

    Attributes:
      max_len: newest events of a history that a served model is shown; such models look at none.
    """

    max_len: int = 1

    def batches(self, dataset: Dataset, batch_size: int, seed: int) -> "PairBatches":
        """Returns the training batches of a dataset, `batch_size` events each."""
        return PairBatches(dataset, batch_size, seed)

    def requests(self, users: np.ndarray, histories: np.ndarray) -> Batch:
        """Returns what a model is shown to serve users (B,) with histories (B, max_len)."""
        return Batch(users=users)


class PairBatches:
    """Every training event once an epoch, in an order of (seed, epoch); addressable by step."""

    def __init__(self, dataset: Dataset, batch_size: int, seed: int):
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.events = np.flatnonzero(dataset.split == TRAIN)
        if not len(self.events):
            raise UserError("the dataset has no training events. Prepare it with another split.")

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.events) // self.batch_size)

    @functools.lru_cache(maxsize=2)  # noqa: B019 - as long-lived as the batches themselves
    def _plan(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(self.events)

    def batch(self, step: int) -> Batch:
        """Returns the batch of a global step, counted from 0."""
        epoch, index = divmod(step, self.steps_per_epoch)
        events = self._plan(epoch)[index * self.batch_size : (index + 1) * self.batch_size]
        where = np.arange(self.batch_size) < len(events)
        events = np.resize(events, self.batch_size)
        labels = self.dataset.labels
        return Batch(
            users=self.dataset.users[events],
            positives=self.dataset.items[events],
            labels=None if labels is None else labels[events],
            where=where,
        )
