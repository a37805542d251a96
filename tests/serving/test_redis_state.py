"""The Redis store when Redis is killed, stands still, forbids or forgets; and its warning."""

import asyncio
import logging
import signal
import time
from collections.abc import Awaitable, Iterator
from typing import Any

import pytest

from jaxrec.serving.state import Event, State, StateUnavailable, open_state

type Server = Any  # the RedisServer of conftest.py


@pytest.fixture
def server(redis_server: Server) -> Iterator[Server]:
    """An empty Redis, which runs again after the test."""
    redis_server.say("FLUSHALL")
    yield redis_server
    if redis_server.process.poll() is not None:
        redis_server.start()


async def fails_within_a_second(call: Awaitable[Any]) -> None:
    start = time.monotonic()
    with pytest.raises(StateUnavailable, match="Redis"):
        await call
    assert time.monotonic() - start < 1


async def fails(store: State) -> None:
    await fails_within_a_second(store.history("u"))
    await fails_within_a_second(store.add([Event("u", "lost", 2)]))
    await fails_within_a_second(store.users("", 5))
    await fails_within_a_second(store.check())


def test_redis_killed_is_unavailable_at_once_and_back_with_all_that_it_acknowledged(
    server: Server,
) -> None:
    async def run() -> None:
        store = open_state(server.url)
        await asyncio.gather(*(store.add([Event("u", str(n), n)]) for n in range(50)))
        server.kill()
        await fails(store)
        server.start()
        assert await store.history("u") == [str(n) for n in range(50)]
        await store.add([Event("u", "new", 99)])
        assert (await store.history("u"))[-2:] == ["49", "new"]
        await store.check()
        await store.close()

    asyncio.run(run())


def test_a_restart_between_two_calls_goes_unnoticed(server: Server) -> None:
    async def run() -> None:
        store = open_state(server.url)
        await store.add([Event("u", "1", 1)])
        assert await store.history("u") == ["1"]
        server.kill()
        server.start()
        await store.add([Event("u", "2", 2)])
        assert await store.history("u") == ["1", "2"]
        await store.close()

    asyncio.run(run())


def test_acknowledged_events_survive_a_kill_under_load(server: Server) -> None:
    acknowledged: set[tuple[str, str]] = set()

    async def add(store: State, user: str) -> None:
        for n in range(100_000):
            try:
                await store.add([Event(user, str(n), n)])
            except StateUnavailable:
                return
            acknowledged.add((user, str(n)))

    async def run() -> None:
        store = open_state(server.url, max_events=100_000)
        tasks = [asyncio.create_task(add(store, f"u{task}")) for task in range(16)]
        await asyncio.sleep(0.3)
        server.kill()
        await asyncio.gather(*tasks)
        server.start()
        assert len(acknowledged) > 100
        kept = {(f"u{n}", item) for n in range(16) for item in await store.history(f"u{n}")}
        assert acknowledged <= kept
        await store.close()

    asyncio.run(run())


def test_redis_that_stands_still_is_unavailable_at_once(server: Server) -> None:
    async def run() -> None:
        store = open_state(server.url)
        await store.add([Event("u", "1", 1)])
        server.process.send_signal(signal.SIGSTOP)
        try:
            await fails(store)
            calls = [fails_within_a_second(store.history("u")) for _ in range(50)]
            await asyncio.gather(*calls)
        finally:
            server.process.send_signal(signal.SIGCONT)
        assert "1" in await store.history("u")
        await store.close()

    asyncio.run(run())


def test_what_redis_refuses_is_unavailable_and_spoils_no_other_call(server: Server) -> None:
    async def run() -> None:
        store = open_state(server.url)
        await store.add([Event("good", "1", 1)])
        server.say("SET jaxrec:history:bad text")
        bad, good = await asyncio.gather(
            store.history("bad"), store.history("good"), return_exceptions=True
        )
        assert isinstance(bad, StateUnavailable) and "WRONGTYPE" in str(bad)
        assert good == ["1"]
        await store.close()

    asyncio.run(run())


def test_a_password_that_is_wrong_is_unavailable_and_not_repeated(server: Server) -> None:
    async def run() -> None:
        store = open_state(server.url.replace("redis://", "redis://name:secret@"))
        with pytest.raises(StateUnavailable) as caught:
            await store.check()
        assert "secret" not in str(caught.value)
        await store.close()

    asyncio.run(run())


def test_all_keys_lie_in_our_name_space(server: Server) -> None:
    async def run() -> None:
        store = open_state(server.url)
        await store.add([Event("u", "1", 1), Event("v", "1", 1)])
        await store.close()

    asyncio.run(run())
    keys = server.say("KEYS *").decode().split("\r\n")[2::2]
    assert sorted(keys) == ["jaxrec:history:u", "jaxrec:history:v", "jaxrec:users"]


def test_the_check_warns_once_when_redis_may_lose_what_it_acknowledges(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async def check_twice() -> None:
        store = open_state(server.url)
        await store.check()
        await store.check()
        await store.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(check_twice())
        assert caplog.messages == []
        server.say("CONFIG SET appendfsync everysec")
        try:
            asyncio.run(check_twice())
        finally:
            server.say("CONFIG SET appendfsync always")
    assert len(caplog.messages) == 1
    assert "appendfsync everysec: events that it acknowledges may be lost" in caplog.messages[0]
