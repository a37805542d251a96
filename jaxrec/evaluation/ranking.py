"""Ranking against the whole catalogue: from recommendations to metrics with intervals."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from jaxrec import metrics
from jaxrec.data.dataset import Dataset
from jaxrec.evaluation.blind_spots import BlindSpots, blind_spots
from jaxrec.evaluation.breakdown import Group, by_history_length, by_target_popularity
from jaxrec.evaluation.ratings import RATING_ERRORS, PredictRatings, rating_errors
from jaxrec.evaluation.requests import Requests, match, requests_of
from jaxrec.typing import UserError

ACCURACY: Mapping[str, Callable[..., Any]] = {
    "ndcg": metrics.ndcg,
    "recall": metrics.recall,
    "hit": metrics.hit_rate,
    "mrr": metrics.mrr,
    "map": metrics.average_precision,
    "precision": metrics.precision,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How a recommender is measured.

    Attributes:
      ks: cut-offs; each metric is reported at each.
      mask_seen: items of a user's history are not recommended. A target that was seen before then
        cannot be found, and counts as a miss.
      batch_size: users scored at a time.
      item_chunk: items scored at a time.
      monitor: the metric whose values by user are kept; what early stopping looks at. For the
        task of a head it is HEAD/METRIC, such as "click/auc", and has no values by user.
      bootstrap_samples: draws for the 95% intervals; 0 leaves the intervals out.
      seed: of those draws.
      rmse: whether errors of predicted ratings are reported as well.

    Raises:
      UserError: for a size below 1 or a monitor that is not among the metrics.
    """

    ks: tuple[int, ...] = (10, 20)
    mask_seen: bool = True
    batch_size: int = 512
    item_chunk: int = 16_384
    monitor: str = "ndcg@10"
    bootstrap_samples: int = 1000
    seed: int = 0
    rmse: bool = False

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1:
            raise UserError(f"evaluation.ks wants one or more cut-offs from 1; got {self.ks}.")
        if self.batch_size < 1 or self.item_chunk < 1 or self.bootstrap_samples < 0:
            raise UserError(
                "evaluation wants batch_size and item_chunk from 1 and bootstrap_samples from 0; "
                f"got {self.batch_size}, {self.item_chunk} and {self.bootstrap_samples}."
            )
        names = [f"{name}@{k}" for k in self.ks for name in ACCURACY]
        if "/" not in self.monitor and self.monitor not in [
            *names,
            *(RATING_ERRORS if self.rmse else ()),
        ]:
            raise UserError(
                f"evaluation.monitor={self.monitor!r} is not measured with evaluation.ks="
                f"{self.ks}. Use one of {', '.join(names)}, or add its cut-off to evaluation.ks."
            )

    def without_ratings(self) -> "EvaluationConfig":
        """Returns the config for a recommender that ranks and predicts no ratings."""
        monitor = self.monitor if "@" in self.monitor else f"ndcg@{self.ks[0]}"
        return dataclasses.replace(self, rmse=False, monitor=monitor)


class Recommender(Protocol):
    """Anything that recommends: a model, a baseline, a file of lists made elsewhere."""

    def recommend(self, requests: Requests, k: int, *, mask_seen: bool) -> np.ndarray:
        """Returns (U, k) int32 item indices, best first, 0 where there is none.

        Args:
          requests: U users; only their histories may be looked at.
          k: number of items, from 1.
          mask_seen: whether items of a user's history must not be recommended.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured.

    Attributes:
      split: "valid" or "test".
      metrics: such as {"ndcg@10": 0.06}; see `jaxrec.metrics` for each.
      intervals: the 95% bootstrap interval over users of the accuracy metrics.
      blind_spots: what the figures do not tell: users left out, targets that no list can hold.
      seconds: wall time, compilation included.
      per_user: (num_users,) float64 values of the monitored metric; empty for what is not ranking.
      by_popularity: recall at the largest k by how popular the target is.
      by_history: recall at the largest k by how long the user's history is.
      k: that largest k.
    """

    split: str
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    blind_spots: BlindSpots
    seconds: float
    per_user: np.ndarray
    by_popularity: tuple[Group, ...]
    by_history: tuple[Group, ...]
    k: int

    @property
    def num_users(self) -> int:
        """Users measured."""
        return self.blind_spots.num_users

    def must_be_zero(self, metric: str) -> bool:
        """Whether a metric says nothing, as nothing that it looks for can be found."""
        return "@" in metric and self.blind_spots.nothing_to_find


