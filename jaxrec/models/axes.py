"""Names for what the axes of parameters count, so that a width can be made smaller everywhere."""

from typing import NamedTuple, Protocol

import numpy as np


class Axis(NamedTuple):
    """What one axis of an array counts.

    Attributes:
      name: such as "dim"; axes of one name, in whatever arrays, lose the same units together.
      units: (size of the axis,) int; the unit that each position belongs to, -1 at positions that
        always stay. A fused kernel has a unit at several positions.
    """

    name: str
    units: np.ndarray


type Axes = dict[str, tuple[Axis | None, ...]]


class Narrowable(Protocol):
    """A model config whose widths can be made smaller."""

    @property
    def axes(self) -> Axes:
        """By path of a parameter, the axes of its array; None for one that cannot be narrowed."""
        ...

    @property
    def widths(self) -> dict[str, tuple[str, ...]]:
        """By field of the config, the names of the axes that have so many units each."""
        ...

    def narrowed(self, **counts: int) -> "Narrowable":
        """Returns the config with other counts in some of these fields and all else as it is."""
        ...
