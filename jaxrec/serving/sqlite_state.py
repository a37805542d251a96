"""User histories in an SQLite file: durable, with nothing else to run.

Additions that wait at the same time share one transaction, and so one flush to the disk: a flush
takes milliseconds, an addition microseconds. One thread writes. Reads take tens of microseconds and
are done on the event loop's own thread, which a hand-over to another thread would double.
Several processes may open one file; it must lie on a disk of this machine.
"""

import asyncio
import contextlib
import dataclasses
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxrec.serving.state import Event, StateUnavailable
from jaxrec.typing import UserError

# In the order of the key all that is asked lies side by side. `arrival` counts events of one time.
_TABLE = """
CREATE TABLE IF NOT EXISTS events (
    user TEXT NOT NULL, time REAL NOT NULL, arrival INTEGER NOT NULL,
    item TEXT NOT NULL, type TEXT NOT NULL, PRIMARY KEY (user, time, arrival)
) WITHOUT ROWID
"""
_FORGOTTEN = "CREATE TABLE IF NOT EXISTS forgotten (user TEXT PRIMARY KEY) WITHOUT ROWID"
_NOTES = "CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, text TEXT NOT NULL)"
_FORGET = (
    "DELETE FROM events WHERE user = :user",
    "INSERT OR IGNORE INTO forgotten VALUES (:user)",
)
_SET_NOTE = ("INSERT OR REPLACE INTO notes VALUES (:name, :text)",)
_ADD = """
INSERT INTO events (user, time, arrival, item, type)
SELECT :user, :time,
    (SELECT ifnull(max(arrival), 0) + 1 FROM events WHERE user = :user AND time = :time),
    :item, :type
WHERE NOT EXISTS (
    SELECT 1 FROM events WHERE user = :user AND time = :time AND item = :item AND type = :type)
"""
_TRIM = """
DELETE FROM events WHERE user = :user AND (time, arrival) < (
    SELECT time, arrival FROM events WHERE user = :user
    ORDER BY time DESC, arrival DESC LIMIT 1 OFFSET :max_events - 1)
"""
_HISTORY = """
SELECT item FROM events WHERE user = :user ORDER BY time DESC, arrival DESC LIMIT :max_events
"""
_EVENTS = """
SELECT item, time, type FROM events WHERE user = :user
ORDER BY time DESC, arrival DESC LIMIT :max_events
"""
# Goes from user to user; SELECT DISTINCT would read all their events.
_USERS = """
WITH RECURSIVE found(user) AS (
    SELECT min(user) FROM events WHERE user >= :prefix
    UNION ALL
    SELECT (SELECT min(user) FROM events WHERE user > found.user)
    FROM found WHERE substr(found.user, 1, length(:prefix)) = :prefix LIMIT :limit
)
SELECT user FROM found WHERE substr(user, 1, length(:prefix)) = :prefix
"""
_WRITE_LOCK_SECONDS = 2.0  # how long the writer waits for another process
_READ_LOCK_SECONDS = 0.1  # the event loop stands still meanwhile; readers wait for recovery alone
_ADD_SECONDS = 5.0
_MOST_WAITING = 10_000
_MOST_IN_ONE_COMMIT = 1_000


class SqliteState:
    """A store in an SQLite file in WAL mode, which only its owner may read.

    An acknowledged event survives SIGKILL and, as the log is flushed at each commit, power loss.
    A full disk, a lock, or a damaged file raise `StateUnavailable`; the file is opened anew at
    the next call.
    """

    def __init__(self, path: Path, *, max_events: int) -> None:
        if not path.parent.is_dir():
            raise UserError(f"the folder of {path} does not exist. Make it, or choose another.")
        self._path, self._max_events = path, max_events
        self._writer = _Writer(path, max_events)
        self._reader: sqlite3.Connection | None = None

    async def add(self, events: Sequence[Event]) -> None:
        await self._writer.add(events)

    async def history(self, user: str) -> list[str]:
        rows = await self._read(_HISTORY, user=user, max_events=self._max_events)
        return [item for (item,) in rows[::-1]]

    async def events(self, user: str) -> list[Event]:
        rows = await self._read(_EVENTS, user=user, max_events=self._max_events)
        return [Event(user, item, time, type) for item, time, type in rows[::-1]]

    async def users(self, prefix: str, limit: int) -> list[str]:
        return [user for (user,) in await self._read(_USERS, prefix=prefix, limit=limit)]

    async def forget(self, user: str) -> None:
        await self._writer.change(_FORGET, user=user)

    async def forgotten(self) -> set[str]:
        return {user for (user,) in await self._read("SELECT user FROM forgotten")}

    async def note(self, name: str) -> str | None:
        rows = await self._read("SELECT text FROM notes WHERE name = :name", name=name)
        return rows[0][0] if rows else None

    async def set_note(self, name: str, text: str) -> None:
        await self._writer.change(_SET_NOTE, name=name, text=text)

    async def check(self) -> None:
        await self._writer.add(())
        await self._read("SELECT user FROM events LIMIT 1")

    async def close(self) -> None:
        await self._writer.close()
        self._forget_reader()

    async def _read(self, query: str, **values: Any) -> list[tuple[Any, ...]]:
        """Returns the rows that a query finds."""
        if not self._writer.has_committed:
            await self._writer.add(())  # it makes the file, and waits for others that do
        try:
            if self._reader is None:
                self._reader = _connect(self._path, _READ_LOCK_SECONDS)
                self._reader.execute(f"PRAGMA busy_timeout = {1000 * _READ_LOCK_SECONDS:.0f}")
            return self._reader.execute(query, values).fetchall()
        except (sqlite3.Error, OSError) as error:
            self._forget_reader()
            raise StateUnavailable(f"{self._path} cannot be read: {error}") from error

    def _forget_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader = None


