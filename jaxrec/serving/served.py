"""What one model gives out: how much of the catalogue, how popular, and how far it drifted."""

import threading

import numpy as np

from jaxrec.serving.drift import Drift
from jaxrec.serving.window import Window

POPULARITY_BUCKETS = (0, 1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
WINDOW = 100_000
TOP = 10
_MOST_PENDING = 256


class Served:
    """Collects what a model recommends, for the metrics; cheap enough for each request.

    Attributes:
      name: what the model is called.
      fingerprint: its artefact's.
      drift: how far requests and answers are from training.
    """

    def __init__(
        self,
        *,
        name: str,
        fingerprint: str,
        popularity: np.ndarray,
        drift: Drift,
    ) -> None:
        """Begins with nothing.

        Args:
          name: what the model is called.
          fingerprint: its artefact's, in hexadecimal digits.
          popularity: (V,) training events of each item, with the padding row 0.
          drift: made from its artefact's snapshot.
        """
        self.name = name
        self.fingerprint = fingerprint
        self.drift = drift
        self._popularity = popularity.astype(np.int64)
        self._log_popularity = np.log1p(popularity)
        self._bucket = np.searchsorted(POPULARITY_BUCKETS, popularity)
        self._counts = np.zeros(len(POPULARITY_BUCKETS) + 1, np.int64)
        self._total = 0
        self._pending: list[np.ndarray] = []
        self._recent = Window(WINDOW, np.int32)
        self._lock = threading.RLock()

    @property
    def model(self) -> str:
        """The first 8 digits of the fingerprint, which name the model in labels."""
        return self.fingerprint[:8]

    @property
    def catalogue_items(self) -> int:
        return len(self._popularity) - 1

    def answered(
        self, *, history_length: int, unknown_share: float, items: np.ndarray, scores: np.ndarray
    ) -> None:
        """Observes a request and what the model itself made of it, before rules, for drift.

        Args:
          history_length: known items of the history, also those that the model does not read.
          unknown_share: share of the history's ids that the model does not know, 0 to 1.
          items: (n,) item indices, best first, without padding; n may be 0.
          scores: (n,) their scores.
        """
        observe = self.drift.observe
        observe("history_length", history_length)
        observe("unknown_share", unknown_share)
        count = min(TOP, len(items))
        if count:
            observe("top_score", scores[0])
            observe("mean_score", np.add.reduce(scores[:count]) / count)
            logs = self._log_popularity[items[:count]]
            observe("popularity", np.add.reduce(logs) / count)

    def gave(self, items: np.ndarray) -> None:
        """Counts the items (n,) of a list that goes to a client: indices, without padding."""
        with self._lock:
            self._pending.append(items)
            if len(self._pending) >= _MOST_PENDING:
                self._count()

    def distinct_items(self) -> int:
        """Returns how many different items are among the newest 100,000 given out."""
        self._count()
        return len(np.unique(self._recent.values()))

    def popularity(self) -> tuple[np.ndarray, int]:
        """Returns how many items given out are in each popularity bucket, and their summed events.

        The counts are one more than `POPULARITY_BUCKETS`: the last is of what is above all.
        """
        self._count()
        with self._lock:
            return self._counts.copy(), self._total

    def _count(self) -> None:
        """Counts the pending lists together, which takes a tenth of counting each by itself."""
        with self._lock:
            pending, self._pending = self._pending, []
            if not pending:
                return
            items = np.concatenate(pending)
            self._counts += np.bincount(self._bucket[items], minlength=len(self._counts))
            self._total += int(self._popularity[items].sum())
            self._recent.extend(items)
