"""Names for what the axes of parameters count, so that a width can be made smaller everywhere."""

from typing import Literal, NamedTuple, Protocol

import numpy as np


class Axis(NamedTuple):
    """What one axis of an array counts.

    Attributes:
      name: such as "dim"; axes of one name, in whatever arrays, lose the same units together.
      units: (size of the axis,) int; the unit that each position belongs to, -1 at positions that
        always stay. A fused kernel has a unit at several positions.
      kind: what becomes of the positions when there are to be fewer. "units" are chosen among.
        "directions" are coordinates of a space in which any basis serves as well, such as that of
        item vectors: they are mapped to fewer ones, and lie before positions that stay. "scales"
        multiply such coordinates, and are averaged.
    """

    name: str
    units: np.ndarray
    kind: Literal["units", "directions", "scales"] = "units"


type Axes = dict[str, tuple[Axis | None, ...]]


class Narrowable(Protocol):
    """A model config whose widths can be made smaller."""

    @property
    def axes(self) -> Axes:
        """By path of a parameter, the axes of its array; None for one that cannot be narrowed."""
        ...

    @property
    def widths(self) -> dict[str, tuple[str, ...]]:
        """By field of the config, the names of the axes that have so many units each.

        A field without names counts layers, of which the first ones stay.
        """
        ...

    def narrowed(self, **counts: int) -> "Narrowable":
        """Returns the config with other counts in some of these fields and all else as it is."""
        ...
