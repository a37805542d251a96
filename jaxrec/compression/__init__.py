"""Compression: the same recommender in fewer bytes."""

from jaxrec.compression.pruning import (
    magnitudes,
    prune,
    prune_and_train,
    prune_by_magnitude,
    start_from,
    taylor,
)
from jaxrec.compression.quantized import QuantizationAware, Quantized, num_bytes, quantize

__all__ = [
    "QuantizationAware",
    "Quantized",
    "magnitudes",
    "num_bytes",
    "prune",
    "prune_and_train",
    "prune_by_magnitude",
    "quantize",
    "start_from",
    "taylor",
]
