"""Metrics as pure functions of NumPy or JAX arrays."""

from jaxrec.metrics.arrays import mean
from jaxrec.metrics.binary import auc
from jaxrec.metrics.bootstrap import bootstrap_interval
from jaxrec.metrics.catalogue import average_popularity, coverage, exposure, gini, novelty
from jaxrec.metrics.ranking import average_precision, hit_rate, mrr, ndcg, precision, recall
from jaxrec.metrics.ratings import mae, rmse

__all__ = [
    "auc",
    "average_popularity",
    "average_precision",
    "bootstrap_interval",
    "coverage",
    "exposure",
    "gini",
    "hit_rate",
    "mae",
    "mean",
    "mrr",
    "ndcg",
    "novelty",
    "precision",
    "recall",
    "rmse",
]
