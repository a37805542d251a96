"""Sockets and connections: how uvicorn is run here, and clients that are slow or say too much."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Generator
from typing import Any

import pydantic_core
import uvicorn
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from jaxrec.typing import UserError

_MOST_HEAD = 64 << 10
_LAST_S = 0.25


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
        raise _not_to_be_had(f"{host}:{port}", error) from None
    bound.set_inheritable(True)
    return bound


class Server(uvicorn.Server):
    """uvicorn, which leaves signals to who runs it."""

    def __init__(self, config: uvicorn.Config, on_listening: Callable[[], None]) -> None:
        """Does nothing yet.

        Args:
          config: how to serve.
          on_listening: is called when clients can connect.
        """
        super().__init__(config)
        self._on_listening = on_listening

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Raises UserError when another server took the port since it was bound."""
        try:
            for one in sockets or ():
                one.listen(self.config.backlog)  # uvloop would keep the error to itself
        except OSError as error:
            raise _not_to_be_had("the port", error) from None
        await super().startup(sockets)
        self._on_listening()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        late = [socket.dup() for socket in sockets or ()]
        for server in self.servers:
            server.close()
        await self._accept_the_last(late)
        # Who is connected may have sent what has not arrived; it is answered too.
        await asyncio.sleep(_LAST_S)
        await super().shutdown(sockets)

    async def _accept_the_last(self, listening: list[socket.socket]) -> None:
        """Lets in who has connected already, and would be cut off when the sockets are closed."""
        loop = asyncio.get_running_loop()
        connections: list[socket.socket] = []
        for one in listening:
            one.setblocking(False)
            with one, contextlib.suppress(OSError):  # at the latest, that there is no more
                while len(connections) < self.config.backlog:
                    connections.append(one.accept()[0])
        for connection in connections:
            connection.setblocking(False)
            await loop.connect_accepted_socket(
                lambda: self.config.http_protocol_class(  # type: ignore[call-arg]
                    config=self.config,
                    server_state=self.server_state,
                    app_state=self.lifespan.state,
                    _loop=loop,
                ),
                connection,
            )


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
            if not self._transport.is_closing():  # or the client left in this turn
                self._transport.write(b"".join(parts))


def protocol(max_connections: int, patience_s: float) -> type[asyncio.Protocol]:
    """Returns uvicorn's HTTP protocol with more limits, so that nobody holds a connection for long.

    It says in `scope["state"]["whole"]` when all of a request has come.

    Args:
      max_connections: how many clients may be connected.
      patience_s: seconds in which a client must send the head of a request, counted from when it
        connects or begins, and in which it must make room for an answer.
    """

    class Protocol(HttpToolsProtocol):
        _patience: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None
        _in_head = False
        _head = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(_Joining(transport, self.loop))  # type: ignore[arg-type]
            if len(self.connections) > max_connections:
                self._refuse(503, "overloaded", "too many clients.")
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._in_head:
                self._wait()  # not at its first byte: a timer costs as much as parsing a head
                self._head += len(data)
                if self._head > _MOST_HEAD and not self.transport.is_closing():
                    self._refuse(431, "too_large", f"a head has at most {_MOST_HEAD:,} bytes.")
            cycle: RequestResponseCycle | None = self.cycle
            idle = cycle is None or cycle.response_complete
            if idle and self.timeout_keep_alive_task is None:
                self._wait()  # for the end of what was refused, or for more than empty lines

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._in_head, self._head = True, 0

        def on_headers_complete(self) -> None:
            self._in_head = False
            self._stop_waiting()
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            super().on_message_complete()
            self.scope["state"]["whole"] = True

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.transport.is_closing():
                self._wait_for_reading()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self._wait_for_reading()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._wait_for_reading()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stop_waiting_for_reading()

        def send_400_response(self, msg: str) -> None:
            self._refuse(400, "invalid_request", "this is no HTTP that the server understands.")

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            self._stop_waiting_for_reading()
            super().connection_lost(exc)

        def _refuse(self, status: int, code: str, message: str) -> None:
            self.transport.write(_refusal(status, code, message))
            self.transport.close()
            self._wait_for_reading()

        def _wait(self) -> None:
            if self._patience is None:
                self._patience = self.loop.call_later(patience_s, self.transport.abort)

        def _stop_waiting(self) -> None:
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None

        def _wait_for_reading(self) -> None:
            # A transport that is closed stays until its client has read everything.
            if self._unread is None:
                self._unread = self.loop.call_later(patience_s, self.transport.abort)

        def _stop_waiting_for_reading(self) -> None:
            if self._unread is not None:
                self._unread.cancel()
                self._unread = None

    return Protocol


def _not_to_be_had(what: str, error: Exception) -> UserError:
    return UserError(
        f"cannot listen on {what} ({error}). Is another server there? "
        "Choose another --port, or another --host."
    )


def _refusal(status: int, code: str, message: str) -> bytes:
    """Returns a response for who is refused before there is a request."""
    error: dict[str, Any] = {"code": code, "message": message, "fields": []}
    body = pydantic_core.to_json({"error": error, "request_id": ""})
    retry = "retry-after: 1\r\n" if status == 503 else ""
    head = (
        f"content-type: application/json\r\n{retry}connection: close\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return STATUS_LINE[status] + head.encode() + body
