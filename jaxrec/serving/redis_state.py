"""User histories in Redis, for several replicas of the service.

A user's events are one sorted set: its score is the time, so Redis keeps the order, also of events
that come late, and trims by rank in one command. Members of one score are ordered as texts, so a
member begins with a counter among events of the same time; after it come the time, the type and the
item. A script compares these with what is there, so that adding twice is harmless, and is atomic.
A list would keep the order of arrival alone. A further sorted set holds all users: to look through
keys would be to look through all of them.

Redis acknowledges a write that is on the disk only with `appendonly yes` and `appendfsync always`.
One Redis is meant, with replicas or without, and no cluster: an addition touches several keys.

Commands that wait at the same time go in one round trip, one for reads and one for additions under
way at a time: it costs a tenth of the time on the event loop, and additions share a flush.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxrec.serving.state import Event, StateUnavailable
from jaxrec.typing import UserError

if TYPE_CHECKING:
    from redis.asyncio import Redis

_PREFIX = "jaxrec:"
_USERS, _FORGOTTEN, _NOTES = f"{_PREFIX}users", f"{_PREFIX}forgotten", f"{_PREFIX}notes"
_SECONDS = 0.25  # for a connection, and for an answer
_MOST_WAITING = 10_000
_MOST_WORDS_IN_ONE_TRIP = 5_000  # of commands; Redis works through so many in some milliseconds
# KEYS: all users, then the history of each event's user. ARGV: how many events are kept, then for
# each event its user, its time, and its time, type and item with NULs between.
_ADD = """
for i = 2, #KEYS do
    local user, time, event = ARGV[3 * i - 4], ARGV[3 * i - 3], ARGV[3 * i - 2]
    local counter, new = 0, true
    for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[i], time, time)) do
        new = new and string.sub(member, 9) ~= event
        counter = tonumber(string.sub(member, 1, 8), 16) + 1
    end
    if new then
        redis.call('ZADD', KEYS[i], time, string.format('%08x', counter) .. event)
        redis.call('ZADD', KEYS[1], 0, user)
    end
end
for i = 2, #KEYS do
    redis.call('ZREMRANGEBYRANK', KEYS[i], 0, -1 - ARGV[1])
end
"""
# KEYS: the history of a user, all users, those who were forgotten. ARGV: the user.
_FORGET = """
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('SADD', KEYS[3], ARGV[1])
"""
# One text, as the client takes microseconds for each text that it receives.
_HISTORY = "return table.concat(redis.call('ZRANGE', KEYS[1], -ARGV[1], -1), '\\0')"
_LOG = logging.getLogger(__name__)


class RedisState:
    """A store in Redis, under keys that begin with "jaxrec:"."""

    def __init__(self, url: str, *, max_events: int) -> None:
        self._client = _client(url)
        self._max_events = max_events
        self._reads, self._additions = _Trips(self._client), _Trips(self._client)
        self._durability_told = False

    async def add(self, events: Sequence[Event]) -> None:
        if not events:
            return
        keys = [_USERS, *(_history_key(event.user) for event in events)]
        values: list[str | int] = [self._max_events]
        for event in events:
            time = repr(event.time + 0.0)  # -0.0 is 0.0
            values += [event.user, time, f"{time}\0{event.type}\0{event.item}"]
        await self._additions.take("EVAL", _ADD, len(keys), *keys, *values)

    async def history(self, user: str) -> list[str]:
        return (await self._members(user))[2::3]

    async def events(self, user: str) -> list[Event]:
        parts = await self._members(user)
        # A counter of 8 digits stands before the time.
        members = zip(parts[0::3], parts[1::3], parts[2::3], strict=True)
        return [Event(user, item, float(time[8:]), type) for time, type, item in members]

    async def _members(self, user: str) -> list[str]:
        """Returns counter and time, type and item of each of a user's events, one after another."""
        key = _history_key(user)
        members = await self._reads.take("EVAL", _HISTORY, 1, key, self._max_events)
        return members.split("\0") if members else []

    async def forget(self, user: str) -> None:
        keys = (_history_key(user), _USERS, _FORGOTTEN)
        await self._additions.take("EVAL", _FORGET, 3, *keys, user)

    async def forgotten(self) -> set[str]:
        return set(await self._reads.take("SMEMBERS", _FORGOTTEN))

    async def note(self, name: str) -> str | None:
        text: str | None = await self._reads.take("HGET", _NOTES, name)
        return text

    async def set_note(self, name: str, text: str) -> None:
        await self._additions.take("HSET", _NOTES, name, text)

    async def users(self, prefix: str, limit: int) -> list[str]:
        # No byte of UTF-8 is 255, so this is the end of what begins with the prefix.
        first, last = b"[" + prefix.encode(), b"[" + prefix.encode() + b"\xff"
        return await self._reads.take("ZRANGEBYLEX", _USERS, first, last, "LIMIT", 0, limit)

    async def check(self) -> None:
        await self._reads.take("PING")
        if not self._durability_told:
            await self._tell_durability()
            self._durability_told = True

    async def close(self) -> None:
        await self._additions.finish()
        await self._reads.finish()
        await self._client.aclose()

    async def _tell_durability(self) -> None:
        """Warns in the log when Redis acknowledges what a crash may lose, if it tells."""
        from redis.exceptions import RedisError

        try:
            told = await self._client.config_get("append*")
        except RedisError:
            return  # hosted services often forbid the question
        for setting, wanted in {"appendonly": "yes", "appendfsync": "always"}.items():
            if told.get(setting) != wanted:
                _LOG.warning(
                    "Redis has %s %s: events that it acknowledges may be lost when it stops. "
                    "Set %s %s where that matters.",
                    *(setting, told.get(setting), setting, wanted),
                )


