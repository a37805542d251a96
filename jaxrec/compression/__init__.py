"""Compression: the same recommender in fewer bytes."""

from jaxrec.compression.quantized import QuantizationAware, Quantized, num_bytes, quantize

__all__ = ["QuantizationAware", "Quantized", "num_bytes", "quantize"]
