"""Sockets and connections: how uvicorn is run here, and clients that connect and say nothing."""

import asyncio
import contextlib
import socket
from collections.abc import Generator
from typing import Any

import pydantic_core
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from jaxrec.typing import UserError

_HEADERS_S = 10.0


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that is bound; port 0 takes any that is free.

    Raises:
      UserError: when the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise UserError(
            f"cannot listen on {host}:{port} ({error}). Is another server there? "
            "Choose another --port, or another --host."
        ) from None
    bound.set_inheritable(True)
    return bound


class Server(uvicorn.Server):
    """uvicorn, which leaves signals to who runs it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


class _Joining:
    """A transport that sends what is written in one turn of the event loop as one packet.

    uvicorn writes head and body of a response by themselves, which is two calls of the system, of
    which each costs as much as computing the answer, and wakes the client up twice.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _flush(self) -> None:
        if self._parts:
            parts, self._parts = self._parts, []
            self._transport.write(b"".join(parts))


def protocol(max_connections: int) -> type[asyncio.Protocol]:
    """Returns uvicorn's HTTP protocol with two more limits.

    A client must send the headers of a request within 10 s of connecting or of their first byte,
    and there are at most `max_connections` clients.
    """

    class Protocol(HttpToolsProtocol):
        _patience: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(_Joining(transport, self.loop))  # type: ignore[arg-type]
            if len(self.connections) > max_connections:
                transport.write(_FULL)
                transport.close()
            else:
                self._wait()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            if self._patience is None:
                self._wait()

        def on_headers_complete(self) -> None:
            self._stop_waiting()
            super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _wait(self) -> None:
            self._patience = self.loop.call_later(_HEADERS_S, self.transport.close)

        def _stop_waiting(self) -> None:
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None

    return Protocol


def _full() -> bytes:
    error: dict[str, Any] = {"code": "overloaded", "message": "too many clients.", "fields": []}
    body = pydantic_core.to_json({"error": error, "request_id": ""})
    head = (
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
        f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


_FULL = _full()
