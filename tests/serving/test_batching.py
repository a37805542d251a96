"""Queries gather while the model works; none is lost, mixed up or answered too late."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest

from jaxrec.serving.batching import Batcher, DeadlineExceeded, Overloaded
from jaxrec.serving.engine import Answer, Lane, Query


class Slow:
    """An engine whose batches wait until the test lets them go; it echoes a query's items."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may_run = threading.Semaphore(0)

    def lane_of(self, query: Query) -> Lane:
        return Lane("recommend", 0, len(query.exclude), 0)

    def take(self, waiting: int) -> int:
        return min(waiting, 4)

    def run(self, lane: Lane, queries: Sequence[Query]) -> list[Answer]:
        numbers = [int(query.items[0]) for query in queries]
        self.batches.append(numbers)
        assert self.may_run.acquire(timeout=10)
        if 13 in numbers:
            raise RuntimeError("13 is not computed")
        return [Answer(query.items, query.items / 2) for query in queries]


def query(number: int, lane: int = 0) -> Query:
    return Query("recommend", items=np.array([number]), exclude=np.zeros(lane, np.int32))


def run(work: Callable[[Slow, Batcher], Coroutine[Any, Any, None]], **options: int) -> Slow:
    async def main() -> Slow:
        engine = Slow()
        batcher = Batcher(engine, **options)  # type: ignore[arg-type]
        await work(engine, batcher)
        engine.may_run.release(100)
        await batcher.close()
        return engine

    return asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


def test_a_lone_query_runs_at_once_and_others_gather_while_it_does() -> None:
    sizes: list[int] = []

    async def work(engine: Slow, batcher: Batcher) -> None:
        first = asyncio.create_task(batcher.submit(query(0), 5))
        await until(lambda: engine.batches == [[0]])
        rest = [asyncio.create_task(batcher.submit(query(n), 5)) for n in range(1, 7)]
        await until(lambda: batcher.waiting == 6)
        engine.may_run.release(3)
        answers = await asyncio.gather(first, *rest)
        assert [timed.answer.items[0] for timed in answers] == list(range(7))
        assert [timed.answer.scores[0] for timed in answers] == [n / 2 for n in range(7)]
        assert all(timed.waited >= 0 and timed.computed > 0 for timed in answers)

    engine = run(work, on_batch=sizes.append)  # type: ignore[arg-type]
    assert engine.batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert sizes == [1, 4, 2]


def test_lanes_take_turns_by_who_waited_longest() -> None:
    async def work(engine: Slow, batcher: Batcher) -> None:
        order = [(0, 0), (1, 1), (2, 0), (3, 1), (4, 2), (5, 0)]
        tasks = []
        for number, lane in order:
            tasks.append(asyncio.create_task(batcher.submit(query(number, lane), 5)))
            await asyncio.sleep(0.002)
        engine.may_run.release(6)
        await asyncio.gather(*tasks)

    assert run(work).batches == [[0], [1, 3], [2, 5], [4]]


def test_what_is_too_late_is_not_computed() -> None:
    async def work(engine: Slow, batcher: Batcher) -> None:
        first = asyncio.create_task(batcher.submit(query(0), 5))
        await until(lambda: engine.batches == [[0]])
        late = asyncio.create_task(batcher.submit(query(1), 0.01))
        patient = asyncio.create_task(batcher.submit(query(2), 5))
        await asyncio.sleep(0.05)
        engine.may_run.release(2)
        with pytest.raises(DeadlineExceeded):
            await late
        assert (await patient).answer.items[0] == 2
        await first

    assert run(work).batches == [[0], [2]]


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    async def work(engine: Slow, batcher: Batcher) -> None:
        tasks = [asyncio.create_task(batcher.submit(query(0), 5))]
        await until(lambda: engine.batches == [[0]])
        tasks += [asyncio.create_task(batcher.submit(query(n), 5)) for n in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as refused:
            await batcher.submit(query(3), 5)
        assert refused.value.retry_after >= 1
        engine.may_run.release(3)
        await asyncio.gather(*tasks)

    run(work, max_waiting=2)


def test_a_query_that_would_wait_too_long_is_refused_before_it_waits() -> None:
    async def work(engine: Slow, batcher: Batcher) -> None:
        for number in range(20, 40):  # each takes some 20 ms, which the batcher learns
            task = asyncio.create_task(batcher.submit(query(number), 5))
            await until(lambda number=number: engine.batches[-1:] == [[number]])  # type: ignore[misc]
            time.sleep(0.02)
            engine.may_run.release()
            await task
        tasks = [asyncio.create_task(batcher.submit(query(n), 5)) for n in range(100, 120)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await batcher.submit(query(1), 0.05)
        engine.may_run.release(100)
        await asyncio.gather(*tasks)

    run(work)


def test_a_failing_batch_fails_its_own_queries_alone() -> None:
    async def work(engine: Slow, batcher: Batcher) -> None:
        engine.may_run.release(100)
        with pytest.raises(RuntimeError, match="13 is not computed"):
            await batcher.submit(query(13), 5)
        assert (await batcher.submit(query(14), 5)).answer.items[0] == 14

    run(work)


def test_a_client_that_left_takes_nobody_with_it() -> None:
    async def work(engine: Slow, batcher: Batcher) -> None:
        first = asyncio.create_task(batcher.submit(query(0), 5))
        await until(lambda: engine.batches == [[0]])
        gone, there = (asyncio.create_task(batcher.submit(query(n), 5)) for n in (1, 2))
        await asyncio.sleep(0)
        gone.cancel()
        engine.may_run.release(2)
        assert (await there).answer.items[0] == 2
        await first

    run(work)


def test_closing_answers_what_waits_and_refuses_what_comes() -> None:
    async def main() -> None:
        engine = Slow()
        batcher = Batcher(engine)  # type: ignore[arg-type]
        tasks = [asyncio.create_task(batcher.submit(query(n), 5)) for n in range(6)]
        await until(lambda: bool(engine.batches))
        engine.may_run.release(100)
        await batcher.close()
        assert [timed.answer.items[0] for timed in await asyncio.gather(*tasks)] == list(range(6))
        with pytest.raises(Overloaded):
            await batcher.submit(query(7), 5)

    asyncio.run(main())