@dataclass(frozen=True, slots=True)
class _Addition:
    """Events to add, or statements to execute with some values, after all that came before."""

    events: Sequence[Event]
    done: asyncio.Future[None]
    statements: Sequence[str] = ()
    values: Mapping[str, str] = dataclasses.field(default_factory=dict)


class _Writer:
    """A thread that commits all additions that wait, and then says so to those who asked."""

    def __init__(self, path: Path, max_events: int) -> None:
        self._path, self._max_events = path, max_events
        self._waiting: queue.SimpleQueue[_Addition | None] = queue.SimpleQueue()
        self._connection: sqlite3.Connection | None = None
        self.has_committed = False
        self._thread = threading.Thread(target=self._run, name="jaxrec-state", daemon=True)
        self._thread.start()

    async def add(self, events: Sequence[Event]) -> None:
        """Adds events."""
        await self._take(events, (), {})

    async def change(self, statements: Sequence[str], **values: str) -> None:
        """Executes statements in one transaction."""
        await self._take((), statements, values)

    async def _take(
        self, events: Sequence[Event], statements: Sequence[str], values: Mapping[str, str]
    ) -> None:
        if not self._thread.is_alive() or self._waiting.qsize() >= _MOST_WAITING:
            raise StateUnavailable(f"{self._path} does not take more events now.")
        done = asyncio.get_running_loop().create_future()
        addition = _Addition(events, done, statements, values)
        self._waiting.put(addition)
        try:
            await asyncio.wait_for(addition.done, _ADD_SECONDS)
        except TimeoutError:
            raise StateUnavailable(
                f"{self._path} was not written within {_ADD_SECONDS} s."
            ) from None

    async def close(self) -> None:
        self._waiting.put(None)
        await asyncio.to_thread(self._thread.join, _ADD_SECONDS)

    def _run(self) -> None:
        group: list[_Addition] = []
        while self._gather(group):
            error = self._commit(group)
            with contextlib.suppress(RuntimeError):  # the event loop has ended
                loop = group[0].done.get_loop()
                loop.call_soon_threadsafe(_settle, tuple(group), error)
            group.clear()
        self._forget_connection()

    def _gather(self, group: list[_Addition]) -> bool:
        """Fills a group with what waits; waits for the first. False when there is no more."""
        addition = self._waiting.get()
        while addition is not None:
            group.append(addition)
            # What is no addition of events ends a group, so that it comes after what came before.
            full = len(group) == _MOST_IN_ONE_COMMIT or addition.statements
            if full or self._waiting.empty():
                return True
            addition = self._waiting.get()
        if group:
            self._waiting.put(None)  # the end, for the next call
        return bool(group)

    def _commit(self, group: Sequence[_Addition]) -> StateUnavailable | None:
        """Writes a group in one transaction; returns what went wrong, and then none is written."""
        events = [event for addition in group for event in addition.events]
        additions = [
            {"user": e.user, "time": e.time, "item": e.item, "type": e.type} for e in events
        ]
        trims = [
            {"user": user, "max_events": self._max_events}
            for user in sorted({event.user for event in events})
        ]
        try:
            if self._connection is None:
                self._connection = _connect(self._path, _WRITE_LOCK_SECONDS)
            _execute(self._connection, "BEGIN IMMEDIATE", _WRITE_LOCK_SECONDS)
            self._connection.executemany(_ADD, additions)
            self._connection.executemany(_TRIM, trims)
            for statement in group[-1].statements:
                self._connection.execute(statement, group[-1].values)
            self._connection.execute("COMMIT")
            self.has_committed = True
        except Exception as error:  # whatever it is, those who wait must hear of it
            self._forget_connection()  # which also undoes a transaction that was begun
            unavailable = StateUnavailable(f"{self._path} cannot be written: {error}")
            unavailable.__cause__ = error
            return unavailable
        return None

    def _forget_connection(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
        self._connection = None


def _settle(group: Sequence[_Addition], error: StateUnavailable | None) -> None:
    for addition in group:
        if addition.done.done():  # the request was cancelled, or waited too long
            continue
        if error is None:
            addition.done.set_result(None)
        else:
            # One of its own for each: an exception keeps the frames that it went through.
            addition.done.set_exception(StateUnavailable(*error.args))


def _connect(path: Path, lock_seconds: float) -> sqlite3.Connection:
    """Opens a file, made if need be. Raises sqlite3.Error or OSError."""
    with contextlib.suppress(FileExistsError):
        # SQLite would make it readable for all; what lies beside it takes the mode from it.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        for setting in (
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = FULL",  # NORMAL would flush at checkpoints alone
            "PRAGMA fullfsync = ON",  # on macOS fsync alone does not reach the disk
            "PRAGMA secure_delete = ON",  # what is forgotten is written over
            _TABLE,
            _FORGOTTEN,
            _NOTES,
        ):
            _execute(connection, setting, lock_seconds)
    except BaseException:
        connection.close()
        raise
    return connection


def _execute(connection: sqlite3.Connection, statement: str, lock_seconds: float) -> None:
    """Executes a statement, asking again while another process has the lock.

    SQLite's own waiting asks ten times a second, which a process that writes all the time leaves
    no chance, and does not wait at all while WAL is turned on.
    """
    deadline = time.monotonic() + lock_seconds
    while True:
        try:
            connection.execute(statement)
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.001)
