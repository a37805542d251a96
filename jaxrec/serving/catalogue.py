"""The items of an artefact by their original ids: what they are called, and how alike they are."""

import functools
from collections.abc import Iterable, Sequence

import numpy as np

from jaxrec.export import Artefact


class Catalogue:
    """Ids, titles and vectors of items, on the host.

    Attributes:
      ids: the id of each index; "" at 0.
      counts: (num_items + 1,) int64, training events of each item.
      popular: (num_items,) int32, all items, those with most training events first.
    """

    def __init__(self, artefact: Artefact) -> None:
        self.artefact = artefact
        self.ids: list[str] = artefact.item_ids.tolist()
        self._index = {text: index for index, text in enumerate(self.ids)}
        self._titles = _titles(artefact)
        users = [] if artefact.user_ids is None else artefact.user_ids.tolist()
        self._users = {text: index for index, text in enumerate(users)}
        # Most popular first, by training events. Read now: another artefact may come to lie there.
        self.counts: np.ndarray = artefact.popularity
        order = np.argsort(-self.counts[1:], kind="stable") + 1
        self.popular: np.ndarray = order.astype(np.int32)

    @property
    def num_items(self) -> int:
        return len(self.ids) - 1

    def indices(self, ids: Iterable[str]) -> tuple[np.ndarray, list[str]]:
        """Returns (n,) int32 indices of the ids that are known, and the ids that are not."""
        found, unknown = [], []
        for text in ids:
            index = self._index.get(text)
            if index:
                found.append(index)
            else:
                unknown.append(text)
        return np.array(found, np.int32), unknown

    def index(self, text: str) -> int:
        """Returns the index of an item, or 0."""
        return self._index.get(text, 0)

    def user(self, text: str | None) -> int:
        """Returns the index of a user that the model knows, or 0."""
        return self._users.get(text, 0) if text else 0

    def title(self, index: int) -> str | None:
        """Returns what to call an item; None where the catalogue has no titles."""
        return self._titles[index] if self._titles else None

    def search(self, query: str, limit: int) -> list[int]:
        """Returns items whose title or id holds the words of a query; exact ids come first."""
        words = query.casefold().split()
        exact = [index] if (index := self._index.get(query)) else []
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


def _titles(artefact: Artefact) -> list[str] | None:
    from pyarrow import parquet

    path = artefact.path / "items.parquet"
    if "title" not in parquet.read_schema(path).names:
        return None
    titles = parquet.read_table(path, columns=["title"]).column("title").to_pylist()
    ids = artefact.item_ids
    return [
        "",
        *(str(ids[n]) if title is None else str(title) for n, title in enumerate(titles, 1)),
    ]
