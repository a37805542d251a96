"""How well scores tell two classes apart."""

from typing import Any

from jaxrec.metrics.arrays import floats, namespace
from jaxrec.typing import Array


def auc(scores: Array, labels: Array) -> Any:
    """Area under the ROC curve: how often a positive is scored above a negative, ties half.

    Args:
      scores: (N,) floats.
      labels: (N,) bool, or 0 and 1.

    Returns:
      () float in [0, 1]; 0.5 when there is one class alone.
    """
    xp = namespace(scores, labels)
    scores, positive = xp.asarray(scores), xp.asarray(labels).astype(bool)
    ordered = xp.sort(scores)
    below = xp.searchsorted(ordered, scores, side="left")
    up_to = xp.searchsorted(ordered, scores, side="right")
    ranks = (floats(below) + floats(up_to) + 1) / 2
    num_positive = floats(xp.sum(positive))
    num_negative = scores.shape[0] - num_positive
    wins = xp.sum(xp.where(positive, ranks, 0.0)) - num_positive * (num_positive + 1) / 2
    pairs = num_positive * num_negative
    return xp.where(pairs > 0, wins / xp.where(pairs > 0, pairs, 1.0), 0.5)
