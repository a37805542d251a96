"""What a check found, and how it says that a property does not hold."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass
class Checked:
    """What was checked.

    Attributes:
      subject: what of, for errors.
      held: the properties that hold, in words.
      skipped: those that were not checked, and why.
    """

    subject: str
    held: list[str] = dataclasses.field(default_factory=list)
    skipped: list[str] = dataclasses.field(default_factory=list)

    def require(self, name: str, holds: Any, found: str = "") -> None:
        """Notes a property that holds; AssertionError names one that does not."""
        if not bool(np.all(holds)):
            raise AssertionError(f"{self.subject}: {name}: does not hold. {found}".rstrip())
        if name not in self.held:
            self.held.append(name)

    def require_equal(self, name: str, found: Any, wanted: Any, tolerance: float = 1e-4) -> None:
        """Requires two arrays to be equal, but for `tolerance` of the largest value."""
        one, other = (np.asarray(x, np.float32) for x in (found, wanted))
        same_shape = one.shape == other.shape
        self.require(name, same_shape, f"Shapes are {one.shape} and {other.shape}.")
        if not other.size:
            return
        gap = float(np.abs(one - other).max())
        size = max(float(np.abs(other).max()), 1e-6)
        self.require(name, gap <= tolerance * size, f"Values differ by {gap:.3g} of {size:.3g}.")

    def require_finite(self, name: str, tree: Any) -> None:
        """Requires every number of some arrays to be finite."""
        for array in tree:
            finite = np.isfinite(np.asarray(array, np.float32))
            self.require(name, finite, f"{int((~finite).sum())} numbers of {finite.size} are not.")
