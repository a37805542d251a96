"""Ranking metrics from lists of hits: one value in [0, 1] for each user.

All take the same arguments:

  hits: (..., K) bool, in rank order; whether the item at each rank is relevant. When K < k the
    missing ranks are misses.
  num_relevant: (...,) int; how many relevant items the user has, found or not.
  k: the cut-off, from 1.
  where: (...,) bool; users that count. The others get 0, and `metrics.mean(values, where=where)`
    leaves them out.

and return (...,) floats. A user without relevant items gets 0, not NaN. NumPy arrays give NumPy
float64, JAX arrays give JAX float32 and may be traced.
"""

from typing import Any

from jaxrec.metrics.arrays import floats, namespace
from jaxrec.typing import Array


def ndcg(hits: Array, num_relevant: Array, k: int, *, where: Array | None = None) -> Any:
    """Normalised discounted cumulative gain with binary relevance.

    The sum of 1 / log2(rank + 1) over hits, divided by its best value, which has hits at the first
    min(num_relevant, k) ranks. (Järvelin and Kekäläinen, 2002, doi:10.1145/582415.582418)
    """
    xp, hits, num_relevant = _prepare(hits, num_relevant, k)
    discount = 1 / xp.log2(_ranks(xp, k, hits.ndim) + 1)
    gain = xp.sum(xp.where(hits, discount[..., : hits.shape[-1]], 0.0), axis=-1)
    perfect = _ranks(xp, k, hits.ndim) <= floats(num_relevant)[..., None]
    ideal = xp.sum(xp.where(perfect, discount, 0.0), axis=-1)
    return _ratio(xp, gain, ideal, where)


def recall(hits: Array, num_relevant: Array, k: int, *, where: Array | None = None) -> Any:
    """The share of a user's relevant items among the first k."""
    xp, hits, num_relevant = _prepare(hits, num_relevant, k)
    return _ratio(xp, xp.sum(hits, axis=-1), num_relevant, where)


def hit_rate(hits: Array, num_relevant: Array, k: int, *, where: Array | None = None) -> Any:
    """1 for a user with any relevant item among the first k, otherwise 0."""
    xp, hits, num_relevant = _prepare(hits, num_relevant, k)
    return _ratio(xp, xp.any(hits, axis=-1), xp.ones_like(num_relevant), where, num_relevant > 0)


def precision(hits: Array, num_relevant: Array, k: int, *, where: Array | None = None) -> Any:
    """The share of relevant items among the first k; short lists are divided by k as well."""
    xp, hits, num_relevant = _prepare(hits, num_relevant, k)
    size = xp.full_like(num_relevant, k)
    return _ratio(xp, xp.sum(hits, axis=-1), size, where, num_relevant > 0)


def mrr(hits: Array, num_relevant: Array, k: int, *, where: Array | None = None) -> Any:
    """Reciprocal rank: 1 / rank of the first relevant item, 0 when none is among the first k."""
    xp, hits, num_relevant = _prepare(hits, num_relevant, k)
    first = hits & (xp.cumsum(hits, axis=-1) == 1)
    reciprocal = xp.where(first, 1.0 / _ranks(xp, hits.shape[-1], hits.ndim), 0.0)
    total = xp.sum(reciprocal, axis=-1)
    return _ratio(xp, total, xp.ones_like(num_relevant), where, num_relevant > 0)


def average_precision(
    hits: Array, num_relevant: Array, k: int, *, where: Array | None = None
) -> Any:
    """Average precision; its mean over users is MAP.

    The sum over hits of the precision at their rank, divided by min(num_relevant, k), so that a
    perfect list has 1.
    """
    xp, hits, num_relevant = _prepare(hits, num_relevant, k)
    at_rank = floats(xp.cumsum(hits, axis=-1)) / _ranks(xp, hits.shape[-1], hits.ndim)
    total = xp.sum(xp.where(hits, at_rank, 0.0), axis=-1)
    return _ratio(xp, total, xp.minimum(num_relevant, k), where)


def _ranks(xp: Any, size: int, ndim: int) -> Any:
    return floats(xp.arange(1, size + 1)).reshape((1,) * (ndim - 1) + (size,))


def _prepare(hits: Array, num_relevant: Array, k: int) -> tuple[Any, Any, Any]:
    assert k >= 1, k
    xp = namespace(hits, num_relevant)
    return xp, xp.asarray(hits)[..., :k].astype(bool), xp.asarray(num_relevant)


def _ratio(xp: Any, top: Any, bottom: Any, where: Array | None, defined: Any | None = None) -> Any:
    valid = bottom > 0 if defined is None else defined
    if where is not None:
        valid = valid & xp.asarray(where).astype(bool)
    return xp.where(valid, floats(top) / floats(xp.where(valid, bottom, 1)), 0.0)
