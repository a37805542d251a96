"""Errors of predicted ratings on a split."""

from collections.abc import Callable

import numpy as np

from jaxrec import metrics
from jaxrec.data.dataset import SPLITS, Dataset, split_alone
from jaxrec.typing import Array, UserError

RATING_ERRORS = ("rmse", "mae")  # smaller is better

type PredictRatings = Callable[[np.ndarray, np.ndarray], Array]


def rating_errors(
    predict: PredictRatings, dataset: Dataset, split: str, batch_size: int = 8192
) -> dict[str, float]:
    """Root mean squared and mean absolute error over the events of a split, positive or not.

    Args:
      predict: maps (B,) int32 users and (B,) int32 items to (B,) predicted labels. B is always
        `batch_size`; the last batch is filled up with index 0.
      dataset: a dataset with labels.
      split: "train", "valid" or "test".
      batch_size: events at a time.

    Returns:
      {"rmse": ..., "mae": ...} in the unit of the labels.

    Raises:
      UserError: when the dataset has no labels or the split has no events.
    """
    if dataset.labels is None:
        raise UserError(
            "errors of ratings need labels, which this dataset does not have. "
            "Prepare it with --label_column=NAME."
        )
    events = np.flatnonzero(split_alone(dataset.split) == SPLITS[split])
    if not len(events):
        raise UserError(f"the {split} split has no events; prepare the dataset with another split.")
    size = -(-len(events) // batch_size) * batch_size
    users, items = np.zeros(size, np.int32), np.zeros(size, np.int32)
    users[: len(events)] = dataset.users[events]
    items[: len(events)] = dataset.items[events]
    batches = range(0, size, batch_size)
    predicted = [predict(users[i : i + batch_size], items[i : i + batch_size]) for i in batches]
    predictions = np.concatenate([np.asarray(p, np.float64) for p in predicted])[: len(events)]
    labels = np.asarray(dataset.labels[events], np.float64)
    return {
        "rmse": float(metrics.rmse(predictions, labels)),
        "mae": float(metrics.mae(predictions, labels)),
    }
