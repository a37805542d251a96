"""For whom, and for which items, a recommender works: recall by group."""

import dataclasses

import numpy as np

from jaxrec.evaluation.requests import Requests

_LENGTHS = (1, 3, 5, 10, 20, 50, 100)  # the shortest history of each bucket


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Recall in one group.

    Attributes:
      name: such as "5–9" events.
      count: users or targets in the group.
      recall: in [0, 1]; 0 for an empty group.
    """

    name: str
    count: int
    recall: float


def by_target_popularity(
    found: np.ndarray, requests: Requests, item_counts: np.ndarray
) -> tuple[Group, ...]:
    """The share of targets that were found, by tenths of the catalogue in order of popularity.

    Args:
      found: (T,) bool; whether each of `requests.target_items` was recommended to its user.
      requests: what was asked.
      item_counts: (num_items + 1,) training events of each item.

    Returns:
      Ten groups, the least popular tenth of the items first. Equally popular items go by index.
    """
    num_items = len(item_counts) - 1
    rank = np.empty(num_items, np.int64)
    rank[np.argsort(item_counts[1:], kind="stable")] = np.arange(num_items)
    tenth = rank[requests.target_items - 1] * 10 // num_items
    return _groups(tenth, found, [str(i + 1) for i in range(10)])


def by_history_length(recall: np.ndarray, requests: Requests) -> tuple[Group, ...]:
    """Mean recall of users by the number of events in their history.

    Args:
      recall: (U,) floats.
      requests: what was asked.

    Returns:
      One group for each of 1-2, 3-4, 5-9, 10-19, 20-49, 50-99 and 100 or more events.
    """
    bucket = np.searchsorted(_LENGTHS, requests.history_lengths, side="right") - 1
    ends = [f"{low}–{high - 1}" for low, high in zip(_LENGTHS, _LENGTHS[1:], strict=False)]
    return _groups(bucket, recall, [*ends, f"{_LENGTHS[-1]}+"])


def _groups(index: np.ndarray, values: np.ndarray, names: list[str]) -> tuple[Group, ...]:
    counts = np.bincount(index, minlength=len(names))
    totals = np.bincount(index, weights=values, minlength=len(names))
    means = totals / np.maximum(counts, 1)
    return tuple(
        Group(name=name, count=int(count), recall=float(value))
        for name, count, value in zip(names, counts, means, strict=True)
    )
