"""The types that cross every layer: batches and parameter trees."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

type Array = jax.Array | np.ndarray
type Params = dict[str, Any]  # a nested dict with string keys and arrays at its leaves


class UserError(ValueError):
    """A mistake in what the user gave: files, flags, configs. Scripts print it as one sentence."""


class Stopped(Exception):
    """Long work was asked to stop (SIGTERM) and did; what was done is saved."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch of static shapes; a pytree. A field that a model does not need is None.

    Index 0 is padding in every vocabulary. B is the batch size, L the number of positions in a row.

    Attributes:
      users: (B,) int32 user indices.
      history: (B, L) int32 item indices in time order, oldest first, aligned to the right.
      segments: (B, L) int32; which sequence of the row a position belongs to, 0 at padding. None
        means that each row holds one sequence.
      positives: (B,) or (B, L) int32 item indices to predict: the item after the row, or the item
        after each position.
      negatives: int32 item indices that were not chosen: (N,) shared, or positives.shape + (N,).
      candidates: positives.shape + (K,) int32 item indices that are scored whether chosen or not,
        such as a teacher's best; 0 where there is none.
      where: positives.shape bool; False entries take no part in losses and metrics.
      labels: positives.shape float32 targets, such as ratings.
      is_positive: positives.shape bool; False where an event has a label to learn and is no
        positive: its item was not chosen. None means that all are.
      weights: positives.shape float32 weights of examples.
      features: further arrays by name.
    """

    users: Any = None
    history: Any = None
    segments: Any = None
    positives: Any = None
    negatives: Any = None
    candidates: Any = None
    where: Any = None
    labels: Any = None
    is_positive: Any = None
    weights: Any = None
    features: dict[str, Any] | None = None

    def replace(self, **changes: Any) -> "Batch":
        """Returns a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def map(self, fields: Iterable[str], function: Callable[[Any], Any]) -> "Batch":
        """Returns a copy with a function of each of these fields in its place; None stays."""
        present = {name: value for name in fields if (value := getattr(self, name)) is not None}
        return self.replace(**{name: function(value) for name, value in present.items()})
