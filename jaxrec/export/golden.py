"""Golden requests: what an artefact answered when it was made, and whether it still does.

golden.json holds `shown` (a batch of what the model is shown), `exclude`, the `items` and `scores`
that `recommend` gave, without the places where nothing was left, and a `tolerance`. Scores may be
off by the tolerance, times the score where that is above 1. Items may change places where their
scores are closer than that, and at the end of a list leave it.

Every format is asked them when it is written, and a server asks them again when it starts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.export.artefact import Artefact
from jaxrec.typing import UserError

INSTEAD = "leave --format=onnx out for this model."


def check_golden(artefact: Artefact) -> None:
    """Asks an artefact its golden requests; it answers as when it was made, or is refused.

    Raises:
      UserError: naming the request and the place with the worst difference.
    """
    golden = artefact.golden
    shown = {name: np.array(value, np.int32) for name, value in golden["shown"].items()}
    exclude = np.array(golden["exclude"], np.int32)
    items, scores = (np.asarray(x) for x in artefact.recommend(**shown, exclude=exclude))
    if told := difference(golden["items"], golden["scores"], items, scores, golden["tolerance"]):
        raise UserError(
            f"{artefact.path} does not answer as it did when it was made: {told}. Export the model "
            "again with the versions that are here, or install those of its manifest."
        )


def check_onnx(output: Path, golden: dict[str, Any], known: np.ndarray) -> None:
    """Asks ONNX programs that were just written the golden requests, and the scores of the answers.

    Args:
      output: where recommend.onnx and score.onnx lie.
      golden: what the model itself answers, computed in float32.
      known: (num_items + 1,) bool, the items that may be recommended.

    Raises:
      UserError: naming the program, the request and the place with the worst difference, or what
        the runtime does not read.
    """
    import onnxruntime

    shown = {name: np.array(value, np.int32) for name, value in golden["shown"].items()}
    exclude = np.array(golden["exclude"], np.int32)
    rows = len(exclude)
    limits = {"exclude": exclude, "mask": np.zeros(rows, np.int32), "masks": known[None]}
    if "history" in shown:
        limits["mask_seen"] = np.ones(rows, bool)
    width = max(1, *map(len, golden["items"]))
    asked = np.array([row + [0] * (width - len(row)) for row in golden["items"]], np.int32)
    try:
        items, scores = _answered(onnxruntime, output / "recommend.onnx", shown | limits)
        (again,) = _answered(onnxruntime, output / "score.onnx", shown | {"items": asked})
    except Exception as error:  # whatever a runtime raises, it cannot run what was written
        said = str(error).splitlines()[0][:300]
        raise UserError(
            f"ONNX Runtime cannot run the programs of this model ({said}); {INSTEAD}"
        ) from None
    for name, found in (("recommend", (items, scores)), ("score", (asked, again))):
        wanted = golden["items"], golden["scores"]
        if told := difference(*wanted, found[0], found[1], golden["tolerance"]):
            raise UserError(
                f"the ONNX program {name!r} does not answer as the model does: {told}; {INSTEAD}"
            )


def _answered(runtime: Any, path: Path, given: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what it says is in what it raises
    return list(runtime.InferenceSession(path, options).run(None, given))


def difference(
    wanted_items: Sequence[Sequence[int]],
    wanted_scores: Sequence[Sequence[float]],
    items: np.ndarray,
    scores: np.ndarray,
    tolerance: float,
) -> str:
    """Compares lists with those that are wanted, by their scores.

    Args:
      wanted_items, wanted_scores: of each request, best first, without what is no item.
      items, scores: (b, k) lists; where an item is 0 there is none.
      tolerance: how far a score may be off, times the score where that is above 1.

    Returns:
      What and where the worst difference is; "" when there is none beyond the tolerance.
    """
    worst, told = 1.0, ""
    for row, (found_items, found_scores) in enumerate(zip(items, scores, strict=True)):
        kept = found_items > 0
        wanted = np.array(wanted_items[row], np.int64), np.array(wanted_scores[row], np.float64)
        place, off = _worst(wanted, (found_items[kept], found_scores[kept]), tolerance)
        if not off <= worst:  # NaN as well
            worst, told = off, _told(row, place, wanted, (found_items, found_scores))
    return told


def difference_of_lists(
    found: tuple[Any, Any], wanted: tuple[Any, Any], tolerance: float = 1e-4
) -> str:
    """Compares (b, k) items and scores as `recommend` returns them; see `difference`."""
    items, scores = (np.asarray(x) for x in wanted)
    kept = [row > 0 for row in items]
    return difference(
        [row[some].tolist() for row, some in zip(items, kept, strict=True)],
        [row[some].tolist() for row, some in zip(scores, kept, strict=True)],
        np.asarray(found[0]),
        np.asarray(found[1]),
        tolerance,
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
    _, first = np.unique(found[0], return_index=True)
    if len(first) != count:  # an item that is there twice has taken another one's place
        return int(np.setdiff1d(np.arange(count), first)[0]), np.inf
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
