"""Losses as pure functions of scores: one value for each example; the caller masks and averages."""

from jaxrec.losses.distillation import relational_distance, soft_labels
from jaxrec.losses.pairwise import bce, bpr, gbce, gbce_beta, squared_error
from jaxrec.losses.reduce import masked_mean
from jaxrec.losses.softmax import in_batch_softmax, sampled_softmax, softmax_cross_entropy

__all__ = [
    "bce",
    "bpr",
    "gbce",
    "gbce_beta",
    "in_batch_softmax",
    "masked_mean",
    "relational_distance",
    "sampled_softmax",
    "soft_labels",
    "softmax_cross_entropy",
    "squared_error",
]
