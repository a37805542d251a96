"""Golden requests: what an artefact answered when it was made, and whether it still does.

golden.json holds `shown` (a batch of what the model is shown), `exclude`, the `items` and `scores`
that `recommend` gave, without the places where nothing was left, and a `tolerance`. Scores may be
off by the tolerance, times the score where that is above 1. Items may change places where their
scores are closer than that.
"""

from typing import Any

import numpy as np

from jaxrec.export.artefact import Artefact
from jaxrec.typing import UserError


def check_golden(artefact: Artefact) -> None:
    """Asks an artefact its golden requests; it answers as when it was made, or is refused.

    Raises:
      UserError: naming the request and the place with the worst difference.
    """
    golden = artefact.golden
    shown = {name: np.array(value, np.int32) for name, value in golden["shown"].items()}
    exclude = np.array(golden["exclude"], np.int32)
    found = (np.asarray(x) for x in artefact.recommend(**shown, exclude=exclude))
    worst, told = 1.0, ""
    for row, (items, scores) in enumerate(zip(*found, strict=True)):
        kept = items > 0
        wanted = np.array(golden["items"][row]), np.array(golden["scores"][row])
        place, off = _worst(wanted, (items[kept], scores[kept]), golden["tolerance"])
        if not off <= worst:  # NaN as well
            worst, told = off, _told(row, place, wanted, (items, scores))
    if told:
        raise UserError(
            f"{artefact.path} does not answer as it did when it was made: {told}. Export the model "
            "again with the versions that are here, or install those of its manifest."
        )


def _worst(
    wanted: tuple[np.ndarray, np.ndarray], found: tuple[np.ndarray, np.ndarray], tolerance: float
) -> tuple[int, float]:
    """Returns the place in a list with the largest difference, and that in tolerances."""
    count = min(len(wanted[0]), len(found[0]))
    if len(wanted[0]) != len(found[0]):
        return count, np.inf
    if not count:
        return 0, 0.0
    off = np.abs(found[1] - wanted[1])
    places = {int(item): place for place, item in enumerate(found[0])}
    for place in np.flatnonzero(wanted[0] != found[0]):
        # Where its score is now; what has left the list may be where the list ends.
        now = found[1][places.get(int(wanted[0][place]), -1)]
        off[place] = max(off[place], abs(now - wanted[1][place]))
    off = off / (tolerance * np.maximum(1.0, np.abs(wanted[1])))
    off = np.where(np.isnan(off), np.inf, off)
    return int(off.argmax()), float(off.max())


def _told(row: int, place: int, wanted: Any, found: Any) -> str:
    def at(items: np.ndarray, scores: np.ndarray) -> str:
        if place >= len(items) or items[place] == 0:
            return "no item"
        return f"item {items[place]} with score {scores[place]:.6g}"

    return f"place {place + 1} of golden request {row + 1} is {at(*found)}, and was {at(*wanted)}"
