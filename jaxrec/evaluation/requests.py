"""What is asked of a recommender in evaluation: users, what they did so far, what they did next."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from jaxrec.data.dataset import NOT_POSITIVE, SPLITS, Dataset, split_alone
from jaxrec.typing import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Requests:
    """Users that have both a history and something to find: of a split, or at chosen events.

    Row u of a pair of `items` and `offsets` is items[offsets[u]:offsets[u + 1]].

    Attributes:
      users: (U,) int32 user indices, ascending; one may come several times with `requests_at`.
      history_items: int32 item indices before the targets, in time order inside a user.
      history_offsets: (U + 1,) int64.
      target_items: int32 item indices to find, distinct and ascending inside a user.
      target_offsets: (U + 1,) int64.
      num_items: size of the catalogue; item indices are 1..num_items.
      without_history: how many have targets but no history; they are left out.
      later_histories: how many have events in their history that are later than a target of theirs.
    """

    users: np.ndarray
    history_items: np.ndarray
    history_offsets: np.ndarray
    target_items: np.ndarray
    target_offsets: np.ndarray
    num_items: int
    without_history: int = 0
    later_histories: int = 0

    def __len__(self) -> int:
        return len(self.users)

    @functools.cached_property
    def history_lengths(self) -> np.ndarray:
        """(U,) int64: number of events in each history."""
        return np.diff(self.history_offsets)

    @functools.cached_property
    def num_targets(self) -> np.ndarray:
        """(U,) int64: number of distinct items to find."""
        return np.diff(self.target_offsets)

    def showing(self, known: np.ndarray) -> "Requests":
        """Returns the requests with histories that hold known items alone.

        Args:
          known: (num_items + 1,) bool.
        """
        kept = known[self.history_items]
        before = np.concatenate([[0], np.cumsum(kept, dtype=np.int64)])
        return dataclasses.replace(
            self,
            history_items=self.history_items[kept],
            history_offsets=before[self.history_offsets],
        )

    def padded_history(self, max_len: int, rows: np.ndarray | None = None) -> np.ndarray:
        """The latest `max_len` events of some histories, aligned to the right, 0 before them.

        Args:
          max_len: number of columns.
          rows: (B,) int positions in `users`, repeats allowed; all of them by default.

        Returns:
          (B, max_len) int32.
        """
        assert max_len >= 1, max_len
        starts, ends = self._bounds(rows)
        index = ends[:, None] + np.arange(-max_len, 0)
        where = index >= starts[:, None]
        return np.where(where, self.history_items[np.where(where, index, 0)], 0)

    def padded_seen(self, rows: np.ndarray, width: int) -> np.ndarray:
        """Every item of some histories, aligned to the left, 0 after them.

        Args:
          rows: (B,) int positions in `users`, repeats allowed.
          width: number of columns, no less than the longest of these histories.

        Returns:
          (B, width) int32; an item that was met twice is there twice.
        """
        starts, ends = self._bounds(rows)
        assert width >= (ends - starts).max(initial=0), width
        index = starts[:, None] + np.arange(width)
        where = index < ends[:, None]
        return np.where(where, self.history_items[np.where(where, index, 0)], 0)

    def _bounds(self, rows: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        starts, ends = self.history_offsets[:-1], self.history_offsets[1:]
        return (starts, ends) if rows is None else (starts[rows], ends[rows])


def requests_of(dataset: Dataset, split: str, *, labelled: bool = False) -> Requests:
    """Returns what the evaluation of a split asks.

    Histories are the training events for "valid", the training and validation events for "test".
    Where the split was drawn at random, a history may hold events later than the targets. Events
    that are not positive are in no history, and targets of labels alone.

    Args:
      dataset: a prepared dataset.
      split: "valid" or "test".
      labelled: whether events that are not positive are targets too.

    Raises:
      UserError: for another split, or when no user has both a history and targets in it.
    """
    if split not in ("valid", "test"):
        raise UserError(f"evaluation wants the split 'valid' or 'test'; got {split!r}.")
    marks, users = np.asarray(dataset.split), np.asarray(dataset.users)
    is_target = (split_alone(marks) if labelled else marks) == SPLITS[split]
    is_history = marks < SPLITS[split]
    # A user may lack a validation event and still have a test one: rows go by what is there.
    num_targets = np.bincount(users[is_target], minlength=dataset.num_users + 1)
    num_history = np.bincount(users[is_history], minlength=dataset.num_users + 1)
    kept = (num_targets > 0) & (num_history > 0)
    if not kept.any():
        raise UserError(
            f"no user has both a history and an event in the {split} split, so there is nothing to "
            "evaluate. Prepare the dataset with another split or a lower --min_user_events."
        )
    is_history &= kept[users]
    is_target &= kept[users]
    targets = np.unique(_pairs(users[is_target], dataset.items[is_target], dataset.num_items))
    target_users, target_items = np.divmod(targets, dataset.num_items + 1)
    distinct = np.bincount(target_users, minlength=dataset.num_users + 1)
    # Events are in time order inside a user.
    last = np.flatnonzero(is_history)[np.cumsum(num_history[kept]) - 1]
    first = np.flatnonzero(is_target)[np.cumsum(num_targets[kept]) - num_targets[kept]]
    return Requests(
        users=np.flatnonzero(kept).astype(np.int32),
        history_items=np.asarray(dataset.items[is_history], np.int32),
        history_offsets=_offsets(num_history[kept]),
        target_items=target_items.astype(np.int32),
        target_offsets=_offsets(distinct[kept]),
        num_items=dataset.num_items,
        without_history=int(((num_targets > 0) & ~kept).sum()),
        later_histories=int((last > first).sum()),
    )


def requests_at(dataset: Dataset, events: np.ndarray) -> Requests:
    """Returns one request for each of some events: what its user did before it, and its item.

    For measuring along a log, where each event is asked for just before it happens: a history is
    all positive events before it, whatever their split, and a user may be asked for several times.

    Args:
      dataset: a prepared dataset.
      events: (N,) int positions in the dataset's arrays, ascending. The first event of a user has
        no history and is left out.
    """
    events = np.asarray(events, np.int64)
    assert np.all(np.diff(events) >= 0), "events ascend"
    positive = np.asarray(dataset.split) < NOT_POSITIVE
    before = np.concatenate([[0], np.cumsum(positive)])  # positive events before each event
    starts = before[dataset.offsets[np.asarray(dataset.users[events])]]
    asked = before[events] > starts
    starts, events = starts[asked], events[asked]
    lengths = before[events] - starts
    offsets = _offsets(lengths)
    index = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    return Requests(
        users=np.asarray(dataset.users[events], np.int32),
        history_items=np.asarray(dataset.items, np.int32)[positive][index],
        history_offsets=offsets,
        target_items=np.asarray(dataset.items[events], np.int32),
        target_offsets=np.arange(len(events) + 1, dtype=np.int64),
        num_items=dataset.num_items,
        without_history=int((~asked).sum()),
    )


def requests_for(histories: Sequence[np.ndarray], users: np.ndarray, num_items: int) -> Requests:
    """Returns requests without targets, for recommending rather than measuring.

    Args:
      histories: one non-empty array of item indices a user, oldest first.
      users: (U,) int user indices; 0 for a user that the dataset does not know.
      num_items: size of the catalogue.
    """
    counts = np.array([len(history) for history in histories])
    return Requests(
        users=np.asarray(users, np.int32),
        history_items=np.concatenate(histories).astype(np.int32),
        history_offsets=_offsets(counts),
        target_items=np.zeros(0, np.int32),
        target_offsets=np.zeros(len(counts) + 1, np.int64),
        num_items=num_items,
    )


def padded_width(longest: int, *, smallest: int, factor: int) -> int:
    """Returns the first of smallest, smallest * factor, ... that holds `longest` columns.

    Each width that a jitted function meets is a compilation; this keeps them few.
    """
    width = smallest
    while width < longest:
        width *= factor
    return width


def _pairs(rows: np.ndarray, items: np.ndarray, num_items: int) -> np.ndarray:
    return rows.astype(np.int64) * (num_items + 1) + items


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def match(requests: Requests, recommended: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compares recommendations with targets.

    Args:
      requests: U users with T targets in all.
      recommended: (U, K) int item indices, distinct inside a row but for 0, which is no item.

    Returns:
      hits: (U, K) bool; whether each recommendation is a target of its user.
      ranks: (T,) int32; the place of each target in its user's list, from 0, or K where absent.
    """
    num_places = recommended.shape[1]
    rows = np.arange(len(requests))
    targets = _pairs(
        np.repeat(rows, requests.num_targets), requests.target_items, requests.num_items
    )
    places = _pairs(rows[:, None], recommended, requests.num_items)
    found = np.minimum(np.searchsorted(targets, places), len(targets) - 1)
    hits = targets[found] == places
    ranks = np.full(len(targets), num_places, np.int32)
    ranks[found[hits]] = np.nonzero(hits)[1]
    return hits, ranks
