"""Measuring recommenders: ranking against the whole catalogue, baselines, tables and reports."""

from jaxrec.evaluation.baselines import (
    ItemKNN,
    Popularity,
    RecentPopularity,
    measure_baselines,
)
from jaxrec.evaluation.blind_spots import BlindSpots
from jaxrec.evaluation.breakdown import Group
from jaxrec.evaluation.ranking import (
    Evaluation,
    EvaluationConfig,
    Recommender,
    accuracy,
    evaluate,
)
from jaxrec.evaluation.ratings import RATING_ERRORS, rating_errors
from jaxrec.evaluation.report import write_report
from jaxrec.evaluation.requests import (
    Requests,
    padded_width,
    requests_at,
    requests_for,
    requests_of,
)
from jaxrec.evaluation.retriever import RetrieverRecommender
from jaxrec.evaluation.table import main_metrics, metrics_table
from jaxrec.evaluation.tasks import task_metrics

__all__ = [
    "RATING_ERRORS",
    "BlindSpots",
    "Evaluation",
    "EvaluationConfig",
    "Group",
    "ItemKNN",
    "Popularity",
    "RecentPopularity",
    "Recommender",
    "Requests",
    "RetrieverRecommender",
    "accuracy",
    "evaluate",
    "main_metrics",
    "measure_baselines",
    "metrics_table",
    "rating_errors",
    "padded_width",
    "requests_at",
    "requests_for",
    "requests_of",
    "task_metrics",
    "write_report",
]
