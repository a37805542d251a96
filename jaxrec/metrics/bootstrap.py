"""Bootstrap confidence intervals of a mean over users."""

import numpy as np

_CELLS = 4_000_000  # weights held at a time


def bootstrap_interval(
    values: np.ndarray, seed: int, samples: int = 1000, level: float = 0.95
) -> np.ndarray:
    """Percentile interval of the mean of values over users who are drawn with replacement.

    Users with equal values are interchangeable, so that their number in a draw is one multinomial
    cell: with one target a user, a metric has as many cells as there are ranks, however many users
    there are. Metrics given together share their draws. (Efron, 1979, doi:10.1214/aos/1176344552)

    Args:
      values: (U,) or (U, M) floats, one row a user.
      seed: of the draws; the same seed gives the same interval.
      samples: number of draws.
      level: probability inside the interval, in (0, 1).

    Returns:
      (2,) or (2, M) float64: the lower and the upper end. 0 without users.
    """
    assert 0 < level < 1, level
    values = np.asarray(values, np.float64)
    if not len(values):
        return np.zeros((2, *values.shape[1:]))
    rows = values.reshape(len(values), -1)
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    random = np.random.default_rng(seed)
    step = max(1, _CELLS // len(counts))
    shares = counts / counts.sum()
    means = np.concatenate(
        [
            random.multinomial(len(rows), shares, size=min(step, samples - start)) @ distinct
            for start in range(0, samples, step)
        ]
    )
    tail = (1 - level) / 2
    ends = np.quantile(means / len(rows), [tail, 1 - tail], axis=0)
    return ends.reshape(2, *values.shape[1:])
