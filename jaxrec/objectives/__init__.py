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

__all__ = [
    "ALONE",
    "BCE",
    "BPR",
    "FullSoftmax",
    "InBatchSoftmax",
    "Negatives",
    "Objective",
    "Replica",
    "Retriever",
    "SampledSoftmax",
    "SquaredError",
]
