"""Sequence batches: static shapes, shuffled by (seed, epoch), addressable by step.

`batch(step)` depends on the configuration, the seed and the step alone, so a run can start again at
any step and other processes can build their part of the same batch.
"""

import dataclasses
import functools
from typing import Literal

import numpy as np

from jaxrec.data.dataset import TRAIN, Dataset
from jaxrec.typing import Batch, UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceData:
    """How histories become training rows.

    Attributes:
      max_len: positions in a row, and the longest history a model is shown.
      targets: "last": every prefix of a history is an example with its last position as target;
        "all": a row is one user's newest window and every position has a target; "packed": every
        position has a target, histories are cut into windows with a random start in each epoch and
        rows hold as many windows as fit.
      buckets: row lengths for "last"; an example goes to the shortest that holds it.
      row_len: positions of a packed row; 0 means max_len.
    """

    max_len: int = 50
    targets: Literal["last", "all", "packed"] = "packed"
    buckets: tuple[int, ...] = (8, 20)
    row_len: int = 0

    def __post_init__(self) -> None:
        if self.max_len < 1 or self.row_len < 0:
            raise UserError(
                f"data.max_len must be at least 1 and data.row_len at least 0; got {self.max_len} "
                f"and {self.row_len}."
            )
        if any(width < 1 for width in self.buckets):
            raise UserError(f"data.buckets must be lengths from 1; got {self.buckets}.")

    def batches(self, dataset: Dataset, batch_size: int, seed: int) -> "SequenceBatches":
        """Returns the training batches of a dataset.

        Args:
          batch_size: examples ("last"), or rows ("all", "packed") in a batch.
        """
        kinds = {"last": PrefixBatches, "all": WindowBatches, "packed": PackedBatches}
        return kinds[self.targets](self, dataset, batch_size, seed)

    def requests(self, users: np.ndarray, histories: np.ndarray) -> Batch:
        """Returns what a model is shown to serve users (B,) with histories (B, max_len)."""
        return Batch(history=histories)


class SequenceBatches:
    """Common ground of the three layouts: which step is which batch of which epoch."""

    def __init__(self, config: SequenceData, dataset: Dataset, batch_size: int, seed: int):
        self.config, self.batch_size, self.seed = config, batch_size, seed
        train = np.flatnonzero(dataset.split == TRAIN)
        self.items = np.ascontiguousarray(dataset.items[train])
        users = dataset.users[train]
        # start[e]: the first training event of the user of event e; ends: one past the last
        self.first = np.searchsorted(users, np.arange(dataset.num_users + 2))
        self.start = self.first[users]
        if not len(train) or int(np.max(np.diff(self.first))) < 2:
            raise UserError(
                "no user has two training events, so there is no next item to learn from. Lower "
                "--min_user_events, or prepare a longer log."
            )

    @property
    def steps_per_epoch(self) -> int:
        raise AssertionError("defined by each layout")

    def batch(self, step: int) -> Batch:
        """Returns the batch of a global step, counted from 0."""
        return self._batch(*divmod(step, self.steps_per_epoch))

    def _batch(self, epoch: int, index: int) -> Batch:
        raise AssertionError("defined by each layout")


