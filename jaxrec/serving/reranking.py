"""Choosing from candidates one by one: caps, and maximal marginal relevance.

Carbonell and Goldstein, "The use of MMR, diversity-based reranking for reordering documents and
producing summaries" (1998).
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limit:
    """At most so many of each value.

    Attributes:
      most: how many.
      values: the values of each candidate, each of which counts.
      already: values that are in the list beforehand.
    """

    most: int
    values: Sequence[Sequence[int]]
    already: Sequence[int] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variety:
    """How much candidates should differ from those before them.

    Attributes:
      relevance: weight of the score, from 0 to 1; likeness has the rest.
      vectors: (n, dim) unit rows, the candidates'.
      already: (m, dim) unit rows of what is in the list beforehand.
    """

    relevance: float
    vectors: np.ndarray
    already: np.ndarray


@dataclasses.dataclass(frozen=True, slots=True)
class Chosen:
    """A candidate.

    Attributes:
      index: which it is.
      over_limits: the limits because of which a better candidate was left out.
      for_variety: whether it was preferred to a better candidate that is more like the others.
    """

    index: int
    over_limits: tuple[int, ...] = ()
    for_variety: bool = False


def choose(
    scores: np.ndarray, count: int, limits: Sequence[Limit] = (), variety: Variety | None = None
) -> list[Chosen]:
    """Chooses candidates one by one, each time the best that the limits leave.

    Without variety the best has the highest score. With it, it is the one with the highest
        relevance * s - (1 - relevance) * l,
    where s is the score, brought to 0 for the lowest and 1 for the highest candidate (scores have
    any scale, and cosines have one), and l the cosine with the most alike that is in the list;
    while the list is empty l is 0.

    Args:
      scores: (n,) finite, highest first; of equals the first is chosen.
      count: how many to choose; fewer are, when the limits leave no more.
      limits: hold all together.
      variety: see above.
    """
    if not limits and variety is None:
        return [Chosen(index) for index in range(min(count, len(scores)))]
    worth = scores.astype(np.float64)
    if variety is not None:
        spread = worth - worth.min(initial=np.inf)
        worth = variety.relevance * spread / max(spread.max(initial=0), np.finfo(float).tiny)
    gates = [_Gate(limit, worth) for limit in limits]
    nearest = None
    if variety is not None and len(variety.already):
        nearest = (variety.vectors @ variety.already.T).max(axis=1)
    chosen: list[Chosen] = []
    first = 0  # the best of those that are left
    for _ in range(min(count, len(worth))):
        value = worth
        if variety is not None and nearest is not None:
            value = worth - (1 - variety.relevance) * nearest
        index = int(np.argmax(value))
        if worth[index] == -np.inf:
            break
        while worth[first] == -np.inf:
            first += 1
        over = tuple(n for n, gate in enumerate(gates) if gate.first_closed < index)
        chosen.append(Chosen(index, over, for_variety=first < index))
        worth[index] = -np.inf
        for gate in gates:
            gate.take(index)
        if variety is not None:
            likeness = variety.vectors @ variety.vectors[index]
            nearest = likeness if nearest is None else np.maximum(nearest, likeness)
    return chosen


class _Gate:
    """Closes candidates, by making them worth nothing, when there is enough of one of their values.

    Attributes:
      first_closed: the best candidate that it closed.
    """

    def __init__(self, limit: Limit, worth: np.ndarray) -> None:
        self._limit, self._worth = limit, worth
        self._having: dict[int, list[int]] = defaultdict(list)
        for index, values in enumerate(limit.values):
            for value in values:
                self._having[value].append(index)
        self.first_closed = len(worth)
        self._counts = Counter(limit.already)
        for value, number in self._counts.items():
            if number >= limit.most:
                self._close(value)

    def take(self, index: int) -> None:
        for value in self._limit.values[index]:
            self._counts[value] += 1
            if self._counts[value] == self._limit.most:
                self._close(value)

    def _close(self, value: int) -> None:
        for index in self._having.get(value, ()):
            if self._worth[index] != -np.inf:
                self._worth[index] = -np.inf
                self.first_closed = min(self.first_closed, index)
