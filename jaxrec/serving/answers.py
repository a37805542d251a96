"""Items as responses tell them: what they are called, and why they are there."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrec.serving.deployment import Model
from jaxrec.serving.rules import Ranked


def named(model: Model, item: int, score: float | None) -> dict[str, Any]:
    """Returns an item as a response has it."""
    out: dict[str, Any] = {"id": model.catalogue.ids[item], "score": score}
    if (title := model.catalogue.title(item)) is not None:
        out["title"] = title
    return out


def listed(
    model: Model, ranked: Sequence[Ranked], history: np.ndarray | None, fallback: bool
) -> list[dict[str, Any]]:
    """Returns the items of a list with the reasons for them.

    Args:
      model: whose items they are.
      ranked: the list.
      history: (n,) items that each is to be compared with; None explains nothing.
      fallback: whether they are what is popular.
    """
    out = []
    closest = None
    if history is not None and len(history) and ranked:
        closest = model.catalogue.closest([one.item for one in ranked], history)
    for n, one in enumerate(ranked):
        item = named(model, one.item, one.score)
        reasons = [
            {"kind": reason.kind, "name": reason.name, "text": reason.text}
            for reason in one.reasons
        ]
        if closest is not None:
            seen = int(closest[n])
            title = model.catalogue.title(seen) or model.catalogue.ids[seen]
            text = f"close to {title}, which is in the history"
            reasons.append({"kind": "history", "name": model.catalogue.ids[seen], "text": text})
        if fallback:
            reasons.append({"kind": "popular", "text": "among the most popular items"})
        if reasons:
            item["reasons"] = reasons
        out.append(item)
    return out
