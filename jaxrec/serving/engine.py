"""One artefact that answers batches of queries in a few compiled sizes.

A program is compiled for each new set of sizes, which takes about a second, so sizes are rounded up
to those of `Sizes`, and `warm_up` compiles all of them. Nothing compiles afterwards.
"""

import concurrent.futures
import dataclasses
import functools
import itertools
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.export import Artefact
from jaxrec.typing import UserError

_NOTHING = np.zeros(0, np.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """What programs are compiled for. Each is ascending.

    Attributes:
      rows: how many queries run at once.
      lengths: columns of a history; the last is all that the model reads.
      exclude: how many items a query may leave out beside its history.
      items: how many items a query may have scored.
      lists: how many lists of allowed items are kept on the device.
    """

    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    exclude: tuple[int, ...]
    items: tuple[int, ...]
    lists: int

    @staticmethod
    def of(artefact: Artefact, *, max_batch: int = 16, max_exclude: int = 1024) -> "Sizes":
        """Returns sizes that suit a model: rows in powers of 4, lengths in quarters of the longest.

        Raises:
          UserError: for bounds below 1.
        """
        if max_batch < 1 or max_exclude < 1:
            raise UserError(
                f"max_batch and max_exclude must be at least 1; got {max_batch}, {max_exclude}."
            )
        rows = tuple(size for n in range(10) if (size := 4**n) < max_batch) + (max_batch,)
        longest = int(artefact.manifest["max_len"])
        quarters = (-(-longest // 4**n) for n in range(10))
        lengths = tuple(sorted({n for n in quarters if n >= min(longest, 8)}))
        return Sizes(
            rows=rows,
            lengths=lengths or (0,),
            exclude=tuple(sorted({min(16, max_exclude), max_exclude})),
            items=(16, 1024),
            lists=max(32, 2 * max_batch),
        )


class Query(NamedTuple):
    """What is asked of a model; indices of items are from 1 on.

    Attributes:
      program: "recommend", "score" or "similar".
      history: (l,) int32, oldest first, no longer than the model reads.
      user: index of the user, for models that know users.
      exclude: (e,) int32 items to leave out.
      allowed: names the list of items that may be recommended; None allows all. Equal names mean
        equal lists.
      make_allowed: returns that list, (num_items + 1,) bool; called when the device has none of the
        name.
      mask_seen: leave out what is in the history.
      items: (c,) int32 items to score, or the one to find neighbours of.
    """

    program: str
    history: np.ndarray = _NOTHING
    user: int = 0
    exclude: np.ndarray = _NOTHING
    allowed: Hashable = None
    make_allowed: Callable[[], np.ndarray] | None = None
    mask_seen: bool = True
    items: np.ndarray = _NOTHING


class Answer(NamedTuple):
    """Items (n,) int32, best first, and scores (n,) float32; of `score` the scores alone."""

    items: np.ndarray
    scores: np.ndarray


class Lane(NamedTuple):
    """Queries that run together: their program and its sizes except for the rows."""

    program: str
    length: int
    exclude: int
    items: int


class Engine:
    """An artefact and its compiled programs. `run` is for one thread at a time."""

    def __init__(self, artefact: Artefact, sizes: Sizes | None = None) -> None:
        self.artefact = artefact
        self.sizes = sizes or Sizes.of(artefact)
        self._lists = _Lists(self.sizes.lists, artefact.num_items + 1)

    @functools.cached_property
    def lanes(self) -> tuple[Lane, ...]:
        """All there are. Long lists of items to leave out are rare, and run at full length."""
        sizes = self.sizes
        usual, longest = sizes.exclude[0], sizes.lengths[-1]
        recommend = [Lane("recommend", n, usual, 0) for n in sizes.lengths]
        recommend += [Lane("recommend", longest, n, 0) for n in sizes.exclude[1:]]
        score = [Lane("score", longest, 0, n) for n in sizes.items]
        return (*recommend, *score, Lane("similar", 0, 0, 0))

    def lane_of(self, query: Query) -> Lane:
        """Returns where a query runs.

        Raises:
          UserError: when it is larger than the largest size.
        """
        sizes = self.sizes
        if query.program == "similar":
            return Lane("similar", 0, 0, 0)
        if query.program == "score":
            return Lane("score", sizes.lengths[-1], 0, _round_up("items", sizes.items, query.items))
        exclude = _round_up("items to leave out", sizes.exclude, query.exclude)
        if exclude != sizes.exclude[0]:
            return Lane("recommend", sizes.lengths[-1], exclude, 0)
        length = _round_up("items of history", sizes.lengths, query.history)
        return Lane("recommend", length, exclude, 0)

    def take(self, waiting: int) -> int:
        """Returns how many of the waiting queries of a lane to run now.

        A size is run when more than half of it would be filled, else the next smaller one, whole:
        the time of a batch grows with its rows.
        """
        rows = self.sizes.rows
        fits = max((size for size in rows if size <= waiting), default=rows[0])
        above = min((size for size in rows if size > waiting), default=fits)
        return min(waiting, above if 2 * waiting > above else fits)

    def run(self, lane: Lane, queries: Sequence[Query]) -> list[Answer]:
        """Answers queries of one lane, at most as many as the largest size of rows."""
        rows = min(size for size in self.sizes.rows if size >= len(queries))
        shown = self._shown(lane, queries, rows)
        program = self.artefact.programs[lane.program]
        weights, vectors = self.artefact.weights, self.artefact.vectors
        if lane.program == "similar":
            item = np.zeros(rows, np.int32)
            item[: len(queries)] = [query.items[0] for query in queries]
            items, scores = jax.device_get(program(vectors, item))
        elif lane.program == "score":
            wanted = _right([query.items for query in queries], rows, lane.items)
            scores = jax.device_get(program(weights, vectors, *shown, wanted))
            return [
                Answer(query.items, row[lane.items - len(query.items) :])
                for query, row in zip(queries, scores, strict=False)
            ]
        else:
            exclude = _right([query.exclude for query in queries], rows, lane.exclude)
            lists, which = self._lists.place(queries, rows)
            limits: list[np.ndarray | jax.Array] = [exclude, lists, which]
            if "history" in self.artefact.shown:
                seen = np.zeros(rows, bool)
                seen[: len(queries)] = [query.mask_seen for query in queries]
                limits.append(seen)
            items, scores = jax.device_get(program(weights, vectors, *shown, *limits))
        return [Answer(items[row], scores[row]) for row in range(len(queries))]

    def warm_up(self, progress: Callable[[int, int], None] = lambda done, of: None) -> None:
        """Compiles every program for every size; `progress` is told how many are done, of all.

        What `progress` raises ends it.
        """
        work = list(itertools.product(self.lanes, self.sizes.rows))
        self._lists.warm_up()
        pool = concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, 8))
        try:
            done = pool.map(lambda job: self.run(job[0], [_filler(job[0])] * job[1]), work)
            for count, _ in enumerate(done, 1):
                progress(count, len(work))
        finally:
            pool.shutdown(cancel_futures=True)

    def _shown(self, lane: Lane, queries: Sequence[Query], rows: int) -> list[np.ndarray]:
        """Returns what the model is shown, in the order that its programs want."""
        shown = []
        for name in self.artefact.shown:
            if name == "history":
                shown.append(_right([query.history for query in queries], rows, lane.length))
            else:
                users = np.zeros(rows, np.int32)
                users[: len(queries)] = [query.user for query in queries]
                shown.append(users)
        return shown


class _Lists:
    """Lists of items that may be recommended, by name, on the device. Row 0 allows everything.

    The rows that were not asked for longest make room for new ones.
    """

    def __init__(self, count: int, width: int) -> None:
        self._lists = jnp.ones((count, width), bool)
        self._row_of: OrderedDict[Hashable, int] = OrderedDict()

    def place(self, queries: Sequence[Query], rows: int) -> tuple[jax.Array, np.ndarray]:
        """Returns the lists and (rows,) int32, which of them holds for each query."""
        which = np.zeros(rows, np.int32)
        named = [(n, query) for n, query in enumerate(queries) if query.allowed is not None]
        for _, query in named:
            if query.allowed in self._row_of:  # before any row makes room
                self._row_of.move_to_end(query.allowed)
        for n, query in named:
            if query.allowed not in self._row_of:
                self._add(query)
            which[n] = self._row_of[query.allowed]
        return self._lists, which

    def warm_up(self) -> None:
        self._lists = _set_row(self._lists, 0, np.ones(self._lists.shape[1], bool))

    def _add(self, query: Query) -> None:
        assert query.make_allowed is not None, "a named list comes with what makes it"
        row = len(self._row_of) + 1
        if row == self._lists.shape[0]:
            _, row = self._row_of.popitem(last=False)
        self._lists = _set_row(self._lists, row, query.make_allowed())
        self._row_of[query.allowed] = row


@functools.partial(jax.jit, donate_argnums=0)
def _set_row(lists: jax.Array, row: int, values: np.ndarray) -> jax.Array:
    return lists.at[row].set(values)


def _right(values: Sequence[np.ndarray], rows: int, columns: int) -> np.ndarray:
    """Returns (rows, columns) int32: each of the values aligned to the right of its row."""
    out = np.zeros((rows, columns), np.int32)
    for row, value in zip(out, values, strict=False):
        if len(value):
            row[columns - len(value) :] = value
    return out


def _round_up(what: str, sizes: tuple[int, ...], values: np.ndarray) -> int:
    for size in sizes:
        if size >= len(values):
            return size
    raise UserError(f"a query has at most {sizes[-1]} {what}; got {len(values)}.")


def _filler(lane: Lane) -> Query:
    return Query(lane.program, items=np.ones(1, np.int32))
