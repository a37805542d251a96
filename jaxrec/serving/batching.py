"""Queries that wait for the model, and run together when it is free.

A lone query is answered at once. While the model works, queries gather, so that batches grow with
the load. After a batch of several the model rests almost as long as it worked, 5 ms at most, unless
a full one waits: together queries take a fraction of the processor that they take one by one, and
those who parse requests need it.
"""

import asyncio
import collections
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxrec.serving.engine import Answer, Engine, Lane, Query

THREAD = "batches"
_SMOOTHING = 0.1
_LONGEST_REST_S = 0.005


class Overloaded(Exception):
    """The queue is too long for a new query. `retry_after` are seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"too many requests are waiting; try again in {retry_after} s")
        self.retry_after = retry_after


class DeadlineExceeded(Exception):
    """A query waited until it was too late to answer it."""


class Timed(NamedTuple):
    """An answer, seconds that its query waited, and seconds that its batch took."""

    answer: Answer
    waited: float
    computed: float


class _Waiting(NamedTuple):
    query: Query
    since: float
    deadline: float
    future: "asyncio.Future[Timed]"


class Batcher:
    """One thread that runs an engine, and the queries that wait for it.

    All but the thread itself belongs to the event loop in which the batcher was made.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_waiting: int = 512,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        """Starts the thread.

        Args:
          engine: what answers.
          max_waiting: how many queries may wait.
          on_batch: is told the size of each batch, in the event loop.
        """
        self.engine = engine
        self._max_waiting = max_waiting
        self._full = engine.take(1 << 30)
        self._on_batch = on_batch
        self._loop = asyncio.get_running_loop()
        self._lanes: dict[Lane, collections.deque[_Waiting]] = {}
        self._count = 0
        self._seconds_per_query = 0.0
        self._open = True
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=THREAD, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many queries wait."""
        return self._count

    async def submit(self, query: Query, timeout: float) -> Timed:
        """Waits for the answer to a query, `timeout` seconds at most before its batch starts.

        Raises:
          Overloaded: at once, when the queue is full or so long that the deadline would pass.
          DeadlineExceeded: when it did pass.
          UserError: for a query that is too large.
        """
        lane = self.engine.lane_of(query)
        expected = self._count * self._seconds_per_query
        if self._count >= self._max_waiting or expected > timeout or not self._open:
            raise Overloaded(max(1, math.ceil(expected)))
        now = time.monotonic()
        future: asyncio.Future[Timed] = self._loop.create_future()
        with self._changed:
            self._lanes.setdefault(lane, collections.deque()).append(
                _Waiting(query, now, now + timeout, future)
            )
            self._count += 1
            self._changed.notify()
        return await future

    async def close(self) -> None:
        """Answers what is waiting, then ends the thread. New queries are refused."""
        with self._changed:
            self._open = False
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        rest = 0.0
        while True:
            if not any(len(queue) >= self._full for queue in list(self._lanes.values())):
                time.sleep(rest)
            with self._changed:
                self._changed.wait_for(lambda: self._count or not self._open)
                if not self._count:
                    return
                lane, batch = self._take()
            started = time.monotonic()
            late = [one for one in batch if one.deadline < started]
            batch = [one for one in batch if one.deadline >= started]
            answers: Sequence[Answer] | Exception = []
            if batch:
                try:
                    answers = self.engine.run(lane, [one.query for one in batch])
                except Exception as error:  # it belongs to those who wait, not to this thread
                    answers = error
            seconds = time.monotonic() - started
            rest = min(seconds * (1 - 1 / max(1, len(batch))), _LONGEST_REST_S)
            self._loop.call_soon_threadsafe(self._settle, late, batch, answers, started, seconds)

    def _take(self) -> tuple[Lane, list[_Waiting]]:
        """Takes a batch of the lane whose first query has waited longest."""
        lane, queue = min(
            ((lane, queue) for lane, queue in self._lanes.items() if queue),
            key=lambda entry: entry[1][0].since,
        )
        batch = [queue.popleft() for _ in range(self.engine.take(len(queue)))]
        self._count -= len(batch)
        return lane, batch

    def _settle(
        self,
        late: list[_Waiting],
        batch: list[_Waiting],
        answers: Sequence[Answer] | Exception,
        started: float,
        seconds: float,
    ) -> None:
        for one in late:
            if not one.future.done():
                one.future.set_exception(DeadlineExceeded())
        if not batch:
            return
        self._on_batch(len(batch))
        per_query = seconds / len(batch)
        self._seconds_per_query += _SMOOTHING * (per_query - self._seconds_per_query)
        for n, one in enumerate(batch):
            if one.future.done():  # its client has gone
                continue
            if isinstance(answers, Exception):
                one.future.set_exception(answers)
            else:
                one.future.set_result(Timed(answers[n], started - one.since, seconds))
