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
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

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
        """Returns sizes that suit a model: rows in powers of 4, lengths the longest, a quarter
        and an eighth of it: most histories are short.

        Raises:
          UserError: for bounds below 1.
        """
        if max_batch < 1 or max_exclude < 1:
            raise UserError(
                f"max_batch and max_exclude must be at least 1; got {max_batch}, {max_exclude}."
            )
        rows = tuple(size for n in range(10) if (size := 4**n) < max_batch) + (max_batch,)
        longest = int(artefact.manifest["max_len"])
        parts = (-(-longest // n) for n in (1, 4, 8))
        lengths = tuple(sorted({n for n in parts if n >= min(longest, 6)}))
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


_SIMILAR = Lane("similar", 0, 0, 1)


class Engine:
    """An artefact and its compiled programs. `run` is for one thread at a time."""

    def __init__(self, artefact: Artefact, sizes: Sizes | None = None) -> None:
        self.artefact = artefact
        self.sizes = sizes or Sizes.of(artefact)
        self._lists = _Lists(self.sizes.lists, artefact.known_items)
        self._run = jax.jit(_packed(artefact), static_argnums=0)

    @functools.cached_property
    def lanes(self) -> tuple[Lane, ...]:
        """All there are. Long lists of items to leave out are rare, and run at full length."""
        sizes = self.sizes
        usual, longest = sizes.exclude[0], sizes.lengths[-1]
        recommend = [Lane("recommend", n, usual, 0) for n in sizes.lengths]
        recommend += [Lane("recommend", longest, n, 0) for n in sizes.exclude[1:]]
        score = [Lane("score", longest, 0, n) for n in sizes.items]
        return (*recommend, *score, _SIMILAR)

    def lane_of(self, query: Query) -> Lane:
        """Returns where a query runs.

        Raises:
          UserError: when it is larger than the largest size.
        """
        sizes = self.sizes
        if query.program == "similar":
            return _SIMILAR
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
        lists, which = self._lists.place(queries)
        given = _given(lane, queries, which, rows)
        found = np.asarray(
            self._run(lane, self.artefact.weights, self.artefact.vectors, lists, given)
        )
        if lane.program == "score":
            return [
                Answer(query.items, row[lane.items - len(query.items) :])
                for query, row in zip(queries, found, strict=False)
            ]
        k = found.shape[1] // 2
        items, scores = found[:, :k], found[:, k:].view(np.float32)
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


def _packed(artefact: Artefact) -> Callable[..., jax.Array]:
    """Returns what runs a lane's program on what `_given` packed.

    It returns items and scores packed into int32, or float32 scores alone. It knows no engine: an
    engine that is not used any more is to go at once, and not when a collector finds a circle.
    """

    def call(
        lane: Lane,
        weights: Mapping[str, jax.Array],
        vectors: jax.Array,
        lists: jax.Array,
        given: jax.Array,
    ) -> jax.Array:
        ends = np.cumsum([lane.length, lane.exclude, lane.items])
        history, exclude, items, rest = jnp.split(given, ends, axis=1)
        user, which, seen = rest[:, 0], rest[:, 1], rest[:, 2]
        shown = [history if name == "history" else user for name in artefact.shown]
        program = artefact.programs[lane.program]
        if lane.program == "score":
            scores: jax.Array = program(weights, vectors, *shown, items)
            return scores
        if lane.program == "similar":
            found, scores = program(vectors, items[:, 0])
        else:
            masked = [seen > 0] if "history" in artefact.shown else []
            found, scores = program(weights, vectors, *shown, exclude, lists, which, *masked)
        return jnp.concatenate([found, lax.bitcast_convert_type(scores, jnp.int32)], axis=1)

    return call


class _Lists:
    """Lists of items that may be recommended, by name, on the device. Row 0 allows all that the
    model knows.

    The rows that were not asked for longest make room for new ones.
    """

    def __init__(self, count: int, known: np.ndarray) -> None:
        self._known = known
        self._lists = jnp.tile(jnp.asarray(known), (count, 1))
        self._row_of: OrderedDict[Hashable, int] = OrderedDict()

    def place(self, queries: Sequence[Query]) -> tuple[jax.Array, np.ndarray]:
        """Returns the lists and (n,) int32, which of them holds for each query."""
        which = np.zeros(len(queries), np.int32)
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
        self._lists = _set_row(self._lists, 0, self._known)

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


def _given(lane: Lane, queries: Sequence[Query], which: np.ndarray, rows: int) -> np.ndarray:
    """Returns all that a batch has to say in one array, as each that is handed over takes a while.

    (rows, columns) int32: history, items to leave out and items, each to the right of its part,
    then the user, the list and whether what was seen is masked.
    """
    first, second = lane.length + lane.exclude, lane.length + lane.exclude + lane.items
    given = np.zeros((rows, second + 3), np.int32)
    given[: len(queries), second + 1] = which
    for row, query in zip(given, queries, strict=False):
        for end, values in ((lane.length, query.history), (first, query.exclude)):
            if len(values):
                row[end - len(values) : end] = values
        if lane.items:
            row[second - len(query.items) : second] = query.items
        row[second], row[second + 2] = query.user, query.mask_seen
    return given


def _round_up(what: str, sizes: tuple[int, ...], values: np.ndarray) -> int:
    for size in sizes:
        if size >= len(values):
            return size
    raise UserError(f"a query has at most {sizes[-1]} {what}; got {len(values)}.")


def _filler(lane: Lane) -> Query:
    return Query(lane.program, items=np.ones(1, np.int32))
