"""Negative samplers: item ids and the log of how likely each was to be drawn."""

from jaxrec.sampling.items import (
    cumulative_words,
    item_probabilities,
    sample_items,
    sample_uniform,
)

__all__ = ["cumulative_words", "item_probabilities", "sample_items", "sample_uniform"]
