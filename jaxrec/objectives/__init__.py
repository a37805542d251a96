"""Objectives: what training minimises."""

from jaxrec.objectives.base import ALONE, Negatives, Objective, Replica, Retriever
from jaxrec.objectives.retrieval import (
    BCE,
    BPR,
    FullSoftmax,
    InBatchSoftmax,
    SampledSoftmax,
    SquaredError,
)
from jaxrec.objectives.tasks import Category, Click, MultiTask, Rating

__all__ = [
    "ALONE",
    "BCE",
    "BPR",
    "Category",
    "Click",
    "FullSoftmax",
    "InBatchSoftmax",
    "MultiTask",
    "Negatives",
    "Objective",
    "Rating",
    "Replica",
    "Retriever",
    "SampledSoftmax",
    "SquaredError",
]
