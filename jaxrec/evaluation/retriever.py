"""Retrievers, whose scores are dot products, as recommenders."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator

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

_CELLS = 2**23  # items of histories, padding included, that are on the device for one batch
_IN_FLIGHT = 2  # batches sent to the device before the results of the first are fetched


@dataclasses.dataclass(frozen=True)
class RetrieverRecommender:
    """Ranks the whole catalogue on the device by dot product with the user's vector.

    Attributes:
      user_vectors: maps a batch to (B, D) vectors; jitted, with the parameters inside.
      item_blocks: gives the vectors of all items, in order of their indices, in one or several
        (N, D) blocks; rows beyond the last item are padding. A block may be split over the `model`
        axis of a mesh.
      make_batch: maps requests and (B,) int64 rows of them to a batch of static shapes. B is always
        `config.batch_size`: the last batch is filled up by repeating a row.
      config: sizes.
      known_items: (num_items + 1,) bool, the items that the model has learned: others are in no
        list and in no history that it is shown. None means all.
      known_users: (num_users + 1,) bool, for models that know users by rows: others get no list.
        None is for models that know users by histories, which must hold a known item.
    """

    user_vectors: Callable[[Batch], Array]
    item_blocks: Callable[[], Iterable[Array]]
    make_batch: Callable[[Requests, np.ndarray], Batch]
    config: EvaluationConfig
    known_items: np.ndarray | None = None
    known_users: np.ndarray | None = None

    def recommend(self, requests: Requests, k: int, *, mask_seen: bool) -> np.ndarray:
        """Returns (U, k) int32 item indices, best first, 0 where there is none."""
        return self.rank(requests, k, mask_seen=mask_seen)[1]

    def rank(self, requests: Requests, k: int, *, mask_seen: bool) -> tuple[np.ndarray, np.ndarray]:
        """Returns (U, k) float32 scores, -inf where there is no item, and what `recommend` does."""
        best, first = None, 0
        shown = requests if self.known_items is None else requests.showing(self.known_items)
        for block in self.item_blocks():
            found = self._best_of_block(requests, shown, jnp.asarray(block), first, k, mask_seen)
            best, first = found if best is None else _merge(best, found), first + block.shape[0]
        assert best is not None, "a catalogue has at least one block"
        scores, ids = best
        unknown = shown.history_lengths == 0
        if self.known_users is not None:
            unknown = ~self.known_users[requests.users]
        scores[unknown], ids[unknown] = -np.inf, 0
        return scores, ids

    def _best_of_block(
        self,
        requests: Requests,
        shown: Requests,
        items: jax.Array,
        first: int,
        k: int,
        mask_seen: bool,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns (U, k) scores and item indices."""
        mesh, chunk, masked = mesh_of(items), self.config.item_chunk, {}
        if mesh is None:
            items = items[: requests.num_items + 1 - first]
        if self.known_items is not None:
            known = np.zeros((1, len(items)), bool)  # rows beyond the last item are padding
            mine = self.known_items[first : first + len(items)]
            known[0, : len(mine)] = mine
            masked["masks"] = jnp.asarray(known)
        scores = np.zeros((len(requests), k), np.float32)
        ids = np.zeros((len(requests), k), np.int32)
        pending: collections.deque[tuple[np.ndarray, tuple[jax.Array, jax.Array]]]
        pending = collections.deque()

        def fetch() -> None:
            rows, found = pending.popleft()
            scores[rows], ids[rows] = (np.asarray(x) for x in found)

        for rows, seen in _batches(requests, self.config.batch_size, mask_seen):
            whole = np.resize(rows, self.config.batch_size)  # of static shape, as promised
            users = jnp.asarray(self.user_vectors(self.make_batch(shown, whole)))[: len(rows)]
            if self.known_items is not None:
                masked["mask"] = jnp.zeros(len(rows), jnp.int32)
            if mesh is None:
                found = top_k_dot(users, items, k, exclude=seen, chunk=chunk, first=first, **masked)
            else:
                rank = _top_k_on_mesh(mesh, k, chunk, requests.num_items)
                found = rank(users, items, seen, masked.get("masks"))
            pending.append((rows, found))
            if len(pending) > _IN_FLIGHT:
                fetch()
        while pending:
            fetch()
        return scores, ids


def _merge(
    best: tuple[np.ndarray, np.ndarray], found: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the best of two lists a user; on ties the first list goes before."""
    k = best[0].shape[1]
    scores, ids = (np.concatenate(pair, axis=1) for pair in zip(best, found, strict=True))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)


def _batches(
    requests: Requests, batch_size: int, mask_seen: bool
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Gives rows of requests and, with `mask_seen`, what they saw, padded.

    Users with histories of like length share a batch, so that few rows are mostly padding. A batch
    has fewer rows where a history is so long that all of them would not fit.
    """
    order = np.argsort(requests.history_lengths, kind="stable")
    start = 0
    while start < len(order):
        size = batch_size
        while True:
            rows = order[start : start + size]
            longest = int(requests.history_lengths[rows].max())
            width = padded_width(longest, smallest=16, factor=4)
            if not mask_seen or size == 1 or size * width <= _CELLS:
                break
            size = -(-size // 2)
        start += len(rows)
        rows = np.concatenate([rows, np.repeat(rows[-1:], size - len(rows))])
        yield rows, requests.padded_seen(rows, width) if mask_seen else None


@functools.lru_cache(maxsize=16)
def _top_k_on_mesh(
    mesh: Mesh, k: int, chunk: int, num_items: int
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Returns (users, items, seen) to (B, k) scores and indices, the work split over the devices.

    Users are split over `data`. Where items are split over `model`, each device finds the best of
    its own, and the best of those are the best of all: earlier blocks come first, so that ties go
    to the lower index as on one device.
    """

    def best(
        users: jax.Array,
        items: jax.Array,
        seen: jax.Array,
        masks: jax.Array | None,
        split: bool,
    ) -> tuple[jax.Array, jax.Array]:
        first = lax.axis_index("model") * items.shape[0] if split else jnp.int32(0)
        mask = None if masks is None else jnp.zeros(len(users), jnp.int32)
        options = {"exclude": seen, "masks": masks, "mask": mask, "chunk": chunk}
        scores, ids = top_k_dot(users, items, k, first=first, **options)
        if split:
            scores, ids = (lax.all_gather(x, "model", axis=1, tiled=True) for x in (scores, ids))
            scores, order = lax.top_k(scores, k)
            ids = jnp.take_along_axis(ids, order, axis=1)
        return scores, ids

    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec()))
    def run(
        users: jax.Array, items: jax.Array, seen: jax.Array | None, masks: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        batch, split = users.shape[0], items.shape[0] % mesh.shape["model"] == 0
        padding = jnp.arange(num_items + 1, items.shape[0], dtype=jnp.int32)
        padding = jnp.broadcast_to(padding, (batch, len(padding)))
        seen = padding if seen is None else jnp.concatenate([seen, padding], axis=1)
        rows = PartitionSpec("data" if batch % mesh.shape["data"] == 0 else None)
        return jax.shard_map(
            functools.partial(best, split=split),
            mesh=mesh,
            in_specs=(
                rows,
                PartitionSpec("model" if split else None),
                rows,
                PartitionSpec(None, "model" if split else None),
            ),
            out_specs=rows,
            check_vma=False,  # equal on the devices of a group, which is not derived
        )(users, items, seen, masks)

    return run
