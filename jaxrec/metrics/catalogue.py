"""Metrics of what is recommended as a whole, whether it is right or not.

`recommended` is (U, K) int item indices, where 0 means that a place is empty and is ignored. With
no recommendation at all each metric is 0. `num_items` does not count padding; `item_counts` is
(num_items + 1,), the training events of each item, with entry 0 for padding.
"""

from typing import Any

import numpy as np

from jaxrec.metrics.arrays import floats, namespace
from jaxrec.typing import Array


def exposure(recommended: Array, num_items: int) -> Any:
    """How often each item is recommended: (num_items,) for items 1 to num_items."""
    xp = namespace(recommended)
    flat = xp.asarray(recommended).reshape(-1)
    length = {"minlength": num_items + 1} if xp is np else {"length": num_items + 1}
    return xp.bincount(flat, **length)[1:]


def coverage(recommended: Array, num_items: int) -> Any:
    """The share of the catalogue that is recommended to anyone, in [0, 1]."""
    shown = exposure(recommended, num_items) > 0
    return floats(shown.sum()) / max(num_items, 1)


def gini(recommended: Array, num_items: int) -> Any:
    """Gini index of how often items are recommended, over the whole catalogue.

    0 when all items are shown equally often; near 1, exactly 1 - 1 / num_items, when one item has
    every place.
    """
    xp = namespace(recommended)
    shown = xp.sort(floats(exposure(recommended, num_items)))
    rank = floats(xp.arange(1, num_items + 1))
    total = shown.sum()
    weighted = (shown * ((2 * rank - num_items - 1) / max(num_items, 1))).sum()
    return xp.where(total > 0, weighted / xp.maximum(total, 1.0), 0.0)


def average_popularity(recommended: Array, item_counts: Array) -> Any:
    """Mean number of training events of the recommended items (ARP, arXiv 1901.07555)."""
    return _mean_over_places(recommended, item_counts, namespace(recommended, item_counts))


def novelty(recommended: Array, item_counts: Array) -> Any:
    """Mean self-information in bits, -log2 p(item), of the recommended items.

    p is the item's share of training events; an item without any counts as having one.
    (Zhou et al., 2010, arXiv 0808.2670)
    """
    xp = namespace(recommended, item_counts)
    counts = floats(xp.asarray(item_counts))
    total = xp.maximum(counts[1:].sum(), 1.0)
    return _mean_over_places(recommended, -xp.log2(xp.maximum(counts, 1.0) / total), xp)


def _mean_over_places(recommended: Array, values: Array, xp: Any) -> Any:
    values = floats(xp.asarray(values))[1:]
    shown = floats(exposure(xp.asarray(recommended), values.shape[0]))
    return (shown * values).sum() / xp.maximum(shown.sum(), 1.0)
