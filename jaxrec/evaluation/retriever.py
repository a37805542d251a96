"""Retrievers, whose scores are dot products, as recommenders."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrec.evaluation.ranking import EvaluationConfig
from jaxrec.evaluation.requests import Requests, padded_width
from jaxrec.ops.topk import top_k_dot
from jaxrec.sharding import mesh_of
from jaxrec.typing import Array, Batch

_IN_FLIGHT = 2  # batches sent to the device before the results of the first are fetched


@dataclasses.dataclass(frozen=True)
class RetrieverRecommender:
    """Ranks the whole catalogue on the device by dot product with the user's vector.

    Attributes:
      user_vectors: maps a batch to (B, D) vectors; jitted, with the parameters inside.
      item_vectors: gives the (N, D) vectors of all items; row i is item i, and rows beyond the last
        item are padding. They may be split over the `model` axis of a mesh.
      make_batch: maps requests and (B,) int64 rows of them to a batch of static shapes. B is always
        `config.batch_size`: the last batch is filled up by repeating a row.
      config: sizes.
    """

    user_vectors: Callable[[Batch], Array]
    item_vectors: Callable[[], Array]
    make_batch: Callable[[Requests, np.ndarray], Batch]
    config: EvaluationConfig

    def recommend(self, requests: Requests, k: int, *, mask_seen: bool) -> np.ndarray:
        """Returns (U, k) int32 item indices, best first, 0 where there is none."""
        items = jnp.asarray(self.item_vectors())
        mesh, chunk = mesh_of(items), self.config.item_chunk
        result = np.zeros((len(requests), k), np.int32)
        pending: collections.deque[tuple[np.ndarray, jax.Array]] = collections.deque()
        for rows, seen in _batches(requests, self.config.batch_size, mask_seen):
            users = jnp.asarray(self.user_vectors(self.make_batch(requests, rows)))
            if mesh is None:
                _, ids = top_k_dot(users, items, k, exclude=seen, chunk=chunk)
            else:
                ids = _top_k_on_mesh(mesh, k, chunk, requests.num_items)(users, items, seen)
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


@functools.lru_cache(maxsize=16)
def _top_k_on_mesh(mesh: Mesh, k: int, chunk: int, num_items: int) -> Callable[..., jax.Array]:
    """Returns (users, items, seen) to (B, k) item indices, the work split over the devices.

    Users are split over `data`. Where items are split over `model`, each device finds the best of
    its own, and the best of those are the best of all: earlier blocks come first, so that ties go
    to the lower index as on one device.
    """

    def best(users: jax.Array, items: jax.Array, seen: jax.Array, split: bool) -> jax.Array:
        first = lax.axis_index("model") * items.shape[0] if split else jnp.int32(0)
        scores, ids = top_k_dot(users, items, k, exclude=seen, chunk=chunk, first=first)
        if split:
            scores, ids = (lax.all_gather(x, "model", axis=1, tiled=True) for x in (scores, ids))
            scores, order = lax.top_k(scores, k)
            ids = jnp.take_along_axis(ids, order, axis=1)
        return ids

    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec()))
    def run(users: jax.Array, items: jax.Array, seen: jax.Array | None) -> jax.Array:
        batch, split = users.shape[0], items.shape[0] % mesh.shape["model"] == 0
        padding = jnp.arange(num_items + 1, items.shape[0], dtype=jnp.int32)
        padding = jnp.broadcast_to(padding, (batch, len(padding)))
        seen = padding if seen is None else jnp.concatenate([seen, padding], axis=1)
        rows = PartitionSpec("data" if batch % mesh.shape["data"] == 0 else None)
        return jax.shard_map(
            functools.partial(best, split=split),
            mesh=mesh,
            in_specs=(rows, PartitionSpec("model" if split else None), rows),
            out_specs=rows,
            check_vma=False,  # equal on the devices of a group, which is not derived
        )(users, items, seen)

    return run


def _fetch(result: np.ndarray, rows: np.ndarray, ids: jax.Array) -> None:
    result[rows] = np.asarray(ids)
