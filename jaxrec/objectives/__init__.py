"""Objectives: what training minimises."""

from jaxrec.objectives.base import Negatives, Objective, Retriever
from jaxrec.objectives.retrieval import (
    BCE,
    BPR,
    FullSoftmax,
    InBatchSoftmax,
    SampledSoftmax,
    SquaredError,
)

__all__ = [
    "BCE",
    "BPR",
    "FullSoftmax",
    "InBatchSoftmax",
    "Negatives",
    "Objective",
    "Retriever",
    "SampledSoftmax",
    "SquaredError",
]
