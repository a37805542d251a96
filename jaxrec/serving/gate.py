"""What happens to every HTTP request before and after its route: limits, keys, measures, the log.

Requests are refused here before anything is read or parsed where that is possible, since under
overload a refusal must cost less than an answer.
"""

import asyncio
import collections
import contextlib
import dataclasses
import logging
import re
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import pydantic_core
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxrec.serving.audit import AuditLog
from jaxrec.serving.keys import Key, Keys
from jaxrec.serving.limits import Limits
from jaxrec.serving.metrics import Metrics
from jaxrec.serving.refusals import Refusal

log = logging.getLogger(__name__)

_LINGER_S = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class GateConfig:
    """Limits of requests.

    Attributes:
      max_body: bytes of a body.
      body_timeout_s: seconds in which a body must have come.
      max_lag_s: seconds that the event loop may be behind; above it, new requests are refused.
      hosts: the names by which clients may call the server where there are no keys; None for any.
        Else a page of another site, whose name leads here of late, could ask from a browser.
    """

    max_body: int = 1 << 20
    body_timeout_s: float = 10.0
    max_lag_s: float = 0.25
    hosts: frozenset[str] | None = None


class Gate:
    """ASGI middleware around all routes.

    A route finds the whole body in `scope["state"]["body"]`, and leaves what the audit log shall
    say in `scope["state"]["note"]`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        config: GateConfig,
        scopes: Mapping[str, str],
        metrics: Metrics,
        audit: AuditLog | None,
        keys: Callable[[], Keys | None],
        limits: Limits | None,
        health: "Health",
        routes: Collection[str] = (),
    ) -> None:
        """Wraps an application.

        Args:
          app: what answers.
          config: limits.
          scopes: the scope that a key must have for a path, by the beginning of paths, longest
            first; "" needs none.
          metrics: what counts.
          audit: the log, or none.
          keys: returns the keys that hold now; None lets everybody in.
          limits: how often a key, or an address, may ask; None does not limit.
          health: whether the server is behind, or about to end.
          routes: paths that metrics and log name when a request is refused here.
        """
        self._app, self._config, self._scopes = app, config, scopes
        self._metrics, self._audit, self._keys = metrics, audit, keys
        self._limits, self._health = limits, health
        self._routes = frozenset(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        state: dict[str, Any] = scope.setdefault("state", {})
        status, begun = 500, False

        async def answer(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                if self._health.draining:
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        try:
            body = await self._admit(scope, receive)
            if body is None:  # the client has gone
                status = 499
            else:
                state["body"] = body
                await self._app(scope, _told_once(body, receive), answer)
        except Refusal as refusal:
            await respond_refused(answer, scope, refusal, last=refusal.status != 413)
            if refusal.status == 413:
                await _end_after(receive, answer)
        except Exception:
            log.exception("a request failed")
            if not begun:
                why = "the server failed; its log says why."
                await respond_refused(answer, scope, Refusal(500, "internal", why))
        finally:
            seconds = time.perf_counter() - started
            route = state.get("route") or getattr(scope.get("route"), "path", None) or ""
            if not route:  # refused before it was looked for
                path = scope["path"]
                route = next((one for one in self._routes if _fits(one, path)), "other")
            self._metrics.request(route, status, seconds)
            if self._audit is not None and route in self._routes:
                note = state.get("note", {})
                self._audit.write(route=route, status=status, seconds=seconds, **note)

    async def _admit(self, scope: Scope, receive: Receive) -> bytes | None:
        """Returns the body of a request that may go on. Raises Refusal."""
        path = scope["path"]
        wanted = next(
            (needs for start, needs in self._scopes.items() if path.startswith(start)), ""
        )
        if wanted and self._health.lag > self._config.max_lag_s:
            self._metrics.rejected("overloaded")
            raise Refusal(503, "overloaded", "the server is behind; try again.", retry_after=1)
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if wanted:
            self._check_origin(headers)
            self._limit(scope, self._check_key(headers, wanted))
        if headers.get(b"content-encoding") not in (None, b"identity"):
            raise Refusal(415, "compressed", "send the body as it is, without Content-Encoding.")
        length = headers.get(b"content-length")
        if length is None and b"transfer-encoding" not in headers:
            return b""
        if length is not None and int(length) > self._config.max_body:
            raise self._too_large()
        if scope["state"].get("whole"):  # there is nothing to wait for
            return await self._read(receive)
        try:
            async with asyncio.timeout(self._config.body_timeout_s):
                return await self._read(receive)
        except TimeoutError:
            raise Refusal(408, "slow_body", "the body did not come in time.") from None

    async def _read(self, receive: Receive) -> bytes | None:
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size > self._config.max_body:
                raise self._too_large()
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> Refusal:
        most = self._config.max_body
        return Refusal(413, "too_large", f"a body has at most {most:,} bytes.")

    def _check_origin(self, headers: Mapping[bytes, bytes]) -> None:
        """Refuses pages of other sites, which a browser lets post to whatever it can reach."""
        host = headers.get(b"host")
        if self._keys() is not None or host is None:  # a page knows no key; a browser says a host
            return
        origin = headers.get(b"origin")
        foreign = origin is not None and origin.partition(b"://")[2] != host
        hosts = self._config.hosts
        name = re.sub(r":\d*$", "", host.decode("latin-1"))
        if foreign or (hosts is not None and name not in hosts):
            self._metrics.rejected("foreign_origin")
            raise Refusal(
                403,
                "forbidden",
                "without keys (--keys) only this machine may ask, and no page of another site.",
            )

    def _check_key(self, headers: Mapping[bytes, bytes], wanted: str) -> Key | None:
        keys = self._keys()
        if keys is None:
            return None
        given = headers.get(b"x-api-key")
        if given is None:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            given = given if scheme.lower() == b"bearer" else b""
        key = keys.find(given.decode("latin-1")) if given else None
        if key is None:
            self._metrics.rejected("unauthorized")
            raise Refusal(401, "unauthorized", "send a key as X-API-Key or Authorization: Bearer.")
        if wanted not in key.scopes:
            self._metrics.rejected("forbidden")
            raise Refusal(403, "forbidden", f"this key has not the scope {wanted!r}.")
        return key

    def _limit(self, scope: Scope, key: Key | None) -> None:
        if self._limits is None:
            return
        client = scope.get("client")
        who = f"key {key.name}" if key else f"address {client[0] if client else ''}"
        wait = self._limits.take(who, time.monotonic(), rate=key.rate if key else None)
        if wait > 0:
            self._metrics.rejected("rate_limited")
            raise Refusal(
                429, "rate_limited", "too many requests; slow down.", retry_after=int(wait) + 1
            )


class Health:
    """Whether the event loop keeps up, and whether the server is about to end.

    Attributes:
      lag: seconds by which the loop was late each of the last five times that it was looked at:
        one pause is no overload.
      draining: the server answers what it has, and takes no more soon.
    """

    def __init__(self) -> None:
        self.lag = 0.0
        self.draining = False

    async def watch(self, every_s: float = 0.02) -> None:
        """Measures the lag, for ever."""
        loop = asyncio.get_running_loop()
        late = collections.deque([0.0], maxlen=5)
        while True:
            due = loop.time() + every_s
            await asyncio.sleep(every_s)
            late.append(loop.time() - due)
            self.lag = min(late)


async def respond_refused(send: Send, scope: Scope, refusal: Refusal, *, last: bool = True) -> None:
    """Sends what every error looks like: a status, headers, and `schemas.ErrorResponse`.

    Clients of the open inference protocol want another body. Unless this is the `last` of the
    response, an empty part must end it.
    """
    error = {"code": refusal.code, "message": refusal.message, "fields": list(refusal.fields)}
    request_id = f"00000000-{secrets.token_hex(8)}"
    told = {"error": error, "request_id": request_id}
    scope["state"].setdefault("note", {})["request_id"] = request_id
    if scope["path"].startswith("/v2"):
        told = {"error": refusal.message}
    body = pydantic_core.to_json(told)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if refusal.retry_after is not None:
        headers.append((b"retry-after", str(refusal.retry_after).encode()))
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    headers += [(name.lower().encode(), value.encode()) for name, value in refusal.headers.items()]
    if refusal.status in (408, 413):  # the rest of the body is not read
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": not last})


async def _end_after(receive: Receive, send: Send) -> None:
    """Ends a response when the body has come after all, or did not come in time.

    To close on a client that still sends would take the response from it before it is read.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            while (await receive()).get("more_body", False):
                pass
    await send({"type": "http.response.body", "body": b""})


def _told_once(body: bytes, receive: Receive) -> Receive:
    """Returns a `receive` that gives the body that was read, and then what else comes."""
    told = False

    async def again() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _fits(route: str, path: str) -> bool:
    return re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", route), path) is not None
