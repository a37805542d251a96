"""The items of an artefact by their original ids: what they are called, and how alike they are."""

import functools
from collections.abc import Sequence

import numpy as np

from jaxrec.export import Artefact
from jaxrec.serving.items import ItemTable


class Catalogue:
    """Ids, titles and vectors of items, on the host.

    Attributes:
      items: ids and columns of items.
      ids: the id of each index; "" at 0.
      counts: (num_items + 1,) int64, training events of each item.
      popular: (n,) int32, the items that the model knows, those with most training events first.
    """

    def __init__(self, artefact: Artefact) -> None:
        self.artefact = artefact
        self.items = ItemTable.of(artefact)
        self.ids = self.items.ids
        self._titles = _titles(self.items)
        users = [] if artefact.user_ids is None else artefact.user_ids.tolist()
        known = artefact.known_users
        self._users = {} if known is None else {users[n]: int(n) for n in np.flatnonzero(known)}
        # Most popular first, by training events. Read now: another artefact may come to lie there.
        self.counts: np.ndarray = artefact.popularity
        order = np.argsort(-self.counts[1:], kind="stable") + 1
        self.popular: np.ndarray = order[self.items.known[order]].astype(np.int32)

    @property
    def num_items(self) -> int:
        return len(self.ids) - 1

    def user(self, text: str | None) -> int:
        """Returns the index of a user that the model knows, or 0."""
        return self._users.get(text, 0) if text else 0

    def title(self, index: int) -> str | None:
        """Returns what to call an item; None where the catalogue has no titles."""
        return self._titles[index] if self._titles else None

    def search(self, query: str, limit: int) -> list[int]:
        """Returns items whose title or id holds the words of a query; exact ids come first."""
        words = query.casefold().split()
        exact = [index] if (index := self.items.index(query)) else []
        found = (
            index
            for index, text in enumerate(self._searched)
            if index and index not in exact and all(word in text for word in words)
        )
        return [*exact, *(index for index, _ in zip(found, range(limit), strict=False))][:limit]

    @functools.cached_property
    def _searched(self) -> list[str]:
        titles = self._titles or self.ids
        return [f"{text} {title}".casefold() for text, title in zip(self.ids, titles, strict=True)]

    def units(self, items: np.ndarray) -> np.ndarray:
        """Returns (n, dim) float32 item vectors of length 1, 0 for a vector without length."""
        return self._units[items]

    def prepare(self) -> None:
        """Computes what the first request that compares items would have to wait for."""
        _ = self._units

    def closest(self, items: Sequence[int], history: np.ndarray) -> np.ndarray:
        """Returns for each item which of a history is most like it, by cosine."""
        seen = np.unique(history)
        return seen[np.argmax(self.units(np.asarray(items)) @ self.units(seen).T, axis=1)]

    @functools.cached_property
    def _units(self) -> np.ndarray:
        vectors = np.asarray(self.artefact.vectors, np.float32)
        # As in the program `similar`: a column of ones would make all items look alike.
        vectors = vectors[:, np.any(vectors[1:] != vectors[1:2], axis=0)]
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.where(lengths > 0, lengths, 1)


def _titles(items: ItemTable) -> list[str] | None:
    if "title" not in items.columns:
        return None
    titles = zip(items.ids[1:], items.cells("title"), strict=True)
    return ["", *(id if title is None else str(title) for id, title in titles)]
