"""Approximate search for items: an index of faiss over item vectors, built, measured and searched.

It is for catalogues on which an exact product takes too long. What it misses is measured when it is
built, on real users and without anything left out. Scores are inner products, as everywhere.
"""

import dataclasses
import importlib
import importlib.util
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxrec.typing import UserError

type Kind = Literal["hnsw", "ivf"]

INDEX = "items.faiss"
NO_FAISS = (
    "approximate search is done by the package faiss, which is not here. Install it: "
    "pip install 'jaxrec[ann]'."
)
_FACTORIES = {"hnsw": "HNSW32,Flat", "ivf": "IVF{lists},Flat"}
_CONSTRUCTION = 200  # neighbours that HNSW considers for a new item
_EFFORTS = {"hnsw": (64, 128, 256, 512, 1024), "ivf": (4, 8, 16, 32, 64, 128, 256)}
_ENOUGH = 0.99  # recall that decides how much effort a search makes
_TIMED = 256  # searches for one user that latency is measured on
_WIDEST = 16  # times k that are fetched at most, to fill lists from which items are left out


@dataclasses.dataclass(frozen=True)
class Index:
    """An index in memory.

    Attributes:
      faiss: the package.
      index: its index, whose row i is item i + 1.
      kind: "hnsw" or "ivf".
      effort: candidates that are kept ("hnsw"), or lists that are looked through ("ivf").
    """

    faiss: Any
    index: Any
    kind: Kind
    effort: int

    def search(self, users: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns items (b, k) int32, best first, and scores (b, k); 0 and -inf where none is."""
        if self.kind == "hnsw":
            how = self.faiss.SearchParametersHNSW(efSearch=self.effort)
        else:
            how = self.faiss.SearchParametersIVF(nprobe=self.effort)
        users = np.ascontiguousarray(users, np.float32)
        scores, rows = self.index.search(users, min(k, self.index.ntotal), params=how)
        short = ((0, 0), (0, k - rows.shape[1]))
        items = np.pad(rows + 1, short).astype(np.int32)  # faiss says -1 where it finds none
        return items, np.where(items > 0, np.pad(scores, short), -np.inf).astype(np.float32)

    def search_among(
        self, users: np.ndarray, k: int, exclude: np.ndarray, masks: np.ndarray, mask: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns what `search` does, of items that are not left out.

        More than k are fetched and those left out are dropped, again with twice as many where that
        leaves less than k, up to 16 k: a list that allows little of the catalogue stays short.

        Args:
          users: (b, dim).
          k: how many.
          exclude: (b, e) items to leave out.
          masks: (g, num_items + 1) bool, lists of what is allowed.
          mask: (b,) the row of `masks` that holds for each user.
        """
        widest = min(self.index.ntotal, _WIDEST * k + exclude.shape[1])
        count = min(widest, k + exclude.shape[1])
        while True:
            items, scores = self.search(users, count)
            kept = masks[mask[:, None], items] & (items > 0)
            kept &= ~(items[:, :, None] == exclude[:, None, :]).any(axis=2)
            if count == widest or (kept.sum(axis=1) >= k).all():
                break
            count = min(widest, 2 * count)
        order = np.argsort(~kept, axis=1, kind="stable")[:, :k]
        kept, items, scores = (np.take_along_axis(x, order, axis=1) for x in (kept, items, scores))
        short = ((0, 0), (0, k - order.shape[1]))
        items = np.pad(np.where(kept, items, 0), short)
        return items, np.pad(np.where(kept, scores, -np.inf), short, constant_values=-np.inf)


def build_index(vectors: np.ndarray, kind: Kind) -> Index:
    """Builds an index; the same vectors make the same one.

    Args:
      vectors: (num_items + 1, dim) float; row 0, of padding, is left out.
      kind: "hnsw", a graph, or "ivf", lists around centres: as quick to build as it is small.

    Raises:
      UserError: without faiss.
    """
    faiss = _faiss()
    rows = np.ascontiguousarray(vectors[1:], np.float32)
    lists = max(1, round(min(4 * len(rows) ** 0.5, len(rows) / 40)))
    made = faiss.index_factory(
        rows.shape[1], _FACTORIES[kind].format(lists=lists), faiss.METRIC_INNER_PRODUCT
    )
    if kind == "hnsw":
        made.hnsw.efConstruction = _CONSTRUCTION
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # several would link items in an order of chance
    try:
        made.train(rows)
        made.add(rows)
    finally:
        faiss.omp_set_num_threads(threads)
    return Index(faiss, made, kind, _EFFORTS[kind][0])


def measure_index(
    index: Index, users: np.ndarray, exact: np.ndarray
) -> tuple[Index, list[dict[str, float]]]:
    """Finds the least effort that finds 99% of what exact search does, or the most there is.

    Args:
      index: what `build_index` made.
      users: (n, dim) vectors to search for.
      exact: (n, k) the items that an exact search finds.

    Returns:
      The index with that effort, and for each effort that was tried its recall, and the latency of
      a search for one user: p50_ms and p99_ms.
    """
    k, measured = exact.shape[1], []
    for effort in _EFFORTS[index.kind]:
        index = dataclasses.replace(index, effort=effort)
        found, _ = index.search(users, k)
        pairs = zip(found, exact, strict=True)
        recall = float(np.mean([np.isin(wanted, had).mean() for had, wanted in pairs]))
        times = []
        for row in np.resize(np.arange(len(users)), _TIMED):
            start = time.perf_counter()
            index.search(users[row : row + 1], k)
            times.append(1e3 * (time.perf_counter() - start))
        p50, p99 = (float(f"{x:.3g}") for x in np.percentile(times, [50, 99]))
        told = {"effort": effort, "recall": round(recall, 4), "p50_ms": p50, "p99_ms": p99}
        measured.append(told)
        if recall >= _ENOUGH:
            break
    return index, measured


def write_index(index: Index, path: Path) -> None:
    """Writes what `read_index` reads."""
    index.faiss.write_index(index.index, str(path))


def read_index(path: Path, kind: Kind, effort: int) -> Index:
    """Opens an index. Raises UserError without faiss, or when this version does not read it."""
    faiss = _faiss()
    try:
        return Index(faiss, faiss.read_index(str(path)), kind, effort)
    except RuntimeError as error:
        raise UserError(
            f"faiss {faiss.__version__} does not read {path} ({error}). Export the model again "
            "with the version that is here."
        ) from None


def check_faiss() -> None:
    """Raises UserError without faiss."""
    if importlib.util.find_spec("faiss") is None:
        raise UserError(NO_FAISS)


def _faiss() -> Any:
    check_faiss()
    return importlib.import_module("faiss")