def evaluate(
    recommender: Recommender,
    dataset: Dataset,
    split: str,
    config: EvaluationConfig | None = None,
    *,
    predict_ratings: PredictRatings | None = None,
    known_items: np.ndarray | None = None,
) -> Evaluation:
    """Measures a recommender on the "valid" or "test" split of a dataset.

    Args:
      recommender: what is measured.
      dataset: a prepared dataset.
      split: "valid" or "test".
      config: how.
      predict_ratings: maps (B,) int32 users and (B,) int32 items to (B,) predicted labels; needed
        when config.rmse is set.
      known_items: (num_items + 1,) bool, the items that the recommender puts into lists; None means
        all. For `Evaluation.blind_spots`.

    Raises:
      UserError: when nothing can be evaluated, or the recommendations are not of the form that
        `Recommender.recommend` states.
    """
    config = config or EvaluationConfig()
    start = time.perf_counter()
    requests = requests_of(dataset, split)
    largest = max(config.ks)
    recommended = _recommended(recommender, requests, config)
    hits, ranks = match(requests, recommended)
    per_user = _accuracy(hits, requests.num_targets, config.ks)
    values = {name: float(value.mean()) for name, value in per_user.items()}
    values |= _catalogue(recommended, dataset.item_counts, config.ks)
    if config.rmse:
        values |= _rating_errors(predict_ratings, dataset, split, config.batch_size)
    return Evaluation(
        split=split,
        metrics=values,
        intervals=_intervals(per_user, config),
        blind_spots=blind_spots(
            requests,
            dataset,
            mask_seen=config.mask_seen,
            recommended=recommended,
            known_items=known_items,
        ),
        seconds=time.perf_counter() - start,
        per_user=per_user.get(config.monitor, np.zeros(0)),
        by_popularity=by_target_popularity(ranks < largest, requests, dataset.item_counts),
        by_history=by_history_length(per_user[f"recall@{largest}"], requests),
        k=largest,
    )


def accuracy(
    recommender: Recommender, requests: Requests, config: EvaluationConfig | None = None
) -> dict[str, np.ndarray]:
    """Measures a recommender on requests of any kind, such as those of `requests_at`.

    Args:
      recommender: what is measured.
      requests: U of them, with targets.
      config: how; of it, `ks` and `mask_seen` matter here.

    Returns:
      (U,) float64 values of each metric at each cut-off, such as {"ndcg@10": ...}.

    Raises:
      UserError: as `evaluate`, for recommendations that are not of the form they should have.
    """
    config = config or EvaluationConfig()
    hits, _ = match(requests, _recommended(recommender, requests, config))
    return _accuracy(hits, requests.num_targets, config.ks)


def _recommended(
    recommender: Recommender, requests: Requests, config: EvaluationConfig
) -> np.ndarray:
    """Returns (U, largest k) recommendations, checked."""
    k = max(config.ks)
    recommended = np.asarray(recommender.recommend(requests, k, mask_seen=config.mask_seen))
    if recommended.shape != (len(requests), k) or recommended.dtype.kind not in "iu":
        raise UserError(
            f"a recommender must return integers of shape ({len(requests)}, {k}); it returned "
            f"{recommended.dtype} of shape {recommended.shape}."
        )
    low, high = int(recommended.min()), int(recommended.max())
    if low < 0 or high > requests.num_items:
        raise UserError(
            f"a recommender must return item indices from 0 to {requests.num_items}; it returned "
            f"indices from {low} to {high}."
        )
    in_order = np.sort(recommended, axis=1)
    repeats = (in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] > 0)
    if repeats.any():
        row, column = np.argwhere(repeats)[0]
        raise UserError(
            f"a recommender must not repeat an item in a list; user {requests.users[row]} got item "
            f"{in_order[row, column]} twice."
        )
    return recommended


def _accuracy(
    hits: np.ndarray, num_targets: np.ndarray, ks: tuple[int, ...]
) -> dict[str, np.ndarray]:
    return {
        f"{name}@{k}": np.asarray(metric(hits, num_targets, k), np.float64)
        for k in ks
        for name, metric in ACCURACY.items()
    }


def _catalogue(
    recommended: np.ndarray, item_counts: np.ndarray, ks: tuple[int, ...]
) -> dict[str, float]:
    num_items = len(item_counts) - 1
    values = {}
    for k in ks:
        shown = recommended[:, :k]
        values[f"coverage@{k}"] = metrics.coverage(shown, num_items)
        values[f"average_popularity@{k}"] = metrics.average_popularity(shown, item_counts)
        values[f"gini@{k}"] = metrics.gini(shown, num_items)
        values[f"novelty@{k}"] = metrics.novelty(shown, item_counts)
    return {name: float(value) for name, value in values.items()}


def _intervals(
    per_user: dict[str, np.ndarray], config: EvaluationConfig
) -> dict[str, tuple[float, float]]:
    if not config.bootstrap_samples:
        return {}
    table = np.stack(list(per_user.values()), axis=1)
    low, high = metrics.bootstrap_interval(table, config.seed, config.bootstrap_samples)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(per_user)}


def _rating_errors(
    predict_ratings: PredictRatings | None, dataset: Dataset, split: str, batch_size: int
) -> dict[str, float]:
    if predict_ratings is None:
        raise UserError(
            "evaluation.rmse is set, but this model does not predict ratings. "
            "Use --config.evaluation.rmse=false or a model trained on labels."
        )
    return rating_errors(predict_ratings, dataset, split, batch_size)
