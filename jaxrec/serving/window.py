"""The newest numbers of a stream, in an array of fixed size."""

import threading

import numpy as np


class Window:
    """Keeps the newest `size` numbers; adding is cheap enough for each request.

    Threads may add and read at the same time.
    """

    def __init__(self, size: int, dtype: type[np.generic]) -> None:
        self._values = np.zeros(size, dtype)
        self._next = 0
        self._filled = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._filled

    def add(self, value: float) -> None:
        """Adds one number."""
        with self._lock:
            place = self._next
            self._values[place] = value
            self._next = place + 1 if place + 1 < len(self._values) else 0
            if self._filled < len(self._values):
                self._filled += 1

    def extend(self, values: np.ndarray) -> None:
        """Adds numbers (n,), of which the newest stay."""
        size = len(self._values)
        values = values[-size:]
        with self._lock:
            end = self._next + len(values)
            if end <= size:
                self._values[self._next : end] = values
            else:
                left = size - self._next
                self._values[self._next :] = values[:left]
                self._values[: end - size] = values[left:]
            self._next = end % size
            self._filled = min(size, self._filled + len(values))

    def values(self) -> np.ndarray:
        """Returns a copy of what is kept, in no order."""
        with self._lock:
            return self._values[: self._filled].copy()
