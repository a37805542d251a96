"""The training events of a dataset by user, read where they lie when the split allows it.

Where the training events of every user come before the others, as after a split by time or one that
leaves the last out, event p of user u is found from where the user's events start, and nothing of
the size of the log is held. After other splits a compact copy of the training events is made: 4
bytes an event, and 4 more with labels.
"""

import dataclasses

import numpy as np

from jaxrec.data.dataset import NOT_POSITIVE, TRAIN, Dataset, split_alone

CHUNK = 1 << 18  # events read at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingEvents:
    """Where the training events of each user lie: event p of user u is at starts[u] + p.

    Attributes:
      starts: (num_users + 1,) int64.
      counts: (num_users + 1,) int32, training events of each user; 0 for user 0, padding.
      items: int32, the arrays that `starts` points into; perhaps memory-mapped.
      labels: float32, or None.
      positive: bool, or None where all events are positive.
    """

    starts: np.ndarray
    counts: np.ndarray
    items: np.ndarray
    labels: np.ndarray | None
    positive: np.ndarray | None = None

    def items_at(self, events: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
        """Returns the items of events as int32, and 0 where `where` is False; shapes are equal."""
        return _taken(self.items, events, where)

    def labels_at(self, events: np.ndarray, where: np.ndarray | None = None) -> np.ndarray | None:
        """Returns the labels of events, 0 where `where` is False; None without labels."""
        return None if self.labels is None else _taken(self.labels, events, where)

    def positive_at(self, events: np.ndarray, where: np.ndarray) -> np.ndarray | None:
        """Returns which events are positive, and False where `where` is; None if all are."""
        return None if self.positive is None else _taken(self.positive, events, where)


def training_events(dataset: Dataset, *, labels: bool = False) -> TrainingEvents:
    """Looks through the split of a dataset, some events at a time, and finds its training events.

    Args:
      labels: whether labels will be asked for: with them come the events that are not positive,
        and `positive`, unless there are none.
    """
    split, told, positive = dataset.split, dataset.labels if labels else None, None
    if told is not None and has_others(dataset):
        positive = np.asarray(split) < NOT_POSITIVE
        split = split_alone(split)
    counts, leading = _count(split, dataset.offsets)
    starts = dataset.offsets[:-1]
    items = dataset.items
    if not leading:
        total = int(counts.sum(dtype=np.int64))
        starts = np.cumsum(counts, dtype=np.int64) - counts
        items = _compact(items, split, total)
        told = None if told is None else _compact(told, split, total)
        positive = None if positive is None else _compact(positive, split, total)
    return TrainingEvents(starts=starts, counts=counts, items=items, labels=told, positive=positive)


def has_others(dataset: Dataset) -> bool:
    """Whether some training events are not positive."""
    split = dataset.split
    chunks = (split[begin : begin + CHUNK] for begin in range(0, len(split), CHUNK))
    return any(bool((chunk == TRAIN + NOT_POSITIVE).any()) for chunk in chunks)


def training_counts(dataset: Dataset) -> np.ndarray:
    """Returns (num_users + 1,) int32: the positive training events of each user; 0 for padding."""
    return _count(dataset.split, dataset.offsets)[0]


class Positives:
    """The positive training events among all of them, where some are not.

    Attributes:
      events: the positive ones alone, in a numbering of their own: that of `training_events`
        without labels, which a teacher's labels have too.
    """

    def __init__(self, dataset: Dataset, every: TrainingEvents):
        assert every.positive is not None
        self.events, self._every = training_events(dataset), every
        self._before = np.concatenate([[0], np.cumsum(every.positive, dtype=np.int64)])

    def before(self, users: np.ndarray, events: np.ndarray) -> np.ndarray:
        """Returns the numbers that positive events would have in the place of events of users."""
        count = self._before[events] - self._before[self._every.starts[users]]
        return self.events.starts[users] + count

    def every(self, counts: np.ndarray) -> np.ndarray:
        """Returns (num_users + 1,) int32: how many events come up to so many positive ones.

        Args:
          counts: (num_users + 1,), of each user's positive events.
        """
        every = self._every
        owners = np.repeat(np.arange(len(counts)), every.counts)
        first = np.cumsum(every.counts, dtype=np.int64) - every.counts
        events = np.arange(len(owners)) + (every.starts[: len(counts)] - first)[owners]
        passed = self._before[events] - self._before[every.starts[owners]]
        inside = passed < counts[owners]
        return np.bincount(owners[inside], minlength=len(counts)).astype(np.int32)


def locate(ends: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the user of each of the examples, numbered through all users, and its number there.

    Args:
      ends: (num_users + 1,) running total of examples by user; entry 0, padding, is 0.
      numbers: int64 in [0, ends[-1]).
    """
    users = np.searchsorted(ends, numbers, side="right")
    return users, numbers - ends[users - 1]


def _count(split: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, bool]:
    """Returns training events of each user, and whether they come first for all of them."""
    counts = np.zeros(len(offsets) - 1, np.int32)
    leading, before = True, True
    for begin in range(0, len(split), CHUNK):
        train = np.asarray(split[begin : begin + CHUNK]) == TRAIN
        end = begin + len(train)
        first = int(np.searchsorted(offsets, begin, side="right")) - 1
        last = int(np.searchsorted(offsets, end, side="left"))
        bounds = offsets[first : last + 1].clip(begin, end) - begin
        running = np.zeros(len(train) + 1, np.int32)
        np.cumsum(train, out=running[1:])
        counts[first:last] += np.diff(running[bounds])
        # A training event after another one may only be the first of its user.
        rises = np.flatnonzero(train & ~np.append(before, train[:-1])) + begin
        leading &= bool((offsets[np.searchsorted(offsets, rises)] == rises).all())
        before = bool(train[-1])
    return counts, leading


def _compact(array: np.ndarray, split: np.ndarray, total: int) -> np.ndarray:
    kept, end = np.empty(total, array.dtype), 0
    for begin in range(0, len(split), CHUNK):
        train = np.asarray(split[begin : begin + CHUNK]) == TRAIN
        found = np.asarray(array[begin : begin + CHUNK])[train]
        kept[end : end + len(found)] = found
        end += len(found)
    return kept


def _taken(array: np.ndarray, events: np.ndarray, where: np.ndarray | None) -> np.ndarray:
    read = events if where is None else np.where(where, events, 0)
    found = np.asarray(array[read.reshape(-1)]).reshape(events.shape)
    return found if where is None else np.where(where, found, found.dtype.type(0))
