"""How far requests and answers are from training: two measures, and a watch on requests.

A snapshot of the training data lies in the artefact: for each feature, quantiles as edges of bins,
the share of training in each bin, and a sorted sample.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxrec.serving.window import Window

_SMALLEST_SHARE = 1e-4
_TERMS = 100


def psi(expected: np.ndarray, observed: np.ndarray) -> float:
    """Returns the population stability index, sum((o - e) log(o / e)), of two sets of shares.

    By custom, less than 0.1 is no change and more than 0.2 is one to look into. Without any
    change, n observations in b bins give about (b - 1) / n. Shares below 1e-4 count as 1e-4, so
    that an empty bin is a large finite change.

    Args:
      expected: (b,) shares in training, at least 0, of sum 1.
      observed: (b,) shares in requests.
    """
    e = np.maximum(expected, _SMALLEST_SHARE)
    o = np.maximum(observed, _SMALLEST_SHARE)
    return float(((o - e) * np.log(o / e)).sum())


def ks(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Compares two samples by Kolmogorov and Smirnov.

    Args:
      first: (n,) sorted values.
      second: (m,) sorted values.

    Returns:
      The largest distance between their distribution functions, 0 to 1, and the probability of
      one at least as large if both came from one distribution: by Kolmogorov's limit for many
      values, which is too high for few values and for values with ties. (0, 1) if one is empty.
    """
    if not len(first) or not len(second):
        return 0.0, 1.0
    values = np.concatenate([first, second])
    below_first = np.searchsorted(first, values, side="right") / len(first)
    below_second = np.searchsorted(second, values, side="right") / len(second)
    statistic = float(np.abs(below_first - below_second).max())
    effective = len(first) * len(second) / (len(first) + len(second))
    return statistic, _kolmogorov(statistic * math.sqrt(effective))


def _kolmogorov(x: float) -> float:
    """Returns the chance that Kolmogorov's distribution exceeds x, which is at least 0."""
    if x < 0.05:
        return 1.0
    if x < 1:  # of the two series for it, this one converges fast below 1 and the other above
        odd = np.arange(1, _TERMS, 2)
        below = np.exp(-((odd * math.pi) ** 2) / (8 * x * x)).sum() * math.sqrt(2 * math.pi) / x
        return float(1 - below)
    n = np.arange(1, _TERMS)
    return float(2 * np.sum(-((-1.0) ** n) * np.exp(-2 * (n * x) ** 2)))


class Drift:
    """Compares the newest requests with the training snapshot, feature by feature."""

    def __init__(self, snapshot: Mapping[str, Any], window: int = 10_000) -> None:
        """Begins with no requests.

        Args:
          snapshot: features by name, which have `edges`, ascending, between bins (a value at an
            edge is in the bin before it); `shares` of training in the bins, one more than edges;
            and a sorted `sample`.
          window: how many of the newest values of each feature are compared.
        """
        self._training = {name: _Training.of(told) for name, told in snapshot.items()}
        self._windows = {name: Window(window, np.float64) for name in snapshot}

    @property
    def features(self) -> Sequence[str]:
        return tuple(self._windows)

    def observe(self, feature: str, value: float) -> None:
        """Adds a value of a request; takes less than a microsecond."""
        self._windows[feature].add(value)

    def report(self) -> dict[str, dict[str, float]]:
        """Returns for each feature "psi", "ks", "p", and "count", the number of values compared.

        A feature of which nothing was observed has 0, 0, 1 and 0. Takes milliseconds.
        """
        return {
            name: self._training[name].compare(window.values())
            for name, window in self._windows.items()
        }


@dataclasses.dataclass(frozen=True)
class _Training:
    """What training looked like in one feature: bins between `edges` (b - 1,), shares (b,)."""

    edges: np.ndarray
    shares: np.ndarray
    sample: np.ndarray

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "_Training":
        edges, shares, sample = (
            np.asarray(told[field], np.float64) for field in ("edges", "shares", "sample")
        )
        assert len(edges) == len(shares) - 1, "a snapshot has one share more than edges"
        return cls(edges, shares, np.sort(sample))

    def compare(self, values: np.ndarray) -> dict[str, float]:
        if not len(values):
            return {"psi": 0.0, "ks": 0.0, "p": 1.0, "count": 0}
        bins = np.searchsorted(self.edges, values, side="left")
        observed = np.bincount(bins, minlength=len(self.shares)) / len(values)
        statistic, p = ks(self.sample, np.sort(values))
        return {
            "psi": psi(self.shares, observed),
            "ks": statistic,
            "p": p,
            "count": len(values),
        }
