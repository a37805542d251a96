"""What users did, kept between requests: one interface over SQLite, Redis and memory.

A store answers within seconds or raises `StateUnavailable`, and works again by itself once what it
lies on does. It belongs to one event loop.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Protocol

from jaxrec.ids import is_unicode
from jaxrec.typing import UserError


class StateUnavailable(Exception):
    """The store does not answer now; the same call may be repeated, and counts once."""


@dataclass(frozen=True, slots=True)
class Event:
    """What a user did with an item.

    Attributes:
      user: the user's original id.
      item: the item's original id.
      time: Unix seconds.
      type: what was done.

    Raises:
      UserError: when a text is empty, holds a NUL or is no Unicode, or the time is not finite.
    """

    user: str
    item: str
    time: float
    type: str = "view"

    def __post_init__(self) -> None:
        for name in ("user", "item", "type"):
            text = getattr(self, name)
            if not text or "\0" in text or not is_unicode(text):
                raise UserError(
                    f"an event's {name} is a text of one character or more, without NUL; "
                    f"got {text!r}."
                )
        if not math.isfinite(self.time):
            raise UserError(f"an event's time is a finite number of seconds; got {self.time}.")


class State(Protocol):
    """A store of events, by user.

    Events are in the order of their times, and those of one time in the order in which they came.
    The same event (user, item, time, type) counts once, so that an `add` may be repeated. Of each
    user the newest `max_events` are kept.
    """

    async def add(self, events: Sequence[Event]) -> None:
        """Adds events, all or none; when it returns they are durable.

        Raises:
          StateUnavailable: when the store did not say in time that it has them. It may have them.
        """

    async def history(self, user: str) -> list[str]:
        """Returns the items of a user's kept events, oldest first; [] for an unknown user."""

    async def events(self, user: str) -> list[Event]:
        """Returns a user's kept events, oldest first; [] for an unknown user."""

    async def users(self, prefix: str, limit: int) -> list[str]:
        """Returns the first `limit` users, by code points, whose ids begin with a prefix."""

    async def forget(self, user: str) -> None:
        """Removes a user's events, and remembers that they were: an import brings none back.

        When it returns that is durable. Events that are added afterwards count.

        Raises:
          StateUnavailable: as `add`.
        """

    async def forgotten(self) -> set[str]:
        """Returns the users that were ever forgotten."""

    async def note(self, name: str) -> str | None:
        """Returns what was noted under a name about the store itself; None without."""

    async def set_note(self, name: str, text: str) -> None:
        """Notes something about the store itself, durably. Raises StateUnavailable as `add`."""

    async def check(self) -> None:
        """Raises StateUnavailable when the store cannot be reached, read or locked."""

    async def close(self) -> None:
        """Lets go of what is open, after what was being added; call nothing after it."""


def open_state(url: str, *, max_events: int = 1000) -> State:
    """Returns a store; it connects at its first use, so that `check` tells whether it can.

    Args:
      url: "sqlite:PATH", "redis://HOST:PORT/NUMBER" (also rediss:// and unix://), or "memory:",
        which forgets everything when the process ends.
      max_events: how many events of each user are kept, from 1 on.

    Raises:
      UserError: when the URL is none of these, or the folder of PATH does not exist.
    """
    if max_events < 1:
        raise UserError(f"at least 1 event of each user must be kept; got {max_events}.")
    scheme, _, rest = url.partition(":")
    if scheme == "sqlite" and rest:
        from jaxrec.serving.sqlite_state import SqliteState

        return SqliteState(Path(rest), max_events=max_events)
    if scheme in ("redis", "rediss", "unix"):
        from jaxrec.serving.redis_state import RedisState

        return RedisState(url, max_events=max_events)
    if url == "memory:":
        return MemoryState(max_events=max_events)
    # A URL may hold a password, so it is not repeated.
    raise UserError(
        f"no store is known under {scheme + ':'!r}. Say sqlite:PATH, redis://HOST:PORT or memory:."
    )


class MemoryState:
    """A store for tests and demonstrations: it survives nothing."""

    def __init__(self, *, max_events: int) -> None:
        self._max_events = max_events
        self._events: dict[str, list[Event]] = {}
        self._forgotten: set[str] = set()
        self._notes: dict[str, str] = {}

    async def add(self, events: Sequence[Event]) -> None:
        for event in events:
            kept = self._events.setdefault(event.user, [])
            if event not in kept:
                bisect.insort(kept, event, key=attrgetter("time"))
        for user in {event.user for event in events}:
            del self._events[user][: -self._max_events]

    async def history(self, user: str) -> list[str]:
        return [event.item for event in self._events.get(user, ())]

    async def events(self, user: str) -> list[Event]:
        return list(self._events.get(user, ()))

    async def forget(self, user: str) -> None:
        self._events.pop(user, None)
        self._forgotten.add(user)

    async def forgotten(self) -> set[str]:
        return set(self._forgotten)

    async def note(self, name: str) -> str | None:
        return self._notes.get(name)

    async def set_note(self, name: str, text: str) -> None:
        self._notes[name] = text

    async def users(self, prefix: str, limit: int) -> list[str]:
        return sorted(user for user in self._events if user.startswith(prefix))[:limit]

    async def check(self) -> None:
        pass

    async def close(self) -> None:
        pass
