"""Baselines that any model should beat, fitted on the training events of a dataset."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxrec.data.dataset import TRAIN, Dataset
from jaxrec.evaluation.ranking import Evaluation, EvaluationConfig, evaluate
from jaxrec.evaluation.requests import Requests
from jaxrec.typing import UserError

_CELLS = 4_000_000  # candidates looked at together
_NANOSECONDS_PER_DAY = 86_400 * 10**9


class Popularity:
    """Recommends the items with the most training events; equal ones by index."""

    def __init__(self, dataset: Dataset) -> None:
        self._order = _by_count(dataset.item_counts, dataset.item_counts)

    def recommend(self, requests: Requests, k: int, *, mask_seen: bool) -> np.ndarray:
        """Returns (U, k) int32 item indices, best first, 0 where there is none."""
        return _first_unseen(self._order, requests, k, mask_seen)


class RecentPopularity:
    """Recommends the items with the most events near the end of training.

    Equal ones go by all their training events, then by index.

    Args:
      dataset: where events are counted.
      quantile: events after this quantile of the training times count, in [0, 1).
      days: instead of a quantile: this many days before the last training event count. For times
        in nanoseconds.

    Raises:
      UserError: for a quantile outside [0, 1), days not above 0, or no training events.
    """

    def __init__(
        self, dataset: Dataset, *, quantile: float = 0.9, days: float | None = None
    ) -> None:
        is_train = np.asarray(dataset.split) == TRAIN
        times, items = dataset.times[is_train], dataset.items[is_train]
        if not len(times):
            raise UserError("recent popularity needs training events, and the dataset has none.")
        if days is None:
            if not 0 <= quantile < 1:
                raise UserError(f"recent popularity wants a quantile in [0, 1); got {quantile}.")
            # A time that occurs in the log: floats cannot tell nanoseconds apart.
            start = np.quantile(times, quantile, method="lower")
        else:
            if days <= 0:
                raise UserError(f"recent popularity wants days above 0; got {days}.")
            start = times.max() - np.int64(days * _NANOSECONDS_PER_DAY)
        recent = np.bincount(items[times >= start], minlength=dataset.num_items + 1)
        self._order = _by_count(recent, dataset.item_counts)

    def recommend(self, requests: Requests, k: int, *, mask_seen: bool) -> np.ndarray:
        """Returns (U, k) int32 item indices, best first, 0 where there is none."""
        return _first_unseen(self._order, requests, k, mask_seen)


class ItemKNN:
    """Recommends the items nearest to those of the history, by cosine over their users.

    The score of an item is the sum of its similarities to the distinct items of the history. The
    similarity of items i and j is |users of both| / (sqrt(|users of i| |users of j|) + shrink),
    kept for the `neighbours` nearest items of each i. Items that are near to nothing in the history
    are not recommended. (Deshpande and Karypis, 2004, doi:10.1145/963770.963776)

    Args:
      dataset: whose training events are counted.
      neighbours: how many similar items are kept for each, from 1.
      shrink: from 0; a larger one trusts rarely seen items less.

    Raises:
      UserError: for neighbours below 1 or a negative shrink.
    """

    def __init__(self, dataset: Dataset, *, neighbours: int = 100, shrink: float = 0.0) -> None:
        if neighbours < 1 or shrink < 0:
            raise UserError(
                "item-kNN wants neighbours from 1 and shrink from 0; "
                f"got {neighbours} and {shrink}."
            )
        from scipy import sparse

        is_train = np.asarray(dataset.split) == TRAIN
        users, items = dataset.users[is_train], dataset.items[is_train]
        seen = _binary(users, items, (dataset.num_users + 1, dataset.num_items + 1))
        counts = np.asarray(seen.sum(axis=0)).ravel()
        by_item = seen.T.tocsr()
        # The work for an item is the number of events that its users have.
        work = by_item @ np.diff(seen.indptr).astype(np.float64)
        blocks = []
        for start, stop in _blocks(work):
            block = by_item[start:stop] @ seen
            rows = np.repeat(np.arange(start, stop), np.diff(block.indptr))
            norm = np.sqrt(counts[rows] * counts[block.indices]) + shrink
            block.data = np.where(rows == block.indices, 0.0, block.data / norm)
            blocks.append(_largest(block, neighbours))
        self._similar = sparse.vstack(blocks, format="csr")

    def recommend(self, requests: Requests, k: int, *, mask_seen: bool) -> np.ndarray:
        """Returns (U, k) int32 item indices, best first, 0 where there is none."""
        shape = (len(requests), requests.num_items + 1)
        rows = np.repeat(np.arange(len(requests)), requests.history_lengths)
        history = _binary(rows, requests.history_items, shape)
        work = history @ np.diff(self._similar.indptr).astype(np.float64)
        result = np.zeros((len(requests), k), np.int32)
        for start, stop in _blocks(work):
            mine = history[start:stop]
            scores = mine @ self._similar
            if mask_seen:
                # A score is at most the length of the history, so that this sinks below 0.
                scores = scores - mine * (mine.sum() + 1)
            best = _largest(scores, k)
            filled = np.arange(k) < np.diff(best.indptr)[:, None]
            result[start:stop][filled] = best.indices
        return result


def measure_baselines(
    dataset: Dataset, split: str, config: EvaluationConfig
) -> tuple[dict[str, Evaluation], list[str]]:
    """Measures popularity and item-kNN.

    Returns:
      What was measured by name, and a sentence for each that failed, as on a catalogue that does
      not fit in memory: a baseline takes no other result with it.
    """
    found, failed = {}, []
    for name, make in (("popularity", Popularity), ("item-kNN", ItemKNN)):
        try:
            found[name] = evaluate(make(dataset), dataset, split, config)
        except (MemoryError, ArithmeticError, ValueError, LookupError) as error:
            reason = (str(error).splitlines() or [""])[0]
            failed.append(f"{name} was not measured ({type(error).__name__}: {reason})")
    return found, failed


def _by_count(counts: np.ndarray, then: np.ndarray) -> np.ndarray:
    """Returns the items 1..N, largest count first; equal ones by `then`, then by index."""
    return (np.lexsort((-then[1:], -counts[1:])) + 1).astype(np.int32)


def _first_unseen(order: np.ndarray, requests: Requests, k: int, mask_seen: bool) -> np.ndarray:
    """Gives every user the first k items of one order that are not in the history."""
    result = np.zeros((len(requests), k), np.int32)
    if not mask_seen:
        result[:, : len(order)] = order[:k]
        return result
    place = np.zeros(len(order) + 1, np.int64)
    place[order] = np.arange(len(order))
    width = len(order) + k
    for start, stop in _blocks(requests.history_lengths + float(k)):
        rows, where = np.arange(stop - start), slice(*requests.history_offsets[[start, stop]])
        owner = np.repeat(rows, requests.history_lengths[start:stop])
        # Each item of a history once, by user and place.
        seen = np.unique(owner * width + place[requests.history_items[where]])
        user, at = np.divmod(seen, width)
        first = np.searchsorted(user, rows)
        # Unseen place r lies behind r others and the seen ones before it: those with at most r
        # unseen places before them. No rows are padded, however long one history is.
        unseen_before = at - (np.arange(len(seen)) - first[user])
        wanted = rows[:, None] * width + np.arange(k)
        behind = np.searchsorted(user * width + unseen_before, wanted, side="right")
        places = np.arange(k) + behind - first[:, None]
        there = places < len(order)
        result[start:stop] = np.where(there, order[places.clip(max=len(order) - 1)], 0)
    return result


def _blocks(work: np.ndarray) -> Iterator[tuple[int, int]]:
    """Cuts rows, each with its amount of work, into ranges of bounded work."""
    part = (np.cumsum(work) // _CELLS).astype(np.int64)
    cuts = np.flatnonzero(np.diff(part)) + 1
    bounds = [0, *cuts.tolist(), len(work)]
    return zip(bounds[:-1], bounds[1:], strict=True)


def _binary(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> Any:
    from scipy import sparse

    matrix = sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix


def _largest(matrix: Any, k: int) -> Any:
    """Keeps the k largest positive values of each row of a CSR array; equal ones by column.

    Values are compared as float32. The indices of the result are in that order, not ascending.
    """
    from scipy import sparse

    matrix.sort_indices()
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    positive = matrix.data > 0
    rows, columns, values = rows[positive], matrix.indices[positive], matrix.data[positive]
    # The bits of positive floats order as the floats do: one integer key instead of a slow lexsort.
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    key = (rows.astype(np.uint64) << np.uint64(32)) | ~bits
    order = np.argsort(key, kind="stable")
    starts = np.searchsorted(rows, np.arange(matrix.shape[0]))
    kept = np.arange(len(rows)) - starts[rows] < k
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows[kept], minlength=matrix.shape[0]))])
    order = order[kept]
    return sparse.csr_array((values[order], columns[order], offsets), shape=matrix.shape)
