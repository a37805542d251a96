"""Retrievers, whose scores are dot products, as recommenders."""

import collections
import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.evaluation.ranking import EvaluationConfig
from jaxrec.evaluation.requests import Requests, padded_width
from jaxrec.ops.topk import top_k_dot
from jaxrec.typing import Array, Batch

_IN_FLIGHT = 2  # batches sent to the device before the results of the first are fetched


@dataclasses.dataclass(frozen=True)
class RetrieverRecommender:
    """Ranks the whole catalogue on the device by dot product with the user's vector.

    Attributes:
      user_vectors: maps a batch to (B, D) vectors; jitted, with the parameters inside.
      item_vectors: maps (N,) int32 item indices to (N, D) vectors; called once for all items.
      make_batch: maps requests and (B,) int64 rows of them to a batch of static shapes. B is always
        `config.batch_size`: the last batch is filled up by repeating a row.
      config: sizes.
    """

    user_vectors: Callable[[Batch], Array]
    item_vectors: Callable[[Array], Array]
    make_batch: Callable[[Requests, np.ndarray], Batch]
    config: EvaluationConfig

    def recommend(self, requests: Requests, k: int, *, mask_seen: bool) -> np.ndarray:
        """Returns (U, k) int32 item indices, best first, 0 where there is none."""
        items = jnp.asarray(self.item_vectors(jnp.arange(requests.num_items + 1, dtype=jnp.int32)))
        result = np.zeros((len(requests), k), np.int32)
        pending: collections.deque[tuple[np.ndarray, jax.Array]] = collections.deque()
        for rows, seen in _batches(requests, self.config.batch_size, mask_seen):
            users = jnp.asarray(self.user_vectors(self.make_batch(requests, rows)))
            _, ids = top_k_dot(users, items, k, exclude=seen, chunk=self.config.item_chunk)
            pending.append((rows, ids))
            if len(pending) > _IN_FLIGHT:
                _fetch(result, *pending.popleft())
        while pending:
            _fetch(result, *pending.popleft())
        return result


def _batches(
    requests: Requests, batch_size: int, mask_seen: bool
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    # Users with histories of like length share a batch, so that few rows are mostly padding.
    order = np.argsort(requests.history_lengths, kind="stable")
    short = -len(order) % batch_size
    order = np.concatenate([order, np.repeat(order[-1:], short)])
    for rows in order.reshape(-1, batch_size):
        longest = int(requests.history_lengths[rows].max())
        width = padded_width(longest, smallest=16, factor=4)
        yield rows, requests.padded_seen(rows, width) if mask_seen else None


def _fetch(result: np.ndarray, rows: np.ndarray, ids: jax.Array) -> None:
    result[rows] = np.asarray(ids)
