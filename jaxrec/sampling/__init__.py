"""Negative samplers: item ids and the log of how likely each was to be drawn."""

from jaxrec.sampling.items import log_probabilities, sample_items

__all__ = ["log_probabilities", "sample_items"]
