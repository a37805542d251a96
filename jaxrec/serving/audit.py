"""The audit log: one line of JSON for each answer, written by a thread of its own.

A request only puts its entry into a queue. The thread writes what has gathered ten times a second,
so a process that is killed loses the entries of a tenth of a second, and a disk that is slow or
full loses entries and delays nobody.
"""

import collections
import contextlib
import itertools
import json
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxrec.typing import UserError

log = logging.getLogger(__name__)

FIELDS = (
    "time",
    "request_id",
    "route",
    "status",
    "model",
    "variant",
    "experiment",
    "rules",
    "applied",
    "k",
    "items",
    "latency_ms",
    "user",
)
_EVERY_S = 0.1
_TELL_EVERY_S = 60.0
_MOST_WAITING = 20_000
_FILE_MODE = 0o640
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode


class AuditLog:
    """Appends entries to a file, which is replaced by a new one when it is full.

    The full ones are FILE.1, the newest, to FILE.KEEP. A file that another program moves away or
    deletes, as logrotate does, is begun anew; no signal is needed.

    Attributes:
      lost: entries that were not written, as the queue or the disk was full.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        log_users: bool = False,
        max_bytes: int = 64 << 20,
        keep: int = 5,
        on_lost: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Opens the file and starts the thread.

        Args:
          path: the file; it is appended to.
          log_users: whether entries say who asked.
          max_bytes: a file is full when the next lines would make it larger.
          keep: how many full files are kept, at least 1.
          on_lost: is told of each number of entries that are lost, in any thread.

        Raises:
          UserError: when the file cannot be opened.
        """
        self.lost = 0
        self._log_users = log_users
        self._on_lost = on_lost
        self._waiting: collections.deque[tuple[Any, ...]] = collections.deque()
        self._closed = threading.Event()
        self._count_lock = threading.Lock()
        self._silent_until_s = 0.0
        try:
            self._file = _File(Path(path), max_bytes, keep)
        except OSError as error:
            raise UserError(
                f"the audit log {path} cannot be written ({error.strerror}). Name a file in a "
                "folder that exists and that this process may write to."
            ) from None
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def write(
        self,
        *,
        route: str,
        status: int,
        seconds: float,
        request_id: str | None = None,
        model: str | None = None,
        variant: str | None = None,
        experiment: str | None = None,
        rules: str | None = None,
        applied: Sequence[str] = (),
        k: int | None = None,
        items: int | None = None,
        user: str | None = None,
    ) -> None:
        """Puts an entry into the queue; never waits. What is left out is null in the file.

        Args:
          route: the path's template.
          status: of the response.
          seconds: from the request's head to the answer.
          request_id: as in the response.
          model: fingerprint of the model that answered.
          variant: the part that it plays, "primary" or "candidate".
          experiment: name of the comparison that the request took part in.
          rules: version of the rules.
          applied: names of the rules that changed the answer; not to be changed afterwards.
          k: how many items were asked for.
          items: how many items were given, scored or stored.
          user: who asked; it is left out unless the log is to have users.
        """
        if len(self._waiting) >= _MOST_WAITING or self._closed.is_set():
            self._lose(1)
            return
        asked = (round(time.time(), 3), request_id, route, status)
        by = (model, variant, experiment, rules, applied)
        who = (user,) if self._log_users else ()
        self._waiting.append((*asked, *by, k, items, round(seconds * 1000, 3), *who))

    def close(self) -> None:
        """Writes what waits and ends; what comes later is lost. A second time does nothing."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._thread.join()
        self._file.close()

    def _run(self) -> None:
        closing = False
        while not closing:
            closing = self._closed.wait(_EVERY_S)
            lines = [_line(self._waiting.popleft()) for _ in range(len(self._waiting))]
            before = self._file.written
            try:
                self._file.append(lines)
            except OSError as error:
                self._lose(len(lines) - (self._file.written - before))
                self._tell(error)

    def _lose(self, count: int) -> None:
        with self._count_lock:
            self.lost += count
        self._on_lost(count)

    def _tell(self, error: OSError) -> None:
        now_s = time.monotonic()
        if now_s >= self._silent_until_s:
            self._silent_until_s = now_s + _TELL_EVERY_S
            log.error("audit log: %s; %d entries lost so far", error.strerror, self.lost)


def _line(entry: tuple[Any, ...]) -> bytes:
    # The last field, the user, is in entries only when it is wanted.
    fields = dict(zip(FIELDS, entry, strict=False))
    return _ENCODE(fields).encode() + b"\n"


class _File:
    """Lines in a file, moved aside when it is full. For one thread; raises OSError.

    Attributes:
      written: how many lines there were in all.
    """

    def __init__(self, path: Path, max_bytes: int, keep: int) -> None:
        self.written = 0
        self._path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._descriptor = self._open()

    def append(self, lines: list[bytes]) -> None:
        """Appends lines, each as a whole or not at all."""
        if lines and self._is_gone():
            self._begin()
        while lines:
            count = self._fitting(lines)
            if count:
                self._write(b"".join(lines[:count]))
            else:
                self._rotate()
            lines = lines[count:]

    def close(self) -> None:
        os.close(self._descriptor)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, _FILE_MODE)

    def _begin(self) -> None:
        """Opens the file anew; the old one stays open when that fails."""
        old, self._descriptor = self._descriptor, self._open()
        os.close(old)

    def _is_gone(self) -> bool:
        """Returns whether another file has the name now, or none."""
        try:
            return not os.path.samestat(os.stat(self._path), os.fstat(self._descriptor))
        except FileNotFoundError:
            return True

    def _fitting(self, lines: list[bytes]) -> int:
        """Returns how many lines fit into the file; an empty one takes any line."""
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):  # a pipe is never full
            return len(lines)
        ends = itertools.accumulate(map(len, lines), initial=status.st_size)
        next(ends)
        count = sum(end <= self._max_bytes for end in ends)
        return count if count or status.st_size else 1

    def _write(self, data: bytes) -> None:
        done = 0
        try:
            while done < len(data):
                done += os.write(self._descriptor, data[done:])
        finally:
            whole = data.rfind(b"\n", 0, done) + 1
            self.written += data.count(b"\n", 0, whole)
            if whole < done:  # no half line stays; a pipe cannot take it back
                with contextlib.suppress(OSError):
                    size = os.fstat(self._descriptor).st_size
                    os.ftruncate(self._descriptor, size - (done - whole))

    def _rotate(self) -> None:
        for number in range(self._keep - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{self._path}.{number}", f"{self._path}.{number + 1}")
        os.replace(self._path, f"{self._path}.1")
        self._begin()
