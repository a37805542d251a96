"""Measuring recommenders: ranking against the whole catalogue, baselines, tables and reports."""

from jaxrec.evaluation.breakdown import Group
from jaxrec.evaluation.ranking import (
    Evaluation,
    EvaluationConfig,
    Recommender,
    evaluate_recommender,
)
from jaxrec.evaluation.ratings import rating_errors
from jaxrec.evaluation.requests import Requests, requests_of
from jaxrec.evaluation.retriever import RetrieverRecommender

__all__ = [
    "Evaluation",
    "EvaluationConfig",
    "Group",
    "Recommender",
    "Requests",
    "RetrieverRecommender",
    "evaluate_recommender",
    "rating_errors",
    "requests_of",
]