class _Trips:
    """Takes commands to Redis: those that come while a trip is under way share the next one."""

    def __init__(self, client: "Redis") -> None:
        self._client = client
        self._waiting: deque[tuple[tuple[Any, ...], asyncio.Future[Any]]] = deque()
        self._under_way: asyncio.Task[None] | None = None

    async def take(self, *command: Any) -> Any:
        """Returns the answer to a command. Raises StateUnavailable when there is none in time."""
        if len(self._waiting) >= _MOST_WAITING:
            raise StateUnavailable("too many requests wait for Redis.")
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append((command, answer))
        if self._under_way is None or self._under_way.done():
            self._under_way = asyncio.create_task(self._go())
        return await answer

    async def finish(self) -> None:
        if self._under_way is not None:
            await self._under_way

    async def _go(self) -> None:
        while self._waiting:
            group, words = [], 0
            while self._waiting and words < _MOST_WORDS_IN_ONE_TRIP:
                group.append(self._waiting.popleft())
                words += len(group[-1][0])
            for (_, asked), answer in zip(group, await self._answers(group), strict=True):
                if asked.done():  # the request was cancelled
                    continue
                if isinstance(answer, Exception):
                    asked.set_exception(StateUnavailable(f"Redis: {answer}"))
                else:
                    asked.set_result(answer)

    async def _answers(self, group: Sequence[tuple[tuple[Any, ...], Any]]) -> Sequence[Any]:
        """Returns an answer or an exception for each command."""
        pipeline = self._client.pipeline(transaction=False)
        for command, _ in group:
            pipeline.execute_command(*command)
        try:
            return await pipeline.execute(raise_on_error=False)
        except Exception as error:  # whatever it is, those who wait must hear of it
            return [error] * len(group)


def _history_key(user: str) -> str:
    return f"{_PREFIX}history:{user}"


def _client(url: str) -> "Redis":
    """Returns a client that reads text. Raises UserError for a URL that is none."""
    try:
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import ConnectionError as Disconnected
    except ImportError:
        raise UserError(
            "a store in Redis needs the package redis. Install it: pip install 'jaxrec[serve]'."
        ) from None
    try:
        return Redis.from_url(
            url,
            socket_timeout=_SECONDS,
            socket_connect_timeout=_SECONDS,
            # Once: a connection that was open before Redis restarted is found to be closed.
            retry=Retry(NoBackoff(), 1, supported_errors=(Disconnected,)),
            decode_responses=True,
        )
    except ValueError as error:
        # The URL may hold a password.
        raise UserError(
            f"the URL of Redis is not understood ({error}). Say redis://HOST:PORT/NUMBER."
        ) from None