class PrefixBatches(SequenceBatches):
    """Every event but a user's first is an example: its history, and itself as target."""

    def __init__(self, config: SequenceData, dataset: Dataset, batch_size: int, seed: int):
        super().__init__(config, dataset, batch_size, seed)
        events = np.arange(len(self.items))
        events = events[events > self.start]
        length = np.minimum(events - self.start[events], config.max_len)
        edges = sorted({b for b in config.buckets if b < config.max_len} | {config.max_len})
        bucket = np.searchsorted(edges, length)
        self.groups = [(width, events[bucket == i]) for i, width in enumerate(edges)]
        self.groups = [(width, group) for width, group in self.groups if len(group)]
        self.counts = [-(-len(group) // batch_size) for _, group in self.groups]

    @property
    def steps_per_epoch(self) -> int:
        return sum(self.counts)

    @functools.lru_cache(maxsize=2)  # noqa: B019 - as long-lived as the batches themselves
    def _plan(self, epoch: int) -> tuple[np.ndarray, list[np.ndarray]]:
        random = np.random.default_rng((self.seed, epoch))
        order = random.permutation(self.steps_per_epoch)
        return order, [random.permutation(group) for _, group in self.groups]

    def _batch(self, epoch: int, index: int) -> Batch:
        order, shuffled = self._plan(epoch)
        place, group = int(order[index]), 0
        while place >= self.counts[group]:
            place, group = place - self.counts[group], group + 1
        width = self.groups[group][0]
        events = shuffled[group][place * self.batch_size : (place + 1) * self.batch_size]
        where = np.arange(self.batch_size) < len(events)
        events = np.resize(events, self.batch_size)
        columns = events[:, None] + np.arange(-width, 0)
        history = np.where(columns >= self.start[events][:, None], self.items[columns], 0)
        return Batch(history=history.astype(np.int32), positives=self.items[events], where=where)


class WindowBatches(SequenceBatches):
    """One row a user: the newest max_len + 1 training events, a target at every position."""

    def __init__(self, config: SequenceData, dataset: Dataset, batch_size: int, seed: int):
        super().__init__(config, dataset, batch_size, seed)
        users = np.flatnonzero(np.diff(self.first) > 1)
        self.rows = users

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    @functools.lru_cache(maxsize=2)  # noqa: B019 - as long-lived as the batches themselves
    def _plan(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(self.rows)

    def _batch(self, epoch: int, index: int) -> Batch:
        users = self._plan(epoch)[index * self.batch_size : (index + 1) * self.batch_size]
        real = np.arange(self.batch_size) < len(users)
        users = np.resize(users, self.batch_size)
        columns = self.first[users + 1][:, None] + np.arange(-self.config.max_len - 1, 0)
        inside = (columns >= self.first[users][:, None]) & real[:, None]
        rows = np.where(inside, self.items[columns], 0).astype(np.int32)
        history, where = rows[:, :-1], rows[:, :-1] > 0
        return Batch(history=history, positives=np.where(where, rows[:, 1:], 0), where=where)


class PackedBatches(SequenceBatches):
    """Windows of histories, several to a row, a target at every position that has a next item."""

    def __init__(self, config: SequenceData, dataset: Dataset, batch_size: int, seed: int):
        super().__init__(config, dataset, batch_size, seed)
        self.row_len = config.row_len or config.max_len
        if self.row_len < config.max_len:
            raise UserError(
                f"data.row_len={self.row_len} is shorter than data.max_len={config.max_len}: a "
                "window would not fit its row. Raise row_len or set it to 0."
            )
        # An event predicts its successor, so a user's last event is no input.
        last = np.append(self.start[1:] != self.start[:-1], True)
        self.inputs = np.flatnonzero(~last)
        self.steps = max(1, round(len(self._windows(0)[2]) / batch_size))

    @property
    def steps_per_epoch(self) -> int:
        return self.steps

    @functools.lru_cache(maxsize=2)  # noqa: B019 - as long-lived as the batches themselves
    def _windows(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns begins and lengths of shuffled windows, and the first window of each row."""
        random = np.random.default_rng((self.seed, epoch))
        max_len = self.config.max_len
        shift = random.integers(0, max_len, size=len(self.first))
        user = np.searchsorted(self.first, self.inputs, side="right") - 1
        lengths = self.first[user + 1] - 1 - self.first[user]
        # Only users longer than a window are cut at a shifted place.
        place = self.inputs - self.first[user] + np.where(lengths > max_len, shift[user], 0)
        begins = (self.inputs == self.first[user]) | (place % max_len == 0)
        begin = self.inputs[begins]
        bounds = np.append(np.flatnonzero(begins), len(self.inputs))
        length = np.diff(bounds)
        order = random.permutation(len(begin))
        begin, length = begin[order], length[order]
        total = np.concatenate([[0], np.cumsum(length)])
        following = (np.searchsorted(total, total[:-1] + self.row_len, side="right") - 1).tolist()
        rows, window = [], 0
        while window < len(begin):
            rows.append(window)
            window = following[window]
        return begin, length, np.asarray(rows)

    def _batch(self, epoch: int, index: int) -> Batch:
        begin, length, rows = self._windows(epoch)
        picked = (index * self.batch_size + np.arange(self.batch_size)) % len(rows)
        starts, stops = rows[picked], np.append(rows, len(begin))[picked + 1]
        count = stops - starts
        row = np.repeat(np.arange(self.batch_size), count)
        segment = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        window = starts[row] + segment
        size = length[window]
        place = np.cumsum(size) - size
        place -= np.repeat(place[np.cumsum(count) - count], count)
        # From windows to positions.
        column = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
        event = np.repeat(begin[window], size) + column
        flat = np.repeat(row * self.row_len + place, size) + column
        shape = (self.batch_size, self.row_len)
        history, positives, segments = (np.zeros(shape, np.int32) for _ in range(3))
        history.ravel()[flat] = self.items[event]
        positives.ravel()[flat] = self.items[event + 1]
        segments.ravel()[flat] = np.repeat(segment + 1, size)
        return Batch(history=history, positives=positives, segments=segments, where=segments > 0)
