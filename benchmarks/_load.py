"""Constant arrivals at an HTTP server on this machine, from a process of its own.

Requests are due at fixed times, whatever the server does, and a latency counts from when its
request was due: a server that stalls is charged for all who would have come meanwhile (no
coordinated omission). `python benchmarks/_load.py` reads a plan as JSON from its standard input and
prints what happened as JSON.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

_TICK_S = 0.001


def measure(
    port: int,
    path: str,
    bodies: list[str],
    *,
    rate: float,
    seconds: float,
    max_connections: int = 256,
    give_up_s: float = 10.0,
) -> dict[str, Any]:
    """Sends requests at a constant rate to 127.0.0.1, in another process.

    Args:
      port: where the server listens.
      path: what to POST to.
      bodies: what to POST, in turn.
      rate: requests a second.
      seconds: how long.
      max_connections: how many connections are kept open.
      give_up_s: how long to wait for the last answers.

    Returns:
      "offered" and "answered" requests a second, the number of requests "sent" and "unanswered",
      "statuses" by code, and percentiles in milliseconds "p50", "p95", "p99", "max" of all that
      were due; one that was not answered took until the end.
    """
    plan = {"port": port, "path": path, "bodies": bodies, "rate": rate, "seconds": seconds}
    plan |= {"max_connections": max_connections, "give_up_s": give_up_s}
    done = subprocess.run(
        [sys.executable, str(Path(__file__))],
        input=json.dumps(plan),
        capture_output=True,
        text=True,
        timeout=seconds + give_up_s + 60,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


class _Connection(asyncio.Protocol):
    """One connection, with one request at a time."""

    def __init__(self, load: "_Load") -> None:
        self.load = load
        self.due = 0.0
        self.waits = False
        self.parts = b""
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.load.idle(self)

    def send(self, due: float, request: bytes) -> None:
        self.due, self.waits = due, True
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.parts = data = self.parts + data if self.parts else data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return
        head = data[:end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0])
        if len(data) < end + 4 + length:
            return
        self.parts, self.waits = b"", False
        self.load.answered(self.due, int(data[9:12]))
        self.load.idle(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.waits:
            self.load.answered(self.due, 0)
        self.load.lost(self)


class _Load:
    """All connections and what came back."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        head = (
            f"POST {plan['path']} HTTP/1.1\r\nHost: localhost\r\n"
            "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n"
        )
        bodies = [body.encode() for body in plan["bodies"]]
        self.requests = [head.format(len(body)).encode() + body for body in bodies]
        self.free: list[_Connection] = []
        self.open = 0
        self.backlog: deque[tuple[float, bytes]] = deque()
        self.latencies: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.last = 0.0

    def idle(self, connection: _Connection) -> None:
        if self.backlog:
            connection.send(*self.backlog.popleft())
        else:
            self.free.append(connection)

    def answered(self, due: float, status: int) -> None:
        self.last = time.perf_counter()
        self.latencies.append(self.last - due)
        self.statuses[status] += 1

    def lost(self, connection: _Connection) -> None:
        self.open -= 1
        if connection in self.free:
            self.free.remove(connection)

    async def run(self) -> dict[str, Any]:
        plan, loop = self.plan, asyncio.get_running_loop()
        count = int(plan["rate"] * plan["seconds"])
        opening: set[asyncio.Task[Any]] = set()
        begin, sent = time.perf_counter() + 0.2, 0
        while sent < count:
            now = time.perf_counter()
            while sent < count and (due := begin + sent / plan["rate"]) <= now:
                request = self.requests[sent % len(self.requests)]
                sent += 1
                if self.free:
                    self.free.pop().send(due, request)
                    continue
                self.backlog.append((due, request))
                if self.open < plan["max_connections"]:
                    self.open += 1
                    task = asyncio.create_task(self._connect(loop))
                    opening.add(task)
                    task.add_done_callback(opening.discard)
            await asyncio.sleep(_TICK_S)
        end = time.perf_counter() + plan["give_up_s"]
        while len(self.latencies) < count and time.perf_counter() < end:
            await asyncio.sleep(0.01)
        missing = count - len(self.latencies)
        took = sorted([*self.latencies, *[time.perf_counter() - begin] * missing])

        def percentile(share: float) -> float:
            return 1e3 * took[min(len(took) - 1, int(share * len(took)))]

        return {
            "offered": plan["rate"],
            "answered": self.statuses[200] / max(self.last - begin, plan["seconds"]),
            "sent": count,
            "unanswered": missing,
            "statuses": {str(code): n for code, n in sorted(self.statuses.items())},
            "p50": percentile(0.5),
            "p95": percentile(0.95),
            "p99": percentile(0.99),
            "max": 1e3 * took[-1],
        }

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            await loop.create_connection(lambda: _Connection(self), "127.0.0.1", self.plan["port"])
        except OSError:
            self.open -= 1


if __name__ == "__main__":
    import uvloop

    print(json.dumps(uvloop.run(_Load(json.load(sys.stdin)).run())))
